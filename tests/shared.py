"""What tests of several rooms say in the same words."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch

from src.errors import InputError
from src.gpt.model import GPT, GPTConfig


class Answer(NamedTuple):
    """That of a command: its exit status and what it prints."""

    status: int
    out: str
    error: str


Command = Callable[..., Answer]


def sentence(call: Callable[[], Any]) -> str:
    """That with which wrong input is refused."""
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def refused(answer: Answer, named: str) -> None:
    """Assert that wrong input was answered with a sentence that names it."""
    assert (answer.status, answer.out) == (2, "")
    assert answer.error.startswith("error: ")
    assert named in answer.error


def quiet_trainer(**settings: Any) -> L.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(**(quiet | {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0} | settings))


def outspoken_gpt(config: GPTConfig, seed: int = 0) -> GPT:
    """A tiny GPT whose logits differ: with GPT-2's small initial weights all answers would be about as probable."""
    made = GPT(config, seed=seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    return made
