"""Labelled texts: a Corpus is what every dataset reads, here out of a table (see tables.py)."""

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from src.data.tables import Column, Table, name_of, read_table
from src.errors import InputError

Empty = Literal["refuse", "drop"]


class Example(NamedTuple):
    """One labelled message; `label` is the class's name."""

    text: str
    label: str


@dataclass(frozen=True)
class Corpus:
    """Labelled messages, `labels` in the order of their class numbers, and the sha256 of the source file.

    empty   how many rows were left out, since they have no text or no label
    notes   what was found out of the file without being told
    """

    name: str
    examples: list[Example]
    labels: tuple[str, ...]
    sha256: str
    empty: int = 0
    notes: tuple[str, ...] = ()


def read_corpus(
    path: str | Path,
    text_column: Column = "text",
    label_column: Column = "label",
    name: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    empty: Empty = "refuse",
    least: int = 2,
) -> Corpus:
    """A CSV, TSV, JSONL or Parquet file of labelled messages (see tables.py) of at least `least` classes.

    Labels are the distinct values in sorted order, without white space around them. Rows without a text or a label are
    refused, as nothing can be read from them and leaving them out would hide it, unless `empty` is "drop".
    Raises InputError naming the file and, where it can, the line.
    """
    if not (path := Path(path).expanduser()).is_file():
        lacks = "is a folder or a pipe, no file" if path.exists() else "does not exist"
        raise InputError(f"data.path: {path} {lacks}; data=table reads files, .csv, .tsv, .jsonl or .parquet")
    content = path.read_bytes()
    read = read_table(path, content, text_column, label_column, encoding, separator)
    return corpus_of(name or name_of(path), read, str(path), content, empty, least)


def corpus_of(name: str, read: Table, source: str, content: bytes, empty: Empty = "refuse", least: int = 2) -> Corpus:
    """A Corpus out of the rows of a table. Raises InputError for an empty text or label, labels that differ in case or
    blanks alone, and fewer than `least` classes."""
    kept = [row for row in read.rows if row.text.strip() and row.label.strip()]
    if len(kept) < len(read.rows) and empty == "refuse":
        line, column = next(
            (row.line, "label" if row.text.strip() else "text")
            for row in read.rows
            if not (row.text.strip() and row.label.strip())
        )
        raise InputError(
            f"{source}, line {line}: the {column} is empty ({len(read.rows) - len(kept)} such in all); remove the "
            "line, or set data.empty=drop"
        )
    examples = [Example(row.text, row.label.strip()) for row in kept]
    labels = tuple(sorted({example.label for example in examples}))
    if len(labels) < least:
        raise InputError(
            f"{source} holds one class only, {', '.join(labels) or 'none'}: classification needs at least two"
        )
    _refuse_like_labels(source, Counter(example.label for example in examples))
    merged = sorted({row.label for row in kept} - set(labels))
    notes = [*read.notes, *([f"labels without the blanks of {', '.join(map(repr, merged))}"] if merged else [])]
    sha256 = hashlib.sha256(content).hexdigest()
    return Corpus(name, examples, labels, sha256, len(read.rows) - len(kept), tuple(notes))


def _refuse_like_labels(source: str, count: Counter[str]) -> None:
    """Labels that differ in case or blanks alone are one class, misspelt: which of them is right, the user knows."""
    alike: dict[str, list[str]] = {}
    for label in sorted(count):
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    for labels in alike.values():
        if len(labels) > 1:
            found = " and ".join(f"{label!r} ({count[label]})" for label in labels)
            raise InputError(f"{source}: the labels {found} differ in case or blanks alone: write them alike")
