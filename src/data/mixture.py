"""Several datasets, each with its own question, as one: classes are named <source>/<label>."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from src import ranks
from src.data.batching import Batch, Messages, evaluation_batches
from src.data.datamodule import TextData, loader
from src.data.prompts import Prompt
from src.errors import InputError

SPLITS = ("train", "validation", "test")
SHARED = ("fraction", "padding", "max_length", "batch_size", "num_workers")


@dataclass(kw_only=True, eq=False)
class Mixture(TextData):
    """The messages of several `sources`, which share how they are batched.

    sampling     size: every training message once an epoch; even: as many of each source as the smallest has, drawn
                 anew each epoch
    leave_out    a source that is tested, but neither trained nor validated: can the model do what it was not taught?
    """

    sources: dict[str, TextData]
    sampling: Literal["size", "even"] = "size"
    leave_out: str | None = None

    def __post_init__(self) -> None:
        super(TextData, self).__init__()  # its parts are read already
        self._check()
        if self.whole:
            raise InputError("a mixture of datasets is measured on its own splits: name one dataset")
        if self.leave_out is not None and self.leave_out not in self.sources:
            raise InputError(f"data.leave_out={self.leave_out} is none of data.sources: {', '.join(self.sources)}")
        if len(self.sources) - (self.leave_out is not None) < 1:
            raise InputError("data.sources needs a dataset that is trained on")
        if self.fold is not None:
            raise InputError("data.fold is that of a source: give data.sources.<name>.fold")
        self._share()
        self.labels = tuple(f"{name}/{label}" for name, part in self.sources.items() for label in part.labels)
        self.all_examples = {
            split: [
                example._replace(label=f"{name}/{example.label}")
                for name in self.asked(split)
                for example in self.sources[name].all_examples[split]
            ]
            for split in SPLITS
        }

    def _share(self) -> None:
        defaults = {field.name: field.default for field in fields(TextData)}
        for name, part in self.sources.items():
            for key in SHARED:
                if getattr(part, key) != defaults[key]:
                    raise InputError(f"data.sources.{name}.{key} has no effect: all sources share data.{key}")
                setattr(part, key, getattr(self, key))
            part.seed = self.seed

    def encode_for(self, prompts: Sequence[Prompt], reads_padding: bool, context_length: int) -> None:
        if reads_padding:
            raise InputError("a mixture of datasets asks several questions: it needs task=instruct")
        for part, prompt in zip(self.sources.values(), prompts, strict=True):
            part.encode_for([prompt], reads_padding, context_length)
        self.limit = max(part.limit for part in self.sources.values())
        for part in self.sources.values():  # with padding=longest, the longest training message of all sources
            part.read_as(part.labels, self.limit, part.width)
        self.width = None  # answers are written under a causal mask: nobody reads padding
        parts = self.sources
        self.examples = {split: [e for p in self.asked(split) for e in parts[p].examples[split]] for split in SPLITS}
        self.splits = {split: self._merge(split) for split in SPLITS}

    def labelled_texts(self) -> dict[str, tuple[list[str], list[int]]]:
        raise InputError("a mixture of datasets asks several questions, a model without a GPT none: name one dataset")

    def asked(self, split: str) -> list[str]:
        """The tasks whose messages a split holds."""
        return [name for name in self.sources if split == "test" or name != self.leave_out]

    def _merge(self, split: str) -> Messages:
        ids, labels = list[list[int]](), list[int]()
        for name in self.asked(split):
            messages = self.sources[name].splits[split]
            first = self.labels.index(f"{name}/{self.sources[name].labels[0]}")
            ids += messages.ids
            labels += [first + label for label in messages.labels]
        padding = next(iter(self.sources.values())).splits[split].padding
        return Messages(ids, labels, self.width, padding, split)

    @property
    def sha256(self) -> str:
        return hashlib.sha256("".join(part.sha256 for part in self.sources.values()).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """As of one corpus."""
        facts = {name: part.facts() for name, part in self.sources.items()}
        return {
            "name": "mixture",
            "split": ", ".join(f"{name} {fact['split']}" for name, fact in facts.items()),
            "sha256": self.sha256,
            "sizes": self.sizes(),
            "dropped": {name: fact["dropped"] for name, fact in facts.items()},
            "test_sizes": {name: part.sizes()["test"] for name, part in self.sources.items()},
            "labels": list(self.labels),
            "max_length": self.limit,
            "width": self.width,
        }

    def groups_to_even(self) -> NDArray[Any] | None:
        if self.sampling == "size":
            return None
        names = self.asked("train")
        return np.repeat(np.arange(len(names)), [len(self.sources[name].splits["train"]) for name in names])

    def read_as(self, labels: Sequence[str], limit: int, width: int | None) -> None:
        """A mix is read as it was in training if it holds the same tasks. Raises InputError if it does not."""
        if tuple(labels) != self.labels:
            raise InputError(f"the run knows the classes {', '.join(labels)}; this mix has {', '.join(self.labels)}")

    def evaluation_loader(self, part: str) -> DataLoader[Batch]:
        """Every message of a split once, task by task: a batch asks one question."""
        messages, batches, start = self.splits[part], list[list[int]](), 0
        for name in self.asked(part):
            end = start + len(self.sources[name].splits[part])
            batches += evaluation_batches(messages, self.batch_size * ranks.world(), range(start, end))
            start = end
        return loader(messages, ranks.share(batches) or [[]], self.num_workers)

    def summary(self) -> str:
        """That of each part."""
        left_out = f"; {self.leave_out} is tested only" if self.leave_out else ""
        heading = f"a mix of {len(self.sources)} tasks, sampled by {self.sampling}{left_out}"
        return "\n".join([heading, *(f"{name}: {part.summary()}" for name, part in self.sources.items())])
