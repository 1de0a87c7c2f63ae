"""A finished run on its device and in its precision, kept in memory: texts -> answers, prompts -> what it writes."""

from functools import cached_property
from typing import Any

import torch

from src.config.trainer import build_trainer, whole
from src.data.batching import Messages
from src.data.prompts import Prompt
from src.data.tokenizer import END_OF_TEXT, decode, encode
from src.errors import InputError
from src.evaluation import calibration
from src.evaluation.decisions import as_recorded, log_odds
from src.evaluation.metrics import Predictions, in_order
from src.exporting.finished_run import FinishedRun
from src.gpt.generation import Decoder

NEW_TOKENS = 40  # after a free prompt
LONGEST_TOKEN = 128  # of GPT-2's vocabulary, in bytes


class Predictor:
    """What a finished run says of texts: one with several questions is asked `task`. `cut` counts the texts that were
    too long to be read whole.

    threshold    the probability, as it is given, from which on the positive class is the answer; None: the run's own
    calibrated   with probabilities scaled by the run's temperature
    """

    @classmethod
    def load(
        cls, runs: str, run: str, task: str | None = None, threshold: float | None = None, calibrated: bool = False
    ) -> "Predictor":
        """That of a run by its id or folder. Raises InputError for what is no finished run of fine-tuning."""
        return cls(FinishedRun.load(runs, run, merged=False), task, threshold, calibrated)

    def __init__(
        self, run: FinishedRun, task: str | None = None, threshold: float | None = None, calibrated: bool = False
    ) -> None:
        trainer = build_trainer(whole(run.cfg), logger=False, enable_checkpointing=False)
        self.run, self.task, self.cut = run, task, 0
        self._precision, self._device = trainer.precision_plugin, trainer.strategy.root_device
        self._to_device = trainer.strategy.batch_to_device
        self._decide_by(run.result, threshold, calibrated)
        self.model: Any = self._precision.convert_module(run.model).to(self._device)

    def _decide_by(self, result: dict[str, Any], threshold: float | None, calibrated: bool) -> None:
        self.result = result
        self.threshold, self.temperature = threshold, calibration.recorded(result) if calibrated else 1.0
        if threshold is not None and len(self.labels) != 2:
            raise InputError(
                f"threshold={threshold} is for two classes, and run {self.id} has {', '.join(self.labels)}"
            )

    @property
    def id(self) -> str:
        """The run's name."""
        return str(self.run.result["id"])

    @property
    def writes(self) -> bool:
        """Whether it answers in words."""
        return self.run.writes

    @property
    def labels(self) -> list[str]:
        """What can be answered."""
        return [self.run.data["labels"][number] for number in self.run.question(self.task)[1]]

    @cached_property
    def prompt(self) -> Prompt:
        """What stands around a message."""
        return self.run.question(self.task)[0]

    @property
    def limit(self) -> int:
        """Tokens of the longest message that is read whole."""
        return int(self.run.data["max_length"]) - self.prompt.overhead

    @property
    def answers_depend_on_each_other(self) -> bool:
        """Whether a message is padded as far as those beside it, and read with its padding."""
        return self.run.padding == "batch"

    def check(self, text: str) -> None:
        """Raises InputError for a message that would be cut."""
        self._check_length("message", text, self.limit)

    def _check_length(self, what: str, text: str, limit: int) -> None:
        far_too_long = len(text.encode()) > limit * LONGEST_TOKEN  # which would take long to tokenize
        if far_too_long or len(encode([text])[0]) > limit:
            raise InputError(f"the {what} is too long: run {self.id} reads {limit} tokens at most; shorten it")

    def answers(self, texts: list[str]) -> list[dict[str, Any]]:
        """Label and probabilities of each text, and the answer that was written (see FinishedRun.answers). Raises
        InputError for an empty one."""
        if "" in texts:
            raise InputError(f"message {texts.index('') + 1} is empty: there is nothing to answer")
        if not texts:
            return []
        ids = encode(texts)
        self.cut += sum(len(row) > self.limit for row in ids)
        with torch.inference_mode(), self._precision.forward_context():
            batches = self.run.batches(ids, self.task)
            outputs = [self.model.predict_step(self._to_device(batch), i) for i, batch in enumerate(batches)]
        return list(self.run.answers(texts, self._decided(in_order(outputs)), self.task))

    def _decided(self, predictions: Predictions) -> Predictions:
        """Predictions with the probabilities and by the threshold that are asked for."""
        found = as_recorded(predictions, self.result)
        if self.temperature != 1:
            found = calibration.scaled(found, self.temperature)
        return found if self.threshold is None else found._replace(threshold=log_odds(self.threshold))

    def written_answers(self, texts: list[str]) -> list[str]:
        """What is written after the prompt around each text, word for word, as far as the longest answer goes."""
        ids = [self.prompt.around(row, self.run.data["max_length"]) for row in encode(texts)]
        return self.write(ids, self.model.answers.shape[1])

    def continuations(self, prompts: list[str]) -> list[str]:
        """What is written after free prompts."""
        return self.write(encode(prompts), NEW_TOKENS)

    def check_prompt(self, prompt: str) -> None:
        """Raises InputError for a prompt that leaves no room for NEW_TOKENS, or a run that cannot take any."""
        self.check_writes()
        room = int(self.model.gpt.config.context_length) + 1 - NEW_TOKENS
        self._check_length("prompt", prompt, room)

    def check_writes(self) -> None:
        """Raises InputError for a run with a head."""
        if not self.writes:
            raise InputError(
                f"run {self.id} answers with fixed labels and can write nothing: prompt= needs an instruct run"
            )

    def write(self, prompts: list[list[int]], n: int) -> list[str]:
        """Up to n tokens after each prompt, by greedy decoding, as text. Raises InputError for a run with a head."""
        self.check_writes()
        batch, model = self._to_device(Messages(prompts, [0] * len(prompts), None)[[*range(len(prompts))]]), self.model
        with torch.inference_mode(), self._precision.forward_context():
            reading = batch.ids, batch.length, n, model.logits, model.first_trainable, model.arithmetic
            return [decode(written) for written in Decoder(model.gpt, *reading).generate(n, END_OF_TEXT)]
