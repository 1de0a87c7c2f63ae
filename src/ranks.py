"""Ranks: the processes of one run on several devices, and what they tell each other.

A run on one device is rank 0 of a world of 1, and says nothing. What is called here by one rank is called by all.
"""

from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
SEEDS_APART = 7_368_787  # how far the seeds of two ranks lie from each other, whose dropout differs
S = TypeVar("S", list[Any], Tensor, "np.ndarray[Any, Any]")


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def share(items: S) -> S:
    """Those of `items`, a list or an array, that are this rank's to do: every one is some rank's."""
    return items[rank() :: world()]


def total(own: Tensor) -> Tensor:
    """The sum over all ranks of a tensor on the device of the training."""
    if world() == 1:
        return own
    summed = own.detach().clone()
    dist.all_reduce(summed)
    return summed


def gathered(own: T) -> list[T]:
    """What each rank has, in their order; no rank goes on before all have come here."""
    if world() == 1:
        return [own]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, own)
    return found
