"""A run on several devices: the numbers of one with the same global batch, and one run folder; on CPU, by gloo."""

import multiprocessing
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from src.runs import run_dir
from src.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ROOT = Path(__file__).parents[1]
TINY = (
    "gpt.weights=random gpt.n_layer=2 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=64 trainer.max_epochs=2 "
    "trainer.accelerator=cpu trainer.precision=64-true task.optimizer.lr=1e-2 logger=none data=table"
)
WORDS = {"ham": "lunch home later tea see you soon ok", "spam": "free prize win cash urgent call now claim"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with messages.tsv, of which 41 are trained on: batches of 8 leave one alone, and a rank without any."""
    folder, rng = tmp_path_factory.mktemp("devices"), random.Random(0)
    rows = [
        (label, f"{' '.join(rng.choices(WORDS[label].split(), k=rng.randint(3, 12)))} {i}")
        for i in range(30)
        for label in WORDS
    ]
    text = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows[:-1])
    (folder / "messages.tsv").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


def overrides(home: Path, name: str, *more: str) -> list[str]:
    return [
        *TINY.split(),
        f"data.path={home / 'messages.tsv'}",
        f"runs={home}",
        f"cache.folder={home / name}",
        f"name={name}",
        *more,
    ]


def run_one(home: Path, name: str, *more: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides(home, name, *more))
    train(cfg)


def on_two(do: Callable[[], Any]) -> None:
    """Call `do` in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def begin(rank: int) -> None:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        do()

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=begin, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def folder_of(home: Path, name: str) -> Path:
    (found,) = home.glob(f"*-{name}-*")
    return found


def trained(folder: Path, which: str = "last") -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "checkpoints" / f"{which}.ckpt")["state_dict"]
    return found


def assert_same_run(one: Path, two: Path) -> None:
    for which in ("best", "last"):
        ours, theirs = trained(one, which), trained(two, which)
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-9)
    assert (two / "predictions.csv").read_text() == (one / "predictions.csv").read_text()
    ours, theirs = (run_dir.read_json(folder / "result.json") for folder in (one, two))
    assert theirs["config_hash"] == ours["config_hash"]
    for part, metrics in ours["metrics"].items():
        assert theirs["metrics"][part] == pytest.approx(metrics, abs=1e-6)
    for cost in ("train_flops", "train_tokens", "features_flops"):  # a share whose padding nobody reads is narrower
        assert 0.95 * ours["cost"][cost] <= theirs["cost"][cost] <= ours["cost"][cost]


CASES = {
    "block": [],
    "off": ["cache=off"],
    "memory": ["cache=memory"],
    "head": ["task.trainable=last_layer"],
    "all": ["task.trainable=all", "trainer.accumulate_grad_batches=2"],
    "lora": ["task.trainable=lora", "trainer.gradient_clip_val=0.1"],
    "batch": ["data.padding=batch"],
    "real": ["task.position=last_real", "data.padding=batch"],
    "instruct": ["task=instruct"],
    "instruct-off": ["task=instruct", "cache=off", "data.padding=batch"],
    "instruct-head": ["task=instruct", "task.trainable=last_layer"],
}


FAST = ("block", "instruct-off")


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_two_devices_are_one_with_the_same_global_batch(case: str, home: Path) -> None:
    extra = CASES[case]
    run_one(home, f"{case}1", "data.batch_size=8", *extra)
    on_two(lambda: run_one(home, f"{case}2", "data.batch_size=4", "trainer.devices=2", *extra))
    assert_same_run(folder_of(home, f"{case}1"), folder_of(home, f"{case}2"))
