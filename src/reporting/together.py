"""Rows that share out the test messages of their reference, as specialists do those of a model of all tasks: as one."""

from collections.abc import Sequence

from src.reporting.columns import in_points, percent, probability, spans
from src.reporting.comparisons import Comparison, compared
from src.reporting.rows import Row


def shared_out(rows: Sequence[Row], references: Sequence[Row | None]) -> list[tuple[Row, Row]]:
    """Rows of one kind of task that were tested on all messages of their reference together, none of them twice, as one
    row of the seeds that all have, with that reference. None while a row of the study has no finished run."""
    if not all(row.runs and row.folds == 1 for row in rows):
        return []
    kinds: dict[tuple[int, str], list[Row]] = {}
    found = []
    for row, one in zip(rows, references, strict=True):
        if one is None or one is row:
            continue
        gathered = kinds.setdefault((id(one), row.runs[0].result["task"].get("name", "")), [])
        if any(row.places.keys() & other.places.keys() for other in gathered):
            gathered.clear()
        gathered.append(row)
        if len(gathered) > 1 and set().union(*(each.places for each in gathered)) == one.places.keys():
            found.append((joined(gathered), one))
            gathered.clear()
    return [(row, one) for row, one in found if row.runs]


def joined(rows: Sequence[Row]) -> Row:
    """One row of several, seed by seed, each tested on other messages."""
    of_seed = [dict(zip(row.seeds, row.runs, strict=True)) for row in rows]
    seeds = [seed for seed in of_seed[0] if all(seed in runs for runs in of_seed)]
    label = ", ".join(row.label for row in rows)
    return Row(label, {}, runs=[runs[seed] for seed in seeds for runs in of_seed], folds=len(rows))


def together_note(rows: Sequence[Row], references: Sequence[Row | None]) -> list[str]:
    """What such rows come to together, and how sure that is."""
    pairs = shared_out(rows, references)
    found = compared([row for row, _ in pairs], [one for _, one in pairs])
    return [
        f"Together, on the {one.messages:,} test messages of {one.reference}: {row.label} {percent(row.accuracy)}%, "
        f"{said(one)} (after Holm for {len(pairs)})."
        for (row, _), one in zip(pairs, found, strict=True)
        if one is not None
    ]


def said(one: Comparison) -> str:
    """A comparison in one line."""
    over_seeds = "" if one.crossed_corrected is None else f", p (seeds too) {probability(one.crossed_corrected)}"
    interval = "" if one.crossed is None else f" ({spans([one.crossed.interval], '+.1f')[0]})"
    return f"{in_points(one)} points{interval}, p (messages) {probability(one.corrected)}{over_seeds}: {one.verdict}"
