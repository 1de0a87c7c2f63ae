"""Loss and accuracy of an epoch: their means over it, and after each epoch for the run's folder."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

QUANTITIES = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")
RANKED = "validation_average_precision"  # where it is monitored


class Mean(Metric):
    """Mean of all terms of an epoch, in fp32 whatever the weights are stored in; over all ranks.

    torchmetrics 1.9's own forgets the weights where it lets NaN through, and adds up in bf16 with bf16-true.
    """

    full_state_update = False
    total: Tensor
    terms: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("terms", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, total: Tensor, terms: Tensor | int) -> None:
        """Add the sum of so many terms."""
        self.total = self.total.float() + total.float()
        self.terms = self.terms.float() + terms

    def compute(self) -> Tensor:
        return self.total / self.terms


class Curve(L.Callback):
    """`points`: a dict an epoch, with its number from 1 and the quantities above; kept in checkpoints, so that a
    resumed run goes on with it. The training's are means over the epoch, while it was learning."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        logged = trainer.callback_metrics  # without some of them where debugging flags leave out an epoch's end
        values = {
            name: logged[key].item() for name in (*QUANTITIES, RANKED) if (key := name.replace("_", "/", 1)) in logged
        }
        self.points.append({"epoch": trainer.current_epoch + 1, **values})

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = list(state["points"])
