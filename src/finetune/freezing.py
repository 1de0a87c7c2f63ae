"""What is unfrozen: a strategy's name -> the set of trainable parameter names. The only place that sets requires_grad.

A model here is a module with `gpt` (a GPT) and `head`.

last_layer        the head alone
last_block        the head, the final norm and the last block, as in the book
last_two_blocks   the same with two blocks; <n>_blocks with n
all               everything
lora              the head and every LoRA factor; the book wraps the new head too and trains it whole besides
"""

import re
from collections.abc import Iterable

from torch import nn

from src.errors import InputError

NAMED_DEPTHS = {"last_block": 1, "last_two_blocks": 2}


def trainable_names(names: Iterable[str], strategy: str, n_layer: int) -> set[str]:
    """Those of `names` that `strategy` trains, for a GPT of `n_layer` blocks. Raises InputError if it cannot be."""
    names = set(names)
    head = {name for name in names if name.startswith("head.")}
    if strategy == "last_layer":
        return head
    if strategy == "all":
        return names
    if strategy == "lora":
        return head | {name for name in names if "lora_" in name}
    prefixes = ("gpt.final_norm.", *(f"gpt.blocks.{i}." for i in range(n_layer - depth(strategy, n_layer), n_layer)))
    return head | {name for name in names if name.startswith(prefixes)}


def depth(strategy: str, n_layer: int) -> int:
    """How many blocks from the top a strategy of whole blocks unfreezes."""
    match = re.fullmatch(r"(\d+)_blocks", strategy)
    if match is None and strategy not in NAMED_DEPTHS:
        raise InputError(
            f"task.trainable={strategy} is unknown: "
            "use last_layer, last_block, last_two_blocks, <n>_blocks, all or lora"
        )
    n = int(match[1]) if match else NAMED_DEPTHS[strategy]
    if not 1 <= n <= n_layer:
        raise InputError(f"task.trainable={strategy} unfreezes {n} blocks, this GPT has {n_layer}")
    return n


def freeze_all_but(model: nn.Module, names: set[str]) -> None:
    """Let exactly `names` require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def first_trainable_block(names: Iterable[str], n_layer: int) -> int:
    """Index k of the first block with a trainable parameter among `names`, n_layer when there is none: blocks below it
    and, if k > 0, the embeddings are a constant function while training."""
    if any("embedding" in name for name in names):
        return 0
    return min((int(m[1]) for name in names if (m := re.match(r"gpt\.blocks\.(\d+)\.", name))), default=n_layer)
