"""That a run which was killed goes on as if it had not been: where it is kept, and where it has stopped already."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.plugins.io import TorchCheckpointIO


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it: it is there whole or not at all.

    Lightning's own holds two copies of it in memory and writes a third into the temporary folder, from where it is
    moved: with the optimizer of GPT-2 xl these are 19 GB each, and where the move is a copy, a kill leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            torch.serialization.set_crc32_options(False)  # torch.load reads none; 24 ms instead of 76 for 85 MB
            torch.save(checkpoint, unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


class Patience(EarlyStopping):
    """Lightning's EarlyStopping, of which a run that had stopped and is resumed does not train another epoch."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class LastCheckpoint(Checkpoint):
    """Of pretraining: writes `path` every `every` steps and after each validation.

    Lightning's own would lose the validation that is due at a saved step, and would save between two steps of
    accumulated gradients once resumed.
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
        trainer.save_checkpoint(self.path)
