"""Examples -> train / validation / test.

book           the published split, row for row (Raschka, "Build a Large Language Model (From Scratch)", chapter 6)
deduplicated   no message, up to case, digits and spaces, in two splits; every class in the same shares
"""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.data.datasets import Example
from src.errors import InputError

SHARES = (0.7, 0.1)  # train, validation; the rest is test
SPLIT_SEED = 123  # the book's; splits do not depend on a run's seed, so that all seeds share one test set


class Splits(NamedTuple):
    """Three lists of examples."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def book(examples: list[Example]) -> Splits:
    """The book's split of the UCI collection: as many ham as spam, shuffled twice, cut at 70% and 80%."""
    frame = pd.DataFrame(examples)
    spam = frame[frame["label"] == "spam"]
    ham = frame[frame["label"] == "ham"].sample(len(spam), random_state=SPLIT_SEED)
    balanced = pd.concat([ham, spam]).sample(frac=1, random_state=SPLIT_SEED)
    shuffled = balanced.sample(frac=1, random_state=SPLIT_SEED)
    rows = [Example(text, label) for text, label in zip(shuffled["text"], shuffled["label"], strict=True)]
    train_end = int(len(rows) * SHARES[0])
    validation_end = train_end + int(len(rows) * SHARES[1])
    return Splits(rows[:train_end], rows[train_end:validation_end], rows[validation_end:])


def deduplicated(examples: list[Example], balance: bool) -> Splits:
    """Stratified 70/10/20 split of the distinct messages; `balance` first samples every class down to the smallest."""
    by_class: dict[str, list[Example]] = {}
    for example in distinct(examples):
        by_class.setdefault(example.label, []).append(example)
    smallest = min(map(len, by_class.values()))
    rng = np.random.default_rng(SPLIT_SEED)
    parts: list[list[Example]] = [[], [], []]
    for label, members in sorted(by_class.items()):
        shuffled = [members[i] for i in rng.permutation(len(members))][: smallest if balance else None]
        n = len(shuffled)
        if n < 3:
            raise InputError(
                f"class {label} has {n} distinct messages: a split into train, validation and test needs 3 of each"
            )
        validation, test = max(1, round(n * SHARES[1])), max(1, round(n * (1 - sum(SHARES))))
        parts[0] += shuffled[validation + test :]
        parts[1] += shuffled[:validation]
        parts[2] += shuffled[validation : validation + test]
    return Splits(*([part[i] for i in rng.permutation(len(part))] for part in parts))


def distinct(examples: list[Example]) -> list[Example]:
    """The first of all examples whose texts are equal after `normalise`."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(normalise(example.text), example)
    return list(first.values())


def normalise(text: str) -> str:
    """A text without what mass messages vary: case, digits and white space."""
    return re.sub(r"\s+", " ", re.sub(r"\d", "0", text.casefold())).strip()


def fraction(examples: list[Example], share: float, seed: int) -> list[Example]:
    """A stratified part of `examples`, in their order; with one seed, smaller parts are subsets of larger ones."""
    if not 0 < share <= 1:
        raise InputError(f"data.fraction={share} must lie in (0, 1]")
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in sorted({example.label for example in examples}):
        members = [i for i, example in enumerate(examples) if example.label == label]
        size = round(len(members) * share)
        if size < 1:
            raise InputError(
                f"data.fraction={share} of {len(members)} training messages of class {label} leaves none: raise it"
            )
        chosen += [members[i] for i in rng.permutation(len(members))[:size]]
    return [examples[i] for i in sorted(chosen)]
