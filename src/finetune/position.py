"""Which hidden state stands for the message: (B, T, C) -> (B, C).

The book's meanings are kept: with padding, "last" reads a padding position and "mean" averages over padding too.
"""

import torch
from torch import Tensor

from src.errors import InputError

POSITIONS = ("first", "last", "last_real", "mean")


def index(length: Tensor, T: int, position: str) -> Tensor:
    """Which of T tokens (B, 1) is read of a message, for a position that is one token (all but mean)."""
    match position:
        case "first":
            return torch.zeros_like(length)[:, None]
        case "last":
            return torch.full_like(length, T - 1)[:, None]
        case "last_real":
            return length[:, None] - 1
    raise InputError(f"task.position={position} is no single token: use first, last or last_real")


def read(hidden: Tensor, length: Tensor, position: str) -> Tensor:
    """One vector a message from its hidden states (B, T, C); length (B,) counts the tokens that are no padding.

    first       position 0, which under a causal mask has seen one token only
    last        position T - 1, padding or not
    last_real   position length - 1, which under a causal mask no padding can reach
    mean        mean over all T positions; the head being linear, the same as the book's mean of logits
    """
    if position not in POSITIONS:
        raise InputError(f"task.position={position} is unknown: use {', '.join(POSITIONS)}")
    if position == "mean":
        return hidden.mean(1)
    place = index(length, hidden.shape[1], position)  # (B, 1)
    return hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))[:, 0]
