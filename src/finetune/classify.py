"""Classification fine-tuning: the output layer is swapped for a head over fixed labels.

    ids (B, T) -> GPT -> hidden (B, T, C) -> one position (B, C) -> head -> logits (B, K) -> cross-entropy

After Raschka, "Build a Large Language Model (From Scratch)", chapter 6 and appendix E.
"""

from typing import Any, Self

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from src.data.batch import Batch
from src.errors import InputError
from src.finetune import position as positions
from src.finetune import trainable as strategies
from src.finetune.optimize import Optimizer, clip
from src.gpt.lora import LoRA, inject
from src.gpt.model import GPT


class Classifier(L.LightningModule):
    """A GPT with a linear head over K classes.

    trainable       what is unfrozen (see trainable.py); the rest does not move by a bit
    position        which hidden state the head reads (see position.py)
    lora            the rank and scaling of the adapters, for trainable="lora"
    ignore_index    a class number that the loss ignores; the book's row 18 gives it the padding id, which no class has
    Checkpoints hold the trained parameters only: the frozen ones are the GPT that the run started from.
    """

    def __init__(
        self,
        gpt: GPT,
        n_classes: int,
        trainable: str = "last_block",
        position: str = "last",
        lora: LoRA | None = None,
        optimizer: Optimizer | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.seed = torch.initial_seed()  # what the run was seeded with
        if position not in positions.POSITIONS:
            raise InputError(f"task.position={position} is unknown: use {', '.join(positions.POSITIONS)}")
        self.gpt, self.head = gpt, nn.Linear(gpt.config.n_embd, n_classes)
        self.strict_loading = False  # a checkpoint holds the trained parameters alone, which on_load_checkpoint checks
        self.position, self.ignore_index = position, ignore_index
        self.optimizer = optimizer or Optimizer()
        if trainable == "lora":
            inject(self, lora or LoRA())
        names = [name for name, _ in self.named_parameters()]
        self.trained = strategies.trainable_names(names, trainable, gpt.config.n_layer)
        self.first_live = strategies.first_live_block(self.trained, gpt.config.n_layer)
        strategies.freeze_all_but(self, self.trained)
        self.metrics = nn.ModuleDict(
            {
                f"{phase}_{name}": metric
                for phase in ("train", "validation")
                for name, metric in (
                    ("accuracy", MulticlassAccuracy(n_classes, average="micro")),
                    ("loss", MeanMetric(nan_strategy="disable")),
                )
            }
        )
        self.nonfinite_loss: Tensor
        self.register_buffer("nonfinite_loss", torch.zeros((), dtype=torch.bool), persistent=False)

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        """Class logits (B, K) of ids (B, T) whose first length (B,) tokens are no padding."""
        return self.head(positions.read(self.gpt(ids), length, self.position))

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for what lies below the first trained block: a frozen prefix has no dropout either."""
        super().train(mode)
        if self.first_live > 0:
            self.gpt.eval()
            self.gpt.blocks[self.first_live :].train(mode)
        return self

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        torch.manual_seed(self.seed + 1_000_003 * self.current_epoch + batch_index)  # dropout survives a resume

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss = self._shared_step(batch, "train")
        self.nonfinite_loss |= ~loss.detach().isfinite()  # looked at where a sync costs nothing: see _stop_if_nonfinite
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._stop_if_nonfinite()
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.nonfinite_loss |= ~self._shared_step(batch, "validation").isfinite()

    def predict_step(self, batch: Batch, batch_index: int, dataloader_index: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        return batch.row.cpu(), self(batch.ids, batch.length).float().cpu(), batch.label.cpu()

    def _shared_step(self, batch: Batch, phase: str) -> Tensor:
        logits = self(batch.ids, batch.length).float()  # (B, K)
        loss = F.cross_entropy(logits, batch.label, ignore_index=self.ignore_index)
        self._log(phase, "accuracy", logits.detach(), batch.label)
        self._log(phase, "loss", loss.detach(), len(logits))
        return loss

    def _log(self, phase: str, name: str, value: Tensor, weight_or_target: Any) -> None:
        metric = self.metrics[f"{phase}_{name}"]
        assert isinstance(metric, Metric)
        metric.update(value, weight_or_target)
        self.log(f"{phase}/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self._stop_if_nonfinite()  # before a checkpoint of this epoch is written

    def _stop_if_nonfinite(self) -> None:
        if self.nonfinite_loss:
            raise InputError(
                f"the loss became infinite or NaN in epoch {self.current_epoch + 1}: training stopped, the checkpoints "
                "of the epochs before are kept; lower task.optimizer.lr or set trainer.gradient_clip_val=1"
            )

    def configure_optimizers(self) -> Any:
        # GradScaler and Lightning's clipping need the unfused form
        fused = self.trainer.precision != "16-mixed"
        return self.optimizer.build([p for p in self.parameters() if p.requires_grad], self._progress, fused)

    def _progress(self) -> float:
        return self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip(self, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in sorted(self.trained)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (found := set(checkpoint["state_dict"])) != self.trained:
            wrong = sorted(found ^ self.trained)[0]
            raise InputError(
                f"the checkpoint was trained with other settings: parameter {wrong} is in one of the two only"
            )
