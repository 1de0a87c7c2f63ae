"""Messages that begin alike are read once as far as they do: under a causal mask a token knows only what precedes it.

    ids (B, T) -> SharedPrefixes: which N tokens differ in themselves or in a token before
    x (B, T, C) -> gather -> (1, N, C): all of a block but its attention, whose T tokens meet in (B, T, C) -> scatter

So the words of an instruction, the opening of a chain letter, a message that was sent twice pass the linear layers
once, and padding that nobody reads never does. Without a causal mask only messages that are equal to the end share.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class Context(Protocol):
    """Whom tokens attend to, where that is not just those beside them: see generation.py, and SharedPrefixes below."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values of the tokens at hand -> what they have seen, (B, H, T, D) each."""
        ...


@dataclass(frozen=True)
class SharedPrefixes:
    """representatives (N,): where each of N tokens stands first among all B * T; node_ids (B, T): which of them it is.

    context    whom tokens attend to if not to all before them, or to all, in their message
    """

    representatives: Tensor
    node_ids: Tensor
    causal: bool
    context: Context | None = None

    @classmethod
    def of(cls, ids: Tensor, length: Tensor, causal: bool = True) -> Self:
        """Those of messages ids (B, T), the first length (B,) tokens of each: the others are not computed. A message
        is compared with the one before it: sort them, and nothing that is shared is missed."""
        row, column = (torch.arange(n, device=ids.device) for n in ids.shape)
        real = column < length[:, None]
        alike = (ids[1:] == ids[:-1]) & real[1:] & real[:-1]
        alike = alike.cumprod(1).bool() if causal else alike.all(1, keepdim=True).expand_as(alike)
        new = real & ~F.pad(alike, (0, 0, 1, 0))
        owner = torch.where(new, row[:, None], 0).cummax(0).values  # the message in which a token stands first
        number = new.flatten().cumsum(0) - 1
        return cls(new.flatten().nonzero()[:, 0], number[owner * ids.shape[1] + column], causal)

    def within(self, context: Context) -> Self:
        """The same where tokens attend to a context."""
        return replace(self, context=context)

    def gather(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (1, N, C)."""
        return x.flatten(0, 1).index_select(0, self.representatives)[None]

    def scatter(self, x: Tensor) -> Tensor:
        """(1, N, C) -> (B, T, C); what stands in the place of padding means nothing."""
        return F.embedding(self.node_ids, x[0])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every token to those of its message: (1, H, N, D) each -> (1, H, N, D)."""
        H = q.shape[1]
        q, k, v = (self.scatter(x.transpose(1, 2).flatten(2)).unflatten(2, (H, -1)).transpose(1, 2) for x in (q, k, v))
        if self.context is not None:
            y = self.context.attend(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, H, T, D)
        return self.gather(y.transpose(1, 2).flatten(2)).unflatten(2, (H, -1)).transpose(1, 2)
