"""python -m src.train [+experiment=<name>] [key=value ...]

Fine-tunes a GPT to classify messages, by a head or by instruction, and measures it. An interrupted run goes on with
`resume=<run id>`; with `trainer.max_epochs=<more>` beside it, a new run goes on from the last epoch of that one.
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from src.config.command_line import began, hydra_main, was_given

if TYPE_CHECKING:  # heavy imports wait until a run begins: --help and a misspelt key answer at once
    from pathlib import Path

    import lightning as L

    from src.data.datamodule import TextData
    from src.evaluation.metrics import Predictions
    from src.finetune.base import FineTuner


class Run(NamedTuple):
    """What `train` made: the content of result.json, the run's folder, and the objects behind them."""

    result: dict[str, Any]
    folder: "Path"
    model: "FineTuner"
    data: "TextData"
    trainer: "L.Trainer"


def train(cfg: DictConfig, longer: int | None = None) -> Run:
    """Fine-tune as `cfg` says, choose the best epoch on validation, measure every split once, write the run folder.

    longer: where cfg.resume names a run, the epochs of a new run that goes on from its last one.
    """
    with ExitStack() as held:
        return fine_tune(cfg, longer, held)


def fine_tune(cfg: DictConfig, longer: int | None, held: ExitStack) -> Run:
    """What `train` does, with the locks of run folders in `held`."""
    from src.config import build
    from src.evaluation.metrics import predict
    from src.finetune.cost import Cost, forget_peak_memory
    from src.finetune.history import Curve
    from src.pretraining.forgetting import Forgetting
    from src.runs import loggers, run_dir, summary
    from src.runs.lock import run_lock
    from src.runs.longer import begin_longer
    from src.runs.progress import say_how_to_resume

    started = began()
    forget_peak_memory()
    build.check_root(cfg)
    if folder := run_dir.find(cfg.runs, cfg.resume) if cfg.resume else None:
        held.enter_context(run_lock(folder))
        if longer is None:
            run_dir.check_unfinished(folder)
        else:
            folder = begin_longer(folder, cfg.runs, longer)
            held.enter_context(run_lock(folder))
        held.enter_context(say_how_to_resume(folder, "train"))
        cfg = run_dir.load_config(folder)

    data, held_out = build.data(cfg), build.held_out(cfg)
    model, cache = build.model(cfg, data.labels), build.cache(cfg)
    build.check_trainer(cfg)  # all of the config is checked before a folder is made
    print(data.summary(), describe(cfg, model), sep="\n", flush=True)

    loggers.check(cfg)
    is_new = folder is None
    if folder is None:
        folder = run_dir.create(cfg)
        held.enter_context(run_lock(folder))
        held.enter_context(say_how_to_resume(folder, "train"))
    logger = loggers.start(cfg, folder, remove_on_failure=is_new)
    cost, curve = Cost(started), Curve()
    callbacks = [cost, curve, *build.callbacks(cfg, folder)]
    trainer = build.trainer(cfg, callbacks, logger=logger, default_root_dir=folder)

    try:
        forgetting = Forgetting(trainer, model, held_out)
        cache.prepare(model, data.splits, trainer)
        trainer.fit(model, data, ckpt_path=run_dir.last_checkpoint(folder), weights_only=True)

        build.load_best(model, folder)
        predictions = {part: predict(trainer, model, data.evaluation_loader(part)) for part in data.splits}

        device = trainer.strategy.root_device
        result = summarize(cfg, folder, data, model, predictions, trainer) | forgetting.facts()
        spent = cost.summary(device, cache.seconds, cache.flops.get("train", 0)) | cache.facts()
        result |= {"curve": curve.points, "cost": spent}
        run_dir.write(folder, result, data.texts("test"), predictions["test"])
        loggers.finish(logger, result, data.texts("test"), predictions["test"])
    finally:
        loggers.close(logger)
    summary.show(result, folder)
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
    from src.config import build
    from src.evaluation.metrics import measure_splits
    from src.runs import run_dir

    total, trained = parameter_counts(model)
    metrics, by_task = measure_splits(predictions, build.questions(cfg, data.labels))
    return {
        "id": folder.name,
        "name": cfg.name,
        **run_dir.recorded(folder),
        "seed": cfg.seed,
        "commit": run_dir.commit(),
        "data": data.facts(),
        "gpt": {"name": cfg.gpt.name, "weights": cfg.gpt.weights, "parameters": total},
        "task": {
            "kind": cfg.task.kind,
            "trainable": cfg.task.trainable,
            "position": cfg.task.get("position"),
            "trainable_parameters": trained,
        },
        "metrics": metrics,
        **({"tasks": by_task} if by_task else {}),
        "environment": run_dir.environment(trainer.strategy.root_device, trainer.precision),
    }


def main(cfg: DictConfig) -> Run:
    """Train, longer than the run that resume= names if the command says so."""
    return train(cfg, cfg.trainer.max_epochs if cfg.resume and was_given("trainer.max_epochs") else None)


if __name__ == "__main__":
    hydra_main("train", main)
