"""AdamW and its learning-rate schedule, for every way of training in this project."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from src.errors import InputError

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with a learning rate that warms up linearly and then follows `schedule`.

    lr is the highest learning rate; warmup the share of training that rises to it; floor the last factor on it. The
    defaults are the book's. Raises InputError for values that cannot be.
    """

    lr: float = 5e-5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    warmup: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule={self.schedule} is unknown: use {', '.join(SCHEDULES)}")
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 <= self.warmup < 1 and 0 <= self.floor <= 1):
            raise InputError(
                f"an optimizer needs lr > 0, weight_decay >= 0, warmup in [0, 1) and floor in [0, 1], got {self}"
            )

    def build(self, parameters: Iterable[Any], progress: Callable[[], float], fused: bool = True) -> dict[str, Any]:
        """What configure_optimizers returns; `progress()` tells the share of training done, in [0, 1]."""
        adamw = AdamW(
            parameters, lr=self.lr, weight_decay=self.weight_decay, betas=(self.betas[0], self.betas[1]), fused=fused
        )
        scheduler = LambdaLR(adamw, lambda _: self.factor(progress()))
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def factor(self, progress: float) -> float:
        """Learning rate at `progress` in [0, 1], as a factor on lr."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)  # not 0: the first step should move
        if self.schedule == "constant":
            return 1.0
        rest = min(1.0, (progress - self.warmup) / (1.0 - self.warmup))
        shape = 0.5 * (1 + math.cos(math.pi * rest)) if self.schedule == "cosine" else 1.0 - rest
        return self.floor + (1.0 - self.floor) * shape


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
