"""A batch of prompts, read once and continued as often as one likes: to weigh given answers, or to write.

Keys and values are kept by position (see generate.py), so that a continuation takes the place of the one before.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from src.errors import InputError
from src.gpt.generate import Cache, _read, greedy
from src.gpt.model import GPT


class Reader:
    """What a GPT made of the prompts ids (B, T), whose first length (B,) tokens are no padding.

    room      how many tokens will follow a prompt at most
    logits    the output layer, hidden (..., C) -> (..., V); by default the GPT's own
    Raises InputError for a GPT without a causal mask, an empty prompt, or a context that is too short.
    """

    def __init__(
        self, gpt: GPT, ids: Tensor, length: Tensor, room: int, logits: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        if not gpt.config.causal:
            raise InputError("gpt.causal=false reads a text from both sides and cannot write one")
        if not len(length) or int(length.min()) < 1:
            raise InputError("an empty prompt cannot be continued: give at least one token")
        longest = int(length.max())
        if longest + room > gpt.config.context_length + 1:  # the last token written is never read
            raise InputError(
                f"a prompt of {longest} tokens and {room} new ones do not fit into the context of "
                f"{gpt.config.context_length}"
            )
        self.gpt, self.length, self.logits = gpt, length, logits or gpt.logits
        self.first: Tensor | None = None
        self.caches = [Cache(longest + room) for _ in gpt.blocks]
        places = torch.arange(longest, device=ids.device).expand(len(ids), -1)
        hidden = _read(gpt, ids[:, :longest], places, self.caches)
        self.last = hidden[torch.arange(len(ids), device=ids.device), length - 1]  # (B, C), before the first new token

    def log_probability(self, ids: Tensor) -> Tensor:
        """Of the tokens ids (A,) after each prompt: (B,), in fp32."""
        if self.first is None:
            self.first = self.logits(self.last).float().log_softmax(-1)  # (B, V), the same for every continuation
        total = self.first[:, ids[0]]
        if len(ids) > 1:
            read, next_ids = ids[:-1].expand(len(total), -1), ids[1:].expand(len(total), -1)
            places = self.length[:, None] + torch.arange(len(ids) - 1, device=ids.device)
            log_p = self.logits(_read(self.gpt, read, places, self.caches)).float().log_softmax(-1)  # (B, A - 1, V)
            total = total + log_p.gather(2, next_ids[..., None]).sum((1, 2))
        return total

    def write(self, n: int, stop: int, choose: Callable[[Tensor], Tensor] = greedy) -> list[list[int]]:
        """Up to `n` new tokens after each prompt, up to the token `stop`; choose: logits (B, V) -> ids (B,)."""
        written: list[list[int]] = [[] for _ in self.length]
        going = torch.ones_like(self.length, dtype=torch.bool)
        last, position = self.last, self.length.clone()
        for i in range(n):
            token = choose(self.logits(last))
            going &= token != stop
            for row in going.nonzero().flatten().tolist():
                written[row].append(int(token[row]))
            if not going.any() or i + 1 == n:
                break
            last = _read(self.gpt, token[:, None], position[:, None], self.caches)[:, 0]
            position += 1
        return written
