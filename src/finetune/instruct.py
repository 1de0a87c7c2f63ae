"""Instruction fine-tuning: the language model goes on being one, and learns to write the answer after the prompt.

    prompt (B, T) | answer -> GPT -> hidden at the answer's places (B, A, C) -> logits (B, A, V) -> cross-entropy

Only the answer's tokens and the <|endoftext|> after it count in the loss. A class is predicted by the probability of
its whole answer (scored), and by what the model writes when left to itself (generated).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.data.batch import Batch
from src.data.prompt import Task
from src.errors import InputError
from src.finetune.finetuner import FineTuner
from src.finetune.optimize import Optimizer
from src.gpt.generate import Reader
from src.gpt.lora import LoRA
from src.gpt.model import GPT

IGNORED = -100  # a place without an answer token; torch's own number for targets that do not count


class Instruct(FineTuner):
    """A GPT that answers questions about a text; trainable, lora, optimizer, frozen_precision as in FineTuner.

    tasks    the questions: every message is answered with one of the answers of its class's task
    say      (what was written as ids, a task) -> place of that answer in the task, -1 for none
    The output layer is the token embedding, tied. trainable=all trains it in both places; last_block, <n>_blocks and
    lora leave it as it is; last_layer trains a copy of it, the counterpart of a new head, and the embedding stays.
    Raises InputError for a GPT without a causal mask: its prompt would read the answer.
    """

    def __init__(
        self,
        gpt: GPT,
        tasks: Sequence[Task],
        say: Callable[[list[int], Task], int],
        trainable: str = "last_block",
        lora: LoRA | None = None,
        optimizer: Optimizer | None = None,
        frozen_precision: str = "run",
    ) -> None:
        if not gpt.config.causal:
            raise InputError("task=instruct needs gpt.causal=true: without the mask a prompt would read its answer")
        head = None
        if trainable == "last_layer":
            head = nn.Linear(gpt.config.n_embd, gpt.config.vocab_size, bias=False)
            with torch.no_grad():
                head.weight.copy_(gpt.token_embedding.weight)
        super().__init__(gpt, head, trainable, lora, optimizer, frozen_precision)
        self.tasks, self.say, self.stop = list(tasks), say, tasks[0].answers[0][-1]
        answers = {number: ids for task in tasks for number, ids in zip(task.classes, task.answers, strict=True)}
        K, A = len(answers), max(map(len, answers.values()))
        padded = torch.full((K, A), IGNORED)
        asked = torch.zeros(K, K, dtype=torch.bool)  # row: the true class; column: the classes of its task
        for number, ids in answers.items():
            padded[number, : len(ids)] = torch.tensor(ids)
        for task in tasks:
            asked[torch.tensor(task.classes)[:, None], torch.tensor(task.classes)] = True
        self.answers: Tensor
        self.asked: Tensor
        self.register_buffer("answers", padded, persistent=False)
        self.register_buffer("asked", asked, persistent=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of hidden states (..., C)."""
        return self.head(hidden) if self.head is not None else self.gpt.logits(hidden)

    def extent(self, length: Tensor) -> Tensor:
        return length + self.answers.shape[1] - 1

    def places(self, length: Tensor, width: int) -> Tensor:
        """Where the answers' tokens are predicted, (B, A), after prompts of length (B,)."""
        return length[:, None] - 1 + torch.arange(self.answers.shape[1], device=length.device)

    def output(self, hidden: Tensor) -> Tensor:
        """Logits (B, A, V) of the answer's tokens."""
        return self.logits(hidden)

    @property
    def reads_below(self) -> str:
        return "answers" if self.only_head else ""

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Prompts, and after each one the tokens of its answer but for the last: (B, T + A - 1), and (B,)."""
        answer = self.answers[batch.label][:, :-1].clamp(min=0)  # (B, A - 1)
        longer = F.pad(batch.ids, (0, answer.shape[1]))  # what stands behind an answer is never seen
        places = batch.length[:, None] + torch.arange(answer.shape[1], device=answer.device)
        return longer.scatter(1, places, answer), batch.length

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        targets = self.answers[batch.label]  # (B, A)
        logits = self(*self.inputs(batch), batch.features).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        written = (logits.detach().argmax(-1) == targets) | (targets == IGNORED)
        return loss, written.all(1)

    def predict_step(
        self, batch: Batch, batch_index: int, dataloader_index: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        reader = Reader(self.gpt, batch.ids, batch.length, self.answers.shape[1], self.logits)
        scores = self.scores(reader, batch.label)
        return batch.row.cpu(), scores.cpu(), batch.label.cpu(), self.said(reader, batch.label)

    def scores(self, reader: Reader, label: Tensor) -> Tensor:
        """Log-probability of each class's whole answer, (B, K); -inf for classes of another task than the label's."""
        asked = self.asked[label]  # (B, K)
        scores = torch.full(asked.shape, -torch.inf, device=label.device)
        for number in asked.any(0).nonzero().flatten():
            answer = self.answers[number]
            scores[:, number] = reader.log_probability(answer[answer != IGNORED])
        return scores.masked_fill(~asked, -torch.inf)

    def said(self, reader: Reader, label: Tensor) -> Tensor:
        """The class (B,) whose answer is written by greedy decoding, -1 for anything else."""
        task_of = {number: task for task in self.tasks for number in task.classes}
        said = []
        for ids, number in zip(reader.write(self.answers.shape[1], self.stop), label.tolist(), strict=True):
            task = task_of[number]
            place = self.say(ids, task)
            said.append(task.classes[place] if place >= 0 else -1)
        return torch.tensor(said)
