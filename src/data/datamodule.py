"""A LightningDataModule over one labelled corpus: corpora -> split -> tokens (-> prompt) -> batch, wired to loaders."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from src import ranks
from src.data import datasets
from src.data.batching import Batch, Messages, ShuffledBatches, reading_batches
from src.data.datasets import Corpus
from src.data.prompts import Prompt, make_task
from src.data.sharding import Shard
from src.data.splits import Splits, book, deduplicated, distinct, given_files, grouped
from src.data.splits import fraction as fraction_of
from src.data.tokenizer import encode
from src.errors import InputError

SPLITS = ("grouped", "deduplicated", "book")
PADDINGS = ("longest", "batch", "none", "context")


class TextData(L.LightningDataModule):
    """Labelled messages as token batches.

    name, path      which corpus (see datasets.py); `validation_path` and `test_path` give a table's own splits
    split           grouped | deduplicated | book (see splits.py); `balance` samples every class down to the smallest
    encoding, separator, empty   how a table is read (see datasets.table)
    fraction        the stratified part of the training messages that is used, in (0, 1]
    padding         longest: to the longest training message; batch: to the longest of the batch, messages of like
                    length together; context: to the context length; none: batches of one message
    padding_is_read whether the task reads padding: where it does not, batches are as wide as their longest message
    whole           no split: all messages as one part, for measuring a trained run on them
    max_length      truncate to that many tokens, from the right; null means the context length. Where there is a
                    prompt, it and the answer count, and the text alone is cut
    instruction     what is asked of a text, and `answers` the answer of each class (see prompt.py), for a task that
                    has a `template` around the text, and `writes` its answer after it
    Raises InputError for whatever does not fit together.
    """

    def __init__(
        self,
        name: str = "bundled",
        path: str | None = None,
        split: str = "grouped",
        fraction: float = 1.0,
        padding: str = "longest",
        max_length: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        balance: bool = False,
        text_column: str | int = "text",
        label_column: str | int = "label",
        encoding: str | None = None,
        separator: str | None = None,
        empty: str = "refuse",
        validation_path: str | None = None,
        test_path: str | None = None,
        cache: str = "~/.cache/two-ways",
        instruction: str | None = None,
        answers: Mapping[str, str] | None = None,
        template: str | None = None,
        writes: bool = False,
        padding_is_read: bool = True,
        context_length: int = 1024,
        seed: int = 123,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.split_name, self.fraction, self.balance, self.seed = split, fraction, balance, seed
        self.padding, self.padding_is_read = padding, padding_is_read
        self.batch_size, self.num_workers = batch_size, num_workers
        self.limit = self._limit(max_length, context_length)
        self.context_length = context_length
        self.template, self.instruction, self.answers, self.writes = template, instruction, answers, writes
        if batch_size < 1:
            raise InputError(f"data.batch_size={batch_size} must be at least 1")
        if padding == "none" and batch_size != 1:
            raise InputError(f"data.padding=none needs data.batch_size=1, not {batch_size}")
        how: dict[str, Any] = {"encoding": encoding, "separator": separator, "empty": empty, "least": 1 if whole else 2}
        read = partial(datasets.table, text_column=text_column, label_column=label_column, **how)
        if split not in SPLITS:
            raise InputError(f"data.split={split} is unknown: use {', '.join(SPLITS)}")
        if split == "book" and name != "sms_spam" and not whole:
            raise InputError(f"data.split=book is the published split of sms_spam: use data.split=grouped for {name}")
        self.corpus = datasets.read_corpus(name, path, read, Path(cache).expanduser(), quoted=split == "book")
        self.notes: list[str] = []
        self.similarity: float | None = None
        self.dropped = {"empty": self.corpus.empty, "repeated": 0, "contradicting": 0}
        if whole:
            self.examples = {"all": self.corpus.examples}
        else:
            splits = self._split(validation_path, test_path, partial(read, least=1))
            self.examples = splits._replace(train=fraction_of(splits.train, fraction, seed))._asdict()
        self._tokenize()

    def _limit(self, max_length: int | None, context_length: int) -> int:
        if self.padding not in PADDINGS:
            raise InputError(f"data.padding={self.padding} is unknown: use {', '.join(PADDINGS)}")
        if max_length is not None and not 1 <= max_length <= context_length:
            raise InputError(
                f"data.max_length={max_length} must lie between 1 and the GPT's context length, {context_length}"
            )
        return max_length or context_length

    def _split(self, validation: str | None, test: str | None, read: Callable[..., Corpus]) -> Splits:
        if (validation is None) != (test is None):
            raise InputError(
                "data.validation_path and data.test_path go together: give both, or neither for a stratified split"
            )
        if validation is not None and test is not None:
            self.split_name = "given files"
            given = [self.corpus, read(validation), read(test)]
            splits, self.notes = given_files(*(corpus.examples for corpus in given))
            self.dropped["empty"] = sum(corpus.empty for corpus in given)
            together = hashlib.sha256("".join(corpus.sha256 for corpus in given).encode()).hexdigest()
            self.corpus = replace(self.corpus, sha256=together)
        elif self.split_name == "book":
            splits = book(self.corpus.examples)
        else:
            kept = distinct(self.corpus.examples)
            self.dropped |= {"repeated": kept.repeated, "contradicting": kept.contradicting}
            if self.split_name == "deduplicated":
                return deduplicated(kept.examples, self.balance)
            splits, self.similarity = grouped(kept.examples, self.balance)
        return splits

    def _tokenize(self) -> None:
        self.ids = {part: encode([example.text for example in examples]) for part, examples in self.examples.items()}
        overhead = self._prompt(self.corpus.labels).overhead
        longest = min(self.limit, overhead + max(map(len, next(iter(self.ids.values())))))
        # as in the book: with one width for all, longer messages of validation and test are cut to it
        width = {"longest": longest, "context": self.context_length}.get(self.padding) if self.padding_is_read else None
        self.read_as(self.corpus.labels, longest if self.padding == "longest" else self.limit, width)

    def read_as(self, labels: Sequence[str], limit: int, width: int | None) -> None:
        """Number classes, truncate, pad as a trained run did (see `facts`). Raises InputError for a strange class."""
        number = {label: i for i, label in enumerate(labels)}
        if strange := sorted(set(self.corpus.labels) - set(labels)):
            raise InputError(f"class {strange[0]} is none of the run's classes, {', '.join(labels)}")
        self.labels, self.limit, self.width = tuple(labels), limit, width
        self.prompt = self._prompt(labels)
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
                padding_of(self.padding, self.padding_is_read),
                part,
            )
            for part, rows in self.ids.items()
        }

    def _prompt(self, labels: Sequence[str]) -> Prompt:
        if self.template is None:
            return Prompt()
        prompt = make_task(self.corpus.name, labels, self.template, self.instruction, self.answers).prompt
        return prompt if self.writes else replace(prompt, reserve=0)

    def sizes(self) -> dict[str, int]:
        """Messages in each split."""
        return {part: len(messages) for part, messages in self.splits.items()}

    def texts(self, part: str) -> list[str]:
        """The messages of a split."""
        return [example.text for example in self.examples[part]]

    def facts(self) -> dict[str, Any]:
        """What a run's result says of its data; with it, a message is read at prediction as it was in training."""
        return {
            "name": self.corpus.name,
            "split": self.split_name,
            "sha256": self.corpus.sha256,
            "sizes": self.sizes(),
            "dropped": self.dropped,
            "similarity": self.similarity,
            "labels": list(self.labels),
            "max_length": self.limit,
            "width": self.width,
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        messages = self.splits["train"]
        lengths = [len(row) for row in messages.ids] if self.padding == "batch" else None
        batches = ShuffledBatches(len(messages), self.batch_size * ranks.world(), self.seed, lengths)
        return training_loader(messages, batches, self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_loader("validation")

    def evaluation_loader(self, part: str) -> DataLoader[Batch]:
        """Every message of a split once; `row` in the batch says which."""
        return evaluation_loader(self.splits[part], self.batch_size, self.num_workers)

    def summary(self) -> str:
        """What a user should know of the data before training: sizes, classes, lengths, what was cut."""
        free_of = f" (no near-duplicates above {self.similarity} in two parts)" if self.similarity else ""
        width = f" to {self.width} tokens" if self.width else ""
        lines = [f"{self.corpus.name}, split {self.split_name}{free_of}, padding {self.padding}{width}"]
        lines += [f"  {note}" for note in (*self.corpus.notes, *self.notes)]
        if sum(self.dropped.values()):
            lines.append(
                "  dropped    {repeated:>6} messages that stood before; {contradicting} with several labels; {empty} "
                "without text or label".format_map(self.dropped)
            )
        for part, examples in self.examples.items():
            count = Counter(example.label for example in examples)
            classes = ", ".join(f"{label} {count[label]}" for label in self.labels)
            lines.append(f"  {part:<11}{len(examples):>6} messages: {classes}; {self.truncated[part]} truncated")
        lengths = [len(row) for row in self.splits["train"].ids]
        quantiles = np.percentile(lengths, [5, 50, 95, 100]).round().astype(int)
        lines.append("  tokens a training message: 5% {}, median {}, 95% {}, longest {}".format(*quantiles))
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
    batches = reading_batches(messages, batch_size * ranks.world())
    return loader(messages, ranks.share(batches) or [[]], num_workers)


def training_loader(messages: Messages, batches: ShuffledBatches, num_workers: int) -> DataLoader[Batch]:
    """Batches of messages; of a run on several devices, a rank's share of each."""
    several = ranks.world() > 1
    return loader(Shard(messages, ranks.rank(), ranks.world()) if several else messages, batches, num_workers)


def loader(messages: Dataset[Batch], batches: Any, num_workers: int) -> DataLoader[Batch]:
    """A DataLoader whose sampler gives whole batches of rows, which the dataset pads: no collate function is needed."""
    pinned = torch.cuda.is_available()  # copies to the GPU then wait for nothing
    return DataLoader(messages, batch_size=None, sampler=batches, num_workers=num_workers, pin_memory=pinned)
