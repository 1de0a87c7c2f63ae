"""How fast a language model trains: tokens a second, operations a second, and their share of what the device can do.

Also the clock of a run with a time budget, and the record of its losses; both go on counting when a run is resumed.
"""

from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch import Tensor

from src import ranks
from src.finetune.cost import count_flops
from src.pretraining.causal_lm import CausalLM


def measured_peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a large matrix product, the best of five: what a step is held against."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        start = _now(device)
        for _ in range(3):
            a @ a
        best = max(best, 3 * 2 * size**3 / (_now(device) - start))
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


class Throughput(L.Callback):
    """Logs the rates of all ranks every log_every_n_steps, keeps `curve`, and stops training once `budget_seconds` are
    over, which begin when the first batch is done."""

    def __init__(self, budget_seconds: float | None) -> None:
        self.budget_seconds = budget_seconds
        self.seconds, self.tokens, self.flops = 0.0, 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.loss_sum: float | Tensor = 0.0  # of the batches since the last row of the curve
        self.batches = 0
        self.flops_per_batch = self._peak = 0.0  # by the first batch, whose number of words stands for all
        self._since = (0.0, 0, 0.0)

    def share(self) -> float:
        """Of the time budget, what is over."""
        return min(1.0, self.seconds / (self.budget_seconds or float("inf")))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.get_default_dtype()
        dtype = torch.float16 if trainer.precision == "16-mixed" else dtype
        self._peak = measured_peak(module.device, dtype) * ranks.world()
        self._started = perf_counter() - self.seconds
        self._since = (perf_counter(), self.tokens, self.flops)
        self._stop_when_over(trainer)  # at once, where a run is resumed after its last step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Tensor, batch_index: int
    ) -> None:
        assert isinstance(module, CausalLM)
        if not self.tokens:  # it may have compiled: a schedule by the clock would jump over its warm-up
            self._started = _now(module.device)
        if not self.flops_per_batch:
            self.flops_per_batch = flops_of(module, batch) * ranks.world()
        self.tokens += batch[:, 1:].numel() * ranks.world()
        self.flops += self.flops_per_batch
        self.loss_sum = self.loss_sum + outputs["loss"].detach() * trainer.accumulate_grad_batches
        self.batches += 1
        self.seconds = self._elapsed(module.device)
        self._stop_when_over(trainer)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            now, (then, tokens, flops) = _now(module.device), self._since
            rate = (self.flops - flops) / (now - then)
            module.log("done", module.progress(), prog_bar=True)
            module.log("tokens_per_second", (self.tokens - tokens) / (now - then), prog_bar=True)
            module.log("tflop_per_second", rate / 1e12)
            module.log("share_of_peak", rate / self._peak, prog_bar=True)
            self._since = (now, self.tokens, self.flops)

    def _stop_when_over(self, trainer: L.Trainer) -> None:
        if self.share() == 1.0:
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.batches:
            return
        if trainer.state.fn == "fit":
            self.seconds = self._elapsed(module.device)
        row = {"step": trainer.global_step, "tokens": self.tokens, "seconds": round(self.seconds, 1)}
        row["train_loss"] = self._loss_of_ranks() / self.batches
        row["validation_loss"] = trainer.callback_metrics["validation/loss"].item()
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        self.curve.append(row)
        self.loss_sum, self.batches = 0.0, 0
        self._since = (_now(module.device), self.tokens, self.flops)  # validation is no training

    def _elapsed(self, device: torch.device) -> float:
        """Seconds of training, which by the first rank's clock are a budget's."""
        seconds = perf_counter() - self._started
        if not self.budget_seconds or ranks.world() == 1:
            return seconds
        return ranks.total(torch.tensor(0.0 if ranks.rank() else seconds, dtype=torch.float64, device=device)).item()

    def _loss_of_ranks(self) -> float:
        """Their mean loss_sum; where it is no Tensor, it came from a checkpoint, and is theirs already."""
        if isinstance(self.loss_sum, Tensor):
            return float(ranks.total(self.loss_sum)) / ranks.world()
        return self.loss_sum

    def state_dict(self) -> dict[str, Any]:
        names = ("seconds", "tokens", "flops", "flops_per_batch", "curve", "batches")
        return {name: getattr(self, name) for name in names} | {"loss_sum": self._loss_of_ranks()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def flops_of(module: CausalLM, batch: Tensor) -> float:
    """Operations of a training step on `batch` (B, T+1): the body counted, and three products with the output layer.

    The counter takes attention for T x T; the fused kernels leave out what lies in the future.
    """
    ids = batch[:, :-1]
    (B, T), (V, C) = ids.shape, module.gpt.token_embedding.weight.shape
    future = 3 * 2 * 2 * B * (T * (T - 1) // 2) * C * module.gpt.config.n_layer  # of scores and weighted sums
    words = V if module.num_sampled is None else min(V, module.num_sampled + len(batch[:, 1:].unique()))
    with torch.compiler.set_stance("force_eager"):  # counting under compilation would turn it off for good
        body = count_flops(module, ids)
    return body - future + 3 * 2 * B * T * words * C
