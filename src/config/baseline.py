"""Config -> a model that is no GPT (see src/evaluation/baselines.py), and a finished run of one -> the same again.

Nothing of it is unpickled: checkpoints/training.json holds the messages that it learned from, and the constants that
validation chose, and it is fitted to them again, which takes a second where training a GPT takes minutes.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from sklearn.model_selection import ParameterGrid

from src.config.instantiate import build, call, check_type
from src.data.datamodule import TextData
from src.errors import InputError
from src.evaluation import baselines
from src.evaluation.baselines import Labelled, TextClassifier
from src.evaluation.metrics import Predictions
from src.runs import identity, run_dir

KEPT = Path("checkpoints") / "training.json"


def build_baseline(cfg: DictConfig, constants: Mapping[str, Any]) -> TextClassifier:
    """The model of a task section, not fitted yet. Raises InputError for what is none."""
    settings = run_dir.plain(cfg.task)
    settings.pop("param_grid")
    if twice := sorted(settings.keys() & constants.keys()):
        raise InputError(f"task.{twice[0]} and task.param_grid.{twice[0]}: give one of them")
    L.seed_everything(cfg.seed, verbose=False)
    made = build("task", settings | dict(constants))
    if not isinstance(made, TextClassifier):
        raise InputError(f"task._target_={cfg.task._target_}: a task with a param_grid has fit and log_probabilities")
    return made


def check_baseline(cfg: DictConfig) -> None:
    """Raises InputError unless the model can be built with all constants of its grid."""
    grid = run_dir.plain(cfg.task)["param_grid"]
    check_type("task.param_grid", grid, dict[str, list[Any]])
    for constants in call("task.param_grid", ParameterGrid, grid):
        build_baseline(cfg, constants)


def fit(cfg: DictConfig, data: TextData) -> tuple[TextClassifier, dict[str, Any]]:
    """The model fitted to the training messages, and its constants, which validation has chosen."""
    parts = labelled(data)
    make, grid = partial(build_baseline, cfg), run_dir.plain(cfg.task)["param_grid"]
    fitting = partial(baselines.choose, make, grid, parts["train"], parts["validation"], len(data.labels))
    return call("task", fitting)


def predict_splits(model: TextClassifier, data: TextData) -> dict[str, Predictions]:
    """What a fitted model says of each split."""
    return {part: baselines.predict(model, asked, len(data.labels)) for part, asked in labelled(data).items()}


def labelled(data: TextData) -> dict[str, Labelled]:
    """Texts and class numbers of each split."""
    return {part: Labelled(*pair) for part, pair in data.labelled_texts().items()}


def save(run: Path, data: TextData, constants: Mapping[str, Any]) -> None:
    """Keep what the model of a run is fitted to."""
    kept = {"constants": dict(constants), **labelled(data)["train"]._asdict()}
    (run / KEPT).parent.mkdir(exist_ok=True)
    run_dir.write_text(run / KEPT, json.dumps({"sha256": identity.hash_of(kept), **kept}) + "\n")


def restore(run: Path) -> TextClassifier:
    """The fitted model of a finished run. Raises InputError where what it was fitted to is gone or damaged."""
    cfg = run_dir.load_config(run)
    kept = run_dir.read_json(run / KEPT, "sha256", "constants", "texts", "labels")
    if kept.pop("sha256") != identity.hash_of(kept):
        raise InputError(f"{run / KEPT} is damaged: put back a copy of it, or train the run anew")
    model = build_baseline(cfg, kept["constants"])
    call("task", partial(model.fit, kept["texts"], kept["labels"]))
    return model
