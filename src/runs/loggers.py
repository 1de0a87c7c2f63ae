"""A run's numbers in loggers: the same as in its folder, and in Weights & Biases the texts of the test messages too.

conf/logger names loggers by `_target_`; Lightning feeds them with learning curves, `finish` with what is known at the
end, `close` ends W&B's run, so that several runs of one process (Hydra multirun) stay apart. W&B is offline unless told
otherwise: by logger.wandb.offline, by its own variables, or by one of its sweep agents, which waits for the numbers.
What goes wrong once a run has begun is said and costs nothing else: the run's folder holds the same numbers.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.errors import InputError
from src.runs import run_dir

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger

    from src.evaluation.metrics import Predictions

log = logging.getLogger(__name__)
Mode = Literal["online", "offline", "shared", "disabled"]
# what WANDB_MODE may say, older words too
MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled", "shared": "shared"}
MODES |= {"run": "online", "dryrun": "offline"}
ON, OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def wandb_mode(offline: bool | None) -> Mode:
    """online, offline, shared or disabled. W&B's switches that leave it out win, then the settings, then WANDB_MODE.
    Raises InputError for variables of W&B that say nothing."""
    folder = os.environ.get("WANDB_DIR")
    if folder and not (Path(folder).is_dir() and os.access(folder, os.W_OK)):
        raise InputError(f"WANDB_DIR={folder} is no folder that can be written: make it, or unset WANDB_DIR")
    said, disabled = os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_DISABLED", "").lower()
    if said and said not in MODES:
        raise InputError(f"WANDB_MODE={said} is unknown: use online, offline or disabled, or unset it")
    if disabled not in (*ON, *OFF):
        raise InputError(f"WANDB_DISABLED={disabled} is unknown: use true or false, or unset it")
    if disabled in ON or said == "disabled":
        return "disabled"
    if offline is not None:
        return "offline" if offline else "online"
    return MODES[said] if said else "online" if os.environ.get("WANDB_SWEEP_ID") else "offline"


def wandb_logger(
    run: Path, config: dict[str, Any], offline: bool | None, project: str | None, entity: str | None, group: str | None
) -> "WandbLogger | None":
    """W&B's logger of a run; None where W&B's variables leave it out. Raises InputError if W&B refuses: no account, no
    network, a wrong value."""
    if (how := wandb_mode(offline)) == "disabled":
        log.info("W&B is left out, as WANDB_MODE or WANDB_DISABLED says")
        return None
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    try:
        experiment = wandb.init(
            project=project,
            entity=entity,
            group=group,
            mode=how,
            id=run.name,
            name=run.name,
            dir=os.environ.get("WANDB_DIR") or run,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            config=config,
        )
    except (wandb.errors.Error, ValueError, OSError) as error:  # a ValueError: a variable of W&B's with a wrong value
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"W&B: {reason}; logger.wandb.offline=true needs neither account nor network") from None
    # where W&B copies tables to, and wandb sync looks for them: a home need not be writable, nor go where the run goes
    os.environ.setdefault("WANDB_DATA_DIR", experiment.settings.wandb_dir)
    return WandbLogger(experiment=experiment)


@contextmanager
def best_effort(logger: "Logger") -> Iterator[None]:
    """Say what a logger could not take: whatever it is, the results are in the run's folder."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        who = "W&B" if is_wandb(logger) else type(logger).__name__
        log.warning("%s could not take all of the run (%s): its folder holds everything", who, reason)


def is_wandb(logger: "Logger") -> bool:
    """Whether it is the one that takes tables and plots."""
    from lightning.pytorch.loggers import WandbLogger

    return isinstance(logger, WandbLogger)


def finish(
    loggers: "Sequence[Logger]",
    metrics: Mapping[str, Mapping[str, Any]],
    cost: Mapping[str, Any],
) -> None:
    """Log final metrics as final/<part>/<name> and the cost as cost/<name>."""
    numbers = {f"final/{part}/{name}": value for part, values in metrics.items() for name, value in values.items()}
    numbers |= {f"cost/{name}": value for name, value in cost.items()}
    for logger in loggers:
        with best_effort(logger):
            if is_wandb(logger):
                logger.experiment.summary.update(numbers)  # type: ignore[attr-defined]
            else:
                logger.log_metrics({name: float(x) for name, x in numbers.items() if is_finite(x)})
                logger.finalize("success")


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def log_predictions(loggers: "Sequence[Logger]", labels: list[str], texts: list[str], test: "Predictions") -> None:
    """To W&B: the table of test predictions and the confusion matrix."""
    for logger in filter(is_wandb, loggers):
        with best_effort(logger):
            import wandb

            columns: list[str | int] = ["text", "label", "predicted", *(f"p_{label}" for label in labels)]
            rows: list[Any] = [
                [text, true, predicted, *p] for text, true, predicted, p in run_dir.prediction_rows(texts, labels, test)
            ]
            confusion = wandb.plot.confusion_matrix(
                y_true=test.labels.tolist(), preds=test.predicted.tolist(), class_names=labels
            )
            table = wandb.Table(columns=columns, data=rows)
            logger.experiment.log({"test/predictions": table, "test/confusion": confusion})  # type: ignore[attr-defined]


def close(loggers: "Sequence[Logger]") -> None:
    """End the W&B run of this process, whatever became of the training."""
    for logger in filter(is_wandb, loggers):
        experiment = logger.experiment  # type: ignore[attr-defined]
        with best_effort(logger):
            experiment.finish()
        if os.environ.get("WANDB_DATA_DIR") == experiment.settings.wandb_dir:
            del os.environ["WANDB_DATA_DIR"]  # that of this run


def show(loggers: "Sequence[Logger]") -> None:
    """Print how to send an offline run. W&B sends the parts of one that was resumed in the order in which they began,
    if they are named to it together."""
    for logger in filter(is_wandb, loggers):
        experiment = logger.experiment  # type: ignore[attr-defined]
        if experiment.settings.mode == "offline":
            parts = sorted(Path(experiment.settings.wandb_dir).glob(f"offline-run-*-{experiment.id}"))
            print(f"W&B:        offline; send it with: wandb sync {' '.join(map(str, parts))}")
