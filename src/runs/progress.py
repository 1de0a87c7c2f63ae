"""How training shows that it goes on: bars in a terminal, a line now and then in a log file or a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from src.runs import run_dir

SECONDS = 60  # between two lines of a log file


class Bars(TQDMProgressBar):
    """Lightning's bars without the version number, which here is part of the run's id."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class LogLines(L.Callback):
    """Prints what an epoch came to, and once a minute how far it is: a log file holds a line for each."""

    def __init__(self) -> None:
        self.printed = perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(trainer.progress_bar_metrics.items()))
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""  # pretraining has steps in their place
        self._print(f"epoch {trainer.current_epoch + 1}{of}  {metrics}")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *given: Any) -> None:
        if trainer.num_training_batches == float("inf"):  # pretraining: one epoch, of so many steps, or by the clock
            self._now_and_then("training", trainer.global_step, trainer.max_steps, "steps")
        else:
            self._now_and_then("training", given[2] + 1, trainer.num_training_batches)

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *given: Any) -> None:
        self._now_and_then("validation", given[2] + 1, sum(trainer.num_val_batches))

    def on_predict_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *given: Any) -> None:
        what = "frozen blocks" if type(module).__name__ == "FrozenBlocks" else "prediction"
        self._now_and_then(what, given[2] + 1, sum(trainer.num_predict_batches))

    def _now_and_then(self, what: str, done: int, whole: float, units: str = "batches") -> None:
        if perf_counter() - self.printed > SECONDS:
            self._print(f"{what}: {done}{f' of {whole}' if whole > 0 else ''} {units}")

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self.printed = perf_counter()


def shown() -> list[L.Callback]:
    """What fits where standard error goes."""
    return [Bars(leave=True)] if sys.stderr.isatty() else [LogLines()]


@contextmanager
def say_how_to_resume(run: Path, command: str) -> Iterator[None]:
    """Tell, if Ctrl-C or SIGTERM ends what happens in a run's folder, what it keeps and how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # a SystemExit is SIGTERM's, or what Lightning makes of Ctrl-C
        kept = "its last checkpoint" if run_dir.last_checkpoint(run) else "its settings, and no checkpoint yet"
        print(f"\ninterrupted: {run} keeps {kept}; {how_to_resume(run, command)}", file=sys.stderr)
        raise


def how_to_resume(run: Path, command: str) -> str:
    """The command that goes on with a run."""
    return f"go on with {run_dir.command(command, 'resume', run)}"
