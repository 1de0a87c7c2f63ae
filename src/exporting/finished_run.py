"""A finished run in memory, with what others need to read messages as it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.config import build
from src.data.batching import Batch, Messages
from src.data.datamodule import evaluation_loader, padding_of
from src.data.prompts import Prompt
from src.evaluation.metrics import Predictions
from src.finetune.base import FineTuner
from src.finetune.classifier import Classifier
from src.finetune.instruction import InstructionTuner
from src.gpt.lora import merge
from src.runs import devices, run_dir


def answer(text: str, labels: list[str], best: int, p: list[float], **written: Any) -> dict[str, Any]:
    """The label that is predicted for a text, with the probabilities p of all."""
    probabilities = dict(zip(labels, p, strict=True))
    return {"text": text, "label": labels[best], "probability": p[best], **written, "probabilities": probabilities}


@dataclass(frozen=True)
class FinishedRun:
    """Its settings, its result.json, and its trained model in fp32, whose adapters may be merged into the weights."""

    cfg: DictConfig
    result: dict[str, Any]
    model: FineTuner

    @classmethod
    def load(cls, runs: str | Path, run: str, merged: bool = True) -> "FinishedRun":
        """Raises InputError for what is no run, has not finished, or was not fine-tuned."""
        folder = run_dir.find(runs, run)
        result, model = run_dir.load_result(folder), build.restore(folder)
        if merged:
            merge(model)
        return cls(devices.for_use(run_dir.load_config(folder)), result, model.eval())

    @property
    def data(self) -> dict[str, Any]:
        """What was read: name, split, labels, sizes, max_length, width."""
        return self.result["data"]

    @property
    def padding(self) -> str:
        """What padding means to the model (see Messages): fixed, batch, free or none."""
        return padding_of(self.cfg.data.padding, self.model.reads_padding)

    @property
    def reads_padding(self) -> bool:
        """Whether what a classifier says of a message depends on the padding behind it."""
        return self.padding in ("fixed", "batch")

    @property
    def pooling(self) -> str:
        """Which hidden state a classifier's head reads: first, last, last_nonpad or mean. Where there is no padding at
        all, the last one is the last that is none."""
        assert isinstance(self.model, Classifier)
        pooling = self.model.pooling
        return "last_nonpad" if pooling == "last" and not self.reads_padding else pooling

    def question(self, task: str | None = None) -> tuple[Prompt, list[int]]:
        """The prompt around a message, and the class numbers among which to choose. Raises InputError for a run of
        several questions where `task` does not say which."""
        place = self.model.question(task)
        return self.model.prompts[place], self.model.questions[place].classes

    def batches(self, texts: list[list[int]], task: str | None = None) -> Iterator[Batch]:
        """Each of the texts, as ids, in one batch: as in training with the prompt around it, which asks `task` or else
        the first question, cut, and padded in the same way."""
        prompt, classes = self.question(task or (self.model.tasks[0].name if self.model.tasks else None))
        ids = [prompt.around(row, self.data["max_length"]) for row in texts]
        width = self.data["width"] and self.data["width"] - prompt.reserve
        messages = Messages(ids, [classes[0]] * len(ids), width, self.padding)
        yield from evaluation_loader(messages, self.cfg.data.batch_size)

    def answers(self, texts: list[str], predictions: Predictions, task: str | None = None) -> Iterator[dict[str, Any]]:
        """{"text", "label", "probability", "probabilities"} of each text; of a run that writes its answers also "said",
        the label that it wrote, or null."""
        classes = self.question(task)[1]
        labels, own = [self.data["labels"][number] for number in classes], predictions.of(classes)
        said = [] if own.said is None else own.said.tolist()
        rows = zip(texts, own.predicted.tolist(), own.probabilities.tolist(), strict=True)
        for i, (text, best, p) in enumerate(rows):
            written = {"said": labels[said[i]] if said[i] >= 0 else None} if said else {}
            yield answer(text, labels, best, p, **written)

    @property
    def writes(self) -> bool:
        """Whether it answers in words."""
        return isinstance(self.model, InstructionTuner)
