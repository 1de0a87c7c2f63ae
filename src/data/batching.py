"""Token ids -> padded batches. Lengths travel with the ids: <|endoftext|> is both a token and the padding."""

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from operator import eq
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.tokenizer import END_OF_TEXT


class Batch(NamedTuple):
    """ids (B, T), length (B,) of each message in tokens, label (B,) class numbers, row (B,) place in its split.

    part       the split's name
    features   what frozen blocks have made of the ids, where that is known already (see finetune/feature_cache.py)
    counted    how many rows count: 0 for a rank without any of its own, which is given another's; None for all
    whole      labels of the whole batch, of which this is a rank's share (see sharding.py)
    """

    ids: Tensor
    length: Tensor
    label: Tensor
    row: Tensor
    part: str = ""
    features: Tensor | None = None
    counted: int | None = None
    whole: Tensor | None = None


def of_counted(batch: Batch, *rows: Tensor) -> list[Tensor]:
    """On the CPU, what was made of the rows of a batch that count."""
    return [tensor[: batch.counted].cpu() for tensor in rows]


class Messages(Dataset[Batch]):
    """The tokenized messages of one split; indexed by a list of rows, which gives their Batch.

    width     every batch is padded to that many tokens; None pads to the longest message of the batch
    padding   what padding means: fixed (to width) | batch: what is read of a message depends on those beside it |
              free: nobody reads it | none: there is none, so that only messages of equal length stand together
    """

    def __init__(
        self, ids: list[list[int]], labels: list[int], width: int | None, padding: str = "", part: str = ""
    ) -> None:
        self.ids, self.labels, self.width, self.part = ids, labels, width, part
        self.padding = padding or ("fixed" if width else "batch")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: list[int] | int) -> Batch:
        rows = [rows] if isinstance(rows, int) else rows  # trainer.overfit_batches has a sampler of single rows
        if not rows:  # a rank for which no batch of a split is left
            return self.padded([0], self.width)._replace(counted=0)
        return self.padded(rows, self.width)

    def padded(self, rows: list[int], width: int | None) -> Batch:
        """The batch of `rows`; without a width as wide as its longest."""
        length = torch.tensor([len(self.ids[row]) for row in rows])
        padded = torch.full((len(rows), width or int(length.max())), END_OF_TEXT)
        for place, row in enumerate(rows):
            padded[place, : len(self.ids[row])] = torch.tensor(self.ids[row])
        return Batch(padded, length, self.label(rows), torch.tensor(rows), self.part)

    def label(self, rows: list[int]) -> Tensor:
        """Their class numbers."""
        return torch.tensor([self.labels[row] for row in rows])

    def width_of(self, rows: list[int]) -> int | None:
        """How wide a batch of `rows` must be for each of them; None where nobody reads what is behind a message."""
        return max(len(self.ids[row]) for row in rows) if self.padding == "batch" else self.width


class ShuffledBatches:
    """Rows in batches, shuffled anew each epoch by (seed, epoch) alone, so that a resumed run sees the same batches.

    `lengths` groups messages of like length: batches are cut from pools of 16 batches sorted by length, then shuffled.
    `groups` numbers the group of each row: of each group, as many rows as the smallest has are drawn.
    """

    POOL = 16

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        lengths: list[int] | None = None,
        groups: "np.ndarray[Any, Any] | None" = None,
    ) -> None:
        self.batch_size, self.seed, self.lengths = batch_size, seed, lengths
        self.groups = np.zeros(n, int) if groups is None else groups
        self.smallest = int(np.bincount(self.groups).min())
        self.n = self.smallest * len(np.unique(self.groups))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = rng.permutation(len(self.groups))
        if self.n < len(rows):
            drawn = [rows[self.groups[rows] == group][: self.smallest] for group in np.unique(self.groups)]
            rows = rng.permutation(np.concatenate(drawn))
        rows = rows.tolist()
        if self.lengths is None:
            yield from chunked(rows, self.batch_size)
            return
        lengths = self.lengths
        pools = chunked(rows, self.POOL * self.batch_size)
        batches = [
            batch for pool in pools for batch in chunked(sorted(pool, key=lambda row: lengths[row]), self.batch_size)
        ]
        for place in rng.permutation(len(batches)):
            yield batches[place]


# of a batch that is not trained on: a GPU needs many for its full speed; a CPU is a third slower with 8192 than with
# 1024, since what a block makes of so many leaves its caches (GPT-2 small and mini in fp32, AMD Zen 3), and as much
# with 1024 as with 2048 in bf16, since weights are converted for every batch (Intel with AMX, where fp32 is equal)
TOKENS = 8192 if torch.cuda.is_available() else 2048
# where a batch has a quarter of these, how many times as long as its shortest message the next may be: for the UCI
# messages 7% padding in place of 13%, 8% less time in fp32 and none in bf16 (GPT-2 small, Intel with AMX)
PADDING = 1.2


def evaluation_batches(messages: Messages, batch_size: int, rows: Sequence[int] | None = None) -> list[list[int]]:
    """Each of `rows` (default: all) once, in batches as large as changes nothing for any message."""
    rows = range(len(messages)) if rows is None else rows
    if messages.width is not None:
        return chunked(list(rows), max(batch_size, TOKENS // messages.width))
    lengths = [len(ids) for ids in messages.ids]
    rows = sorted(rows, key=lengths.__getitem__)
    if messages.padding == "batch":
        return chunked(rows, batch_size)
    batches: list[list[int]] = []
    for row in rows:
        batch, width = batches[-1] if batches else [], lengths[row]
        full = (len(batch) + 1) * width > max(TOKENS, batch_size * width)
        shortest = lengths[batch[0]] if batch else width
        large = len(batch) >= max(batch_size, TOKENS / 4 / width)
        uneven = width > shortest if messages.padding == "none" else large and width > PADDING * shortest
        if not batch or full or uneven:
            batches.append([])
        batches[-1].append(row)
    return batches


def packed_batches(messages: Messages, extra: int = 0) -> list[list[int]]:
    """All of them once, in batches of about TOKENS tokens that differ in themselves or in one before (see
    gpt/shared_prefixes.py); `extra` more are counted a message. A batch holds messages of like length, as their
    attention is padded to the longest, and those that begin alike follow each other."""

    def group(ids: list[int]) -> int:
        if messages.width is not None:
            return 0
        return len(ids) if messages.padding == "none" else int(math.log(len(ids), PADDING))

    batches: list[list[int]] = []
    before: list[int] = []
    tokens = 0
    for row in sorted(range(len(messages)), key=lambda row: (group(messages.ids[row]), messages.ids[row])):
        ids = messages.ids[row]
        padded = ids + [END_OF_TEXT] * ((messages.width or len(ids)) - len(ids))
        new = len(padded) - common_prefix_length(before, padded) + extra
        fits = batches and tokens + new <= TOKENS and (len(batches[-1]) + 1) * len(padded) <= 4 * TOKENS
        if not fits or (messages.padding == "none" and len(padded) > len(before)):
            batches.append([])
            tokens, new = 0, len(padded) + extra
        batches[-1].append(row)
        before, tokens = padded, tokens + new
    return [sorted(batch, key=messages.ids.__getitem__) for batch in batches]


def common_prefix_length(a: list[int], b: list[int]) -> int:
    """How many tokens two messages begin with alike."""
    return sum(takewhile(bool, map(eq, a, b)))


def chunked(rows: list[int], size: int) -> list[list[int]]:
    """`rows` in pieces of `size`, the last one shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
