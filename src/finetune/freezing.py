"""What is unfrozen, and when: a strategy's name -> names of parameters -> stages of training.

The only place that sets requires_grad. A model here is a module with `gpt` (a GPT) and `head`.

last_layer        the head alone
last_block        the head, the final norm and the last block, as in the book
last_two_blocks   the same with two blocks; <n>_blocks with n
block_<i>         the same with block i of 0, 1, ... alone (Lee et al. 2022, "Surgical fine-tuning", who train nothing
                  but the block: their head is trained already, here it is new; the final norm, which it reads through,
                  goes with it, so that the last of these is last_block)
norms             the head and every LayerNorm
bitfit            the head and every bias, those of LayerNorms too (Ben Zaken et al. 2022)
all               everything
lora              the head and every LoRA factor; the book wraps the new head too and trains it whole besides
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import nn

from src.errors import InputError
from src.finetune.feature_store import Features

IN_STAGES = ("head_epochs", "gradual_unfreezing")  # settings that train some parameters later than others
Epochs = Annotated[int, Ge(0)]
Decay = Annotated[float, Gt(0), Le(1)]
NAMED_DEPTHS = {"last_block": 1, "last_two_blocks": 2}


def trainable_names(names: Iterable[str], strategy: str, n_layer: int) -> set[str]:
    """Those of `names` that `strategy` trains, for a GPT of `n_layer` blocks. Raises InputError if it cannot be."""
    names = set(names)
    head = {name for name in names if name.startswith("head.")}
    match strategy:
        case "last_layer":
            return head
        case "all":
            return names
        case "lora":
            return head | {name for name in names if "lora_" in name}
        case "norms":
            return head | {name for name in names if "norm" in name}
        case "bitfit":
            return head | {name for name in names if name.endswith(".bias")}
    prefixes = ("gpt.final_norm.", *(f"gpt.blocks.{i}." for i in whole_blocks(strategy, n_layer)))
    return head | {name for name in names if name.startswith(prefixes)}


def whole_blocks(strategy: str, n_layer: int) -> range:
    """Indices of the blocks that a strategy of whole blocks unfreezes."""
    if match := re.fullmatch(r"block_(\d+)", strategy):
        if (i := int(match[1])) >= n_layer:
            raise InputError(f"task.trainable={strategy}: this GPT has {n_layer} blocks, the first one is block_0")
        return range(i, i + 1)
    match = re.fullmatch(r"(\d+)_blocks", strategy)
    if match is None and strategy not in NAMED_DEPTHS:
        raise InputError(
            f"task.trainable={strategy} is unknown: "
            "use last_layer, last_block, last_two_blocks, <n>_blocks, block_<i>, norms, bitfit, all or lora"
        )
    n = int(match[1]) if match else NAMED_DEPTHS[strategy]
    if not 1 <= n <= n_layer:
        raise InputError(f"task.trainable={strategy} unfreezes {n} blocks, this GPT has {n_layer}")
    return range(n_layer - n, n_layer)


def freeze_all_but(model: nn.Module, names: Collection[str]) -> None:
    """Let exactly `names` require gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def depth(name: str, n_layer: int) -> int:
    """How far below the top a parameter lies: 0 for the head and the final norm, 1 for the last block, 2 for the one
    below it, n_layer + 1 for the embeddings."""
    if "embedding" in name:
        return n_layer + 1
    match = re.match(r"gpt\.blocks\.(\d+)\.", name)
    return n_layer - int(match[1]) if match else 0


def first_trainable_block(names: Iterable[str], n_layer: int) -> int:
    """Index k of the first block with a trainable parameter among `names`, n_layer when there is none: blocks below it
    and, if k > 0, the embeddings are a constant function while training."""
    return max(0, n_layer - max((depth(name, n_layer) for name in names), default=0))


@dataclass(frozen=True, eq=False)
class Stage:
    """Epochs in which the same is trained: from first_epoch, counted from 0, until the next stage begins.

    trained           names of parameters; a later stage trains these too
    first_trainable   see first_trainable_block
    features          part -> what the blocks below it have made of its messages (feature_cache.py); empty: made in
                      each step
    """

    first_epoch: int
    trained: frozenset[str]
    first_trainable: int
    features: dict[str, Features] = field(default_factory=dict)


def stages(trained: Collection[str], n_layer: int, head_epochs: int = 0, gradual_unfreezing: int = 0) -> list[Stage]:
    """The stages in which `trained` is unfrozen; the last one trains all of it.

    head_epochs          the head alone is trained so long, then the rest too: LP-FT (Kumar et al. 2022)
    gradual_unfreezing   so many epochs after each block the one below it follows, after the last one the embeddings
                         (Howard and Ruder 2018, who begin with the head: head_epochs=1 gradual_unfreezing=1); 0: all at
                         once
    """
    depths = [0, *sorted({depth(name, n_layer) for name in trained} - {0})]

    def begin(name: str) -> int:
        above = max(0, depths.index(depth(name, n_layer)) - 1)  # the final norm begins with the highest block
        return 0 if name.startswith("head.") else head_epochs + gradual_unfreezing * above

    found = []
    for epoch in sorted({begin(name) for name in trained} or {0}):
        names = frozenset(name for name in trained if begin(name) <= epoch)
        found.append(Stage(epoch, names, first_trainable_block(names, n_layer)))
    return found


def check_stages(
    strategy: str,
    trained: Collection[str],
    n_layer: int,
    head_epochs: int,
    gradual_unfreezing: int,
    layer_decay: float,
) -> None:
    """Raises InputError for values that say nothing about what is trained."""
    heads = [name for name in trained if name.startswith("head.")]
    depths = {depth(name, n_layer) for name in trained} - {0}
    for key, value, is_used, why in (
        ("head_epochs", head_epochs, 0 < len(heads) < len(trained), "a head and something besides"),
        ("gradual_unfreezing", gradual_unfreezing, len(depths) > 1, "parameters in several blocks"),
        ("layer_decay", layer_decay != 1, len(depths) > 0, "parameters in blocks"),
    ):
        if value and not is_used:
            raise InputError(f"task.{key} is for a strategy that trains {why}: task.trainable={strategy} does not")
