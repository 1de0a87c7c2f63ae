"""Files of text -> documents: .jsonl, .jsonl.zst and .txt, or a folder of them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from src.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.zst", ".txt")


class Document(NamedTuple):
    """A text and where it comes from: its `source` in a JSONL file, else the file's name."""

    source: str
    text: str


def documents(path: str | Path) -> Iterator[Document]:
    """Those of a .jsonl, .jsonl.zst or .txt file (one document), or of all such files of a folder, in order.

    Raises InputError naming the file and line of what cannot be read.
    """
    for file in text_files(Path(path)):
        name = file.name.removesuffix(".zst").rpartition(".")[0]
        if file.suffix == ".txt":
            try:
                yield Document(name, file.read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"{file} is no text in UTF-8 ({error})") from None
        else:
            for number, line in enumerate(_lines(file), 1):
                if line.strip():
                    yield _document(line, name, f"{file}, line {number}")


def _document(line: bytes, name: str, place: str) -> Document:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON lines in UTF-8 ({error})") from None
    if isinstance(record, dict):
        source, text = record.get("source", name), record.get("text")
        if isinstance(source, str) and isinstance(text, str):
            return Document(source, text)
    raise InputError(f'{place}: a document is one line, {{"text": "..."}} or {{"source": "...", "text": "..."}}')


def text_files(path: Path) -> list[Path]:
    """The file at `path`, or those below a folder, in order. Raises InputError for none, and for another kind."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"corpus: there is no text at {path}; give a {', '.join(SUFFIXES)} file or a folder of them")
    if strange := [file for file in files if not file.name.endswith(SUFFIXES)]:
        raise InputError(f"corpus: {strange[0]} is none of {', '.join(SUFFIXES)}")
    return files


def _lines(file: Path) -> Iterator[bytes]:
    import pyarrow

    try:
        with io.BufferedReader(pyarrow.input_stream(str(file))) as content:  # which unpacks what is called .zst
            yield from content
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from None
