"""Messages and their answers -> lines of text or JSON, or the table in which the messages stood, with columns added.

Added are `predicted`, and but for labels_only what a run that writes `said`, `probability`, and `p_<label>` of each
class, as in a run's predictions.csv. A row without a message stays, with nothing in them.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from src.errors import InputError
from src.files import spreadsheet_cell
from src.serving.inputs import Message, Table

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
Answer = dict[str, Any]
Pairs = list[tuple[Message, Answer | None]]  # None: the message could not be read


@dataclass(frozen=True)
class Added:
    """The columns that a table gets, by the labels of a run, and whether it writes."""

    labels: list[str]
    writes: bool
    labels_only: bool

    @property
    def names(self) -> list[str]:
        if self.labels_only:
            return ["predicted"]
        return ["predicted", *(["said"] if self.writes else []), "probability", *map("p_{}".format, self.labels)]

    def values(self, answer: Answer | None) -> list[Any]:
        """The cells of a row; of one that has no answer all None."""
        if answer is None:
            return [None] * len(self.names)
        if self.labels_only:
            return [answer["label"]]
        said = [answer["said"]] if self.writes else []
        return [answer["label"], *said, answer["probability"], *answer["probabilities"].values()]

    def check(self, columns: Iterable[Any]) -> None:
        """Raises InputError for a table, or a row, that has one of them already."""
        if taken := [name for name in columns if name in self.names]:
            raise InputError(f"the table has a column {taken[0]}, and one of that name is added to it: rename it")


def lines(batches: Iterable[Pairs], labels_only: bool) -> Iterator[str]:
    """label, probability and message, or the label alone, a line each."""
    for pairs in batches:
        answers = [answer for _, answer in pairs if answer is not None]
        if labels_only:
            yield "".join(f"{escaped(answer['label'])}\n" for answer in answers)
        else:
            yield "".join(
                f"{escaped(answer['label'])}\t{answer['probability']:.3f}\t{escaped(answer['text'])}\n"
                for answer in answers
            )


def escaped(text: str) -> str:
    """A text on one line of a terminal: control characters, of which a tab would part the columns, as \\t, \\n, ..."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_lines(batches: Iterable[Pairs], labels_only: bool, ascii: bool) -> Iterator[str]:
    """An object a line, with the probability of every class, or the label alone."""
    for pairs in batches:
        answers = [answer for _, answer in pairs if answer is not None]
        objects = [{"label": answer["label"]} if labels_only else answer for answer in answers]
        yield "".join(json.dumps(one, ensure_ascii=ascii) + "\n" for one in objects)


def table(batches: Iterable[Pairs], like: Table, added: Added, ascii: bool) -> Iterator[str | bytes]:
    """The rows of a table with columns added, in its format: text, or a whole Parquet file at the end. What is no row
    of it is left out."""
    added.check(like.columns)
    if like.kind == ".jsonl":
        for pairs in batches:
            objects = (_object(message, answer, added) for message, answer in pairs if message.row is not None)
            yield "".join(json.dumps(one, ensure_ascii=ascii) + "\n" for one in objects)
    elif like.kind == ".parquet":
        yield _parquet(batches, like.arrow, added)
    else:
        yield from _delimited(batches, like, added)


def _object(message: Message, answer: Answer | None, added: Added) -> dict[str, Any]:
    added.check(message.row)
    return message.row | dict(zip(added.names, added.values(answer), strict=True))


def _delimited(batches: Iterable[Pairs], like: Table, added: Added) -> Iterator[str]:
    """Its own cells as they were; what is added is nothing that a spreadsheet runs."""
    yield _rows([[*like.columns, *added.names]] if like.has_header else [], like)
    for pairs in batches:
        rows = [(message.row, added.values(answer)) for message, answer in pairs if message.row is not None]
        yield _rows([[*row, *map(_cell, values)] for row, values in rows], like)


def _rows(rows: list[list[Any]], like: Table) -> str:
    if not like.quoted:  # quotation marks are letters, and no field holds a tab or a line's end
        return "".join(like.delimiter.join(map(str, row)) + "\n" for row in rows)
    out = io.StringIO()
    csv.writer(out, delimiter=like.delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return spreadsheet_cell(escaped(value)) if isinstance(value, str) else f"{value:.6g}"


def _parquet(batches: Iterable[Pairs], table: Any, added: Added) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [added.values(answer) for pairs in batches for _, answer in pairs]
    for i, name in enumerate(added.names):
        kind = pyarrow.string() if name in ("predicted", "said") else pyarrow.float64()
        table = table.append_column(name, pyarrow.array([row[i] for row in rows], kind))
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()
