"""Optimizers and learning-rate schedules: torch's own, as factories, and one that follows the share of training.

conf/optimizer and conf/scheduler name them by `_target_` with `_partial_: true`. An optimizer factory takes parameters
(or groups of them), a scheduler factory takes the optimizer and, if it has an argument `progress`, a function that
gives the share of training done, in [0, 1]. Schedulers step after every optimizer step, ReduceLROnPlateau after every
epoch, by the validation loss.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import lightning as L
import torch
from annotated_types import Ge, Le, Lt
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from src.errors import InputError

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[..., LRScheduler]
Shape = Literal["constant", "cosine", "linear"]


def lr_multiplier(
    progress: float, shape: Shape = "constant", warmup_ratio: float = 0.0, min_lr_ratio: float = 0.0
) -> float:
    """Factor on the learning rate when a share `progress` of training is done: linear warm-up, then `shape` down to
    min_lr_ratio."""
    if progress < warmup_ratio:
        return max(progress / warmup_ratio, 1e-3)  # not 0: the first step should move
    if shape == "constant":
        return 1.0
    rest = min(1.0, (progress - warmup_ratio) / (1.0 - warmup_ratio))
    decay = 0.5 * (1 + math.cos(math.pi * rest)) if shape == "cosine" else 1.0 - rest
    return min_lr_ratio + (1.0 - min_lr_ratio) * decay


def warmup_schedule(
    optimizer: Optimizer,
    progress: Callable[[], float],
    shape: Shape = "constant",
    warmup_ratio: Annotated[float, Ge(0), Lt(1)] = 0.0,
    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = 0.0,
) -> LambdaLR:
    """A schedule over the whole of training: constant, cosine or linear, after a warm-up over `warmup_ratio` of it."""
    return LambdaLR(optimizer, lambda _: lr_multiplier(progress(), shape, warmup_ratio, min_lr_ratio))


adamw = partial(AdamW, lr=5e-5, weight_decay=0.1, fused=True)  # Loshchilov and Hutter 2019, with the book's values


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the first group and AdamW for the other groups, as one optimizer.

    Muon's updates are scaled to the size of AdamW's (Liu et al. 2025), so that one learning rate serves both. Raises
    InputError for parameters without groups.
    """

    def __init__(self, groups: list[Any], lr: float, weight_decay: float, **adamw: Any) -> None:
        if not isinstance(groups[0], dict):
            raise InputError("optimizer=muon needs to know which parameters are matrices: it is for src.pretrain")
        muon = Muon(groups[0]["params"], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts = muon, AdamW(groups[1:], lr=lr, weight_decay=weight_decay, **adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        muon, adamw = self.parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]  # a checkpoint's are new
        muon.state = adamw.state = self.state
        muon.step()
        adamw.step()
        return loss


def configure(
    parameters: Any, optimizer: OptimizerFactory, scheduler: SchedulerFactory, progress: Callable[[], float]
) -> dict[str, Any]:
    """What a LightningModule's configure_optimizers returns. A group's `lr_ratio` is a factor on its learning rate."""
    made = optimizer(parameters)
    for group in made.param_groups:
        group["lr"] *= group.get("lr_ratio", 1.0)
    follows = "progress" in inspect.signature(scheduler).parameters
    schedule = scheduler(made, progress=progress) if follows else scheduler(made)
    interval = "epoch" if isinstance(schedule, ReduceLROnPlateau) else "step"
    return {
        "optimizer": made,
        "lr_scheduler": {"scheduler": schedule, "interval": interval, "monitor": "validation/loss"},
    }


def clip(module: torch.nn.Module, limit: float | None, algorithm: str | None = None) -> None:
    """Clip the gradient's global norm, or by algorithm="value" each of its values. Lightning refuses to under autocast
    with a fused optimizer, scaler or not."""
    if not limit:
        return
    parameters = [p for p in module.parameters() if p.grad is not None]
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, limit)
    else:
        torch.nn.utils.clip_grad_norm_(parameters, limit)


class ClippedGradients(L.LightningModule):
    """A LightningModule that clips by `clip`; under 16-mixed as Lightning does, which unscales the gradients first."""

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip(self, gradient_clip_val, gradient_clip_algorithm)
