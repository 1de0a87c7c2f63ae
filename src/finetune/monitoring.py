"""What chooses a run's epoch, `monitor`: a validation metric, after which checkpoints and early stopping go."""

from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from src.data.batching import Batch
from src.evaluation.metrics import average_precision, in_order
from src.ranks import gathered

AVERAGE_PRECISION = "validation/average_precision"
MONITORS: dict[str, Literal["min", "max"]] = {  # and whether less of it is better, or more
    "validation/loss": "min",
    "validation/accuracy": "max",
    AVERAGE_PRECISION: "max",
}


class RankingMonitor(L.Callback):
    """Logs the average precision of each validation, which needs the scores of all messages together; of two classes
    that of class number `positive`."""

    def __init__(self, positive: int) -> None:
        self.positive = positive
        self.outputs: list[Any] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.outputs = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        with trainer.precision_plugin.val_step_context():
            self.outputs.append(module.predict_step(batch, 0))

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        predictions = in_order(output for of_rank in gathered(self.outputs) for output in of_rank)
        value = average_precision(predictions._replace(positive=self.positive))
        module.log(AVERAGE_PRECISION, value.float(), sync_dist=True, prog_bar=True)  # the same on every rank


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, of which a run that had stopped and is resumed does not train another epoch. It counts
    from the last stage of a FineTuner's training: what is to come would not be what the stages before did not reach."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.stage is pl_module.stages[-1]:
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience
