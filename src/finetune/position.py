"""Which hidden state stands for the message: (B, T, C) -> (B, C).

The book's meanings are kept: with padding, "last" reads a padding position and "mean" averages over padding too.
"""

import torch
from torch import Tensor

from src.errors import InputError

POSITIONS = ("first", "last", "last_real", "mean")


def read(hidden: Tensor, length: Tensor, position: str) -> Tensor:
    """One vector a message from its hidden states (B, T, C); length (B,) counts the tokens that are no padding.

    first       position 0, which under a causal mask has seen one token only
    last        position T - 1, padding or not
    last_real   position length - 1, which under a causal mask no padding can reach
    mean        mean over all T positions; the head being linear, the same as the book's mean of logits
    """
    match position:
        case "first":
            return hidden[:, 0]
        case "last":
            return hidden[:, -1]
        case "last_real":
            return hidden[torch.arange(len(hidden), device=hidden.device), length - 1]
        case "mean":
            return hidden.mean(1)
    raise InputError(f"task.position={position} is unknown: use {', '.join(POSITIONS)}")
