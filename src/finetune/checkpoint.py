"""That a run which was killed goes on as if it had not been: where it is kept, and where it has stopped already."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping


class Patience(EarlyStopping):
    """Lightning's EarlyStopping, of which a run that had stopped and is resumed does not train another epoch."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class LastCheckpoint(Checkpoint):
    """Of pretraining: writes `path` every `every` steps and after each validation, whole or not at all.

    Lightning's own would lose the validation that is due at a saved step, would save between two steps of accumulated
    gradients once resumed, and leaves half a file if killed while it moves one from the temporary folder's disk.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        assert trainer.val_check_batch is not None
        validation_next = (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0 or trainer.should_stop
        if trainer.global_step % self.every == 0 and not validation_next:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gathered gradients are in no checkpoint
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        trainer.save_checkpoint(unfinished)
        os.replace(unfinished, self.path)
