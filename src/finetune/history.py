"""Loss and accuracy after each epoch, kept for the run's folder."""

from typing import Any

import lightning as L

QUANTITIES = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")


class Curve(L.Callback):
    """`points`: a dict an epoch, with its number from 1 and the quantities above; kept in checkpoints, so that a
    resumed run goes on with it. The training's are means over the epoch, while it was learning."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        logged = trainer.callback_metrics
        values = {name: logged[name.replace("_", "/")].item() for name in QUANTITIES}
        self.points.append({"epoch": trainer.current_epoch + 1, **values})

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = list(state["points"])
