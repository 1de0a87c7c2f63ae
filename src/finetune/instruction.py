"""Instruction fine-tuning: the language model goes on being one, and learns to write the answer after the prompt.

    prompt (B, T) | answer -> GPT -> hidden at the answer's places (B, A, C) -> logits (B, A, V) -> cross-entropy

Only the answer's tokens and the <|endoftext|> after it count in the loss. A class is predicted by the probability of
its whole answer (scored), and by what the model writes when left to itself (generated).
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.data.batching import Batch, of_counted
from src.data.prompts import Question, make_task, parse
from src.data.tokenizer import END_OF_TEXT, decode
from src.errors import InputError
from src.finetune.base import FineTuner, FrozenPrecision
from src.finetune.class_weights import ClassWeights
from src.finetune.freezing import Decay, Epochs
from src.finetune.optim import OptimizerFactory, SchedulerFactory, adamw, warmup_schedule
from src.gpt.generation import Blocks, Decoder
from src.gpt.lora import LoRA
from src.gpt.model import GPT
from src.gpt.shared_prefixes import SharedPrefixes

IGNORE_INDEX = -100  # a place without an answer token; torch's own number for targets that do not count


class InstructionTuner(FineTuner):
    """A GPT that answers questions about a text; the arguments that are not listed here are FineTuner's.

    template    what is put around instruction and text (see prompts.py)
    The output layer is the token embedding, tied. trainable=all trains it in both places; last_layer trains a copy of
    it, the counterpart of a new head, and the embedding stays; all else leaves it as it is, and has no head to begin
    with (head_epochs).
    Raises InputError for a GPT without a causal mask: its prompt would read the answer.
    """

    def __init__(
        self,
        gpt: GPT,
        questions: Sequence[Question],
        template: str,
        trainable: str = "last_block",
        lora: LoRA | None = None,
        optimizer: OptimizerFactory = adamw,
        scheduler: SchedulerFactory = warmup_schedule,
        frozen_precision: FrozenPrecision = "run",
        class_weights: ClassWeights = "none",
        gradual_unfreezing: Epochs = 0,
        layer_decay: Decay = 1.0,
    ) -> None:
        if not gpt.config.causal:
            raise InputError("task=instruct needs gpt.causal=true: without the mask a prompt would read its answer")
        head = None
        if trainable == "last_layer":
            head = nn.Linear(gpt.config.n_embd, gpt.config.vocab_size, bias=False)
            with torch.no_grad():
                head.weight.copy_(gpt.token_embedding.weight)
        how = trainable, lora, optimizer, scheduler, frozen_precision, class_weights
        super().__init__(gpt, questions, head, *how, 0, gradual_unfreezing, layer_decay)
        self.tasks = tasks = [make_task(question, template) for question in questions]
        self.prompts = [task.prompt for task in tasks]
        answers = {number: ids for task in tasks for number, ids in zip(task.classes, task.answers, strict=True)}
        K, A = len(answers), max(map(len, answers.values()))
        padded = torch.full((K, A), IGNORE_INDEX)
        asked = torch.zeros(K, K, dtype=torch.bool)  # row: the true class; column: the classes of its task
        for number, ids in answers.items():
            padded[number, : len(ids)] = torch.tensor(ids)
        for task in tasks:
            asked[torch.tensor(task.classes)[:, None], torch.tensor(task.classes)] = True
        self.answers: Tensor
        self.task_mask: Tensor
        self.register_buffer("answers", padded, persistent=False)
        of = {number: task.classes for task in tasks for number in task.classes}
        most = max(map(len, of.values()))
        self.answer_rows = most * (A - 1)
        self.classes: Tensor  # those of each class's task, (K, most); a task with fewer repeats its last one
        self.class_slot: Tensor  # the place of each class in its task, (K,)
        classes = [(of[n] + [of[n][-1]] * most)[:most] for n in range(K)]
        self.register_buffer("classes", torch.tensor(classes), persistent=False)
        self.register_buffer("class_slot", torch.tensor([of[n].index(n) for n in range(K)]), persistent=False)
        self.register_buffer("task_mask", asked, persistent=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of hidden states (..., C)."""
        return self.head(hidden) if self.head is not None else self.gpt.logits(hidden)

    @property
    def reads_padding(self) -> bool:
        return False

    @property
    def vocabulary(self) -> Tensor:
        if self.head is None:
            return super().vocabulary
        assert isinstance(self.head.weight, Tensor)
        return self.head.weight

    def pooling_index(self, length: Tensor, width: int) -> Tensor:
        """Where the answers' tokens are predicted, (B, A), after prompts of length (B,)."""
        return length[:, None] - 1 + torch.arange(self.answers.shape[1], device=length.device)

    def output(self, hidden: Tensor) -> Tensor:
        """Logits (B, A, V) of the answer's tokens."""
        return self.logits(hidden)

    @property
    def feature_key(self) -> str:
        return f"{'only answers' if self.is_linear_probe else 'all'} {self.answers.tolist()} {self.classes.tolist()}"

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Prompts, and after each one the tokens of its answer but for the last: (B, T + A - 1), and (B,)."""
        answer = self.answers[batch.label][:, :-1].clamp(min=0)  # (B, A - 1)
        longer = F.pad(batch.ids, (0, answer.shape[1]))  # what stands behind an answer is never seen
        places = batch.length[:, None] + torch.arange(answer.shape[1], device=answer.device)
        return longer.scatter(1, places, answer), batch.length

    def compute_features(self, batch: Batch, extent: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of each prompt, or its last one where only the output layer is trained, and behind them the rows of
        every answer that its task has, but for their last tokens."""
        (B, T), k, device = batch.ids.shape, self.feature_boundary, batch.ids.device
        blocks = Blocks(self.gpt, k, T + self.answer_rows, k, self.arithmetic)
        places = torch.arange(T, device=device).expand(B, T)
        prompt = blocks.read(batch.ids, places, SharedPrefixes.of(batch.ids, extent))
        answers = []
        for number in self.alternatives(batch):
            ids = self.answers[number][:, :-1].clamp(min=0)  # (B, A - 1)
            answers.append(blocks.read(ids, batch.length[:, None] + torch.arange(ids.shape[1], device=device)))
        behind = torch.cat(answers, 1)  # (B, extra, C)
        places = batch.length[:, None] + torch.arange(self.answer_rows, device=device)
        whole = F.pad(prompt, (0, 0, 0, self.answer_rows)).scatter(1, places[..., None].expand_as(behind), behind)
        if not self.is_linear_probe:
            return whole, batch.length + self.answer_rows
        x = []
        for slot in range(len(answers)):
            rows = self._with_answer(whole, batch.length, T, torch.full_like(batch.length, slot))
            with self.arithmetic():
                x.append(self.read(rows, k, batch.length))  # (B, A, C)
        count = torch.ones_like(batch.length) + self.answer_rows
        return torch.cat([x[0][:, :1], *(rows[:, 1:] for rows in x)], 1), count

    def cached_features(self, batch: Batch, slot: int | None = None) -> Tensor | None:
        """The rows of each prompt and of one answer, (B, T + A - 1, C): its own, or that in a place of its task."""
        if batch.features is None:
            return None
        own = self.class_slot[batch.label] if slot is None else torch.full_like(batch.label, slot)
        if self.is_linear_probe:
            return self._with_answer(batch.features, torch.ones_like(batch.length), 1, own)
        return self._with_answer(batch.features, batch.length, batch.ids.shape[1], own)

    def _with_answer(self, rows: Tensor, length: Tensor, width: int, own: Tensor) -> Tensor:
        """Of prompts of length (B,), `width` at most, with the rows of all answers behind them, those of the prompt and
        of the answer in place own (B,): (B, width + A - 1, C)."""
        A = self.answers.shape[1]
        place = torch.arange(width + A - 1, device=own.device).expand(len(own), -1)
        place = torch.where(place < length[:, None], place, place + own[:, None] * (A - 1))
        place = place.clamp(max=rows.shape[1] - 1)  # what stands behind an answer is never seen
        return rows.gather(1, place[..., None].expand(-1, -1, rows.shape[-1]))

    def alternatives(self, batch: Batch) -> Iterable[Tensor]:
        """Class numbers (B,), one of each message's task after the other; a task with fewer repeats its last one."""
        return self.classes[batch.label].unbind(1)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        targets = self.answers[batch.label]  # (B, A)
        logits = self(*self.inputs(batch), self.cached_features(batch)).float()
        loss = self.cross_entropy(logits.flatten(0, 1), targets.flatten(), batch, IGNORE_INDEX)
        written = (logits.detach().argmax(-1) == targets) | (targets == IGNORE_INDEX)
        return loss, written.all(1)

    def targets_of(self, label: Tensor) -> Tensor:
        return (self.answers[label] != IGNORE_INDEX).sum(-1)

    def predict_step(self, batch: Batch, batch_index: int, dataloader_index: int = 0) -> list[Tensor]:
        answer = self.score_and_generate if batch.features is None else self.score_and_generate_cached
        scores, said = answer(batch)
        return of_counted(batch, batch.row, scores, batch.label, said)

    def score_and_generate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each class's answer (B, K), and the class whose answer is written (B,), -1 for none."""
        room = self.answers.shape[1]
        decoder = Decoder(self.gpt, batch.ids, batch.length, room, self.logits, self.first_trainable, self.arithmetic)
        return self.scores(decoder, batch.label), self.generated_label(decoder, batch.label)

    def score_and_generate_cached(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same from features. An answer of which every token is the most probable one is what greedy decoding
        writes; only messages that have no such answer are read anew, to see what is written."""
        shape = len(batch.label), len(self.answers)
        scores = torch.full(shape, -torch.inf, dtype=torch.float32, device=batch.label.device)
        said = torch.full_like(batch.label, -1)
        for slot, number in enumerate(self.alternatives(batch)):
            targets = self.answers[number]  # (B, A)
            log_p = self(*self.inputs(batch), self.cached_features(batch, slot)).float().log_softmax(-1)  # (B, A, V)
            of_targets = log_p.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != IGNORE_INDEX)
            scores.scatter_(1, number[:, None], of_targets.sum(1, keepdim=True))
            said = torch.where(((log_p.argmax(-1) == targets) | (targets == IGNORE_INDEX)).all(1), number, said)
        if len(rest := (said < 0).nonzero().flatten()):
            left = batch._replace(ids=batch.ids[rest], length=batch.length[rest], label=batch.label[rest])
            said[rest] = self.score_and_generate(left)[1]
        return scores, said

    def scores(self, decoder: Decoder, label: Tensor) -> Tensor:
        """Log-probability of each class's whole answer, (B, K); -inf for classes of another task than the label's."""
        asked = self.task_mask[label]  # (B, K)
        scores = torch.full(asked.shape, -torch.inf, dtype=torch.float32, device=label.device)
        for number in asked.any(0).nonzero().flatten():
            answer = self.answers[number]
            scores[:, number] = decoder.loglikelihood(answer[answer != IGNORE_INDEX])
        return scores.masked_fill(~asked, -torch.inf)

    def generated_label(self, decoder: Decoder, label: Tensor) -> Tensor:
        """The class (B,) whose answer is written by greedy decoding, -1 for anything else."""
        task_of = {number: task for task in self.tasks for number in task.classes}
        said = []
        for ids, number in zip(decoder.generate(self.answers.shape[1], END_OF_TEXT), label.tolist(), strict=True):
            task = task_of[number]
            place = parse(decode(ids), task.words)
            said.append(task.classes[place] if place >= 0 else -1)
        return torch.tensor(said, device=label.device)
