"""Classification fine-tuning: the output layer is swapped for a head over fixed labels.

    ids (B, T) -> GPT -> hidden (B, T, C) -> one position (B, C) -> head -> logits (B, K) -> cross-entropy

After Raschka, "Build a Large Language Model (From Scratch)", chapter 6 and appendix E.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from src.data.batching import Batch, of_counted
from src.data.prompts import Question, make_task
from src.errors import InputError
from src.finetune.base import FineTuner, FrozenPrecision
from src.finetune.class_weights import ClassWeights
from src.finetune.freezing import Decay, Epochs
from src.finetune.optim import OptimizerFactory, SchedulerFactory, adamw, warmup_schedule
from src.finetune.pooling import Pooling, pooling_index
from src.gpt.lora import LoRA
from src.gpt.model import GPT


class Classifier(FineTuner):
    """A GPT with a linear head over K classes; the arguments that are not listed here are FineTuner's.

    pooling         which hidden state the head reads (see pooling.py)
    head            linear: random weights; answers: the language model's own output rows for the first token of each
                    class's answer, so that before any training the head says what the language model would
    prompt          none: the bare text; instruction: in `template`, as an instruction has it
    ignore_index    a class number that the loss ignores; the book's row 18 gives it the padding id, which no class has
    """

    def __init__(
        self,
        gpt: GPT,
        questions: Sequence[Question],
        trainable: str = "last_block",
        pooling: Pooling = "last",
        head: Literal["linear", "answers"] = "linear",
        prompt: Literal["none", "instruction"] = "none",
        template: str = "",
        lora: LoRA | None = None,
        optimizer: OptimizerFactory = adamw,
        scheduler: SchedulerFactory = warmup_schedule,
        ignore_index: int = -100,
        frozen_precision: FrozenPrecision = "run",
        class_weights: ClassWeights = "none",
        head_epochs: Epochs = 0,
        gradual_unfreezing: Epochs = 0,
        layer_decay: Decay = 1.0,
    ) -> None:
        if len(questions) > 1:
            raise InputError("a head over fixed labels answers one question: a mixture of several needs task=instruct")
        layer = nn.Linear(gpt.config.n_embd, len(questions[0].labels))
        if head == "answers":
            self._copy_answers(layer, gpt, make_task(questions[0], template).answers)
        how = trainable, lora, optimizer, scheduler, frozen_precision, class_weights
        super().__init__(gpt, questions, layer, *how, head_epochs, gradual_unfreezing, layer_decay)
        self.pooling, self.ignore_index = pooling, ignore_index
        if prompt == "instruction":
            self.tasks = [make_task(questions[0], template)]
            self.prompts = [replace(self.tasks[0].prompt, reserve=0)]

    @staticmethod
    @torch.no_grad()
    def _copy_answers(layer: nn.Linear, gpt: GPT, answers: Sequence[Sequence[int]]) -> None:
        if len({answer[0] for answer in answers}) < len(answers):
            raise InputError("task.head=answers reads the first token of each answer, and two of data.answers share it")
        layer.weight.copy_(gpt.token_embedding.weight[[answer[0] for answer in answers]])
        layer.bias.zero_()

    @property
    def reads_padding(self) -> bool:
        return not self.gpt.config.causal or self.pooling not in ("first", "last_nonpad")

    @property
    def first_alone(self) -> bool:
        """Whether only the first token is read, which sees no other."""
        return self.pooling == "first" and self.gpt.config.causal

    def encode_frozen(self, ids: Tensor, length: Tensor, extent: Tensor | None = None) -> Tensor:
        return super().encode_frozen(ids[:, :1] if self.first_alone else ids, length, extent)

    @property
    def feature_key(self) -> str:
        return self.pooling if self.is_linear_probe or self.first_alone else ""

    def pooling_index(self, length: Tensor, width: int) -> Tensor | None:
        return pooling_index(length, width, self.pooling)

    def output(self, hidden: Tensor) -> Tensor:
        """Class logits (B, K)."""
        assert self.head is not None
        return self.head(hidden[:, 0])

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self(batch.ids, batch.length, self.cached_features(batch)).float()  # (B, K)
        loss = self.cross_entropy(logits, batch.label, batch, self.ignore_index)
        return loss, logits.detach().argmax(-1) == batch.label

    def targets_of(self, label: Tensor) -> Tensor:
        return label != self.ignore_index

    def predict_step(self, batch: Batch, batch_index: int, dataloader_index: int = 0) -> list[Tensor]:
        logits = self(batch.ids, batch.length, self.cached_features(batch)).float()
        return of_counted(batch, batch.row, logits, batch.label)
