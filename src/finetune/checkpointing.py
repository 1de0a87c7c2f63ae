"""Checkpoint I/O and callbacks that make interrupted runs resumable, wherever their folder lies by then."""

import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from src.errors import InputError
from src.files import refusals_named

RESUMABLE = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it: it is there whole or not at all.

    Lightning's own holds two copies of it in memory and writes a third into the temporary folder, from where it is
    moved: with the optimizer of GPT-2 xl these are 19 GB each, and where the move is a copy, a kill leaves half a file.

    owners: hashes of the run that writes here, and of those whose checkpoints it goes on from; others are refused.
    """

    def __init__(self, owners: Sequence[str] = ()) -> None:
        self.owners = owners

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        if self.owners:
            checkpoint["config_hash"] = self.owners[0]
        with refusals_named(path):
            try:
                with unfinished.open("wb") as file:  # given a name, torch.save would not tell a full disk from others
                    torch.save(checkpoint, file)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        folder = Path(path).parent
        return read_checkpoint(
            Path(path),
            RESUMABLE,
            f"training cannot go on from it; put back a copy of it, or move {folder} away, and the same command trains "
            "the run from its beginning",
            self.owners,
        )


def read_checkpoint(path: Path, needed: Collection[str], remedy: str, owners: Collection[str] = ()) -> dict[str, Any]:
    """Load a checkpoint, a zip file by torch.save, whose records all have the CRC-32 with which they were written.

    Raises InputError for one that is damaged, lacks one of `needed`, or was written by a run that is none of `owners`,
    with `remedy`: what can still be done.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    with file:
        try:
            checkpoint = _checked(file)
        except Exception as error:  # zipfile and torch answer damaged bytes with errors of every kind
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"{path} is damaged, or no checkpoint of this version of the project ({reason}): {remedy}"
            ) from None
    lacks = [key for key in needed if not isinstance(checkpoint, dict) or key not in checkpoint]
    if lacks:
        raise InputError(f"{path} is no checkpoint that holds what is needed here ({lacks[0]} is missing): {remedy}")
    if owners and (owner := checkpoint.get("config_hash", next(iter(owners)))) not in owners:
        raise InputError(f"{path} was written by a run with other settings (config_hash {owner[:8]}): {remedy}")
    return checkpoint


def _checked(file: Any) -> Any:
    if not file.seek(0, os.SEEK_END):
        raise ValueError("it is empty")
    with zipfile.ZipFile(file) as records:
        if damaged := records.testzip():
            raise ValueError(f"its part {damaged} is not what was written")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def check_tensors(found: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Raises InputError for tensors of a checkpoint which are not those of the model, by name and shape."""
    other = "the checkpoint was trained with other settings: parameter"
    if wrong := sorted(found.keys() ^ own.keys()):
        raise InputError(f"{other} {wrong[0]} is in one of the two only")
    for name, tensor in own.items():
        if found[name].shape != tensor.shape:
            raise InputError(f"{other} {name} is {tuple(found[name].shape)}, the model's is {tuple(tensor.shape)}")


class EpochCheckpoint(Checkpoint):
    """Of fine-tuning: after each epoch writes best.ckpt (the parameters alone) if what is monitored is the best so far,
    the first of equals, then last.ckpt.

    Lightning's own forgets the best value of a run whose folder was moved.
    """

    def __init__(self, folder: Path, monitor: str = "validation/loss", mode: Literal["min", "max"] = "min") -> None:
        self.folder, self.monitor, self.sign = folder, monitor, 1 if mode == "min" else -1
        self.lowest: float | None = None  # of the monitored value times the sign

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)  # there is none with trainer.limit_val_batches=0
        if value is None or self.lowest is None or self.sign * value < self.lowest:
            self.lowest = self.lowest if value is None else self.sign * value.item()
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lowest = state_dict["lowest"]


class StepCheckpoint(Checkpoint):
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
