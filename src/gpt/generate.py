"""Prompts -> continuations, token by token, with a cache of keys and values: each token passes the GPT once.

    ids (B, T), length (B,) -> [new ids of each prompt]

Prompts of different lengths stand in one batch, padded on the right: keys are kept by position, so that a new token
takes the place of the padding, which no token ever sees.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.errors import InputError
from src.gpt.model import GPT, GPTConfig


class Cache:
    """Keys and values of one block by position, (B, H, S, D); `position` (B, T) is where the next tokens stand."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.position = torch.empty(0)
        self.k = self.v = torch.empty(0)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See LayerCache: a token sees the positions up to its own."""
        B, H, _, D = k.shape
        if not len(self.k):
            self.k, self.v = k.new_zeros(B, H, self.size, D), v.new_zeros(B, H, self.size, D)
        place = self.position[:, None, :, None].expand_as(k)
        self.k.scatter_(2, place, k)
        self.v.scatter_(2, place, v)
        seen = torch.arange(self.size, device=k.device) <= self.position[:, None, :, None]  # (B, 1, T, S)
        return self.k, self.v, seen


@torch.no_grad()
def generate(
    gpt: GPT,
    ids: Tensor,
    length: Tensor,
    max_new_tokens: int,
    stop: int,
    choose: Callable[[Tensor], Tensor] | None = None,
) -> list[list[int]]:
    """Up to `max_new_tokens` new ids for each of the prompts ids (B, T), whose first length (B,) tokens are no padding.

    A continuation ends before the token `stop`. choose: logits (B, V) -> ids (B,); greedy by default (see `sampler`).
    Raises InputError for a GPT without a causal mask, an empty prompt, or a context that is too short.
    """
    longest = check(gpt.config, length.tolist(), max_new_tokens)
    choose = choose or greedy
    caches = [Cache(longest + max_new_tokens) for _ in gpt.blocks]
    ids, rows = ids[:, :longest], torch.arange(len(ids), device=ids.device)
    hidden = _read(gpt, ids, torch.arange(longest, device=ids.device).expand_as(ids), caches)
    last, position = hidden[rows, length - 1], length.clone()  # (B, C); where the next token will stand
    written: list[list[int]] = [[] for _ in rows]
    going = torch.ones_like(length, dtype=torch.bool)
    for n in range(max_new_tokens):
        token = choose(gpt.logits(last))
        going &= token != stop
        for row in going.nonzero().flatten().tolist():
            written[row].append(int(token[row]))
        if not going.any() or n + 1 == max_new_tokens:
            break
        last = _read(gpt, token[:, None], position[:, None], caches)[:, 0]
        position += 1
    return written


def check(config: GPTConfig, length: Sequence[int], max_new_tokens: int) -> int:
    """The longest of the prompts' lengths; raises what `generate` raises."""
    if not config.causal:
        raise InputError("gpt.causal=false reads a text from both sides and cannot write one")
    if min(length, default=0) < 1:
        raise InputError("an empty prompt cannot be continued: give at least one token")
    if max_new_tokens < 1 or max(length) + max_new_tokens > config.context_length + 1:  # the last is never read
        raise InputError(
            f"a prompt of {max(length)} tokens and {max_new_tokens} new ones do not fit into the context of "
            f"{config.context_length}"
        )
    return max(length)


def _read(gpt: GPT, ids: Tensor, position: Tensor, caches: list[Cache]) -> Tensor:
    """Hidden states (B, T, C) of ids (B, T) that stand at `position` (B, T), after what the caches hold."""
    x = gpt.token_embedding(ids) + gpt.position_embedding(position)
    for block, cache in zip(gpt.blocks, caches, strict=True):
        cache.position = position
        x = block(x, cache)
    return gpt.final_norm(x)


def greedy(logits: Tensor) -> Tensor:
    """The most probable token, (B, V) -> (B,)."""
    return logits.argmax(-1)


def sampler(temperature: float, top_k: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Draws among the `top_k` most probable tokens at a temperature above 0, from `seed`."""
    if temperature <= 0 or top_k < 1:
        raise InputError(f"temperature={temperature} must be above 0 and top_k={top_k} at least 1")
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> Tensor:
        best, ids = logits.float().topk(min(top_k, logits.shape[-1]))
        drawn = torch.multinomial((best / temperature).softmax(-1).cpu(), 1, generator=generator)
        return ids.gather(1, drawn.to(ids.device))[:, 0]

    return choose
