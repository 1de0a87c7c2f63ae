"""How training shows that it goes on: bars in a terminal, one line an epoch in a log file or a pipe."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class Bars(TQDMProgressBar):
    """Lightning's bars without the version number, which here is part of the run's id."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class EpochLines(L.Callback):
    """Prints what an epoch came to."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(trainer.progress_bar_metrics.items()))
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}", flush=True)


def shown() -> list[L.Callback]:
    """What fits where standard error goes."""
    return [Bars(leave=True)] if sys.stderr.isatty() else [EpochLines()]


class SayHowToResume(L.Callback):
    """Tells what an interrupted run leaves and how to go on with it."""

    def __init__(self, run: Path, command: str = "train") -> None:
        self.run, self.command = run, command

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, KeyboardInterrupt):
            return
        place = "" if self.run.parent == Path("runs") else f" runs={self.run.parent}"
        print(
            f"\ninterrupted: {self.run} keeps {self._kept(trainer)}; "
            f"go on with python -m src.{self.command} resume={self.run.name}{place}",
            file=sys.stderr,
        )

    def _kept(self, trainer: L.Trainer) -> str:
        if self.command == "train":
            return f"the {trainer.current_epoch} epochs that ended"
        return f"what its last checkpoint holds of {trainer.global_step} steps"
