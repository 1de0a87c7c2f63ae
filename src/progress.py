"""How training shows that it goes on: bars in a terminal, one line an epoch in a log file or a pipe."""

import sys
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
