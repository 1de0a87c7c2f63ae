"""A finished run without a GPT, kept in memory: texts -> answers."""

from pathlib import Path
from typing import Any

from src.config import baseline
from src.errors import InputError
from src.evaluation.baselines import Labelled, predict
from src.exporting.finished_run import answer
from src.runs import run_dir
from src.serving.predictor import Predictor


class BaselinePredictor(Predictor):
    """What the model says of texts, which it reads whole, each for itself."""

    writes = False
    answers_depend_on_each_other = False
    cut = 0

    def __init__(
        self, folder: Path, task: str | None = None, threshold: float | None = None, calibrated: bool = False
    ) -> None:
        if task is not None:
            raise InputError(f"run {folder.name} has one question: leave task= out")
        self.folder, self.known = folder, run_dir.trained_on(folder)["labels"]
        self._decide_by(run_dir.load_result(folder), threshold, calibrated)
        self.model = baseline.restore(folder)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def labels(self) -> list[str]:
        return list(self.known)

    def answers(self, texts: list[str]) -> list[dict[str, Any]]:
        found = self._decided(predict(self.model, Labelled(texts, [0] * len(texts)), len(self.known)))
        rows = zip(texts, found.predicted.tolist(), found.probabilities.tolist(), strict=True)
        return [answer(text, self.labels, best, p) for text, best, p in rows]
