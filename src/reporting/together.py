"""Rows that share out the test messages of their reference, as specialists do those of a model of all tasks: as one."""

from collections.abc import Sequence

from src.reporting.columns import percent, probability, spans
from src.reporting.comparisons import Comparison, compared
from src.reporting.rows import Row


def shared_out(rows: Sequence[Row], references: Sequence[Row | None]) -> list[tuple[Row, Row]]:
    """Rows that follow each other and were tested on all messages of their reference together, none of them twice, as
    one row of the seeds that all have, and that reference."""
    found, gathered = [], list[Row]()
    for row, one in zip(rows, references, strict=True):
        if one is None or one is row or not row.runs or row.folds > 1:
            continue
        if any(row.places.keys() & other.places.keys() for other in gathered):
            gathered = []
        gathered.append(row)
        if len(gathered) > 1 and set().union(*(each.places for each in gathered)) == one.places.keys():
            found.append((joined(gathered), one))
            gathered = []
    return found


def joined(rows: Sequence[Row]) -> Row:
    """One row of several, seed by seed, each tested on other messages."""
    of_seed = [dict(zip(row.seeds, row.runs, strict=True)) for row in rows]
    seeds = [seed for seed in of_seed[0] if all(seed in runs for runs in of_seed)]
    label = ", ".join(row.label for row in rows)
    return Row(label, {}, runs=[runs[seed] for seed in seeds for runs in of_seed], folds=len(rows))


def together_note(rows: Sequence[Row], references: Sequence[Row | None]) -> list[str]:
    """What such rows come to together, and how sure that is."""
    pairs = [(row, one) for row, one in shared_out(rows, references) if row.runs]
    found = compared([row for row, _ in pairs], [one for _, one in pairs])
    return [
        f"Together, on the {one.messages:,} test messages of {one.reference}: {row.label} {percent(row.accuracy)}%, "
        f"{said(one)}."
        for (row, _), one in zip(pairs, found, strict=True)
        if one is not None
    ]


def said(one: Comparison) -> str:
    """A comparison in one line."""
    spread = "" if one.deviation is None else f" ± {percent(one.deviation)}"
    over_seeds = "" if one.crossed_corrected is None else f", p (seeds too) {probability(one.crossed_corrected)}"
    interval = "" if one.crossed is None else f" ({spans([one.crossed.interval], '+.1f')[0]})"
    difference = f"{100 * one.difference:+.2f}{spread} points"
    return f"{difference}{interval}, p (messages) {probability(one.corrected)}{over_seeds}: {one.verdict}"
