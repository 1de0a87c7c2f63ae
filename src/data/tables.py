"""A CSV, TSV, JSONL or Parquet file, also gzipped -> rows of text and label, each with the line where it begins.

What is not said of a file is taken from it where that is certain, and noted: its encoding from a byte order mark, the
separator from the header, the quoting of a TSV from the fields that are quoted. Else the file is refused.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from src.data.delimited import NAMES, Record, choose_delimiter, read_csv, read_tsv, swallowed, too_many
from src.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
Column = str | int


class Row(NamedTuple):
    """A text, its label, and the line (of a Parquet file the row) where they stand."""

    text: str
    label: str
    line: int


@dataclass
class Table:
    """The rows of a file, and notes of how it was read where nobody had said it."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Source(NamedTuple):
    """A table's file: its path, what it is (.csv, ...), and its content, unpacked."""

    path: Path
    kind: str
    content: bytes


def name_of(path: Path) -> str:
    """A file's name without .gz and its suffix."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def read_table(
    path: Path, content: bytes, text_column: Column, label_column: Column, encoding: str | None, separator: str | None
) -> Table:
    """The text and label columns of a file; columns given as numbers mean that it has no header line.

    encoding    a name that Python knows; None: UTF-8, or what a byte order mark says
    separator   one character; None: that of the suffix, or the only one with which a CSV or TSV file has both columns
    Raises InputError naming the file and, where it can, the line.
    """
    source = unpack(path, content)
    columns = (text_column, label_column)
    if source.kind == ".parquet":
        return Table(list(_rows(source, _parquet(source, columns))))
    notes = list[str]()
    if source.kind == ".jsonl":
        cells = _jsonl(source, _decode(source, encoding, notes), columns)
    else:
        cells = _cells(source, read_delimited(source, columns, encoding, separator, notes), columns)
    return Table(list(_rows(source, cells)), notes)


def unpack(path: Path, content: bytes) -> Source:
    """What a table's file is, by its suffix, and its content. Raises InputError for what is no table."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be unpacked, it is no gzip file or not whole: {error}") from None
    kind = suffixes[-1] if suffixes else ""
    if kind not in (*DELIMITERS, ".jsonl", ".parquet"):
        raise InputError(
            f"{path}: a table is a .csv, .tsv, .jsonl or .parquet file, also with .gz, not "
            f"{kind or 'a file without suffix'}"
        )
    if not content.strip():
        raise InputError(f"{path} is empty: it needs a message")
    return Source(path, kind, content)


def _decode(source: Source, encoding: str | None, notes: list[str]) -> str:
    # by its mark, or by the zeros among its first four bytes
    found = encoding or json.detect_encoding(source.content).removesuffix("-sig")
    if not encoding and found != "utf-8":
        notes.append(f"read as {found}")
    try:
        return source.content.decode(found).removeprefix("\ufeff")
    except LookupError:
        raise InputError(
            f"data.encoding={encoding} is unknown: give one that Python knows, such as cp1252, latin-1, utf-16"
        ) from None
    except UnicodeDecodeError as error:
        line = source.content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source.path}, line {line}: not {found.upper()}; "
            + ("" if encoding else "save the file as UTF-8, or ")
            + "say what it is: data.encoding=cp1252 (Windows), latin-1, utf-16, ..."
        ) from None


class Delimited(NamedTuple):
    """A CSV or TSV file: its columns, as numbers where these were asked for; its records but for the header; and
    whether fields are quoted as in CSV."""

    columns: list[Column]
    records: list[Record]
    delimiter: str
    quoted: bool


def read_delimited(
    source: Source, columns: Sequence[Column], encoding: str | None, separator: str | None, notes: list[str]
) -> Delimited:
    """A CSV or TSV file in which `columns` are. Raises InputError where they are not, or quotation marks do not fit."""
    text, named = _decode(source, encoding, notes), isinstance(columns[0], str)

    def header(first: list[str]) -> list[Column]:
        return [name.strip() if named else i for i, name in enumerate(first)]

    delimiter = usual = separator or DELIMITERS[source.kind]
    if len(usual) != 1 or usual in '"\r\n':
        raise InputError(f"data.separator={usual!r} must be one character, such as ';', and no quotation mark")
    if separator is None:
        delimiter = choose_delimiter(text, usual, lambda first: set(columns) <= set(header(first)))
    if delimiter != usual:
        notes.append(f"its fields are parted by {NAMES[delimiter]}")
    csv = source.kind == ".csv"
    try:
        records, quoted = (read_csv(text, delimiter), True) if csv else read_tsv(text, delimiter)
    except InputError as error:
        raise InputError(f"{source.path}, {error}") from None
    if quoted and not csv:
        notes.append("its fields are quoted as in CSV")
    there = header(records[0].fields) if records else []
    _check_columns(source, columns, there)
    return Delimited(there, records[1:] if named else records, delimiter, quoted)


def _cells(source: Source, table: Delimited, columns: Sequence[Column]) -> Iterator[tuple[int, Any, Any]]:
    places = [table.columns.index(column) for column in columns]
    for record in table.records:
        if misread := too_many(record, len(table.columns)):
            raise InputError(f"{source.path}, line {record.line}: {misread}")
    if found := swallowed(table.records, table.delimiter, places[1]):
        raise InputError(
            f"{source.path}, line {found.line}: a quotation mark that opens here closes on line {found.end}, and "
            "what stands between looks like rows; double the quotation marks inside of texts"
        )
    for record in table.records:
        text, label = ((record.fields[place : place + 1] or [""])[0] for place in places)
        yield record.line, text, label


def _check_columns(source: Source, columns: Sequence[Column], there: Sequence[Column]) -> None:
    for option, column in zip(("text_column", "label_column"), columns, strict=False):  # or the text alone
        if there.count(column) != 1:
            how = "several columns" if column in there else "no column"
            names = ", ".join(map(str, there))
            raise InputError(f"{source.path} has {how} {column}: its columns are {names}; set data.{option}")


def _rows(source: Source, cells: Iterator[tuple[int, Any, Any]]) -> Iterator[Row]:
    for line, text, label in cells:
        try:
            yield Row(plain(text), plain(label), line)
        except (TypeError, UnicodeEncodeError) as error:
            what = "half a character" if isinstance(error, UnicodeEncodeError) else error
            raise InputError(f"{source.path}, line {line}: text or label holds {what}, where a text must be") from None


def plain(value: Any) -> str:
    """A cell as text; empty for a gap. Raises TypeError for what holds several values, or bytes."""
    if value is None or value != value:
        return ""
    if isinstance(value, (list, dict, tuple, bytes)):
        raise TypeError(f"a {'nested value' if isinstance(value, dict) else type(value).__name__}")
    if isinstance(value, float) and value.is_integer():  # pandas writes whole numbers beside a gap so
        value = int(value)
    text = str(value)
    text.encode()
    return text


def _jsonl(source: Source, text: str, columns: Sequence[Column]) -> Iterator[tuple[int, Any, Any]]:
    seen = dict[str, None]()
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # or a number of thousands of digits
            raise InputError(f"{source.path}, line {number}: this is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f'{source.path}, line {number}: not {{"text": ..., "label": ...}}')
        seen |= dict.fromkeys(row)
        rows.append((number, row.get(columns[0]), row.get(columns[1])))
    _check_columns(source, columns, list(seen))
    yield from rows


def _parquet(source: Source, columns: Sequence[Column]) -> Iterator[tuple[int, Any, Any]]:
    table = read_parquet(source, columns)
    texts, labels = (table.column(str(column)).to_pylist() for column in columns)
    yield from zip(range(1, len(texts) + 1), texts, labels, strict=True)


def read_parquet(source: Source, columns: Sequence[Column]) -> Any:
    """A pyarrow.Table in which `columns` are. Raises InputError where they are not, or it cannot be read."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(source.content))
    except (ValueError, OSError, NotImplementedError) as error:
        raise InputError(
            f"{source.path} cannot be read as parquet: {(str(error).strip() or 'damaged').splitlines()[0]}"
        ) from None
    _check_columns(source, columns, table.column_names)
    return table
