"""Frozen parameters: what features and checkpoints know them by, which hold none of them."""

import hashlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from src.errors import InputError


def frozen_parameters(model: nn.Module, trained: Collection[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Those that do not move."""
    return ((name, parameter) for name, parameter in model.named_parameters() if name not in trained)


def frozen_sha256(model: nn.Module, trained: Collection[str]) -> str:
    """Of the parameters that do not move, to the last bit."""
    whole = hashlib.sha256()
    for name, parameter in frozen_parameters(model, trained):
        whole.update(name.encode())
        whole.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def frozen_norms(model: nn.Module, trained: Collection[str]) -> Tensor:
    """Of each parameter that does not move: another GPT has others, while random weights of one seed keep theirs on
    whatever processor."""
    # of few numbers each: exact enough
    rows = [torch.linalg.vector_norm(p.detach(), dim=-1) for _, p in frozen_parameters(model, trained)]
    found = [torch.linalg.vector_norm(row, dtype=torch.float64) for row in rows]
    return torch.stack(found) if found else torch.empty(0, dtype=torch.float64)


def check_frozen_norms(found: Tensor, own: Tensor) -> None:
    """Raises InputError where the norms in a checkpoint are not those of the model's frozen parameters."""
    if found.shape != own.shape or not torch.allclose(found, own, rtol=1e-5):
        raise InputError(
            "the GPT is another one than that which the run was trained on, and a checkpoint holds only what was "
            "trained: put the weights back to which gpt.weights points"
        )
