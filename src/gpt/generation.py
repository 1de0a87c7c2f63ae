"""Prompts, read once -> how probable given continuations are, or new ones, token by token.

    ids (B, T), length (B,) -> Decoder -> loglikelihood (B,) | generate: [new ids of each prompt]

Keys and values are kept: each token passes the GPT once, and what prompts begin with alike does for all of them.
Prompts of different lengths stand in one batch, padded on the right: keys are kept by position, so that a new token
takes the place of the padding, or of the continuation before it, which no token ever sees. Nothing here makes
gradients.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.errors import InputError
from src.gpt.model import GPT, GPTConfig
from src.gpt.shared_prefixes import SharedPrefixes


def check(config: GPTConfig, length: Sequence[int], max_new_tokens: int) -> int:
    """The longest of the prompts' lengths; raises what `Decoder` raises."""
    if not config.causal:
        raise InputError("gpt.causal=false reads a text from both sides and cannot write one")
    if min(length, default=0) < 1:
        raise InputError("an empty prompt cannot be continued: give at least one token")
    if max_new_tokens < 1 or max(length) + max_new_tokens > config.context_length + 1:  # the last token is never read
        raise InputError(
            f"a prompt of {max(length)} tokens and {max_new_tokens} new ones do not fit into the context of "
            f"{config.context_length}"
        )
    return max(length)


def greedy(logits: Tensor) -> Tensor:
    """The most probable token, (B, V) -> (B,)."""
    return logits.argmax(-1)


def sampler(temperature: float, top_k: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Draws among the `top_k` most probable tokens at a temperature above 0, from `seed`."""
    if temperature <= 0 or top_k < 1:
        raise InputError(f"temperature={temperature} must be above 0 and top_k={top_k} at least 1")
    generator = torch.Generator().manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        best, ids = logits.float().topk(min(top_k, logits.shape[-1]))
        drawn = torch.multinomial((best / temperature).softmax(-1).cpu(), 1, generator=generator)
        return ids.gather(1, drawn.to(ids.device))[:, 0]

    return sample


Arithmetic = Callable[[], AbstractContextManager[Any]]  # in what precision to compute, such as torch.autocast


class KVCache:
    """Keys and values of one block by position, (B, H, S, D); `position` (B, T) is where the next tokens stand."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.position = torch.empty(0)
        self.k = self.v = torch.empty(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v, and attend to all that was kept: a token sees the positions up to its own."""
        B, H, _, D = k.shape
        if not len(self.k):
            self.k, self.v = k.new_zeros(B, H, self.size, D), v.new_zeros(B, H, self.size, D)
        row = torch.arange(B, device=k.device)[:, None]
        self.k[row, :, self.position] = k.transpose(1, 2)  # (B, T, H, D)
        self.v[row, :, self.position] = v.transpose(1, 2)
        seen = torch.arange(self.size, device=k.device) <= self.position[:, None, :, None]  # (B, 1, T, S)
        return F.scaled_dot_product_attention(q, self.k, self.v, seen)


class Blocks:
    """The first k blocks of a GPT, with the keys and values of what they have read; `size` positions at most. The
    first `frozen` of them compute in `arithmetic`."""

    def __init__(self, gpt: GPT, k: int, size: int, frozen: int = 0, arithmetic: Arithmetic = nullcontext) -> None:
        self.gpt, self.blocks = gpt, gpt.blocks[:k]
        self.caches = [KVCache(size) for _ in range(k)]
        self.arithmetic = [arithmetic] * frozen + [nullcontext] * (k - frozen)

    def read(self, ids: Tensor, position: Tensor, shared: SharedPrefixes | None = None) -> Tensor:
        """Hidden states (B, T, C) of ids (B, T) that stand at `position` (B, T), after what was read before; what
        begins alike `shared`."""
        x = self.gpt.token_embedding(ids) + self.gpt.position_embedding(position)
        x = shared.gather(x) if shared else x
        for block, cache, arithmetic in zip(self.blocks, self.caches, self.arithmetic, strict=True):
            cache.position = position
            with arithmetic():
                x = block(x, shared.within(cache) if shared else cache)
        return shared.scatter(x) if shared else x


class Decoder:
    """What a GPT made of the prompts ids (B, T), whose first length (B,) tokens are no padding.

    max_new_tokens      how many tokens will follow a prompt at most
    logits    the output layer, hidden (..., C) -> (..., V); by default the GPT's own
    frozen, arithmetic    see Blocks
    Prompts are read once and continued as often as one likes.
    Raises InputError for a GPT without a causal mask, an empty prompt, or a context that is too short.
    """

    @torch.no_grad()
    def __init__(
        self,
        gpt: GPT,
        ids: Tensor,
        length: Tensor,
        max_new_tokens: int,
        logits: Callable[[Tensor], Tensor] | None = None,
        frozen: int = 0,
        arithmetic: Arithmetic = nullcontext,
    ) -> None:
        longest = check(gpt.config, length.tolist(), max_new_tokens)
        self.gpt, self.length, self.logits = gpt, length, logits or gpt.logits
        self.blocks = Blocks(gpt, len(gpt.blocks), longest + max_new_tokens, frozen, arithmetic)
        rows, places = (torch.arange(n, device=ids.device) for n in (len(ids), longest))
        ids = ids[:, :longest]
        hidden = self._read(ids, places.expand(len(ids), -1), SharedPrefixes.of(ids, length))  # (B, T, C)
        self.next = self.logits(hidden[rows, length - 1])  # (B, V), of the first new token: for all continuations
        self.next_log_p = self.next.float().log_softmax(-1)

    @torch.no_grad()
    def loglikelihood(self, ids: Tensor) -> Tensor:
        """Of the tokens ids (A,) after each prompt, A at most `max_new_tokens`: (B,), in fp32."""
        total = self.next_log_p[:, ids[0]]
        if len(ids) > 1:
            read, targets = (part.expand(len(total), -1) for part in (ids[:-1], ids[1:]))  # (B, A - 1) each
            places = self.length[:, None] + torch.arange(len(ids) - 1, device=ids.device)
            log_p = self.logits(self._read(read, places)).float().log_softmax(-1)  # (B, A - 1, V)
            total = total + log_p.gather(2, targets[..., None]).sum((1, 2))
        return total

    @torch.no_grad()
    def generate(self, n: int, eos_id: int, sample: Callable[[Tensor], Tensor] = greedy) -> list[list[int]]:
        """Up to `n` new ids after each prompt, n at most `max_new_tokens`, that end before the token `eos_id`.

        sample    logits (B, V) -> ids (B,); see `sampler`
        """
        written: list[list[int]] = [[] for _ in self.length]
        going = torch.ones_like(self.length, dtype=torch.bool)
        logits = self.next
        for i in range(n):
            token = sample(logits)
            going &= token != eos_id
            for row in going.nonzero().flatten().tolist():
                written[row].append(int(token[row]))
            if not going.any() or i + 1 == n:
                break
            logits = self.logits(self._read(token[:, None], self.length[:, None] + i)[:, 0])
        return written

    def _read(self, ids: Tensor, position: Tensor, shared: SharedPrefixes | None = None) -> Tensor:
        return self.gpt.final_norm(self.blocks.read(ids, position, shared))
