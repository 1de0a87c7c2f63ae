"""Text of any size -> one memory-mapped file of token ids, for language modelling.

    documents -> ids, <|endoftext|> after each -> uint16 on disk, source after source -> windows of T+1 tokens

Tokenized once: the file is named by the sha256 of the text and of the vocabulary, and stands beside a manifest with its
sha256; what does not agree is tokenized again. Windows may run over the border of two documents, as in GPT-2's
training.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src import ranks
from src.data.tokenizer import END_OF_TEXT, VOCABULARY, encode
from src.errors import InputError
from src.files import file_sha256
from src.pretraining.documents import Document, documents, text_files


class Packed(NamedTuple):
    """Token ids of a corpus (memory-mapped uint16), the range of each source in them, and how many documents."""

    ids: np.ndarray[Any, np.dtype[np.uint16]]
    sources: dict[str, tuple[int, int]]
    documents: int
    sha256: str


def pack(path: str | Path, cache: str | Path) -> Packed:
    """The tokens of `path`, from `cache` if it was tokenized before; two processes may do so at once."""
    path = Path(path).expanduser()
    sha256 = _content_hash(path)
    folder = Path(cache).expanduser() / "tokens"
    stem = hashlib.sha256((sha256 + "".join(VOCABULARY.values())).encode()).hexdigest()[:24]
    manifest, tokens = folder / f"{stem}.json", folder / f"{stem}.uint16"
    facts = _manifest(manifest, tokens)
    if facts is None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            facts = _tokenize(documents(path), Path(unfinished), path)
            facts |= {"text": str(path), "text_sha256": sha256, "vocabulary_sha256": VOCABULARY}
            facts["tokens_sha256"] = file_sha256(Path(unfinished) / "tokens")
            os.replace(Path(unfinished) / "tokens", tokens)
            text = json.dumps(facts, indent=2)
            (Path(unfinished) / "manifest").write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")
            os.replace(Path(unfinished) / "manifest", manifest)  # last: where it stands, the tokens are whole
    sources = {name: (start, end) for name, (start, end) in facts["sources"].items()}
    return Packed(np.memmap(tokens, np.uint16, "r"), sources, facts["documents"], sha256)


def _manifest(manifest: Path, tokens: Path) -> dict[str, Any] | None:
    """What was tokenized before, its own last line being the sha256 of the rest; None where it or the tokens are
    missing, or changed by one bit, which is said."""
    if not manifest.is_file():
        return None
    text, _, checksum = manifest.read_bytes().rstrip(b"\n").rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() == checksum and tokens.is_file():
        facts: dict[str, Any] = json.loads(text)
        if file_sha256(tokens) == facts["tokens_sha256"]:
            return facts
    print(f"{tokens} or its manifest is damaged: tokenizing again", file=sys.stderr)
    return None


def _tokenize(texts: Iterator[Document], folder: Path, path: Path) -> dict[str, Any]:
    """Write folder/tokens; a file a source first, then one after the other."""
    count, size = 0, dict[str, int]()
    numbers = dict[str, int]()  # of the sources, in the order in which they come
    seconds = 0.1 if sys.stderr.isatty() else 60  # between two lines: a log wants one now and then
    texts = iter(tqdm(texts, f"tokenizing {path.name}", unit=" documents", mininterval=seconds))
    while some := list(islice(texts, 1000)):
        for (source, _), ids in zip(some, encode([document.text for document in some]), strict=True):
            number = numbers.setdefault(source, len(numbers))
            with (folder / f"source-{number}").open("ab") as part:  # not held open: there may be thousands
                part.write(np.array([*ids, END_OF_TEXT], np.uint16).tobytes())
            size[source] = size.get(source, 0) + len(ids) + 1
        count += len(some)
    if sum(size.values()) == count:
        raise InputError(f"{path} holds no text")
    sources, start = {}, 0
    with (folder / "tokens").open("wb") as whole:
        for name, number in numbers.items():
            with (folder / f"source-{number}").open("rb") as part:
                shutil.copyfileobj(part, whole)
            sources[name] = (start, start + size[name])
            start += size[name]
    return {"tokens": start, "documents": count, "sources": sources}


def _content_hash(path: Path) -> str:
    """One sha256 over the files' names and contents."""
    whole = hashlib.sha256()
    for file in text_files(path):
        whole.update(f"{file.name} {file_sha256(file)}\n".encode())
    return whole.hexdigest()


class Windows:
    """Batches of token windows (B, T+1) without end, in random order, every window of an epoch once.

    Epoch e cuts the tokens into windows of T, starting at a random offset, and shuffles them, by (seed, e) alone; fewer
    windows than a batch are left over. How far an iteration got is kept by state_dict: a run that was killed goes on at
    the very next batch. A batch counts as done when the next one is asked for, because Lightning, which is told of no
    length, always holds one in advance.

    Of a run on several devices, each rank gets its share of the windows of a batch.

    beginnings: so many windows, the first of each batch, move forward to the beginning of the next document
    """

    def __init__(self, ids: np.ndarray[Any, Any], window: int, batch_size: int, seed: int, beginnings: int = 0) -> None:
        self.ids, self.window, self.batch_size, self.seed, self.beginnings = ids, window, batch_size, seed, beginnings
        self.documents = np.flatnonzero(ids[: -window - 1] == END_OF_TEXT) + 1 if beginnings else np.empty(0, int)
        self.documents = np.append(0, self.documents)
        self.done = 0
        self.n = (len(ids) - 1) // window - 1  # windows of every epoch, whatever its offset
        self.epoch_batches = self.n // batch_size
        if self.epoch_batches < 1:
            raise InputError(
                f"the corpus has {len(ids)} tokens: {batch_size} windows of {window} tokens need "
                f"{(batch_size + 1) * window + 1}; lower window or batch_size"
            )

    def starts(self, epoch: int) -> np.ndarray[Any, Any]:
        """First token of each window (batches, B) of an epoch, in the order in which they come."""
        rng = np.random.default_rng((self.seed, epoch))
        offset = rng.integers(self.window)
        order = rng.permutation(self.n)[: self.epoch_batches * self.batch_size]
        starts = offset + self.window * order.reshape(self.epoch_batches, self.batch_size)
        first = np.searchsorted(self.documents, starts[:, : self.beginnings]) % len(self.documents)
        starts[:, : self.beginnings] = self.documents[first]
        return starts

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            epoch, first = divmod(self.done, self.epoch_batches)
            for batch in self.starts(epoch)[first:]:
                yield windows(self.ids, ranks.share(batch), self.window)
                self.done += 1

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def in_order(ids: np.ndarray[Any, Any], window: int, batch_size: int) -> list[Tensor]:
    """Every token but the first once as a target: windows (B, T+1) in order, the last one alone and shorter."""
    n = (len(ids) - 1) // window
    starts = window * np.arange(n)
    batches = [windows(ids, starts[i : i + batch_size], window) for i in range(0, n, batch_size)]
    rest = torch.from_numpy(ids[n * window :].astype(np.int64))
    return batches + ([rest[None]] if len(rest) > 1 else [])


def windows(ids: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], window: int) -> Tensor:
    """(B, T+1) int64 from the places `starts`."""
    return torch.from_numpy(ids[starts[:, None] + np.arange(window + 1)].astype(np.int64))
