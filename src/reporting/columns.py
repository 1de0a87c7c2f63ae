"""Rows -> columns of numbers and texts: what a row came to, how it differs from a reference row, and what it cost.

CSV takes the numbers of all columns, the other forms the texts of those that have a heading (render.py).
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from src.evaluation.intervals import Interval
from src.reporting.comparisons import VERDICTS, Comparison
from src.reporting.rows import Row, short_names, short_values, shown

S = TypeVar("S")
T = TypeVar("T")

MISSING = "-"
OPERATIONS = {"train_flops": "TFLOP", "ordinary_flops": "ordinary", "every_position_flops": "all logits"}


class Column(NamedTuple):
    """A name for CSV, a heading for readers ("" keeps it from them), and of each row a value (None if missing) and a
    text; `order` is what the page sorts by, where that is not the value."""

    name: str
    heading: str
    values: list[Any]
    texts: list[str]
    is_text: bool = False
    order: list[Any] | None = None


def column(name: str, heading: str, values: Sequence[T | None], show: Callable[[T], str] = str) -> Column:
    """A column whose texts follow from its values."""
    return Column(name, heading, [*values], [MISSING if value is None else show(value) for value in values])


def map_optional(items: Sequence[S | None], get: Callable[[S], T | None]) -> list[T | None]:
    """What `get` says of each item, None of None."""
    return [None if item is None else get(item) for item in items]


def per_row(rows: Sequence[Row], get: Callable[[Row], T]) -> list[T | None]:
    """What `get` says of each row that has a finished run, None of the others."""
    return [get(row) if row.runs else None for row in rows]


def varying_columns(rows: Sequence[Row]) -> list[Column]:
    """A column for each setting that the study varies."""
    short = short_names(set(rows[0].values))
    found = []
    for key in rows[0].values:
        values = [row.values[key] for row in rows]
        text = short_values(values)
        found.append(Column(key.lstrip("+"), short[key], values, [text[shown(value)] for value in values], True))
    return found


def accuracy_columns(rows: Sequence[Row]) -> list[Column]:
    """How many runs have finished, and what they came to."""
    accuracy = per_row(rows, lambda row: row.accuracy)
    validation = per_row(rows, lambda row: row.mean("metrics", "validation", "accuracy"))
    splits = ("test", "validation")
    deviations = {split: [row.deviation("metrics", split, "accuracy") for row in rows] for split in splits}
    intervals = per_row(rows, lambda row: row.interval)
    runs, wanted = [len(row.runs) for row in rows], [row.wanted for row in rows]
    return [
        Column("runs", "runs", runs, [f"{n} of {m}" for n, m in zip(runs, wanted, strict=True)]),
        column("wanted", "", wanted),
        Column("test_accuracy", "test (%)", accuracy, with_deviation(accuracy, deviations["test"])),
        column("test_deviation", "", deviations["test"]),
        Column("test_low", "95% interval", map_optional(intervals, lambda i: i.low), spans(intervals)),
        column("test_high", "", map_optional(intervals, lambda i: i.high)),
        column("test_messages", "", per_row(rows, lambda row: row.right.shape[1])),
        Column(
            "validation_accuracy", "validation (%)", validation, with_deviation(validation, deviations["validation"])
        ),
        column("validation_deviation", "", deviations["validation"]),
        column(
            "validation_loss", "its loss", [row.mean("metrics", "validation", "loss") for row in rows], "{:.3f}".format
        ),
        *optional_columns(rows),
    ]


def optional_columns(rows: Sequence[Row]) -> list[Column]:
    """Measures of the runs that write answers, do several tasks, or look at what the language model forgot."""
    tasks = sorted({task for row in rows for run in row.runs for task in run.result.get("tasks", {}).get("test", {})})

    def means(*path: str) -> list[float | None]:
        return [row.mean(*path) for row in rows]

    def shares(name: str) -> list[float | None]:
        return [of_messages(row, name) for row in rows]

    perplexity = "{:.1f}".format
    found = [
        *(column(f"test_{task}", f"{task} (%)", means("tasks", "test", task, "accuracy"), percent) for task in tasks),
        column("generated_accuracy", "written (%)", shares("generated_accuracy"), percent),
        column("valid_rate", "valid (%)", shares("valid_rate"), percent),
        column("perplexity_before", "perplexity before", means("language", "before", "perplexity"), perplexity),
        column("perplexity_after", "after", means("language", "after", "perplexity"), perplexity),
    ]
    return [one for one in found if any(value is not None for value in one.values)]


def of_messages(row: Row, share: str) -> float | None:
    """The mean over seeds of a share of all test messages. Of several tasks, result.json has it for each, and the mean
    of those that were taught."""
    if not any("tasks" in run.result for run in row.runs):
        return row.mean("metrics", "test", share)
    sizes = row.runs[0].result["data"]["test_sizes"]
    shares = {task: row.mean("tasks", "test", task, share) for task in sizes}
    return sum(n * (shares[task] or 0.0) for task, n in sizes.items()) / sum(sizes.values())


def comparison_columns(rows: Sequence[Row], found: list[Comparison | None]) -> list[Column]:
    """The difference from the reference row, and how sure it is."""
    chosen = {one.reference for one in found if one is not None}

    def difference(row: Row, one: Comparison | None) -> str:
        if one is None:
            return "reference" if row.label in chosen else MISSING
        return in_points(one)

    texts = [difference(row, one) for row, one in zip(rows, found, strict=True)]
    crossed = map_optional(found, lambda one: one.crossed)
    intervals = map_optional(crossed, lambda one: one.interval)
    verdicts = map_optional(found, lambda one: one.verdict)
    return [
        Column("difference", "difference", map_optional(found, lambda one: one.difference), texts),
        column("difference_deviation", "", map_optional(found, lambda one: one.deviation)),
        Column("difference_low", "difference 95%", map_optional(intervals, lambda i: i.low), spans(intervals, "+.1f")),
        column("difference_high", "", map_optional(intervals, lambda i: i.high)),
        column("reference", "", map_optional(found, lambda one: one.reference)),
        column("p", "", map_optional(found, lambda one: one.p)),
        column("p_holm", "p (messages)", map_optional(found, lambda one: one.corrected), probability),
        column("p_crossed", "", map_optional(crossed, lambda one: one.p)),
        column("p_crossed_holm", "p (seeds too)", map_optional(found, lambda one: one.crossed_corrected), probability),
        column("verdict", "verdict", verdicts)._replace(order=map_optional(verdicts, VERDICTS.index)),
    ]


def cost_columns(rows: Sequence[Row]) -> list[Column]:
    """Trained parameters, epochs (shown where rows differ in them), seconds and operations, means over seeds; and the
    most memory. Operations are those of this code, of ordinary training, and of that with logits at every position
    (see finetune/cost.py)."""

    def count(n: float) -> str:
        return f"{n / 1e6:.2f} M" if n >= 1e4 else f"{n:,.0f}"

    epochs = [mean_epochs(row) for row in rows]
    seconds = [row.mean("cost", "train_seconds") for row in rows]
    operations = {name: [row.mean("cost", name) for row in rows] for name in OPERATIONS}
    memory = per_row(rows, lambda row: max(run.result["cost"]["peak_memory_bytes"] for run in row.runs))
    return [
        column("trainable_parameters", "trained", [row.mean("task", "trainable_parameters") for row in rows], count),
        column("epochs", "epochs run" if len({*epochs} - {None}) > 1 else "", epochs, "{:.1f}".format),
        column("train_seconds", "seconds", seconds, "{:,.0f}".format),
        *(
            column(name, heading, operations[name], lambda flops: f"{flops / 1e12:,.1f}")
            for name, heading in OPERATIONS.items()
            if any(value is not None for value in operations[name])  # models without a GPT have none
        ),
        column("peak_memory_bytes", "GB", memory, lambda most: f"{most / 1e9:.1f}"),
    ]


def mean_epochs(row: Row) -> float | None:
    """How many epochs a row was trained for, those after the best one included; None where no curve was kept."""
    lengths = [len(run.result["curve"]) for run in row.runs if run.result.get("curve")]
    return fmean(lengths) if lengths else None


def published_columns(rows: Sequence[Row]) -> list[Column]:
    """The published figure with its interval, and whether ours lies in it, where a row repeats a published one."""
    known = [row.published for row in rows]
    if not any(known):
        return []
    intervals = map_optional(known, lambda one: one.interval)
    return [
        column("published_row", "row", map_optional(known, lambda one: one.row)),
        column("published_accuracy", "published (%)", map_optional(known, lambda one: one.accuracy), percent),
        Column("published_low", "its interval", map_optional(intervals, lambda i: i.low), spans(intervals)),
        column("published_high", "", map_optional(intervals, lambda i: i.high)),
        column("ours_inside", "ours inside", [lies_inside(row) for row in rows], lambda yes: "yes" if yes else "no"),
    ]


def lies_inside(row: Row) -> bool | None:
    """Whether our test accuracy lies in the interval of the published one; None without either."""
    if row.published is None or not row.runs:
        return None
    low, high = row.published.interval
    return low <= row.accuracy <= high


def in_points(one: Comparison) -> str:
    """A difference and its deviation over seeds."""
    spread = "" if one.deviation is None else f" ± {percent(one.deviation)}"
    return f"{100 * one.difference:+.2f}{spread}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def with_deviation(
    means: Sequence[float | None], deviations: Sequence[float | None], show: Callable[[float], str] = percent
) -> list[str]:
    return [
        MISSING if mean is None else show(mean) + (f" ± {show(deviation)}" if deviation is not None else "")
        for mean, deviation in zip(means, deviations, strict=True)
    ]


def spans(intervals: Sequence[Interval | None], form: str = ".1f") -> list[str]:
    return [MISSING if i is None else f"{100 * i.low:{form}} to {100 * i.high:{form}}" for i in intervals]


def probability(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
