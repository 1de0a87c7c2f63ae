"""Rows against a reference row on the same test messages; what was measured on others is not compared with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.errors import InputError
from src.paper.compare import SIGNIFICANT, holm, paired_p
from src.paper.rows import Row, find


@dataclass(frozen=True)
class Comparison:
    """A row's test accuracy less that of its reference row, and p before and after Holm's correction."""

    reference: str
    difference: float
    p: float
    corrected: float

    @property
    def within_noise(self) -> bool:
        return self.corrected >= SIGNIFICANT


def references(rows: Sequence[Row], wanted: str | None = None) -> dict[str, Row]:
    """Test messages -> the row that others on them are compared with.

    It is the row that `wanted` names, else the first that has finished. Raises InputError where `wanted` names no row,
    none that has finished, or several on the same test messages.
    """
    chosen: dict[str, Row] = {}
    named = find(rows, wanted) if wanted is not None else []
    for row in named:
        if row.messages is not None and chosen.setdefault(row.messages, row) is not row:
            both = f"{chosen[row.messages].label} and {row.label}"
            raise InputError(
                f"reference={wanted} names {both}, on the same test messages: give more key=value, to name one"
            )
    if named and not chosen:
        raise InputError(f"reference={wanted}: that row has no finished run to compare with; name another")
    for row in rows:
        if row.messages is not None:
            chosen.setdefault(row.messages, row)
    return chosen


def compared(rows: Sequence[Row], reference: dict[str, Row]) -> list[Comparison | None]:
    """Each row against the reference row on its test messages; None for a reference itself and for what is missing."""
    pairs = {
        i: reference[row.messages] for i, row in enumerate(rows) if row.messages and reference[row.messages] is not row
    }
    p = {i: paired_p(rows[i].right, against.right) for i, against in pairs.items()}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    return [
        Comparison(pairs[i].label, row.accuracy - pairs[i].accuracy, p[i], corrected[i]) if i in pairs else None
        for i, row in enumerate(rows)
    ]
