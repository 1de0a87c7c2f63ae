"""A trial -> its finished run folder: what a worker of a sweep does."""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from src.config.command_line import CONF, override, with_plus
from src.errors import InputError
from src.runs import run_dir
from src.runs.devices import world_of
from src.runs.lock import run_lock
from src.runs.processes import PARENT
from src.sweeps import study
from src.sweeps.study import Trial


def do(key: str, trial: Trial, runs: str) -> str:
    """Train a trial on this worker, in the run folder that was begun for it or in a new one; what it came to, in words.

    Raises RunLockedError where another process is at it.
    """
    from src.train import train

    desk = Path(runs) / ".sweep" / key[:16]
    desk.mkdir(parents=True, exist_ok=True)
    with run_lock(desk), logged(desk / "log", trial):
        folder = study.finished(runs).get(key)
        if folder is None:
            cfg, begun = study.config(trial), study.begun(key, runs)
            cfg.runs, cfg.resume = runs, begun and begun.name
            if world_of((run_dir.load_config(begun) if begun else cfg).get("trainer", {})) > 1:
                by_command([f"resume={begun.name}"] if begun else trial.overrides, runs)
                folder = study.finished(runs)[key]
            else:
                folder = train(cfg).folder
        result = run_dir.load_result(folder)
        if result["config_hash"] != key:
            raise RuntimeError(f"{folder} is a run of another config: this worker's code or data are not the sweep's")
    accuracy, seconds = result["metrics"]["test"]["accuracy"], result["cost"]["train_seconds"]
    return f"test accuracy {accuracy:.2%}, {seconds:.0f} s of training"


def by_command(overrides: Sequence[str], runs: str) -> None:
    """Train in a process of its own, which may start others for its further devices and ends with this one."""
    command = [sys.executable, "-m", "src.train", *with_plus(list(overrides)), override("runs", runs)]
    environment = os.environ | {PARENT: str(os.getpid()), "PYTHONPATH": str(CONF.parent)}
    status = subprocess.run(command, stdout=sys.stdout, stderr=sys.stderr, env=environment, check=False).returncode
    if status:
        error = InputError if status == 2 else RuntimeError
        raise error(f"src.train on several devices ended with status {status}")


@contextmanager
def logged(log: Path, trial: Trial) -> Iterator[None]:
    """Let a run print to its log, with the traceback of what ends it."""
    with log.open("a", buffering=1, encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        print(f"---- {socket.gethostname()} {os.getpid()}: {' '.join(trial.overrides)}")
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise
