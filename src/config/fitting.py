"""Config -> the finished run of a model that is no GPT: no Trainer, tokens or cache; the same folder and loggers."""

import logging
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from omegaconf import DictConfig

from src.config import baseline, build
from src.config.trainer import build_loggers, check_loggers
from src.data.datamodule import TextData
from src.evaluation import calibration
from src.evaluation.baselines import TextClassifier
from src.evaluation.decisions import decide
from src.evaluation.metrics import measure_splits
from src.finetune.cost import forget_peak_memory, peak_memory_bytes
from src.runs import identity, loggers, printed_table, provenance, run_dir
from src.runs.lock import run_lock
from src.runs.progress import say_how_to_resume

log = logging.getLogger(__name__)
CPU = torch.device("cpu")


def fit_without_gpt(
    cfg: DictConfig, source: Path | None, began: float, held: ExitStack
) -> tuple[dict[str, Any], Path, TextClassifier, TextData]:
    """Fit as `cfg`, or the interrupted run `source`, says; the result, its folder, the model and its data.

    began: when the command was given, by perf_counter. `held` gets the lock of the run folder.
    """
    forget_peak_memory()
    build.check_config(cfg)
    cfg = run_dir.load_config(source) if source else identity.as_read(cfg)
    baseline.check_baseline(cfg)
    check_loggers(cfg)
    data = build.build_data(cfg)
    data.labelled_texts()
    build.check_decisions(cfg, data)
    log.info("%s\n%s, no GPT", data.summary_of_texts(), cfg.task._target_)
    folder = source or run_dir.create(cfg)
    held.enter_context(run_lock(folder))
    if source:
        run_dir.check_unfinished(source)
    held.enter_context(say_how_to_resume(folder, "train"))
    logger = build_loggers(cfg, folder, remove_on_failure=source is None)
    try:
        ready = perf_counter()
        model, constants = baseline.fit(cfg, data)
        fitted = perf_counter()
        baseline.save(folder, data, constants)
        predictions, decided = decide(baseline.predict_splits(model, data), data.labels, cfg.positive, cfg.threshold)
        metrics, _ = measure_splits(predictions, {})
        result = {
            "id": folder.name,
            "name": cfg.name,
            **run_dir.recorded(folder),
            "seed": cfg.seed,
            "commit": provenance.commit(),
            "data": data.facts_of_texts(),
            "task": {"name": type(model).__name__, "constants": constants},
            "metrics": metrics,
            "calibration": calibration.summary(predictions, metrics, {}),
            **decided,
            "environment": provenance.environment(CPU, "64-true") | {"scikit-learn": version("scikit-learn")},
            "cost": {
                "setup_seconds": ready - began,
                "train_seconds": fitted - ready,  # of all constants that were tried
                "evaluate_seconds": perf_counter() - fitted,
                "peak_memory_bytes": peak_memory_bytes(CPU),
            },
        }
        run_dir.write(folder, result, data.texts("test"), predictions["test"])
        loggers.finish(logger, result["metrics"], result["cost"])
        loggers.log_predictions(logger, list(data.labels), data.texts("test"), predictions["test"])
    finally:
        loggers.close(logger)
    printed_table.show(result, folder)
    loggers.show(logger)
    return result, folder, model, data
