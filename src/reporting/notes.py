"""What must be known to read a table: what its numbers mean, and what holds for some of its rows only."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from src.evaluation.differences import FEWEST_SEEDS, Spread, seeds_needed, smallest_difference
from src.evaluation.intervals import ALPHA
from src.reporting.comparisons import VERDICTS, Comparison
from src.reporting.rows import Row, short_names, shown


def legend(found: Sequence[Comparison | None]) -> list[str]:
    """What the numbers mean."""
    comparisons = sum(one is not None for one in found)
    return [
        "Accuracy: mean ± standard deviation over seeds. The interval is Wilson's: with one seed over other test "
        "messages, with several over other messages and other seeds, by as many messages as these are worth together.",
        "difference: points from the reference row on the same test messages, mean ± standard deviation over seeds, "
        "with its 95% interval over other seeds and other messages. p (messages): exact test that exchanges the two "
        "rows' answers to a message (McNemar's with one seed); p (seeds too): t test over seeds and messages, crossed; "
        f"each after Holm for {comparisons} comparisons. verdict: seen where p (messages) is below {ALPHA}; decided "
        f"where both are and both rows have {FEWEST_SEEDS} seeds or more; else not seen.",
    ]


def power_note(found: Sequence[Comparison | None], wanted: float | None = None) -> list[str]:
    """How small a difference in points the study can find, and how many seeds a `wanted` one takes, by the mean spread
    of the comparisons on as many messages and by the first step of Holm's correction."""
    known = [one for one in found if one is not None and one.crossed is not None]
    alpha = ALPHA / max(1, sum(one is not None for one in found))
    said = []
    for messages in sorted({one.messages for one in known}):
        alike = [one for one in known if one.messages == messages]
        spread = Spread(*map(fmean, zip(*(one.crossed.spread for one in alike if one.crossed), strict=True)))
        seeds = max(one.seeds for one in alike)
        points = [
            f"with {n} seeds {100 * smallest_difference(spread, n, messages, alpha):.1f}"
            for n in (seeds, FEWEST_SEEDS, 2 * FEWEST_SEEDS)
            if n >= seeds
        ]
        if wanted is not None:
            needed = seeds_needed(spread, wanted / 100, messages, alpha)
            points.append(f"for {wanted:g} points {needed} seeds" if needed else f"{wanted:g} points with none")
        said.append(f"on {messages:,} messages {', '.join(dict.fromkeys(points))}")
    power = "Power: the difference in points that p (seeds too) would find in 80% of studies with so much spread: "
    return [power + "; ".join(said) + "."] if said else []


def caption(found: Sequence[Comparison | None]) -> str:
    """How many differences are decided, seen and not seen, for figures; empty where nothing is compared."""
    counted = Counter(one.verdict for one in found if one is not None)
    said = ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS if counted[verdict])
    return f"differences from the reference: {said}" if said else ""


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
    if (folds := rows[0].folds) > 1:
        found.append(
            f"A seed is tested on {folds} folds, whose training messages overlap: each message counts once, as it was "
            "answered by the model that had not seen it."
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


def cost_note(rows: Sequence[Row]) -> list[str]:
    """What the counts of operations mean."""
    said = "TFLOP: operations of training, frozen blocks included, as this code does it."
    if any("ordinary_flops" in run.result["cost"] for row in rows for run in row.runs):
        said += (
            " ordinary: with every block at every token, nothing cached, logits where an answer is read. all logits: "
            "the same with logits at every position."
        )
    return [said]


def hardware_note(rows: Sequence[Row]) -> list[str]:
    """On what the seconds were measured."""
    found = {(e["device"], e["torch"]) for row in rows for run in row.runs for e in [run.result["environment"]]}
    return ["Measured on " + "; ".join(f"{device} (torch {torch})" for device, torch in sorted(found)) + "."]


def missing_note(rows: Sequence[Row]) -> list[str]:
    """A sentence on the rows that lack runs."""
    lacking = [row.label for row in rows if len(row.runs) < row.wanted]
    have, want = sum(len(row.runs) for row in rows), sum(row.wanted for row in rows)
    return [f"{have} of {want} runs have finished; incomplete: {'; '.join(lacking)}."] if lacking else []
