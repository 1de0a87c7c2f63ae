"""A LightningDataModule over labelled texts: texts -> split -> tokens (-> prompt) -> batches, wired to loaders.

A dataset is a subclass that says how its texts and labels are read (datasets.py); all else is here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from src import ranks
from src.data.batching import Batch, Messages, ShuffledBatches, evaluation_batches
from src.data.corpus import Corpus
from src.data.prompts import Prompt
from src.data.sharding import Shard
from src.data.splits import Splits, deduplicated, distinct, fraction_of, grouped
from src.data.tokenizer import encode
from src.errors import InputError

Padding = Literal["longest", "batch", "none", "context"]


@dataclass(kw_only=True, eq=False)
class TextData(L.LightningDataModule):
    """Labelled texts as token batches. A subclass reads them: `read` gives a Corpus; `encode_for` makes the batches.

    split           grouped | deduplicated (see splits.py); `balance` samples every class down to the smallest one
    fold            1/5: the first of five folds is test (cross-validation); of split=grouped
    fraction        the stratified part of the training messages that is used, in (0, 1]
    padding         longest: to the longest training message; batch: to the longest of the batch, messages of like
                    length together; context: to the context length; none: batches of one message
    max_length      truncate to that many tokens, from the right; null means the context length. Where there is a
                    prompt, it and the answer count, and the text alone is cut
    instruction     what is asked of a text, and `answers` the answer of each class, for a task that prompts
    seed            of the order of messages and of the part that `fraction` takes, never of the split
    whole           no split: all messages as one part, for measuring a trained run on them
    Raises InputError for whatever does not fit together.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("grouped", "deduplicated")
    split: str = "grouped"
    balance: bool = False
    fold: str | None = None
    fraction: float = 1.0
    padding: Padding = "longest"
    max_length: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 8
    num_workers: Annotated[int, Ge(0), Le(1_000)] = 0  # processes
    instruction: str | None = None
    answers: Mapping[str, Any] | None = None
    seed: int = 123
    whole: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self._check()
        self.split_name: str = self.split
        self.similarity: float | None = None  # above which no two texts of different splits are
        self.notes: list[str] = []
        self.corpus = self.read()
        self.dropped = {"empty": self.corpus.empty, "repeated": 0, "contradicting": 0}
        self.labels = self.corpus.labels
        self.all_examples = {"all": self.corpus.examples} if self.whole else self.divide()._asdict()

    def _check(self) -> None:
        if self.split not in self.SPLITS:
            raise InputError(f"data.split={self.split} is unknown: use {', '.join(self.SPLITS)}")
        if self.fold is not None and self.split != "grouped":
            raise InputError(f"data.fold={self.fold} divides groups of near-duplicates: it needs data.split=grouped")
        if self.padding == "none" and self.batch_size != 1:
            raise InputError(f"data.padding=none needs data.batch_size=1, not {self.batch_size}")

    def read(self) -> Corpus:
        """The labelled texts of this dataset."""
        raise NotImplementedError

    def divide(self) -> Splits:
        """The texts in three parts, by `split`."""
        kept = distinct(self.corpus.examples)
        self.dropped |= {"repeated": kept.repeated, "contradicting": kept.contradicting}
        if self.split == "deduplicated":
            return deduplicated(kept.examples, self.balance)
        splits, self.similarity = grouped(kept.examples, self.balance, self.fold)
        self.split_name += f", fold {self.fold}" if self.fold else ""
        return splits

    def encode_for(self, prompts: Sequence[Prompt], reads_padding: bool, context_length: int) -> None:
        """Tokenize for a task: its prompt, whether it reads padding (else batches are as wide as their longest
        message), and how much its GPT can read."""
        self.context_length, self.reads_padding = context_length, reads_padding
        self.limit = self.max_length or context_length
        if self.limit > context_length:
            raise InputError(f"data.max_length={self.limit} is more than the GPT's context length, {context_length}")
        self.take_fraction()
        self.ids = {part: encode([example.text for example in examples]) for part, examples in self.examples.items()}
        (self.prompt,) = prompts
        longest = min(self.limit, self.longest())
        # as in the book: with one width for all, longer messages of validation and test are cut to it
        width = {"longest": longest, "context": context_length}.get(self.padding) if reads_padding else None
        self.read_as(self.labels, longest if self.padding == "longest" else self.limit, width)

    def take_fraction(self) -> None:
        """Choose the messages that are used."""
        self.examples = dict(self.all_examples)
        if not self.whole:
            self.examples["train"] = fraction_of(self.examples["train"], self.fraction, self.seed)

    def labelled_texts(self) -> dict[str, tuple[list[str], list[int]]]:
        """Texts and class numbers of each split, for a model that reads the texts themselves."""
        self.take_fraction()
        number = self.numbers(self.labels)
        return {part: (self.texts(part), [number[e.label] for e in self.examples[part]]) for part in self.examples}

    def numbers(self, labels: Sequence[str]) -> dict[str, int]:
        """Number classes as a trained run did. Raises InputError for a strange class."""
        if strange := sorted(set(self.corpus.labels) - set(labels)):
            raise InputError(f"class {strange[0]} is none of the run's classes, {', '.join(labels)}")
        self.labels = tuple(labels)
        return {label: i for i, label in enumerate(labels)}

    def longest(self) -> int:
        """Tokens of the longest training message, with its prompt."""
        return self.prompt.overhead + max(map(len, next(iter(self.ids.values()))))

    def read_as(self, labels: Sequence[str], limit: int, width: int | None) -> None:
        """Number classes, truncate, pad as a trained run did (see `facts`). Raises InputError for a strange class."""
        number = self.numbers(labels)
        self.limit, self.width = limit, width
        if (room := limit - self.prompt.overhead) < 1:
            raise InputError(
                f"the prompt and its longest answer are {self.prompt.overhead} tokens long, which leaves no room for "
                f"the text in {limit}: shorten data.instruction, task.template or data.answers, "
                "or raise data.max_length"
            )
        self.truncated = {part: sum(len(row) > room for row in rows) for part, rows in self.ids.items()}
        self.splits = {
            part: Messages(
                [self.prompt.around(row, limit) for row in rows],
                [number[example.label] for example in self.examples[part]],
                width and width - self.prompt.reserve,
                padding_of(self.padding, self.reads_padding),
                part,
            )
            for part, rows in self.ids.items()
        }

    def sizes(self) -> dict[str, int]:
        """Messages in each split."""
        return {part: len(examples) for part, examples in self.examples.items()}

    def texts(self, part: str) -> list[str]:
        """The messages of a split."""
        return [example.text for example in self.examples[part]]

    @property
    def sha256(self) -> str:
        """Of what was read."""
        return self.corpus.sha256

    def facts(self) -> dict[str, Any]:
        """What a run's result says of its data; with it, a message is read at prediction as it was in training."""
        return {**self.facts_of_texts(), "max_length": self.limit, "width": self.width}

    def facts_of_texts(self) -> dict[str, Any]:
        """The same, of the texts alone."""
        return {
            "name": self.corpus.name,
            "split": self.split_name,
            "sha256": self.sha256,
            "sizes": self.sizes(),
            "dropped": self.dropped,
            "similarity": self.similarity,
            "labels": list(self.labels),
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        messages = self.splits["train"]
        lengths = [len(row) for row in messages.ids] if self.padding == "batch" else None
        size, several = self.batch_size * ranks.world(), ranks.world() > 1
        batches = ShuffledBatches(len(messages), size, self.seed, lengths, self.groups_to_even())
        own = Shard(messages, ranks.rank(), ranks.world()) if several else messages  # a rank's share of each batch
        return loader(own, batches, self.num_workers)

    def groups_to_even(self) -> NDArray[Any] | None:
        """The group of each training message, where an epoch is to have as many of each; None where it is not."""
        return None

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_loader("validation")

    def evaluation_loader(self, part: str) -> DataLoader[Batch]:
        """Every message of a split once; `row` in the batch says which."""
        return evaluation_loader(self.splits[part], self.batch_size, self.num_workers)

    def summary(self) -> str:
        """What a user should know of the data before training: sizes, classes, lengths, what was cut."""
        width = f" to {self.width} tokens" if self.width else ""
        lengths = np.percentile([len(row) for row in self.splits["train"].ids], [5, 50, 95, 100]).round().astype(int)
        cut = ", ".join(f"{n} of {part}" for part, n in self.truncated.items())
        tokens = "5% {}, median {}, 95% {}, longest {}".format(*lengths)
        batches = f"  padding {self.padding}{width}; truncated: {cut}\n  tokens a training message: {tokens}"
        return f"{self.summary_of_texts()}\n{batches}"

    def summary_of_texts(self) -> str:
        """The same, of the texts alone."""
        free_of = f" (no near-duplicates above {self.similarity} in two parts)" if self.similarity else ""
        lines = [f"{self.corpus.name}, split {self.split_name}{free_of}"]
        lines += [f"  {note}" for note in (*self.corpus.notes, *self.notes)]
        if sum(self.dropped.values()):
            lines.append(
                "  dropped    {repeated:>6} messages that stood before; {contradicting} with several labels; {empty} "
                "without text or label".format_map(self.dropped)
            )
        for part, examples in self.examples.items():
            count = Counter(example.label for example in examples)
            classes = ", ".join(f"{label} {count[label]}" for label in self.labels)
            lines.append(f"  {part:<11}{len(examples):>6} messages: {classes}")
        return "\n".join(lines)


def padding_of(padding: str, is_read: bool) -> str:
    """What data.padding means to a batch (see Messages)."""
    if padding == "none":
        return "none"
    if not is_read:
        return "free"
    return "batch" if padding == "batch" else "fixed"


def evaluation_loader(messages: Messages, batch_size: int, num_workers: int = 0) -> DataLoader[Batch]:
    """Every message once, in large batches, of like length where the padding varies; a rank's share of these."""
    batches = evaluation_batches(messages, batch_size * ranks.world())
    return loader(messages, ranks.share(batches) or [[]], num_workers)


def loader(messages: Dataset[Batch], batches: Any, num_workers: int) -> DataLoader[Batch]:
    """A DataLoader whose sampler gives whole batches of rows, which the dataset pads: no collate function is needed."""
    pinned = torch.cuda.is_available()  # copies to the GPU then wait for nothing
    return DataLoader(messages, batch_size=None, sampler=batches, num_workers=num_workers, pin_memory=pinned)
