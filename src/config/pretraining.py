"""Config -> the parts of pretraining."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from src.config.build import build_gpt
from src.config.instantiate import build_optimizer, build_scheduler
from src.config.trainer import build_trainer, check_least
from src.errors import InputError
from src.pretraining.causal_lm import CausalLM
from src.pretraining.throughput import Throughput
from src.runs import devices, run_dir


def check_pretraining(cfg: DictConfig) -> None:
    """Raises InputError for settings of pretraining that cannot be, before any text is tokenized."""
    for key in ("batch_size", "validate_every", "validation_batches", "checkpoint_every"):
        if cfg[key] < 1:
            raise InputError(f"{key}={cfg[key]} must be at least 1")
    check_least(cfg, max_epochs=-1)
    if cfg.trainer.get("max_epochs") not in (None, -1):
        raise InputError(f"trainer.max_epochs={cfg.trainer.max_epochs}: give max_steps or budget_minutes in its place")
    if not 1 <= cfg.window <= cfg.gpt.context_length:
        raise InputError(
            f"window={cfg.window} must lie between 1 and the GPT's context length, {cfg.gpt.context_length}"
        )
    if not 0 <= cfg.padded <= 1:
        raise InputError(f"padded={cfg.padded} must lie between 0 and 1")
    if not cfg.gpt.causal:
        raise InputError("gpt.causal=false would read the tokens that it is to predict")
    length = {"max_steps": cfg.max_steps, "budget_minutes": cfg.budget_minutes}
    given = {key: value for key, value in length.items() if value is not None}
    if len(given) > 1 or any(value <= 0 for value in given.values()):
        found = " and ".join(f"{key}={value}" for key, value in given.items())
        raise InputError(f"{found}: give one of max_steps and budget_minutes, above 0, or neither for one pass")


def build_language_model(cfg: DictConfig, clock: Throughput) -> CausalLM:
    """The GPT as a language model, whose learning rate follows the steps, or the clock where there is a budget."""
    optimizer = build_optimizer(run_dir.plain(cfg.optimizer), cfg.trainer.get("precision"), groups=True)
    scheduler = build_scheduler(run_dir.plain(cfg.scheduler))
    module = CausalLM(
        build_gpt(cfg), optimizer, scheduler, cfg.num_sampled, cfg.chunk, cfg.seed, padded=padded_windows(cfg)
    )
    if clock.budget_seconds:
        module.progress = clock.share
    if cfg.compile:
        module.compile_parts()
    return module


def padded_windows(cfg: DictConfig) -> int:
    """Windows of a batch of all devices that are padded as messages are."""
    return round(cfg.padded * devices.global_batch_of(cfg))


def pretrainer(cfg: DictConfig, epoch_batches: int, callbacks: list[Callback] | None = None, **given: Any) -> L.Trainer:
    """Lightning's Trainer for max_steps, or for as many as an epoch has, or without end where the clock stops it.

    It sees one endless epoch, whose borders are the text's own affair: no step of it is cut short.
    """
    accumulate = cfg.trainer.accumulate_grad_batches
    steps = -1 if cfg.budget_minutes else cfg.max_steps or max(1, epoch_batches // accumulate)
    given |= {"max_steps": steps, "num_sanity_val_steps": 0}
    given |= {"val_check_interval": cfg.validate_every * accumulate, "check_val_every_n_epoch": None}
    return build_trainer(cfg, callbacks, **given)
