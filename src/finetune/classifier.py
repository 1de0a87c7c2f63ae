"""Classification fine-tuning: the output layer is swapped for a head over fixed labels.

    ids (B, T) -> GPT -> hidden (B, T, C) -> one position (B, C) -> head -> logits (B, K) -> cross-entropy

After Raschka, "Build a Large Language Model (From Scratch)", chapter 6 and appendix E.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.data.batching import Batch, of_counted
from src.errors import InputError
from src.finetune import pooling as positions
from src.finetune.base import FineTuner
from src.finetune.optim import Optimizer
from src.gpt.lora import LoRA
from src.gpt.model import GPT


class Classifier(FineTuner):
    """A GPT with a linear head over K classes; trainable, lora, optimizer, frozen_precision as in FineTuner.

    position        which hidden state the head reads (see pooling.py)
    head            linear: random weights; answers: the language model's own output rows for the first token of each
                    class's answer, so that before any training the head says what the language model would
    ignore_index    a class number that the loss ignores; the book's row 18 gives it the padding id, which no class has
    """

    def __init__(
        self,
        gpt: GPT,
        n_classes: int,
        trainable: str = "last_block",
        position: str = "last",
        lora: LoRA | None = None,
        optimizer: Optimizer | None = None,
        head: str = "linear",
        answers: Sequence[Sequence[int]] = (),
        ignore_index: int = -100,
        frozen_precision: str = "run",
    ) -> None:
        if position not in positions.POSITIONS:
            raise InputError(f"task.position={position} is unknown: use {', '.join(positions.POSITIONS)}")
        self._check_head(head, answers)
        layer = nn.Linear(gpt.config.n_embd, n_classes)
        if head == "answers":
            with torch.no_grad():
                layer.weight.copy_(gpt.token_embedding.weight[[answer[0] for answer in answers]])
                layer.bias.zero_()
        super().__init__(gpt, layer, trainable, lora, optimizer, frozen_precision)
        self.position, self.ignore_index = position, ignore_index

    @staticmethod
    def _check_head(head: str, answers: Sequence[Sequence[int]]) -> None:
        if head not in ("linear", "answers"):
            raise InputError(f"task.head={head} is unknown: use linear or answers")
        if head == "answers" and len({answer[0] for answer in answers}) < len(answers):
            raise InputError("task.head=answers reads the first token of each answer, and two of data.answers share it")

    @property
    def first_alone(self) -> bool:
        """Whether only the first token is read, which sees no other."""
        return self.position == "first" and self.gpt.config.causal

    def below(self, ids: Tensor, length: Tensor, extent: Tensor | None = None) -> Tensor:
        return super().below(ids[:, :1] if self.first_alone else ids, length, extent)

    @property
    def reads_below(self) -> str:
        return self.position if self.only_head or self.first_alone else ""

    def places(self, length: Tensor, width: int) -> Tensor | None:
        return positions.places(length, width, self.position)

    def output(self, hidden: Tensor) -> Tensor:
        """Class logits (B, K)."""
        assert self.head is not None
        return self.head(hidden[:, 0])

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self(batch.ids, batch.length, self.known(batch)).float()  # (B, K)
        loss = self.cross_entropy(logits, batch.label, batch, self.ignore_index)
        return loss, logits.detach().argmax(-1) == batch.label

    def targets(self, label: Tensor) -> Tensor:
        return (label != self.ignore_index).sum()

    def predict_step(self, batch: Batch, batch_index: int, dataloader_index: int = 0) -> list[Tensor]:
        logits = self(batch.ids, batch.length, self.known(batch)).float()
        return of_counted(batch, batch.row, logits, batch.label)
