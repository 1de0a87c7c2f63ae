"""The text of a CSV or TSV file -> its records, each with the lines on which it stands.

CSV is read strictly. A TSV may be plain, where quotation marks are letters (UCI), or quoted like CSV (pandas, Excel,
R): that is taken where every quoted field has a reason to be, and all rows then have as many fields as the first.
"""

import csv
import io
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from src.errors import InputError

csv.field_size_limit(sys.maxsize)  # a text may be long

NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class Record(NamedTuple):
    """The fields of a row, and the first and last line on which it stands."""

    fields: list[str]
    line: int
    end: int


def choose_delimiter(text: str, usual: str, fits: Callable[[list[str]], bool]) -> str:
    """The usual delimiter, or the only other one whose first row is one that `fits`."""

    def first(delimiter: str) -> list[str]:
        return next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row), [])

    others = [one for one in NAMES if one != usual and fits(first(one))]
    return usual if fits(first(usual)) or len(others) != 1 else others[0]


def read_csv(text: str, delimiter: str) -> list[Record]:
    """The records of a CSV. Raises InputError for quotation marks that do not fit, with the line of their row."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, line = list[Record](), 1
    try:
        for fields in reader:
            if fields:
                records.append(Record(fields, line, reader.line_num))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"line {line}: the quotation marks of the row that begins here do not fit ({error}); those inside a quoted "
            "text are doubled"
        ) from None
    return records


def read_tsv(text: str, delimiter: str) -> tuple[list[Record], bool]:
    """The records of a TSV, and whether its fields are quoted like those of a CSV."""
    if re.search(r'(^|\t)"', text, re.MULTILINE) and _is_quoted(text, delimiter):
        try:
            records = read_csv(text, delimiter)
        except InputError:  # quotation marks are letters here
            records = []
        if records and all(len(record.fields) == len(records[0].fields) for record in records):
            return records, True
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [Record(line.split(delimiter), i, i) for i, line in enumerate(lines, 1) if line.strip(" ")], False


def _is_quoted(text: str, delimiter: str) -> bool:
    parted = re.escape(delimiter)
    fields = re.findall(rf'(?:^|{parted})"((?:[^"]|"")*)"(?=\r?$|{parted})', text, re.MULTILINE)
    return text.startswith('"') or (bool(fields) and all(re.search(r'[,;"\t\r\n]', field) for field in fields))


def too_many(record: Record, width: int) -> str:
    """What is wrong with a record of more fields than the first row has, if anything."""
    if not any(cell.strip() for cell in record.fields[width:]):
        return ""
    return (
        f"{len(record.fields)} fields, where the first row has {width}; put a text that holds the separator into "
        "quotation marks"
    )


def swallowed(records: list[Record], delimiter: str, place: int) -> Record | None:
    """A record with a text over several lines that hold rows, by the label at their `place`: two quotation marks that
    nobody closed make one text of all that stands between them."""
    known = {record.fields[place] for record in records if record.line == record.end and place < len(record.fields)}
    for record in records:
        for text in record.fields if record.end > record.line else []:
            inner = csv.reader(text.splitlines(), delimiter=delimiter)
            if any(len(row) == len(record.fields) and row[place] in known for row in inner):
                return record
    return None
