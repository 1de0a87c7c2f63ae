"""Several labelled corpora, each with its own question, as one: classes are named <task>/<label>."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from src import ranks
from src.data.batching import Batch, Messages, ShuffledBatches, reading_batches
from src.data.datamodule import TextData, loader, training_loader
from src.errors import InputError

SPLITS = ("train", "validation", "test")


class MixData(TextData):
    """The messages of `parts`, by task.

    sampling     size: every training message once an epoch; even: as many of each task as the smallest has, drawn anew
                 each epoch
    leave_out    a task that is tested, but neither trained nor validated: can the model do what it was not taught?
    """

    def __init__(self, parts: dict[str, TextData], sampling: str = "size", leave_out: str | None = None) -> None:
        super(TextData, self).__init__()  # its parts are read already
        if sampling not in ("size", "even"):
            raise InputError(f"data.sampling={sampling} is unknown: use size or even")
        if leave_out is not None and leave_out not in parts:
            raise InputError(f"data.leave_out={leave_out} is no task of the mix, which has {', '.join(parts)}")
        if len(parts) - (leave_out is not None) < 1:
            raise InputError("data.sources needs a task that is trained")
        self.parts, self.sampling, self.leave_out = parts, sampling, leave_out
        any_part = next(iter(parts.values()))
        self.padding, self.batch_size, self.num_workers = any_part.padding, any_part.batch_size, any_part.num_workers
        self.seed = any_part.seed
        self.labels = tuple(f"{name}/{label}" for name, part in parts.items() for label in part.labels)
        self.limit = max(part.limit for part in parts.values())
        for part in parts.values():  # with padding=longest, the longest training message of all tasks
            part.read_as(part.labels, self.limit, part.width)
        self.width = None  # answers are written under a causal mask: nobody reads padding
        self.examples = {split: [e for p in self.asked(split) for e in parts[p].examples[split]] for split in SPLITS}
        self.splits = {split: self._merge(split) for split in SPLITS}

    def asked(self, split: str) -> list[str]:
        """The tasks whose messages a split holds."""
        return [name for name in self.parts if split == "test" or name != self.leave_out]

    def _merge(self, split: str) -> Messages:
        ids, labels = list[list[int]](), list[int]()
        for name in self.asked(split):
            messages = self.parts[name].splits[split]
            first = self.labels.index(f"{name}/{self.parts[name].labels[0]}")
            ids += messages.ids
            labels += [first + label for label in messages.labels]
        padding = next(iter(self.parts.values())).splits[split].padding
        return Messages(ids, labels, self.width, padding, split)

    def facts(self) -> dict[str, Any]:
        """As of one corpus."""
        facts = {name: part.facts() for name, part in self.parts.items()}
        return {
            "name": "mix",
            "split": ", ".join(f"{name} {fact['split']}" for name, fact in facts.items()),
            "sha256": hashlib.sha256("".join(fact["sha256"] for fact in facts.values()).encode()).hexdigest(),
            "sizes": self.sizes(),
            "dropped": {name: fact["dropped"] for name, fact in facts.items()},
            "test_sizes": {name: part.sizes()["test"] for name, part in self.parts.items()},
            "labels": list(self.labels),
            "max_length": self.limit,
            "width": self.width,
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        messages = self.splits["train"]
        lengths = [len(row) for row in messages.ids] if self.padding == "batch" else None
        groups = None
        if self.sampling == "even":
            names = self.asked("train")
            groups = np.repeat(np.arange(len(names)), [len(self.parts[name].splits["train"]) for name in names])
        batches = ShuffledBatches(len(messages), self.batch_size * ranks.world(), self.seed, lengths, groups)
        return training_loader(messages, batches, self.num_workers)

    def read_as(self, labels: Sequence[str], limit: int, width: int | None) -> None:
        """A mix is read as it was in training if it holds the same tasks. Raises InputError if it does not."""
        if tuple(labels) != self.labels:
            raise InputError(f"the run knows the classes {', '.join(labels)}; this mix has {', '.join(self.labels)}")

    def evaluation_loader(self, part: str) -> DataLoader[Batch]:
        """Every message of a split once, task by task: a batch asks one question."""
        messages, batches, start = self.splits[part], list[list[int]](), 0
        for name in self.asked(part):
            end = start + len(self.parts[name].splits[part])
            batches += reading_batches(messages, self.batch_size * ranks.world(), range(start, end))
            start = end
        return loader(messages, ranks.share(batches) or [[]], self.num_workers)

    def summary(self) -> str:
        """That of each part."""
        left_out = f"; {self.leave_out} is tested only" if self.leave_out else ""
        heading = f"a mix of {len(self.parts)} tasks, sampled by {self.sampling}{left_out}"
        return "\n".join([heading, *(f"{name}: {part.summary()}" for name, part in self.parts.items())])
