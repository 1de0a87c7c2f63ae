"""Config -> Lightning's Trainer with its callbacks and loggers."""

import inspect
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, open_dict

from src.config import ddp
from src.config.instantiate import build, check, find
from src.errors import InputError
from src.finetune.checkpointing import AtomicCheckpointIO, EpochCheckpoint
from src.finetune.freezing import IN_STAGES
from src.finetune.monitoring import AVERAGE_PRECISION, MONITORS, RankingMonitor, ResumableEarlyStopping
from src.runs import loggers, progress, run_dir

# Lightning's arguments that leave out examples of a split, or end a training before its epochs are over
PARTIAL = {  # argument -> what it is where nothing is left out
    "fast_dev_run": False,
    "max_steps": -1,
    "max_time": None,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
    "limit_predict_batches": 1.0,
    "overfit_batches": 0,
}
LEAST = {"max_epochs": 1, "accumulate_grad_batches": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}
MOST = {"devices": 1_000, "num_nodes": 100_000}  # on a machine, and machines: what Lightning would try to start
EVERY_EPOCH = ("val_check_interval", "check_val_every_n_epoch")


def build_trainer(cfg: DictConfig, callbacks: list[Callback] | None = None, **given: Any) -> L.Trainer:
    """Lightning's Trainer from the config's arguments and ours. Raises InputError for what Lightning refuses."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the messages are in memory already
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen blocks
    warnings.filterwarnings("ignore", ".*on_before_batch_transfer.*")  # where features come in
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated.*")  # by torch 2.13, but not before
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")  # for the stages before the last
    warnings.filterwarnings("ignore", ".*(treespec, LeafSpec).*")  # Lightning's own, with torch 2.13
    folder = given.get("default_root_dir")
    owners = run_dir.checkpoint_owners(folder) if folder else []
    given |= {"callbacks": [*(callbacks or []), *progress.shown()], "enable_model_summary": False}
    given |= {"enable_progress_bar": sys.stderr.isatty(), "plugins": [AtomicCheckpointIO(owners)]}
    made = build("trainer", {**run_dir.plain(cfg.trainer), "_target_": "lightning.Trainer"}, **given)
    if not isinstance(made, L.Trainer):
        raise InputError("trainer: its arguments are those of lightning.Trainer")
    task = cfg.get("task", {})
    return ddp.checked(made, run_dir.plain(cfg.trainer) | given, any(task.get(key) for key in IN_STAGES))


def check_least(cfg: DictConfig, **other: int) -> None:
    """Raises InputError for a trainer argument below its least value, or `other` ones, or above its largest."""
    for key, least in (LEAST | other).items():
        if isinstance(value := cfg.trainer.get(key), int | float) and value < least:
            raise InputError(f"trainer.{key}={value} must be at least {least}")
    for key, most in MOST.items():
        if isinstance(value := cfg.trainer.get(key), int) and value > most:
            raise InputError(f"trainer.{key}={value} must be at most {most}")


def check_trainer(cfg: DictConfig) -> L.Trainer:
    """A Trainer that shows which devices there are. Raises InputError for trainer arguments that Lightning refuses, or
    takes and should not."""
    check_least(cfg)
    if cfg.trainer.get("max_epochs") is None:
        raise InputError("trainer.max_epochs is missing: give trainer.max_epochs=<number>")
    for key in EVERY_EPOCH:
        if cfg.trainer.get(key) not in (None, 1, 1.0):
            raise InputError(
                f"trainer.{key}={cfg.trainer[key]}: the best epoch is chosen among all of them; leave it out"
            )
    return build_trainer(cfg, logger=False, enable_checkpointing=False)


def partial_flag(cfg: DictConfig) -> str | None:
    """The argument that makes a run leave out examples or epochs, as Lightning's debugging flags do: such a run is
    partial, never a result. A limit of 1 is one batch, of 1.0 all."""
    for key, usual in PARTIAL.items():
        value = cfg.trainer.get(key)
        if value is not None and value is not False and (value != usual or type(value) is not type(usual)):
            return key
    return None


def whole(cfg: DictConfig) -> DictConfig:
    """The config without what leaves out examples: a model is measured on all of them."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for key in PARTIAL:
            cfg.trainer.pop(key, None)
    return cfg


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks of the group of that name."""
    return [build(f"callbacks.{name}", settings) for name, settings in run_dir.plain(cfg.callbacks).items()]


def own_callbacks(cfg: DictConfig, run: Path, positive: int = -1) -> list[Callback]:
    """Best checkpoint by what is monitored, last one for resuming, and early stopping where it is asked for;
    `positive` is the class that average precision looks for."""
    monitor, mode = cfg.monitor, MONITORS[cfg.monitor]
    ranking = [RankingMonitor(positive)] if monitor == AVERAGE_PRECISION else []
    stop = [ResumableEarlyStopping(monitor, patience=cfg.patience, mode=mode)] if cfg.patience else []
    return [*ranking, *stop, EpochCheckpoint(run / "checkpoints", monitor, mode)]


def logger_arguments(target: Any, run: Path, cfg: DictConfig) -> dict[str, Any]:
    """What a logger is told of a run, as far as it takes it: W&B's is ours, Lightning's have a folder."""
    known = inspect.signature(target).parameters
    given = {"run": run, "config": run_dir.plain(cfg), "save_dir": str(run), "run_name": run.name}
    return {key: value for key, value in given.items() if key in known}


def check_loggers(cfg: DictConfig) -> None:
    """Raises InputError for settings of loggers, and variables of W&B, that cannot be."""
    for name, settings in run_dir.plain(cfg.logger).items():
        target = find(f"logger.{name}", settings)
        check(f"logger.{name}", target, settings, logger_arguments(target, Path(), cfg))
        if target is loggers.wandb_logger:
            loggers.wandb_mode(settings.get("offline"))


def build_loggers(cfg: DictConfig, run: Path, remove_on_failure: bool) -> list[Logger]:
    """The loggers of the group of that name. Raises InputError where one refuses, and then removes the folder of a new
    run: nothing has happened in it."""
    made = []
    try:
        for name, settings in run_dir.plain(cfg.logger).items():
            arguments = logger_arguments(find(f"logger.{name}", settings), run, cfg)
            made.append(build(f"logger.{name}", settings, **arguments))
    except InputError:
        if remove_on_failure:
            shutil.rmtree(run, ignore_errors=True)
        raise
    found = [logger for logger in made if logger is not None]
    for logger in found:
        if not loggers.is_wandb(logger):
            with loggers.best_effort(logger):
                logger.log_hyperparams(run_dir.plain(cfg))
    return found
