"""How a run begins, in training and in pretraining alike: on its devices, with its folder and the lock of it."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from src.runs import devices, run_dir
from src.runs.lock import run_lock
from src.runs.processes import Processes, together
from src.runs.progress import say_how_to_resume


def begin_processes(
    cfg: DictConfig, probe: L.Trainer, source: Path | None, goes_on: bool, held: ExitStack
) -> Processes:
    """The processes of a run on the devices that `probe` found, which are written into `cfg`; `held` ends them.

    source      the run from which it takes settings and checkpoints, which is locked
    goes_on     whether it is that run. Raises InputError if that has finished, or what it reads has changed
    """
    devices.settle(cfg, probe, run_dir.read_config(source) if source else None)
    processes = held.enter_context(together(probe))
    if source and processes.first:
        held.enter_context(run_lock(source))
    if source and goes_on:
        run_dir.check_unfinished(source)
    return processes


def begin_folder(
    processes: Processes,
    probe: L.Trainer,
    folder: Path | None,
    create: Callable[[], Path],
    command: str,
    held: ExitStack,
) -> Path:
    """Start the other processes; the run folder that all of them agree on: that of a run that goes on, or else what the
    first one creates, locked in `held`. From then on, who is interrupted is told how to go on by src.`command`."""
    processes.start(probe)
    if folder is None and processes.first:
        folder = create()
        held.enter_context(run_lock(folder))
    folder = processes.agree_on(folder, command)
    held.enter_context(say_how_to_resume(folder, command))
    return folder
