"""A run's numbers in Weights & Biases: the same as in its folder, and the texts of the test messages beside them.

Offline unless told otherwise, by logger.offline=false or by one of W&B's sweep agents, which waits for the numbers.

`start` gives the logger that Lightning feeds with config and learning curves, `finish` adds what is known at the end,
`close` ends the run, so that several runs of one process (Hydra multirun) stay apart.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from src.errors import InputError
from src.runs import run_dir

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

    from src.evaluation.metrics import Predictions


def check(cfg: DictConfig) -> None:
    """Raises InputError for a kind of logger that does not exist."""
    if cfg.logger.kind not in ("wandb", "none"):
        raise InputError(f"logger.kind={cfg.logger.kind} is unknown: use logger=wandb or logger=none")


def start(cfg: DictConfig, run: Path, remove_on_failure: bool) -> "WandbLogger | bool":
    """The logger of a run; False for logger=none. Raises InputError if W&B refuses (no account, no network), and then
    removes the folder of a new run: nothing has happened in it."""
    if cfg.logger.kind == "none":
        return False
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    offline = cfg.logger.offline and not os.environ.get(wandb.env.SWEEP_ID)
    settings = wandb.Settings(silent=True, console="off", init_timeout=30)
    try:
        experiment = wandb.init(
            project=cfg.logger.project,
            entity=cfg.logger.entity,
            group=cfg.logger.group,
            mode="offline" if offline else "online",
            id=run.name,
            name=run.name,
            dir=run,
            resume="allow",
            settings=settings,
            config=run_dir.plain(cfg),
        )
    except wandb.errors.Error as error:
        if remove_on_failure:
            shutil.rmtree(run)
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"W&B: {reason}; leave logger.offline=true to need neither account nor network") from None
    return WandbLogger(experiment=experiment)


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
    for part, metrics in result["metrics"].items():
        experiment.summary.update({f"final/{part}/{name}": value for name, value in metrics.items()})
    experiment.summary.update({f"cost/{name}": value for name, value in result["cost"].items()})
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
        logger.experiment.finish()
