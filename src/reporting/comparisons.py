"""Rows against reference rows on the same test messages; what was measured on others is not compared with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

from src.errors import InputError
from src.evaluation.differences import FEWEST_SEEDS, Crossed, crossed_test, holm, paired_p
from src.evaluation.intervals import ALPHA
from src.reporting.rows import PART, Row, find

VERDICTS = ("decided", "seen", "not seen")


@dataclass(frozen=True)
class Comparison:
    """A row's test accuracy less that of its reference row, and how sure it is.

    deviation             standard deviation over the `seeds` that both have; None with fewer than two
    p, corrected          of the exact test over messages, before and after Holm's correction
    crossed               the test over seeds and messages together; None with fewer than two seeds
    crossed_corrected     its p after Holm's correction
    """

    reference: str
    difference: float
    deviation: float | None
    p: float
    corrected: float
    seeds: int
    messages: int
    crossed: Crossed | None
    crossed_corrected: float | None

    @property
    def verdict(self) -> str:
        """seen: on these test messages, beyond chance; decided: by both tests, so that other seeds would show it too,
        and with five seeds or more."""
        decided, seen, not_seen = VERDICTS
        if self.corrected >= ALPHA:
            return not_seen
        agreed = self.crossed_corrected is not None and self.crossed_corrected < ALPHA
        return decided if agreed and self.seeds >= FEWEST_SEEDS else seen


def references(rows: Sequence[Row], wanted: str | None = None) -> list[Row | None]:
    """Of each row the one that it is compared with, itself where it is a reference; None where it has not finished, or
    cannot be compared with any that `wanted` names.

    A reference was tested on all of the row's test messages. `wanted` names it, or several of which it is the one that
    agrees with the row in the settings that `wanted` leaves open. Else it is the first row that was trained on the same
    part of the messages, so that ways to train are compared at equal data. Raises InputError where `wanted` names no
    row, or none that has finished.
    """
    named = find(rows, wanted) if wanted is not None else []
    if named and not any(row.runs for row in named):
        raise InputError(f"reference={wanted}: that row has no finished run to compare with; name another")
    return [agreeing(row, named) if named else first(row, rows) for row in rows]


def agreeing(row: Row, named: Sequence[Row]) -> Row | None:
    """The only one among `named` that can be compared with a row, or the one that agrees with it in what they vary."""
    able = [one for one in named if one.covers(row)]
    if len(able) > 1:
        left_open = [key for key, value in able[0].values.items() if any(one.values[key] != value for one in able)]
        able = [one for one in able if all(one.values[key] == row.values[key] for key in left_open)]
    return able[0] if able else None


def first(row: Row, rows: Sequence[Row]) -> Row | None:
    """The first among `rows` that can be compared with a row and was trained on the same part of the messages."""
    able = (one for one in rows if one.covers(row) and one.values.get(PART) == row.values.get(PART))
    return next(able, None)


def compared(rows: Sequence[Row], against: Sequence[Row | None]) -> list[Comparison | None]:
    """Each row against its reference, on the row's test messages; None for a reference and for what is missing."""
    pairs = {
        i: one for i, (row, one) in enumerate(zip(rows, against, strict=True)) if one is not None and one is not row
    }
    same = {i: one.correct_on(rows[i]) for i, one in pairs.items()}
    p = {i: paired_p(rows[i].right, right, rows[i].groups) for i, right in same.items()}
    by_seed = {i: differences_by_seed(rows[i], one, same[i]) for i, one in pairs.items()}
    crossed = {i: crossed_test(each, rows[i].groups) for i, each in by_seed.items() if len(each) > 1}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    crossed_corrected = dict(zip(crossed, holm([one.p for one in crossed.values()]), strict=True))
    found: list[Comparison | None] = [None] * len(rows)
    for i, one in pairs.items():
        S, N = by_seed[i].shape
        found[i] = Comparison(
            one.label,
            rows[i].accuracy - float(same[i].mean()),
            stdev(by_seed[i].mean(1).tolist()) if S > 1 else None,
            p[i],
            corrected[i],
            S,
            N,
            crossed.get(i),
            crossed_corrected.get(i),
        )
    return found


def differences_by_seed(row: Row, reference: Row, same: NDArray[np.bool_]) -> NDArray[np.floating]:
    """For the seeds that both have, which message only the row got right (1) and only the reference (-1), (S, N);
    `same` is what the reference got right of the row's messages."""
    place = {seed: i for i, seed in enumerate(reference.seeds)}
    shared = [(i, place[seed]) for i, seed in enumerate(row.seeds) if seed in place]
    return row.right[[i for i, _ in shared]].astype(float) - same[[j for _, j in shared]]
