"""Named sources -> a Corpus: labelled messages, the order of the labels, and the hash of the file they came from.

bundled    messages written for this project, in assets/messages
sms_spam   the UCI SMS Spam Collection (Almeida and Hidalgo 2011), downloaded once or read from a file
table      any CSV, TSV, JSONL or Parquet file with a text and a label column
"""

import csv
import hashlib
import io
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from src.data.tables import Column, Row, Table, name_of, read_table
from src.errors import InputError
from src.files import why_no_download

BUNDLED = Path(__file__).parents[2] / "assets" / "messages" / "messages.tsv"
UCI_URLS = (
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
)
UCI_ZIP = "sms_spam_collection.zip"
UCI_FORMAT: dict[str, Any] = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False}
UCI_ZIP_SHA256 = "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3"
UCI_TEXT_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"


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


def read_corpus(name: str, path: str | None, read: Callable[[str | None], Corpus], cache: Path, quoted: bool) -> Corpus:
    """The corpus that data.name names; `read` makes one of a table. Raises InputError for another name."""
    match name:
        case "sms_spam":
            return sms_spam(path, cache, quoted)
        case "table":
            return read(path)
        case "bundled" if path is None:
            return bundled()
        case "bundled":
            raise InputError(
                f"data.path={path}: data=bundled are the messages of this project; use data=table for yours"
            )
    raise InputError(f"data.name={name} is unknown: use bundled, sms_spam or table")


def bundled() -> Corpus:
    """The messages that this project ships: half ham, half spam."""
    return table(BUNDLED, "text", "label", name="bundled")


def sms_spam(path: str | Path | None, cache: str | Path, quoted: bool) -> Corpus:
    """The UCI SMS Spam Collection from `path`, or downloaded into `cache`.

    quoted=True reads it as the book does, with pandas' default quoting: 5,572 messages, since a few begin with an
    unclosed quotation mark and swallow what follows. quoted=False reads every line: 5,574. Raises InputError for any
    other file: `data=sms_spam` says which bytes a run was trained on, wherever they lay.
    """
    if path and not Path(path).is_file():
        raise InputError(f"data.path: there is no file {path}; leave it out to download the UCI collection")
    content = Path(path).read_bytes() if path else download_sms_spam(Path(cache))
    if hashlib.sha256(content).hexdigest() != UCI_TEXT_SHA256:
        raise InputError(
            f"data.path: {path} is not the UCI collection's SMSSpamCollection (sha256 {UCI_TEXT_SHA256}): unzip it "
            f"from {UCI_URLS[0]}, or use data=table for messages of your own"
        )
    import pandas as pd  # half a second that other data do without

    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    frame = pd.read_csv(io.BytesIO(content), quoting=quoting, names=["label", "text"], **UCI_FORMAT)
    rows = [Row(text, label, i) for i, (text, label) in enumerate(zip(frame["text"], frame["label"], strict=True), 1)]
    return replace(_corpus("sms_spam", Table(rows), str(path), content, "refuse", 2), labels=("ham", "spam"))


def download_sms_spam(cache: Path) -> bytes:
    """The collection's text file, from its zip: cached, or from UCI, or from the book's mirror; pinned by sha256.

    Raises InputError with what kept each address from answering; the same for ten minutes, in which one process does
    not ask again.
    """
    if cache in _FAILED and monotonic() - _FAILED[cache][0] < 600:
        raise InputError(_FAILED[cache][1])
    try:
        content = zipfile.ZipFile(_fetch_zip(cache)).read("SMSSpamCollection")
    except InputError as error:
        _FAILED[cache] = monotonic(), str(error)
        raise
    if hashlib.sha256(content).hexdigest() != UCI_TEXT_SHA256:
        raise InputError(
            f"SMSSpamCollection in {cache / UCI_ZIP} does not have the pinned sha256: delete the zip and try again"
        )
    return content


_FAILED: dict[Path, tuple[float, str]] = {}  # cache folder -> when a download failed, and why


def _fetch_zip(cache: Path) -> str:
    import pooch
    import requests

    failed = []
    for url in UCI_URLS:
        try:
            return str(
                pooch.retrieve(url, known_hash=f"sha256:{UCI_ZIP_SHA256}", fname=UCI_ZIP, path=cache, progressbar=True)
            )
        except requests.RequestException as error:
            failed.append(f"{url}: {why_no_download(error)}")
        except OSError as error:
            raise InputError(f"the cache folder {cache} cannot be written: {error}; set data.cache") from None
        except ValueError:  # pooch has deleted what did not match
            raise InputError(
                f"what {url} sent is not the pinned zip (sha256 {UCI_ZIP_SHA256}): try again, or pass data.path=<file>"
            ) from None
    raise InputError(
        f"the UCI SMS Spam Collection is not cached and cannot be downloaded ({'; '.join(failed)}): get {UCI_URLS[0]} "
        f"and put it at {cache / UCI_ZIP}, or pass data.path=<its SMSSpamCollection file>, or stay offline with "
        "data=bundled"
    )


def table(
    path: str | Path | None,
    text_column: Column = "text",
    label_column: Column = "label",
    name: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    empty: str = "refuse",
    least: int = 2,
) -> Corpus:
    """A CSV, TSV, JSONL or Parquet file of labelled messages (see tables.py) of at least `least` classes.

    Labels are the distinct values in sorted order, without white space around them. Rows without a text or a label are
    refused, as nothing can be read from them and leaving them out would hide it, unless `empty` is "drop".
    Raises InputError naming the file and, where it can, the line.
    """
    if path is None or not Path(path).is_file():
        lacks = "is a folder or a pipe, no file" if path and Path(path).exists() else "does not exist"
        raise InputError(f"data.path: {path} {lacks}; data=table reads files, .csv, .tsv, .jsonl or .parquet")
    if empty not in ("refuse", "drop"):
        raise InputError(f"data.empty={empty} is unknown: use refuse or drop")
    path = Path(path)
    content = path.read_bytes()
    read = read_table(path, content, text_column, label_column, encoding, separator)
    return _corpus(name or name_of(path), read, str(path), content, empty, least)


def _corpus(name: str, read: Table, source: str, content: bytes, empty: str, least: int) -> Corpus:
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
