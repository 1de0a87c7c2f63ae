"""A study's rows -> its table: columns of numbers and texts, and the notes that they are read with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from src.reporting import columns, notes
from src.reporting.break_even import break_even_note
from src.reporting.columns import Column
from src.reporting.comparisons import compared
from src.reporting.counting import counting_note
from src.reporting.finished import Finished
from src.reporting.probability_columns import probability_columns, probability_notes
from src.reporting.rows import Row
from src.reporting.together import together_note


@dataclass(frozen=True)
class Table:
    """A study's name, its question, its columns, what must be known to read them, and what figures say of them."""

    name: str
    question: str
    columns: list[Column]
    notes: list[str]
    caption: str = ""


def table(
    name: str,
    question: str,
    rows: Sequence[Row],
    references: Sequence[Row | None],
    wanted: float | None = None,
    *,
    metric: str = "",
    finished: Iterable[Finished] = (),
) -> Table:
    """The table of a study; `references` are the rows that each of its rows is compared with (comparisons.py), `wanted`
    the difference in points that it is to see, `metric` the number that it is about, `finished` the runs of
    all studies."""
    comparisons = compared(rows, references)
    found = [
        *columns.varying_columns(rows),
        *columns.accuracy_columns(rows),
        *probability_columns(rows, metric),
        *columns.comparison_columns(rows, comparisons),
        *columns.cost_columns(rows),
        *columns.published_columns(rows),
    ]
    said = [
        *notes.legend(comparisons),
        *notes.power_note(comparisons, wanted),
        *together_note(rows, references),
        *counting_note(rows, finished),
        *break_even_note(rows, references),
        *notes.cost_note(rows),
        *probability_notes(metric),
        *notes.reference_note(rows, references),
        *notes.caveats(rows),
        *notes.replaced_note(rows),
        *notes.hardware_note(rows),
        *notes.missing_note(rows),
    ]
    return Table(name, " ".join(question.split()), found, said, notes.caption(comparisons))
