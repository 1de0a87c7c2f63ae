"""Examples -> train / validation / test.

book           the split of the published table, row for row: that of the additional experiments to chapter 6 of
               Raschka, "Build a Large Language Model (From Scratch)", which
               shuffle twice; the chapter's own script shuffles once
deduplicated   no message, up to case, digits and spaces, in two splits; every class in the same shares
grouped        also no near-duplicates in two splits (see near_duplicates.py), in the same sizes; or, with a fold i/k,
               one of k parts of equal size as test, and of the rest a tenth of all messages as validation
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from src.data.corpus import Example
from src.data.near_duplicates import SIMILARITY, near_duplicates
from src.errors import InputError

SHARES = (0.7, 0.1)  # train, validation; the rest is test
SIMILARITIES = (SIMILARITY, 0.6, 0.7, 0.8, 0.9)
Classes = dict[str, list[Example]]  # the messages of each class
SPLIT_SEED = 123  # the book's; splits do not depend on a run's seed, so that all seeds share one test set


class Splits(NamedTuple):
    """Three lists of examples."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def book(examples: list[Example]) -> Splits:
    """The book's split of the UCI collection: as many ham as spam, shuffled twice, cut at 70% and 80%."""
    import pandas as pd  # half a second that other data do without

    frame = pd.DataFrame(examples)
    spam = frame[frame["label"] == "spam"]
    ham = frame[frame["label"] == "ham"].sample(len(spam), random_state=SPLIT_SEED)
    balanced = pd.concat([ham, spam]).sample(frac=1, random_state=SPLIT_SEED)
    shuffled = balanced.sample(frac=1, random_state=SPLIT_SEED)
    rows = [Example(text, label) for text, label in zip(shuffled["text"], shuffled["label"], strict=True)]
    train_end = int(len(rows) * SHARES[0])
    validation_end = train_end + int(len(rows) * SHARES[1])
    return Splits(rows[:train_end], rows[train_end:validation_end], rows[validation_end:])


def given_files(train: list[Example], validation: list[Example], test: list[Example]) -> tuple[Splits, list[str]]:
    """A split that the user made, as it is, with what is to be known of it. Raises InputError for a class that training
    does not have, and for the messages of training given again."""
    splits = Splits(train, validation, test)
    known, texts = {example.label for example in train}, {example.text for example in train}
    notes = []
    for part, examples in list(splits._asdict().items())[1:]:
        if strange := sorted({example.label for example in examples} - known):
            raise InputError(f"class {strange[0]} occurs in {part} but not in training: a head cannot learn it")
        if sorted(examples) == sorted(train):
            raise InputError(f"data.{part}_path has the messages of data.path: they say nothing of what was learned")
        if shared := sum(example.text in texts for example in examples):
            notes.append(f"{shared} of {len(examples)} messages of {part} stand in training too")
    if sorted(validation) == sorted(test):
        notes.append("validation and test are the same messages: the best epoch is the best on test")
    return splits, notes


class Distinct(NamedTuple):
    """Examples of which no two have equal texts, and how many were dropped: `repeated` as a text stood before with the
    same label, `contradicting` as equal texts have several labels and nobody knows which is right."""

    examples: list[Example]
    repeated: int
    contradicting: int


def distinct(examples: list[Example]) -> Distinct:
    """The first of all examples whose texts are equal after `normalise`; none of those where their labels differ."""
    alike: dict[str, list[Example]] = {}
    for example in examples:
        alike.setdefault(normalise(example.text), []).append(example)
    agreed = [members for members in alike.values() if len({example.label for example in members}) == 1]
    kept, left = [members[0] for members in agreed], sum(map(len, agreed))
    if lost := sorted({example.label for example in examples} - {example.label for example in kept}):
        raise InputError(
            f"every message of class {lost[0]} also stands with another label: nobody knows which is right"
        )
    return Distinct(kept, left - len(kept), len(examples) - left)


def deduplicated(examples: list[Example], balance: bool) -> Splits:
    """Stratified 70/10/20 split of distinct messages; `balance` first samples every class down to the smallest one."""
    rng = np.random.default_rng(SPLIT_SEED)
    parts: list[list[Example]] = [[], [], []]
    for shuffled in shuffled_classes(examples, balance, rng).values():
        validation, test = held_out_sizes(len(shuffled))
        parts[0] += shuffled[validation + test :]
        parts[1] += shuffled[:validation]
        parts[2] += shuffled[validation : validation + test]
    return Splits(*([part[i] for i in rng.permutation(len(part))] for part in parts))


class Fold(NamedTuple):
    """One of so many folds, by its number from 0 on: messages that are tested by a model which has not seen them."""

    number: int
    folds: int

    @classmethod
    def of(cls, text: str) -> "Fold":
        """The fold that 1/5 names. Raises InputError for what names none."""
        part = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
        if not part or not int(part[1]) <= int(part[2]) >= 2:
            raise InputError(f"data.fold={text} is no fold: use 1/5, 2/5, 3/5, 4/5 and 5/5 for five")
        return cls(int(part[1]) - 1, int(part[2]))


def grouped(examples: list[Example], balance: bool, fold: str | None = None) -> tuple[Splits, float]:
    """As `deduplicated`, with each group of near-duplicates in one part, and the similarity above which they are that:
    0.5, or where a class then has too few groups, the first of 0.6, 0.7, 0.8, 0.9 with which it can be split.

    Raises InputError where it cannot.
    """
    divide = in_three if fold is None else partial(in_fold, fold=Fold.of(fold))
    rng = np.random.default_rng(SPLIT_SEED)
    by_class = shuffled_classes(examples, balance, rng)
    for similarity in SIMILARITIES:
        if parts := divide(by_class, similarity):
            return Splits(*([part[i] for i in rng.permutation(len(part))] for part in parts)), similarity
    instead = "fewer folds" if fold else "data.split=deduplicated, and expect too high an accuracy"
    raise InputError(
        f"the messages of one of the classes {', '.join(by_class)} are near-duplicates of each other, in too few "
        f"groups to be split without cutting one: use {instead}"
    )


def in_three(by_class: Classes, similarity: float) -> list[list[Example]] | None:
    """train, validation and test in their shares; None where `assign_groups` cannot."""
    sizes = {label: held_out_sizes(len(members)) for label, members in by_class.items()}
    share = {label: (len(by_class[label]) - sum(held_out), *held_out) for label, held_out in sizes.items()}
    return assign_groups(by_class, share, similarity)


def in_fold(by_class: Classes, similarity: float, fold: Fold) -> list[list[Example]] | None:
    """The same, with a fold as test. The folds are the same for whichever of them is asked. Raises InputError for a
    class that is too small for them."""
    for label, members in by_class.items():
        if len(members) < 2 * fold.folds:
            raise InputError(
                f"data.fold: class {label} has {len(members)} distinct messages, {fold.folds} folds need "
                f"{2 * fold.folds} of each class"
            )
    k = fold.folds
    equal = {label: [(len(members) + i) // k for i in range(k)] for label, members in by_class.items()}
    if not (folds := assign_groups(by_class, equal, similarity)):
        return None
    rest: Classes = {label: [] for label in by_class}
    for example in (example for i, part in enumerate(folds) if i != fold.number for example in part):
        rest[example.label].append(example)
    validation = {label: held_out_sizes(len(members))[0] for label, members in by_class.items()}
    share = {label: (len(members) - validation[label], validation[label]) for label, members in rest.items()}
    parts = assign_groups(rest, share, similarity)
    return parts and [*parts, folds[fold.number]]


def assign_groups(
    by_class: Classes, share: Mapping[str, Sequence[int]], similarity: float
) -> list[list[Example]] | None:
    """The groups of near-duplicates in parts which have their `share` of each class: from the largest to the smallest,
    each goes by chance into one of the parts that have room for all of it, so that single messages fill what is left.
    None where a part would have less than half of its share of a class."""
    chance = random.Random(SPLIT_SEED)
    room = {label: list(shares) for label, shares in share.items()}
    numbers = range(len(next(iter(share.values()))))
    parts: list[list[Example]] = [[] for _ in numbers]
    for members in groups_of([example for shuffled in by_class.values() for example in shuffled], similarity):
        count = Counter(example.label for example in members)
        fits = [part for part in numbers if all(room[label][part] >= n for label, n in count.items())]
        weight = [max(0, sum(room[label][part] for label in count)) for part in numbers]
        part = chance.choices(fits, [weight[part] for part in fits])[0] if fits else weight.index(max(weight))
        parts[part] += members
        for label, n in count.items():
            room[label][part] -= n
    short = any(left > size / 2 for label in room for left, size in zip(room[label], share[label], strict=True))
    return None if short else parts


def groups_of(examples: list[Example], similarity: float) -> list[list[Example]]:
    """Groups of near-duplicates, the largest first."""
    groups: dict[int, list[Example]] = {}
    numbers = near_duplicates([normalise(example.text) for example in examples], similarity).tolist()
    for number, example in zip(numbers, examples, strict=True):
        groups.setdefault(number, []).append(example)
    return sorted(groups.values(), key=len, reverse=True)


def shuffled_classes(examples: list[Example], balance: bool, rng: np.random.Generator) -> dict[str, list[Example]]:
    """The messages of each class in a random order, all or as many as the smallest class has."""
    by_class: dict[str, list[Example]] = {}
    for example in examples:
        by_class.setdefault(example.label, []).append(example)
    smallest = min(map(len, by_class.values()))
    for label, members in sorted(by_class.items()):
        if len(members) < 3:
            raise InputError(
                f"class {label} has {len(members)} distinct messages: a split into train, validation and test needs 3 "
                "of each"
            )
        by_class[label] = [members[i] for i in rng.permutation(len(members))][: smallest if balance else None]
    return dict(sorted(by_class.items()))


def held_out_sizes(n: int) -> tuple[int, int]:
    """How many of a class's n messages are for validation and for test."""
    return max(1, round(n * SHARES[1])), max(1, round(n * (1 - sum(SHARES))))


def normalise(text: str) -> str:
    """A text without what mass messages vary: case, digits and white space."""
    return re.sub(r"\s+", " ", re.sub(r"\d", "0", text.casefold())).strip()


def fraction_of(examples: list[Example], share: float, seed: int) -> list[Example]:
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
