"""Losses of language modelling: hidden states (N, C), token embedding (V, C), targets (N,) -> mean cross-entropy.

The output layer (V = 50,257 rows) is two thirds of a small GPT's work. Its logits are never held whole: the loss and
its gradient are made chunk by chunk in one pass, and training may stand in a sample of the vocabulary for the words
that a batch does not hold (sampled softmax with importance correction: Bengio and Senecal 2008).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from src import ranks
from src.gpt.model import GPT

IGNORE_INDEX = -100  # a target that the loss leaves out, torch's own number for it
ChunkLoss = Callable[[Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor | None]]  # chunk_loss, or compiled


def chunk_loss(logits: Tensor, targets: Tensor, bias: Tensor | None, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy of a chunk's logits (N, V) plus bias (V), and its gradient by them where it is asked for.

    Everything between the matrix products: what torch.compile makes one pass of. Logits in fp32 are overwritten.
    """
    low, kept = logits.dtype, targets != IGNORE_INDEX
    logits = logits.float()
    if bias is not None:
        logits += bias
    target = targets.clamp(min=0)[:, None]
    log_sum = logits.logsumexp(-1, keepdim=True)
    log_share = logits.gather(1, target) - log_sum
    loss = -(log_share.squeeze(1) * kept).sum()
    if not gradient:
        return loss, None
    error = logits.sub_(log_sum).exp_().mul_(kept[:, None]).to(low)  # softmax - one-hot, the target's own last
    return loss, error.scatter_(1, target, ((log_share.exp() - 1) * kept[:, None]).to(low))


class ChunkedCrossEntropy(torch.autograd.Function):
    """See `chunked_cross_entropy`. Gradients are made in the forward pass, while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        chunk: int,
        loss_fn: ChunkLoss,
    ) -> Tensor:
        low = _matmul_dtype(hidden)
        h, w = hidden.to(low), weight.to(low)
        grad_h = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        grad_w = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(h), chunk):
                part = slice(start, start + chunk)
                loss, error = loss_fn(h[part] @ w.T, targets[part], bias, grad_h is not None or grad_w is not None)
                total += loss
                if error is None:
                    continue
                if grad_h is not None:
                    grad_h[part] = error @ w
                if grad_w is not None:
                    grad_w += error.T @ h[part]
        count = (targets != IGNORE_INDEX).sum().clamp(min=1)
        ctx.save_for_backward(grad_h, grad_w, count)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        grad_h, grad_w, count = ctx.saved_tensors
        scale = grad_outputs[0] / count
        first = None if grad_h is None else (grad_h * scale).to(ctx.dtypes[0])
        second = None if grad_w is None else (grad_w * scale).to(ctx.dtypes[1])
        return first, second, None, None, None, None


def _matmul_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int = 2048,
    loss_fn: ChunkLoss = chunk_loss,
) -> Tensor:
    """Mean cross-entropy of `hidden` (N, C) @ `weight` (V, C)^T against targets (N,), -100 left out; at no time are
    there more than (chunk, V) logits. loss_fn: chunk_loss, or what torch.compile made of it."""
    if not torch.is_grad_enabled():  # needs_input_grad would still be true for a parameter
        weight = weight.detach()
    return ChunkedCrossEntropy.apply(hidden, weight, targets, None, chunk, loss_fn)


def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    num_sampled: int,
    generator: torch.Generator,
    chunk: int = 2048,
    loss_fn: ChunkLoss = chunk_loss,
) -> Tensor:
    """The same over a part of the vocabulary: all target words of the batch, exactly, and `num_sampled` of the others.

    Each of these stands for (V - targets) / num_sampled words, so that the softmax's sum is right on average (Jean et
    al. 2015 sample in the same spirit).
    """
    V = len(weight)
    present = targets[targets != IGNORE_INDEX].unique()  # sorted
    absent = torch.ones(V, dtype=torch.bool, device=weight.device).index_fill_(0, present, False).nonzero().squeeze(1)
    drawn = absent[torch.randperm(len(absent), generator=generator)[:num_sampled].to(absent.device)]
    words = torch.cat([present, drawn])
    bias = torch.zeros(len(words), device=weight.device)
    bias[len(present) :] = torch.tensor(len(absent) / max(1, len(drawn))).log()
    place = torch.where(targets == IGNORE_INDEX, IGNORE_INDEX, torch.searchsorted(present, targets.clamp(min=0)))
    return ChunkedCrossEntropy.apply(hidden, weight[words], place, bias, chunk, loss_fn)


@torch.no_grad()
def mean_loss(gpt: GPT, batches: list[Tensor]) -> tuple[float, int]:
    """Mean loss in nats over every target token of the ranks' `batches` (B, T+1), and how many tokens those are."""
    total, tokens = 0.0, 0
    device = gpt.token_embedding.weight.device
    for batch in batches:
        batch = batch.to(device)
        hidden, targets = gpt(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        total += chunked_cross_entropy(hidden, gpt.token_embedding.weight, targets).item() * len(targets)
        tokens += len(targets)
    total, tokens = (sum(of_ranks) for of_ranks in zip(*ranks.gathered((total, tokens)), strict=True))
    return total / tokens, tokens
