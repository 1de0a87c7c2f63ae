"""Pooling: which hidden state (B, T, C) represents the sequence.

first         position 0, which under a causal mask has seen one token only
last          position T - 1, padding or not
last_nonpad   position length - 1, which under a causal mask no padding can reach
mean          the mean over all T positions; the head being linear, the same as the book's mean of logits

The book's meanings are kept: with padding, "last" reads a padding position and "mean" averages over padding too.
"""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["first", "last", "last_nonpad", "mean"]


def pooling_index(length: Tensor, width: int, pooling: Pooling) -> Tensor | None:
    """Which of `width` tokens is read, (B, 1), of messages whose first length (B,) tokens are no padding; None for the
    mean of all."""
    match pooling:
        case "first":
            return torch.zeros_like(length)[:, None]
        case "last":
            return torch.full_like(length, width - 1)[:, None]
        case "last_nonpad":
            return length[:, None] - 1
        case "mean":
            return None
