"""Studies of tiny runs, which several test files sweep."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from src.sweeps import study
from src.sweeps.study import Study, Trial

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "gpt.n_layer=2 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=64 gpt.weights=random trainer.max_epochs=2 "
    "trainer.accelerator=cpu data=table data.split=deduplicated data.max_length=32 logger=none"
)
AGENT = ["${env}", "${interpreter}", "-m", "src.train"]
WORDS = {"ham": "lunch home later tea see you soon ok", "spam": "free prize win cash urgent call now claim"}


def write_messages(path: Path) -> Path:
    """A table of 24 ham and 24 spam."""
    rng = random.Random(0)
    lines = [
        f"{label}\t{' '.join(rng.choices(words.split(), k=rng.randint(3, 9)))} {letter}\n"
        for letter in "abcdefghijklmnopqrstuvwx"
        for label, words in WORDS.items()
    ]
    path.write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return path


def write(folder: Path, content: dict[str, Any] | str | bytes, name: str = "tiny") -> Path:
    """A study's file."""
    path = folder / f"{name}.yaml"
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def content(messages: Path, parameters: dict[str, list[Any]], **more: Any) -> dict[str, Any]:
    """The content of a study of tiny runs."""
    command = [*AGENT, *SETTINGS.split(), f"data.path={messages}", "${args_no_hyphens}"]
    return {"method": "grid", "command": command, "parameters": values(parameters), **more}


def values(parameters: dict[str, list[Any]]) -> dict[str, Any]:
    """Parameters as W&B has them."""
    return {key: {"values": given} for key, given in parameters.items()}


def keyed(asked: Study) -> dict[str, Trial]:
    """The trials of a study by the hash of their config."""
    return study.check(study.trials(asked))


def outcomes(runs: Path) -> dict[str, bytes]:
    """config_hash -> predictions of the finished runs, of which no two may have the same hash."""
    found = {}
    for result in runs.glob("*/result.json"):
        key = json.loads(result.read_text(encoding="utf-8"))["config_hash"]
        assert key not in found, "a run was done twice"
        found[key] = (result.parent / "predictions.csv").read_bytes()
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 900) -> Any:
    """What `condition` comes to when it is true at last."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
    return found


def start(*command: Any, **env: str) -> "subprocess.Popen[str]":
    """`python -m <command>` in a process group of its own, one thread each."""
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | env
    words = [sys.executable, "-m", *map(str, command)]
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(words, stdout=pipe, stderr=same, text=True, start_new_session=True, env=surroundings)


# ---- what stands in for src.sweeps.do_trial.do on a worker


def die_or_answer(key: str, trial: Trial, runs: str) -> str:
    """Kills its worker where the trial says so."""
    if trial.values.get("kills"):
        os._exit(1)
    return "answered"


def surroundings() -> tuple[str | None, str | None, bool]:
    """Threads and GPU of a worker, and whether a DataLoader may have no workers there."""
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES"), current_process().daemon
