"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): surgery on an instance, and back.

`inject` turns nn.Linears below a module into LoRALinears, `merge` turns them back, into plain ones.
A LoRALinear keeps the names `weight` and `bias`, so that no key is ever remapped.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

TARGETS = {"all": "", "blocks": "blocks.", "attention": "attention.", "qkv": "attention.qkv", "mlp": "mlp."}


@dataclass(frozen=True)
class LoRA:
    """Rank and strength of the adapters; the defaults are the book's row 11.

    scaling is "alpha" (the update is scaled by alpha, as the book's appendix E does) or "alpha_over_rank" (as in the
    paper and in peft). init is what A starts from: "in_features", uniform up to 1/sqrt(in_features), as in peft, or
    "rank", up to 1/sqrt(rank), as in the book, whose A is stored the other way round, so that the same call of
    kaiming_uniform_ takes the rank for the fan: for GPT-2 small and rank 16, 7 times as large. target is which layers
    get adapters, by TARGETS; dora adapts the direction of each row of a layer and trains its length beside it (Liu et
    al. 2024, arXiv 2402.09353).
    """

    rank: Annotated[int, Ge(1)] = 16
    alpha: Annotated[float, Gt(0)] = 16.0
    scaling: Literal["alpha", "alpha_over_rank"] = "alpha"
    init: Literal["in_features", "rank"] = "in_features"
    target: Literal["all", "blocks", "attention", "qkv", "mlp"] = "all"
    dora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha if self.scaling == "alpha" else self.alpha / self.rank


class LoRALinear(nn.Linear):
    """y = x V^T + b with V = W + scale * B A, A (rank, in) random and B (out, rank) zero: at the start, W alone.

    With dora each row of V has a trained magnitude, at the start that of W's; in the gradient its own length is a
    constant, as in the paper's section 4.3.
    """

    def __init__(self, linear: nn.Linear, lora: LoRA) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(linear.weight.new_empty(lora.rank, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, lora.rank))
        length = torch.linalg.vector_norm(linear.weight.detach(), dim=1)  # (out,)
        self.lora_magnitude: nn.Parameter | None = nn.Parameter(length) if lora.dora else None
        self.scale = lora.scale
        A = self.lora_A.detach()
        nn.init.kaiming_uniform_(A.t() if lora.init == "rank" else A, a=math.sqrt(5))  # up to 1/sqrt of the last size

    def forward(self, x: Tensor) -> Tensor:
        update = self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)
        if self.lora_magnitude is None:
            return super().forward(x) + update
        y = (F.linear(x, self.weight) + update) * (self.lora_magnitude / self._adapted()[1])
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def _adapted(self) -> tuple[Tensor, Tensor]:
        """V (out, in), and the length of each of its rows (out,)."""
        V = self.weight + self.scale * self.lora_B @ self.lora_A
        return V, torch.linalg.vector_norm(V, dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain nn.Linear of the same function, to fp32 rounding."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        V, length = self._adapted()
        linear.weight = nn.Parameter(V if self.lora_magnitude is None else V * (self.lora_magnitude / length)[:, None])
        linear.bias = self.bias
        return linear


def inject(module: nn.Module, lora: LoRA) -> None:
    """Replace the nn.Linears below `module` that are a target, in place. The book adapts query, key and value apart,
    each with its own pair of factors; here, as in peft, the fused projection of the three has one pair."""
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            is_target = TARGETS[lora.target] in f"{path}.{name}"
            if is_target and isinstance(child, nn.Linear) and not isinstance(child, LoRALinear):
                setattr(parent, name, LoRALinear(child, lora))


def merge(module: nn.Module) -> None:
    """Replace every LoRALinear below `module` by a plain layer of the same function, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
