"""python -m benchmarks.floor [+experiment=<name>] [key=value ...]     the settings of src.train, task=classify

The operations that a job cannot do without, as JSON, when each piece of work is done once:

    features   embeddings and frozen blocks, forward, once for every message of every split; of those in a split that
               begin alike, no linear layer twice
    train      the live blocks and the head, forward and backward, for every training message in every epoch
    evaluate   the same, forward: validation after every epoch, and at the end every split

at the tokens that the position needs: the message alone where no padding is read, else the padded width. The last block
works at the read position only (GPT.upper_blocks_at). Counted by torch's flop counter on the meta device, a
multiply-add being two; attention is counted without what a causal mask would spare; the optimizer is not counted.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from src.config.command_line import compose, one_sentence

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from src.gpt.model import GPT

NODES = (8, 16, 24)  # lengths, evenly apart


class Work(NamedTuple):
    """Operations of a job's parts."""

    features: int
    train: int
    evaluate: int


def work(cfg: "DictConfig") -> Work:
    """Count what the run of `cfg` needs."""
    import torch

    from src.config import build
    from src.data.tokenizer import END_OF_TEXT

    cfg, data = cfg.copy(), build.build_data(cfg)
    cfg.gpt.weights = "random"
    with torch.device("meta"):  # shapes without numbers
        model = build.build_task(cfg, data.labels)
    data.encode_for(model.prompts, model.reads_padding, model.gpt.config.context_length)
    assert model.head is not None
    gpt, head, k = model.gpt, model.head, model.first_trainable
    width = data.width if model.reads_padding else None
    read = {
        part: [ids + [END_OF_TEXT] * ((width or 0) - len(ids)) for ids in messages.ids]
        for part, messages in data.splits.items()
    }
    lengths = {part: Counter(map(len, rows)) for part, rows in read.items()}
    epochs = cfg.trainer.max_epochs
    every = lengths["train"] + lengths["validation"] + lengths["test"]
    evaluated = every + Counter({T: n * epochs for T, n in lengths["validation"].items()})
    spared = sum(map(repeated, read.values())) if gpt.config.causal else 0
    return Work(
        features=total(every, lambda length: lower_blocks(gpt, k, length)) - spared * lower_blocks(gpt, k, 1),
        train=epochs * total(lengths["train"], lambda length: upper_blocks(gpt, head, k, length, backward=True)),
        evaluate=total(evaluated, lambda length: upper_blocks(gpt, head, k, length, backward=False)),
    )


def repeated(messages: list[list[int]]) -> int:
    """How many tokens stand behind the same ones as in another message."""
    from src.data.batching import common_prefix_length

    return sum(common_prefix_length(a, b) for a, b in pairwise(sorted(messages)))


def total(lengths: "Counter[int]", operations: Callable[[int], int]) -> int:
    """The sum of `operations(T)` over messages of length T: of degree two in T, so that three counts give all."""
    first, second, third = (operations(T) for T in NODES)
    slope, bend = second - first, third - 2 * second + first
    steps = {T: (T - NODES[0]) / (NODES[1] - NODES[0]) for T in lengths}
    return round(sum(n * (first + (s := steps[T]) * slope + s * (s - 1) / 2 * bend) for T, n in lengths.items()))


def lower_blocks(gpt: "GPT", k: int, length: int) -> int:
    """Operations of embeddings and blocks 0..k-1 on one message of `length` tokens."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        gpt.lower_blocks(torch.zeros(1, length, dtype=torch.long, device="meta"), k)
    return counter.get_total_flops()


def upper_blocks(gpt: "GPT", head: "nn.Module", k: int, length: int, backward: bool) -> int:
    """Operations of blocks k..n-1 and the head, read at one position of `length`, with or without the backward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.empty(1, length, gpt.config.n_embd, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = head(gpt.upper_blocks_at(x, k, torch.zeros(1, 1, dtype=torch.long, device="meta")))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def main() -> None:
    """Print the counts."""
    print(json.dumps(work(compose("train", sys.argv[1:]))._asdict()))


if __name__ == "__main__":
    with one_sentence():
        main()
