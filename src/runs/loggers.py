"""A run's numbers in Weights & Biases: the same as in its folder, and the texts of the test messages beside them.

Offline unless told otherwise: by logger.offline, by W&B's own variables, or by one of its sweep agents, which waits for
the numbers. `start` gives the logger that Lightning feeds with config and learning curves, `finish` adds what is known
at the end, `close` ends the run, so that several runs of one process (Hydra multirun) stay apart. What goes wrong once
a run has begun is said and costs nothing else: the run's folder holds the same numbers.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig

from src.errors import InputError
from src.runs import run_dir

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

    from src.evaluation.metrics import Predictions

Mode = Literal["online", "offline", "shared", "disabled"]
# what WANDB_MODE may say, older words too
MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled", "shared": "shared"}
MODES |= {"run": "online", "dryrun": "offline"}
ON, OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def check(cfg: DictConfig) -> None:
    """Raises InputError for a kind of logger that does not exist, and for variables of W&B that say nothing."""
    if cfg.logger.kind not in ("wandb", "none"):
        raise InputError(f"logger.kind={cfg.logger.kind} is unknown: use logger=wandb or logger=none")
    if cfg.logger.kind == "wandb":
        mode(cfg)
        folder = os.environ.get("WANDB_DIR")
        if folder and not (Path(folder).is_dir() and os.access(folder, os.W_OK)):
            raise InputError(f"WANDB_DIR={folder} is no folder that can be written: make it, or unset WANDB_DIR")


def mode(cfg: DictConfig) -> Mode:
    """online, offline, shared or disabled. W&B's switches that leave it out win, then the settings, then WANDB_MODE."""
    said, disabled = os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_DISABLED", "").lower()
    if said and said not in MODES:
        raise InputError(f"WANDB_MODE={said} is unknown: use online, offline or disabled, or unset it")
    if disabled not in (*ON, *OFF):
        raise InputError(f"WANDB_DISABLED={disabled} is unknown: use true or false, or unset it")
    if disabled in ON or said == "disabled":
        return "disabled"
    if cfg.logger.offline is not None:
        return "offline" if cfg.logger.offline else "online"
    return MODES[said] if said else "online" if os.environ.get("WANDB_SWEEP_ID") else "offline"


def start(cfg: DictConfig, run: Path, remove_on_failure: bool) -> "WandbLogger | bool":
    """The logger of a run; False for logger=none, or where W&B's variables leave it out. Raises InputError if W&B
    refuses (no account, no network, a wrong value), and then removes the folder of a new run: nothing has happened in
    it."""
    if cfg.logger.kind == "none":
        return False
    if (how := mode(cfg)) == "disabled":
        print("W&B is left out, as WANDB_MODE or WANDB_DISABLED says", flush=True)
        return False
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    try:
        experiment = wandb.init(
            project=cfg.logger.project,
            entity=cfg.logger.entity,
            group=cfg.logger.group,
            mode=how,
            id=run.name,
            name=run.name,
            dir=os.environ.get("WANDB_DIR") or run,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            config=run_dir.plain(cfg),
        )
    except (wandb.errors.Error, ValueError, OSError) as error:  # a ValueError: a variable of W&B's with a wrong value
        if remove_on_failure:
            shutil.rmtree(run, ignore_errors=True)
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"W&B: {reason}; logger.offline=true needs neither account nor network") from None
    # where W&B copies tables to, and wandb sync looks for them: a home need not be writable, nor go where the run goes
    os.environ.setdefault("WANDB_DATA_DIR", experiment.settings.wandb_dir)
    return WandbLogger(experiment=experiment)


@contextmanager
def best_effort() -> Iterator[None]:
    """Say what W&B could not take: whatever it is, the results are in the run's folder."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        print(f"W&B could not take all of the run ({reason}): its folder holds everything", file=sys.stderr)


def finish(logger: "WandbLogger | bool", result: dict[str, Any], texts: list[str], test: "Predictions") -> None:
    """Log the final metrics and cost, the confusion matrix and the table of test predictions."""
    if isinstance(logger, bool):
        return
    import wandb

    labels = result["data"]["labels"]
    columns: list[str | int] = ["text", "label", "predicted", *(f"p_{label}" for label in labels)]
    rows: list[Any] = [
        [text, true, predicted, *p] for text, true, predicted, p in run_dir.prediction_rows(texts, labels, test)
    ]
    experiment = logger.experiment
    with best_effort():
        for part, metrics in result["metrics"].items():
            experiment.summary.update({f"final/{part}/{name}": value for name, value in metrics.items()})
        experiment.summary.update({f"cost/{name}": value for name, value in result["cost"].items()})
    with best_effort():
        experiment.log(
            {
                "test/predictions": wandb.Table(columns=columns, data=rows),
                "test/confusion": wandb.plot.confusion_matrix(
                    y_true=test.labels.tolist(), preds=test.predicted.tolist(), class_names=labels
                ),
            }
        )


def close(logger: "WandbLogger | bool") -> None:
    """End the W&B run of this process, whatever became of the training."""
    if not isinstance(logger, bool):
        with best_effort():
            logger.experiment.finish()
        if os.environ.get("WANDB_DATA_DIR") == logger.experiment.settings.wandb_dir:
            del os.environ["WANDB_DATA_DIR"]  # that of this run


def show(logger: "WandbLogger | bool") -> None:
    """Print how to send an offline run. W&B sends the parts of one that was resumed in the order in which they began,
    if they are named to it together."""
    if isinstance(logger, bool) or logger.experiment.settings.mode != "offline":
        return
    parts = sorted(Path(logger.experiment.settings.wandb_dir).glob(f"offline-run-*-{logger.experiment.id}"))
    print(f"W&B:        offline; send it with: wandb sync {' '.join(map(str, parts))}")
