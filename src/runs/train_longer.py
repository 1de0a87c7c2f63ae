"""Training a run longer: a new run that goes on from the last epoch of another one, which stays as it is."""

import os
import shutil
from pathlib import Path

from omegaconf import DictConfig

from src.errors import InputError
from src.runs import run_dir


def longer_config(run: Path, runs: str | Path, max_epochs: int) -> DictConfig:
    """The config of a run of `max_epochs` below `runs`, with the settings of `run`.

    Raises InputError where it would not become the run that had had so many epochs from its beginning.
    """
    cfg = run_dir.load_config(run)
    if max_epochs <= cfg.trainer.max_epochs:
        raise InputError(
            f"trainer.max_epochs={max_epochs}: run {run.name} has {cfg.trainer.max_epochs} already; give more"
        )
    if cfg.scheduler.get("shape") != "constant" or cfg.scheduler.get("warmup_ratio"):
        raise InputError(
            f"run {run.name} laid its learning rate out over {cfg.trainer.max_epochs} epochs (scheduler "
            f"{', '.join(f'{key}={value}' for key, value in cfg.scheduler.items() if not key.startswith('_'))}), which "
            f"a longer run does otherwise from its first step: train a new one with trainer.max_epochs={max_epochs}"
        )
    if not run_dir.last_checkpoint(run):
        raise InputError(f"run {run.name} has no checkpoint to go on from")
    cfg.trainer.max_epochs, cfg.runs = max_epochs, str(runs)
    return cfg


def begin_longer(run: Path, cfg: DictConfig) -> Path:
    """The folder of a run with the config `cfg` and the checkpoints of `run`."""
    folder = run_dir.create(cfg, run_dir.checkpoint_owners(run))
    unfinished = folder / ".checkpoints.unfinished"
    shutil.copytree(run / "checkpoints", unfinished)
    os.replace(unfinished, folder / "checkpoints")
    return folder
