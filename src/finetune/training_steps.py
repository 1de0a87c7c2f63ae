"""Training steps: batch -> loss -> means of the epoch -> optimizer, as Lightning calls them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src import ranks
from src.data.batching import Batch
from src.errors import InputError
from src.finetune.history import Mean
from src.finetune.optim import ClippedGradients, OptimizerFactory, SchedulerFactory, configure
from src.gpt.model import GPT


class TrainingSteps(ClippedGradients):
    """What is done with the loss that a subclass makes of a batch; optimizer and scheduler are factories (optim.py)."""

    gpt: GPT
    nonfinite_loss: Tensor

    def __init__(self, optimizer: OptimizerFactory, scheduler: SchedulerFactory) -> None:
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed = torch.initial_seed()  # what the run was seeded with
        self.class_weight: Tensor | None = None  # (K,); no buffer, which a Trainer may round to its precision
        self.means = nn.ModuleDict(
            {f"{phase}_{name}": Mean() for phase in ("train", "validation") for name in ("accuracy", "loss")}
        )
        self.register_buffer("nonfinite_loss", torch.zeros((), dtype=torch.bool), persistent=False)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and whether each message (B,) would be answered rightly."""
        raise NotImplementedError

    def targets_of(self, label: Tensor) -> Tensor:
        """How many targets each message of these labels (B,) has."""
        raise NotImplementedError

    def targets(self, label: Tensor) -> Tensor:
        """How many targets the loss of a batch with these labels is the mean of, each counted by the weight of its
        class: its weight in the loss of an epoch, which so depends on no batch size."""
        n = self.targets_of(label)
        return n.sum() if self.class_weight is None else (n * self.class_weight.to(n.device)[label]).sum()

    def cross_entropy(self, logits: Tensor, targets: Tensor, batch: Batch, ignored: int) -> Tensor:
        """Mean over the targets of a batch, each with the weight of its class; of a rank's share, its part of the mean
        over the whole batch."""
        if batch.whole is None and self.class_weight is None:
            return F.cross_entropy(logits, targets, ignore_index=ignored)
        if self.class_weight is None:
            summed = F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")
        else:
            losses = F.cross_entropy(logits, targets, ignore_index=ignored, reduction="none")
            of_message = losses.view(len(batch.label), -1).sum(1)
            summed = (of_message * self.class_weight.to(losses.device)[batch.label]).sum()
        if batch.whole is None:
            return summed / self.targets(batch.label)
        return summed * (batch.counted != 0) / self.targets(batch.whole)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:  # dropout, which survives a resume
        if self.gpt.config.dropout:
            torch.manual_seed(
                self.seed + 1_000_003 * self.current_epoch + batch_index + ranks.SEEDS_APART * ranks.rank()
            )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = self._shared_step(batch, "train")
        if self.trainer.is_last_batch:
            self._log_means("train")
        self.nonfinite_loss |= ~loss.detach().isfinite()  # looked at where a sync costs nothing: see _stop_if_nonfinite
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.trainer.global_step % every == 0:
            self._stop_if_nonfinite()
        return loss * ranks.world() if batch.whole is not None else loss  # DDP takes the mean of the ranks' gradients

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.nonfinite_loss |= ~self._shared_step(batch, "validation").isfinite()

    def _shared_step(self, batch: Batch, phase: str) -> Tensor:
        loss, right = self.loss(batch)
        right, own = right[: batch.counted], self.targets(batch.label[: batch.counted])
        self._mean(phase, "accuracy").update(right.sum(), len(right))
        whole = own if batch.whole is None else self.targets(batch.whole)
        self._mean(phase, "loss").update(loss.detach().float() * whole, own)
        return loss

    def _mean(self, phase: str, name: str) -> Mean:
        mean = self.means[f"{phase}_{name}"]
        assert isinstance(mean, Mean)
        return mean

    def _log_means(self, phase: str) -> None:
        for name in ("accuracy", "loss"):
            self.log(f"{phase}/{name}", self._mean(phase, name), on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self._log_means("validation")
        self._stop_if_nonfinite()  # before a checkpoint of this epoch is written

    def _stop_if_nonfinite(self) -> None:
        if ranks.total(self.nonfinite_loss.float()):
            raise InputError(
                f"the loss became infinite or NaN in epoch {self.current_epoch + 1}: training stopped, the checkpoints "
                "of the epochs before are kept; lower optimizer.lr or set trainer.gradient_clip_val=1"
            )

    def configure_optimizers(self) -> Any:
        return configure(self.optimizer_parameters(), self.optimizer, self.scheduler, self._progress)

    def optimizer_parameters(self) -> list[Any]:
        """Parameters, or groups of them."""
        raise NotImplementedError

    def _progress(self) -> float:
        return self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches)
