"""Plain language modelling: a GPT learns to predict the next token. Used for pretraining.

The 50,257-way softmax costs two thirds of a small GPT's time and most of its memory, so that its loss and both of its
gradients are computed together, a chunk of tokens at a time, in one pass over the logits.
"""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from src.finetune.optimize import Optimizer, clip
from src.gpt.model import GPT


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        h, w, b = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
        with_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        d_hidden = torch.empty_like(h) if with_gradient else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if with_gradient else None
        # two buffers reused by every chunk: fresh ones of 100 MB cost a third more time in page faults alone
        logits = h.new_empty(min(chunk, len(h)), len(w))
        probabilities = torch.empty_like(logits)
        loss = torch.zeros((), device=h.device)
        for start in range(0, len(h), chunk):
            part, y = h[start : start + chunk], targets[start : start + chunk]
            rows = torch.arange(len(part), device=h.device)
            z = torch.addmm(b, part, w.t(), out=logits[: len(part)])  # (N, V)
            p = torch.softmax(z, -1, out=probabilities[: len(part)])
            # log-sum-exp from the likeliest token: its probability is at least 1/V, so its logarithm is safe
            top, best = z.max(-1)
            log_sum = top.float() - p[rows, best].float().log()
            loss += (log_sum - z[rows, y].float()).sum()
            if with_gradient:
                p[rows, y] -= 1.0
                d_hidden[start : start + chunk] = p @ w
                d_weight += p.t() @ part
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.n, ctx.dtypes = len(h), (hidden.dtype, weight.dtype)
        return loss / len(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = gradient / ctx.n
        return (d_hidden * scale).to(ctx.dtypes[0]), (d_weight * scale).to(ctx.dtypes[1]), None, None, None, None


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, chunk: int = 2048
) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T + bias` against `targets`, never holding more than `chunk` rows of logits.

    hidden (N, C), weight (V, C), targets (N,), bias (V,) a constant -> scalar in fp32. Products run in autocast's dtype
    when it is on.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, chunk, dtype)


def sampled_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, sample: int, generator: torch.Generator | None = None
) -> Tensor:
    """Like `chunked_cross_entropy`, but over the batch's own targets and `sample` other tokens that stand for the rest.

    The softmax's denominator is exact for every token that is a target somewhere in the batch, which is where most of
    the probability lies; the others are estimated without bias from a uniform sample, each weighing (V - targets) / sample.
    """
    V = len(weight)
    present, positions = targets.unique(return_inverse=True)
    absent = torch.ones(V, dtype=torch.bool, device=targets.device)
    absent[present] = False
    others = absent.nonzero().squeeze(1)
    sample = min(sample, len(others))
    chosen = others[torch.randperm(len(others), generator=generator, device=targets.device)[:sample]]
    bias = weight.new_zeros(len(present) + sample)
    bias[len(present) :] = math.log(len(others) / sample) if sample else 0.0
    return chunked_cross_entropy(hidden, weight[torch.cat([present, chosen])], positions, bias)


class Language(L.LightningModule):
    """A GPT under the next-token loss. Batches are windows (B, T + 1) of token ids.

    Weight decay leaves out norms, biases and embeddings. The learning rate follows training progress, which is the larger
    of steps done / max_steps and time used / time budget, so that a budget in minutes ends at the floor as well.
    `softmax_sample` trains on a sampled softmax (see `sampled_cross_entropy`); validation never does.
    """

    def __init__(self, gpt: GPT, optimizer: Optimizer, softmax_sample: int | None = None) -> None:
        super().__init__()
        self.gpt, self.optimizer, self.softmax_sample = gpt, optimizer, softmax_sample

    def training_step(self, window: Tensor, batch_index: int) -> Tensor:
        hidden, targets = self._hidden(window)
        weight = self.gpt.token_embedding.weight
        if self.softmax_sample is None:
            loss = chunked_cross_entropy(hidden, weight, targets)
        else:
            loss = sampled_cross_entropy(hidden, weight, targets, self.softmax_sample)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, window: Tensor, batch_index: int) -> None:
        hidden, targets = self._hidden(window)
        loss = chunked_cross_entropy(hidden, self.gpt.token_embedding.weight, targets)
        self.log("validation/loss", loss, prog_bar=True, batch_size=len(window))

    def _hidden(self, window: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.gpt(window[:, :-1])  # (B, T, C)
        return hidden.flatten(0, 1), window[:, 1:].flatten()

    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        done = self.trainer.global_step / self.trainer.max_steps if self.trainer.max_steps > 0 else 0.0
        timers = [c for c in self.trainer.callbacks if isinstance(c, Timer)]
        for timer in timers:
            used, left = timer.time_elapsed("train"), timer.time_remaining("train") or 0.0
            done = max(done, used / (used + left))
        return min(1.0, done)

    def configure_optimizers(self) -> dict[str, Any]:
        decayed = [p for n, p in self.gpt.named_parameters() if p.ndim == 2 and "embedding" not in n]
        others = [p for n, p in self.gpt.named_parameters() if p.ndim != 2 or "embedding" in n]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        return self.optimizer.build(groups, self.progress)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        clip(self, gradient_clip_val)
