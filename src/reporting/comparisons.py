"""Rows against reference rows on the same test messages; what was measured on others is not compared with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from src.errors import InputError
from src.evaluation.statistics import ALPHA, holm, paired_p
from src.reporting.rows import PART, Row, find


@dataclass(frozen=True)
class Comparison:
    """A row's test accuracy less that of its reference row, its standard deviation over seeds that both have (None with
    fewer than two), and p before and after Holm's correction."""

    reference: str
    difference: float
    deviation: float | None
    p: float
    corrected: float

    @property
    def within_noise(self) -> bool:
        """Whether other test messages could as well show the contrary."""
        return self.corrected >= ALPHA


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
    p = {i: paired_p(rows[i].right, right) for i, right in same.items()}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    found: list[Comparison | None] = [None] * len(rows)
    for i, one in pairs.items():
        difference = rows[i].accuracy - float(same[i].mean())
        found[i] = Comparison(one.label, difference, deviation(rows[i], one), p[i], corrected[i])
    return found


def deviation(row: Row, reference: Row) -> float | None:
    """The standard deviation of their difference over the seeds that both have."""
    same = dict(zip(reference.seeds, reference.correct_on(row).mean(1), strict=True))
    each = [float(mine - same[seed]) for seed, mine in zip(row.seeds, row.right.mean(1), strict=True) if seed in same]
    return stdev(each) if len(each) > 1 else None
