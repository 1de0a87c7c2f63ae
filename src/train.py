"""python -m src.train [+experiment=<name>] [key=value ...]

Fine-tunes a GPT to classify messages, by a head or by instruction, and measures it; or fits a model without a GPT, to
hold it against: +experiment=tfidf_words. An interrupted run goes on with `resume=<run id>`; with
`trainer.max_epochs=<more>` beside it, a new run goes on from the last epoch of that one, and with
`trainer.devices=<n>` on other devices.
"""

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from src.config.command_line import MOVABLE, began, hydra_main, was_given
from src.errors import InputError

if TYPE_CHECKING:  # heavy imports wait until a run begins: --help and a misspelt key answer at once
    from pathlib import Path

    import lightning as L

    from src.data.datamodule import TextData
    from src.evaluation.baselines import TextClassifier
    from src.evaluation.metrics import Predictions
    from src.finetune.base import FineTuner


log = logging.getLogger("src.train")


class Run(NamedTuple):
    """What `train` made: the content of result.json, the run's folder, and the objects behind them; a model without a
    GPT has no trainer."""

    result: dict[str, Any]
    folder: "Path"
    model: "FineTuner | TextClassifier"
    data: "TextData"
    trainer: "L.Trainer | None"


def train(cfg: DictConfig, longer: int | None = None, on: dict[str, Any] | None = None) -> Run:
    """Fine-tune as `cfg` says, choose the best epoch on validation, measure every split once, write the run folder.

    Where cfg.resume names a run, longer is the epochs of a new run that goes on from its last one, and `on` has the
    devices and num_nodes that it goes on with, if others.
    """
    from src.runs import identity, run_dir

    source = run_dir.find(cfg.runs, cfg.resume) if cfg.resume else None
    with ExitStack() as held:
        if identity.has_gpt(run_dir.read_config(source) if source else cfg):
            return fine_tune(cfg, longer, on, held)
        if longer or on:
            raise InputError(f"run {cfg.resume} has no GPT, and so neither epochs nor devices: leave trainer.* out")
        from src.config.fitting import fit_without_gpt

        result, folder, fitted, data = fit_without_gpt(cfg, source, began(), held)
        return Run(result, folder, fitted, data, None)


def fine_tune(cfg: DictConfig, longer: int | None, on: dict[str, Any] | None, held: ExitStack) -> Run:
    """What `train` does, with the locks of run folders and the processes of this run in `held`."""
    from src.config import build
    from src.config.trainer import (
        build_callbacks,
        build_loggers,
        build_trainer,
        check_loggers,
        check_trainer,
        own_callbacks,
        partial_flag,
        whole,
    )
    from src.evaluation.decisions import decide, positive_class
    from src.evaluation.metrics import predict
    from src.finetune.checkpointing import AtomicCheckpointIO
    from src.finetune.cost import Cost, forget_peak_memory
    from src.finetune.history import Curve
    from src.pretraining.forgetting import Forgetting
    from src.runs import devices, loggers, printed_table, run_dir
    from src.runs.begin_run import begin_folder, begin_processes
    from src.runs.train_longer import begin_longer, longer_config

    started = began()
    forget_peak_memory()
    build.check_config(cfg)
    source = run_dir.find(cfg.runs, cfg.resume) if cfg.resume else None
    if source:
        cfg = longer_config(source, cfg.runs, longer) if longer else run_dir.load_config(source)
        if longer:  # what it goes on from is read before a folder is made
            AtomicCheckpointIO(run_dir.checkpoint_owners(source)).load_checkpoint(run_dir.last_checkpoint(source))
        devices.move(cfg, on or {})
    probe = check_trainer(cfg)
    if (partial := partial_flag(cfg)) and probe.world_size > 1:
        raise InputError(f"trainer.{partial} makes a partial run, which trains on one device; leave it out")
    processes = begin_processes(cfg, probe, source, longer is None, held)

    data, model = build.data_and_task(cfg)
    held_out, cache = build.held_out_windows(cfg), build.build_cache(cfg)
    given_callbacks = build_callbacks(cfg)
    check_loggers(cfg)  # all of the config is checked before a folder is made
    log.info("%s\n%s", data.summary(), describe(cfg, model))

    def create() -> "Path":
        return begin_longer(source, cfg) if source else run_dir.create(cfg)

    folder = begin_folder(processes, probe, source if longer is None else None, create, "train", held)
    logger = build_loggers(cfg, folder, remove_on_failure=source is None) if processes.first else []
    cost, curve = Cost(started), Curve()
    callbacks = [cost, curve, *own_callbacks(cfg, folder, positive_class(cfg.positive, data.labels)), *given_callbacks]
    trainer = build_trainer(cfg, callbacks, logger=logger, default_root_dir=folder)
    measurer = trainer
    if partial:  # what it was trained on in part is measured whole
        measurer = build_trainer(whole(cfg), logger=False, enable_checkpointing=False)

    try:
        forgetting = Forgetting(measurer, model, held_out)
        cache.prepare(model, data.splits, measurer)
        trainer.fit(model, data, ckpt_path=run_dir.last_checkpoint(folder), weights_only=True)

        build.load_best(model, folder)
        predictions = {part: predict(measurer, model, data.evaluation_loader(part)) for part in data.splits}
        predictions, decided = decide(predictions, data.labels, cfg.positive, cfg.threshold)

        device = trainer.strategy.root_device
        result = summarize(cfg, folder, data, model, predictions, trainer) | decided | forgetting.facts()
        spent = cost.summary(device, cache.seconds, cache.flops.get("train", 0)) | cache.facts()
        result |= {"curve": curve.points, "cost": spent, **({"partial": True} if partial else {})}
        if processes.first:
            run_dir.write(folder, result, data.texts("test"), predictions["test"])
            loggers.finish(logger, result["metrics"], result["cost"])
            loggers.log_predictions(logger, list(data.labels), data.texts("test"), predictions["test"])
    finally:
        loggers.close(logger)
    printed_table.show(result, folder)
    loggers.show(logger)
    return Run(result, folder, model, data, trainer)


def describe(cfg: DictConfig, model: "FineTuner") -> str:
    """The GPT and what is trained of it, in a line."""
    total, trained = parameter_counts(model)
    gpt = f"gpt {cfg.gpt.name}, weights {cfg.gpt.weights}: {total:,} parameters"
    return f"{gpt}; {trained:,} trained ({cfg.task.trainable})"


def parameter_counts(model: "FineTuner") -> tuple[int, int]:
    """All parameters of the GPT and its head, and those that are trained."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def summarize(
    cfg: DictConfig,
    folder: "Path",
    data: "TextData",
    model: "FineTuner",
    predictions: "dict[str, Predictions]",
    trainer: "L.Trainer",
) -> dict[str, Any]:
    """The content of result.json but for its cost."""
    from src.evaluation import calibration
    from src.evaluation.metrics import measure_splits
    from src.runs import provenance, run_dir

    total, trained = parameter_counts(model)
    metrics, by_task = measure_splits(predictions, model.classes_by_question)
    return {
        "id": folder.name,
        "name": cfg.name,
        **run_dir.recorded(folder),
        "seed": cfg.seed,
        "commit": provenance.commit(),
        "data": data.facts(),
        "gpt": {"name": cfg.gpt.name, "weights": cfg.gpt.weights, "parameters": total},
        "task": {
            "name": type(model).__name__,
            "trainable": cfg.task.trainable,
            "pooling": cfg.task.get("pooling"),
            "trainable_parameters": trained,
        },
        "metrics": metrics,
        **({"tasks": by_task} if by_task else {}),
        "calibration": calibration.summary(predictions, metrics, model.classes_by_question),
        "environment": provenance.environment(trainer.strategy.root_device, trainer.precision),
    }


def main(cfg: DictConfig) -> float:
    """Train, longer than the run that resume= names if the command says so; what a Hydra sweeper is to make large or
    small."""
    given = {key: cfg.trainer[key] for key in (*MOVABLE, "max_epochs") if cfg.resume and was_given(f"trainer.{key}")}
    result = train(cfg, given.pop("max_epochs", None), given).result
    part, _, name = cfg.optimized_metric.partition("/")
    if name not in (metrics := result["metrics"][part]):
        raise InputError(f"optimized_metric={cfg.optimized_metric}: {part} has {', '.join(metrics)}")
    return float(metrics[name])


if __name__ == "__main__":
    hydra_main("train", main)
