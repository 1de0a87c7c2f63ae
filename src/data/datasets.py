"""Named sources -> a Corpus: labelled messages, the order of the labels, and the hash of the file they came from.

bundled    messages written for this project, in assets/messages
sms_spam   the UCI SMS Spam Collection (Almeida and Hidalgo 2011), downloaded once or read from a file
table      any CSV, TSV, JSONL or Parquet file with a text and a label column
"""

import codecs
import csv
import hashlib
import io
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from src.errors import InputError

BUNDLED = Path(__file__).parents[2] / "assets" / "messages" / "messages.tsv"
UCI_URLS = (
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
)
UCI_FORMAT: dict[str, Any] = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False}
UCI_ZIP_SHA256 = "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3"
UCI_TEXT_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"


class Example(NamedTuple):
    """One labelled message; `label` is the class's name."""

    text: str
    label: str


@dataclass(frozen=True)
class Corpus:
    """Labelled messages, `labels` in the order of their class numbers, and the sha256 of the source file."""

    name: str
    examples: list[Example]
    labels: tuple[str, ...]
    sha256: str


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
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    frame = pd.read_csv(io.BytesIO(content), quoting=quoting, names=["label", "text"], **UCI_FORMAT)
    return _corpus("sms_spam", frame, str(path), content, labels=("ham", "spam"), first_line=1)


def download_sms_spam(cache: Path) -> bytes:
    """The collection's text file, from its zip: cached, or from UCI, or from the book's mirror; pinned by sha256."""
    import pooch
    import requests

    name = "sms_spam_collection.zip"
    for url in UCI_URLS:
        try:
            pin, bar = f"sha256:{UCI_ZIP_SHA256}", sys.stderr.isatty()  # no bar, of thousands of lines, in a log file
            file = pooch.retrieve(url, known_hash=pin, fname=name, path=cache, progressbar=bar)
        except requests.RequestException:
            continue  # the next address
        except OSError as error:
            raise InputError(f"the cache folder {cache} cannot be written: {error}; set data.cache") from None
        except ValueError:  # pooch has deleted what did not match
            raise InputError(
                f"what {url} sent is not the pinned zip (sha256 {UCI_ZIP_SHA256}): try again, or pass data.path=<file>"
            ) from None
        with zipfile.ZipFile(file) as archive:
            content = archive.read("SMSSpamCollection")
        if hashlib.sha256(content).hexdigest() != UCI_TEXT_SHA256:
            raise InputError(
                f"SMSSpamCollection in {file} does not have the pinned sha256: delete the zip and try again"
            )
        return content
    raise InputError(
        f"no network, and the UCI SMS Spam Collection is not cached: get {UCI_URLS[0]} and put it at {cache / name}, "
        "or pass data.path=<its SMSSpamCollection file>, or stay offline with data=bundled"
    )


def table(
    path: str | Path | None, text_column: str | int = "text", label_column: str | int = "label", name: str | None = None
) -> Corpus:
    """A CSV, TSV, JSONL or Parquet file of labelled messages; columns given as numbers mean that it has no header line.

    Labels are the distinct values in sorted order. Raises InputError naming the file and, where it can, the line.
    """
    if path is None or not Path(path).is_file():
        raise InputError(f"data.path: there is no file {path}; data=table needs a .csv, .tsv, .jsonl or .parquet file")
    path = Path(path)
    content = path.read_bytes()
    if not content.strip():
        raise InputError(f"{path} is empty: it needs at least one message of two classes")
    header = 0 if isinstance(text_column, str) or path.suffix == ".jsonl" else None
    frame = _frame(path, content, header)
    if path.suffix in (".csv", ".tsv") and not isinstance(frame.index, pd.RangeIndex):
        raise InputError(
            f"{path}: its first row has more fields than its header; quote a text that holds the separator"
        )
    for option, column in (("text_column", text_column), ("label_column", label_column)):
        if column not in frame.columns:
            columns = ", ".join(map(str, frame.columns))
            raise InputError(f"{path} has no column {column}: its columns are {columns}; set data.{option}")
    frame = frame[[text_column, label_column]].set_axis(["text", "label"], axis=1)
    first_line = 2 if header == 0 and path.suffix in (".csv", ".tsv") else 1
    return _corpus(name or path.stem, frame, str(path), content, labels=None, first_line=first_line)


def _frame(path: Path, content: bytes, header: int | None) -> pd.DataFrame:
    options: dict[str, Any] = {"header": header, "dtype": str, "keep_default_na": False}
    try:
        match path.suffix:
            case ".csv":
                return pd.read_csv(io.StringIO(_decode(content, str(path))), **options)
            case ".tsv":
                return pd.read_csv(
                    io.StringIO(_decode(content, str(path))), sep="\t", quoting=csv.QUOTE_NONE, **options
                )
            case ".jsonl":
                return pd.read_json(io.StringIO(_decode(content, str(path))), lines=True, dtype=False)
            case ".parquet":
                return pd.read_parquet(path)
    except (pd.errors.ParserError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).strip().splitlines()[0]}") from None
    raise InputError(
        f"{path}: data=table reads .csv, .tsv, .jsonl and .parquet files, not {path.suffix or 'a file without suffix'}"
    )


def _decode(content: bytes, source: str) -> str:
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}, line {line}: not UTF-8; save the file as UTF-8") from None


def _corpus(
    name: str, frame: pd.DataFrame, source: str, content: bytes, labels: tuple[str, ...] | None, first_line: int
) -> Corpus:
    """Rule for empty messages: they are refused. Nothing can be read from them, and dropping them would hide it."""
    frame = frame.fillna("").astype(str)
    for column in ("text", "label"):
        empty = np.flatnonzero(frame[column].str.strip() == "")
        if len(empty):
            # exact where one row is one line, which only a quoted CSV may break; a Parquet file counts its rows
            lines = [i for i, line in enumerate(content.splitlines(), 1) if line.strip(b" ")]
            place = int(empty[0]) + first_line
            line = place if source.endswith(".parquet") else lines[place - 1]
            raise InputError(
                f"{source}, line {line}: the {column} is empty ({len(empty)} such in all); remove the line"
            )
    found = tuple(sorted(set(frame["label"])))
    if len(found) < 2:
        raise InputError(
            f"{source} holds one class only, {', '.join(found) or 'none'}: classification needs at least two"
        )
    examples = [Example(text, label) for text, label in zip(frame["text"], frame["label"], strict=True)]
    return Corpus(name, examples, labels or found, hashlib.sha256(content).hexdigest())
