"""Processes of one run on several devices: they begin together, the first alone speaks and writes, they end together.

Lightning's launcher gives the command line again for each further device of a machine. On several machines the command
is given on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set, or by torchrun or srun.
"""

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import lightning as L

from src import ranks
from src.errors import InputError
from src.runs.progress import how_to_resume

PARENT = "TWO_WAYS_PARENT"  # process with which one ends that it has started
LOOK = 0.5  # seconds between two looks at the others
GRACE = 10.0  # seconds that an error waits for the first process to say the same
Child = subprocess.Popen[Any]


@dataclass
class Processes:
    """Those of a run, as one of them knows them: whether it is the first, which it started, how to go on with the
    run."""

    first: bool = True
    children: list[Child] = field(default_factory=list)
    advice: str = ""

    def start(self, trainer: L.Trainer) -> None:
        """Start the others on this machine, and wait for all."""
        if trainer.world_size == 1:
            return
        os.environ[PARENT] = str(os.getpid())
        launcher: Any = trainer.strategy.launcher
        launcher.launch(lambda: None, trainer=trainer)
        self.children += launcher.procs
        launcher.procs.clear()  # Lightning's observer would kill this process before it has tidied up
        threading.Thread(target=self._end_with_any, daemon=True).start()
        trainer.strategy.setup_environment()

    def agree_on(self, folder: Path | None, command: str) -> Path:
        """The run folder, of which the first process tells the others."""
        found = Path(str(ranks.gathered(folder)[0]))
        self.advice = how_to_resume(found, command)
        return found

    def dead(self) -> str | None:
        """What became of a process that ended before its time."""
        for number, child in enumerate(self.children, 1):
            if status := child.poll():
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                return f"process {number} of this run {how}, and so all end{self.advice and '; '}{self.advice}"
        return None

    def end(self) -> None:
        """Kill those that this process started."""
        children, self.children = self.children, []
        for child in children:
            child.kill()
        for child in children:
            child.wait()

    def _end_with_any(self) -> None:
        while not (sentence := self.dead()):
            sleep(LOOK)
        sleep(GRACE)  # in which what waited for the dead process has got an error, as over gloo, and tidied up
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        self.end()
        os._exit(1)


@contextmanager
def together(trainer: L.Trainer) -> Iterator[Processes]:
    """The processes that `trainer` needs, of which all end where one does.

    The others are silent and deaf to Ctrl-C and SIGTERM, which the first answers for all.
    """
    end_with_parent()
    if trainer.world_size == 1:
        yield Processes()
        return
    refuse_many_jobs(trainer)
    processes = Processes(first=trainer.is_global_zero)
    if not processes.first:
        silence()
    try:
        yield processes
        with suppress(subprocess.TimeoutExpired):
            for child in processes.children:
                child.wait(GRACE)
    except Exception:
        if not processes.first or int(os.environ.get("LOCAL_RANK", 0)):
            sleep(GRACE)  # the first process, having met the same, ends this one by then
        sleep(2 * LOOK)
        if sentence := processes.dead():
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(1)
        raise
    finally:
        processes.end()


def silence() -> None:
    """Print nothing but errors, and leave signals to the first process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_with_parent() -> None:
    """End this process when the one that started it does, however that ends."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            sleep(LOOK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def refuse_many_jobs(trainer: L.Trainer) -> None:
    """Raises InputError where the command line, given again, would not be this one run."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise InputError(
            "a multirun trains in one process: give its runs on several devices one by one, or to python -m src.sweep"
        )
    if not HydraConfig.initialized() and not environment.creates_processes_externally:
        raise InputError("a run on several devices begins with its command line, python -m src.train or src.pretrain")
