"""A finished run in memory, with what others need to read messages as it does."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.config import build
from src.data.batching import Batch, Messages
from src.data.datamodule import evaluation_loader, padding_of
from src.data.prompts import Prompt, Task
from src.data.tokenizer import encode
from src.errors import InputError
from src.finetune.base import FineTuner
from src.finetune.classifier import Classifier
from src.finetune.instruction import Instruct
from src.gpt.lora import merge
from src.runs import run_dir


@dataclass(frozen=True)
class FinishedRun:
    """Its settings, its result.json, and its trained model in fp32, whose adapters are merged into the weights."""

    cfg: DictConfig
    result: dict[str, Any]
    model: FineTuner

    @classmethod
    def load(cls, runs: str | Path, run: str) -> "FinishedRun":
        """Raises InputError for what is no run, has not finished, or was not fine-tuned."""
        folder = run_dir.find(runs, run)
        if "corpus" in (cfg := run_dir.load_config(folder)):
            raise InputError(
                f"run {folder.name} is a pretrained GPT, which answers nothing yet: transformers loads its weights "
                f"from {folder / 'model'} as they are; export a run that was fine-tuned"
            )
        result = run_dir.load_result(folder)
        model = build.restore(folder)
        merge(model)
        return cls(cfg, result, model.eval())

    @property
    def data(self) -> dict[str, Any]:
        """What was read: name, split, labels, sizes, max_length, width."""
        return self.result["data"]

    @cached_property
    def tasks(self) -> list[Task]:
        """What is asked of a message; none of the bare text."""
        return [] if build.template(self.cfg) is None else build.tasks(self.cfg, self.data["labels"])

    @cached_property
    def prompt(self) -> Prompt:
        """What a classifier has around a message."""
        return build.question(self.cfg, self.data["labels"])[0]

    @property
    def padding(self) -> str:
        """What padding means to the model (see Messages): fixed, batch, free or none."""
        return padding_of(self.cfg.data.padding, build.padding_is_read(self.cfg))

    @property
    def reads_padding(self) -> bool:
        """Whether what a classifier says of a message depends on the padding behind it."""
        return self.padding in ("fixed", "batch")

    @property
    def pooling(self) -> str:
        """Which hidden state a classifier's head reads: first, last, last_nonpad or mean. Where there is no padding at
        all, the last one is the last that is none."""
        assert isinstance(self.model, Classifier)
        named = {"last_real": "last_nonpad"}.get(self.model.position, self.model.position)
        return "last_nonpad" if named == "last" and not self.reads_padding else named

    def batches(self, texts: list[str]) -> list[Batch]:
        """Messages as `src.predict` has them read, asked the first question: each in one batch."""
        prompt, classes = build.question(self.cfg, self.data["labels"], self.tasks[0].name if self.tasks else None)
        ids = [prompt.around(row, self.data["max_length"]) for row in encode(texts)]
        width = self.data["width"] and self.data["width"] - prompt.reserve
        messages = Messages(ids, [classes[0]] * len(ids), width, self.padding)
        return list(evaluation_loader(messages, self.cfg.data.batch_size))

    @property
    def writes(self) -> bool:
        """Whether it answers in words."""
        return isinstance(self.model, Instruct)
