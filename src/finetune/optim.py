"""AdamW, or Muon beside it, and the learning-rate schedule, for every way of training in this project."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from src.errors import InputError

SCHEDULES = ("constant", "cosine", "linear")


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the first group and AdamW for the other groups, as one optimizer.

    Muon's updates are scaled to the size of AdamW's (Liu et al. 2025), so that one learning rate serves both. Raises
    InputError for parameters without groups.
    """

    def __init__(self, groups: list[Any], lr: float, weight_decay: float, **adamw: Any) -> None:
        if not isinstance(groups[0], dict):
            raise InputError("muon=true needs to know which parameters are matrices: it is for src.pretrain")
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


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with a learning rate that warms up linearly and then follows `schedule`.

    lr is the highest learning rate; warmup the share of training that rises to it; floor the last factor on it; muon
    takes MuonAdamW, the first group's parameters being its matrices. The defaults are the book's. Raises InputError for
    values that cannot be.
    """

    lr: float = 5e-5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    warmup: float = 0.0
    floor: float = 0.0
    muon: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule={self.schedule} is unknown: use {', '.join(SCHEDULES)}")
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 <= self.warmup < 1 and 0 <= self.floor <= 1):
            raise InputError(
                f"an optimizer needs lr > 0, weight_decay >= 0, warmup in [0, 1) and floor in [0, 1], got {self}"
            )

    def build(self, parameters: Iterable[Any], progress: Callable[[], float], fused: bool = True) -> dict[str, Any]:
        """What configure_optimizers returns; `progress()` tells the share of training done, in [0, 1]."""
        given: Any = {"lr": self.lr, "weight_decay": self.weight_decay, "betas": tuple(self.betas), "fused": fused}
        made = (MuonAdamW if self.muon else AdamW)(list(parameters), **given)
        scheduler = LambdaLR(made, lambda _: self.factor(progress()))
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

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
