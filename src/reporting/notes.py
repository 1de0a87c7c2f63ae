"""What must be known to read a table: what its numbers mean, and what holds for some of its rows only."""

from collections.abc import Sequence

from src.evaluation.statistics import ALPHA
from src.reporting.columns import NOISE
from src.reporting.comparisons import Comparison
from src.reporting.rows import Row, short_names, shown


def legend(found: list[Comparison | None]) -> list[str]:
    """What the numbers mean."""
    comparisons = sum(one is not None for one in found)
    return [
        "Accuracy: mean ± standard deviation over seeds. The interval is Wilson's: with one seed over other test "
        "messages, with several over other messages and other seeds, by as many messages as these are worth together.",
        "difference: points from the reference row on the same test messages, mean ± standard deviation over seeds. p: "
        "exact test that exchanges the two rows' answers to a message (McNemar's with one seed), after Holm for "
        f"{comparisons} comparisons; {NOISE} marks a p of {ALPHA} or more. p says what other test messages "
        "would do; where the deviation is as large as the difference, other seeds may say otherwise.",
    ]


def reference_note(rows: Sequence[Row], references: Sequence[Row | None]) -> list[str]:
    """Which of several reference rows a row is compared with."""
    pairs = [(row, one) for row, one in zip(rows, references, strict=True) if one is not None and one is not row]
    used = list(dict.fromkeys(one for _, one in pairs))
    if len(used) < 2:
        return []
    short = short_names(set(rows[0].values))
    shared = [
        short[key]
        for key in rows[0].values
        if len({shown(one.values[key]) for one in used}) > 1
        and all(row.values[key] == one.values[key] for row, one in pairs)
    ]
    equal = f", with the same {' and '.join(shared)}" if shared else ""
    return [f"A row is compared with the one marked as reference that was tested on the same messages{equal}."]


def caveats(rows: Sequence[Row]) -> list[str]:
    """What holds for some rows only."""
    found = []
    if any("tasks" in run.result for row in rows for run in row.runs):
        found.append(
            "Of several tasks, test, written and valid are over all test messages, those of a task that was left out "
            "included; validation is the mean over the tasks that were taught."
        )
    known = [row.published for row in rows if row.published]
    if known:
        wrong = "".join(f" Row {one.row}: {one.note}." for one in known if one.note)
        found.append(
            "published: the book's test accuracy, of one seed on 300 messages, with its Wilson interval; row: its "
            f"number there.{wrong}"
        )
    return found


def replaced_note(rows: Sequence[Row]) -> list[str]:
    """Which weights or messages of the project runs read that it has made anew since."""
    labels: dict[tuple[str, tuple[str, str]], dict[str, None]] = {}
    for row in rows:
        for run in row.runs:
            for found in run.replaced.items():
                labels.setdefault(found, {})[row.label] = None
    finished = sum(bool(row.runs) for row in rows)
    return [
        f"{key}: sha256 {then[:8]}…, not today's {now[:8]}…"
        + (f", in {'; '.join(those)}." if len(those) < finished else ".")
        for (key, (then, now)), those in labels.items()
    ]


def hardware_note(rows: Sequence[Row]) -> list[str]:
    """On what the seconds were measured."""
    found = {(e["device"], e["torch"]) for row in rows for run in row.runs for e in [run.result["environment"]]}
    return ["Measured on " + "; ".join(f"{device} (torch {torch})" for device, torch in sorted(found)) + "."]


def missing_note(rows: Sequence[Row]) -> list[str]:
    """A sentence on the rows that lack runs."""
    lacking = [row.label for row in rows if len(row.runs) < row.wanted]
    have, want = sum(len(row.runs) for row in rows), sum(row.wanted for row in rows)
    return [f"{have} of {want} runs have finished; incomplete: {'; '.join(lacking)}."] if lacking else []
