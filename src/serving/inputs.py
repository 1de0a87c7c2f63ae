"""A pipe, a file of lines or a table -> batches of messages, each with its place; what fails is a message without text.

A pipe is read as it is written: what is there is a batch. A table is read whole, and its rows are kept for the answer.
"""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from src.data import tables
from src.data.delimited import too_many
from src.errors import InputError

BLOCK = 65_536  # bytes that are read at once
MOST = 512  # messages of a batch
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".ndjson", ".json", ".xlsx", ".gz", ".zst", ".zip")


class Message(NamedTuple):
    """A text, or why there is none; where it stands; and its row of a table, or None for what is no row."""

    where: str
    text: str | None
    fault: str = ""
    row: Any = None


Batches = Iterator[list[Message]]
Read = Callable[[str], tuple[Any, Any]]  # a line -> what should be its text, its row


@dataclass(frozen=True)
class Table:
    """What an answer in a table's own format needs: its kind (.csv, ...); its columns and whether they head it; how a
    CSV or TSV is written; and a Parquet file as it was read."""

    kind: str
    columns: Sequence[tables.Column] = ()
    has_header: bool = True
    delimiter: str = ","
    quoted: bool = True
    arrow: Any = None


class Input(NamedTuple):
    """Messages as they come, from where; how many, if that is known; the table in which they stand, and how that was
    read."""

    batches: Batches
    name: str
    n: int | None = None
    table: Table | None = None
    notes: Sequence[str] = ()


def one(text: bytes) -> Input:
    """The message of text=."""
    return Input(iter([[_of_line("text=", 1, text, lambda line: (line, None))]]), "text=", 1)


def lines(stream: BinaryIO, name: str) -> Input:
    """A message a line, which ends with \\n or \\r\\n."""
    return Input(_numbered(stream, name, lambda line: (line.removesuffix("\r"), None)), name)


def json_lines(stream: BinaryIO, name: str, column: str) -> Input:
    """A JSON object a line, which has the message under the key `column`."""

    def read(line: str) -> tuple[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"this is no JSON: {error}") from None
        if not isinstance(row, dict) or column not in row:
            raise InputError(f"no JSON object with the key {column}, which text_column= names")
        return row[column], row

    return Input(_numbered(stream, name, read), name, table=Table(".jsonl"))


def file(path: Path) -> Input:
    """A message a line of a file or a named pipe. Raises InputError for a table, and where there is none."""
    if set(suffixes := path.suffixes) and suffixes[-1].lower() in TABLES:
        raise InputError(
            f"file={path} is a table, or packed: give text_column=<its column of messages> for a .csv, .tsv, .jsonl or "
            ".parquet file, also with .gz; of another write the texts alone, one a line, to a file"
        )
    return lines(_there(path).open("rb"), str(path))


def table(path: Path, column: str, encoding: str | None, separator: str | None) -> Input:
    """The rows of a table, whose messages stand in `column`: a number for a CSV or TSV without a header line. Raises
    InputError for what is no table, or has no such column."""
    if not path.suffix:  # a pipe
        return json_lines(_there(path).open("rb"), str(path), column)
    source = tables.unpack(path, _there(path).read_bytes())
    if source.kind == ".jsonl":
        return json_lines(io.BytesIO(source.content), str(path), column)
    with _own_options():
        if source.kind == ".parquet":
            return _parquet(source, column)
        return _delimited(source, int(column) if column.isdecimal() else column, encoding, separator)


def _there(path: Path) -> Path:
    if path.is_dir() or not path.exists():
        raise InputError(f"there is no file {path}")
    return path


@contextmanager
def _own_options() -> Iterator[None]:
    """The options that an InputError of the readers names, without the section that training has them in."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"\bdata\.(?=(encoding|separator|text_column)\b)", "", str(error))) from None


def _parquet(source: tables.Source, column: str) -> Input:
    arrow = tables.read_parquet(source, [column])
    values = arrow.column(column).to_pylist()
    messages = [_of_cell(f"{source.path}, row {i}", value, i) for i, value in enumerate(values, 1)]
    return Input(_chunks(messages), str(source.path), len(messages), Table(".parquet", arrow.column_names, arrow=arrow))


def _delimited(source: tables.Source, column: tables.Column, encoding: str | None, separator: str | None) -> Input:
    notes = list[str]()
    found = tables.read_delimited(source, [column], encoding, separator, notes)
    place, width = found.columns.index(column), len(found.columns)
    messages = []
    for record in found.records:
        where, cells = f"{source.path}, line {record.line}", [*record.fields, *[""] * (width - len(record.fields))]
        fault = too_many(record, width)
        messages.append(Message(where, None, fault) if fault else _of_cell(where, cells[place], cells[:width]))
    described = Table(source.kind, found.columns, isinstance(column, str), found.delimiter, found.quoted)
    return Input(_chunks(messages), str(source.path), len(messages), described, notes)


def _of_cell(where: str, value: Any, row: Any) -> Message:
    try:
        text = tables.plain(value)
    except (TypeError, UnicodeEncodeError):
        return Message(where, None, "a nested value, bytes or half a character, where a text must be", row)
    return Message(where, text, "", row) if text.strip() else Message(where, None, "the message is empty", row)


def _of_line(name: str, number: int, line: bytes, read: Read) -> Message:
    where = f"{name}, line {number}"
    try:
        value, row = read(line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8"))
    except UnicodeDecodeError:
        return Message(where, None, "not UTF-8; save the file as UTF-8")
    except InputError as error:
        return Message(where, None, str(error))
    return _of_cell(where, value, row)


def _numbered(stream: BinaryIO, name: str, read: Read) -> Batches:
    number = 0
    for block in blocks(stream):
        messages = [_of_line(name, number + i, line, read) for i, line in enumerate(block, 1)]
        number += len(block)
        yield from _chunks(messages)


def blocks(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The whole lines of a stream as they come: of a pipe those that are there, of a file those of BLOCK bytes."""
    begun = list[bytes]()
    with stream:
        while block := stream.read1(BLOCK):  # type: ignore[attr-defined]
            head, newline, tail = block.rpartition(b"\n")
            if newline:
                yield b"".join([*begun, head]).split(b"\n")
                begun.clear()
            begun.append(tail)
    if last := b"".join(begun):
        yield [last]


def all_at_once(batches: Batches) -> Batches:
    """One batch of all."""
    if messages := [message for batch in batches for message in batch]:
        yield messages


def _chunks(messages: list[Message]) -> Batches:
    yield from (messages[start : start + MOST] for start in range(0, len(messages), MOST))
