"""Documents -> one memory-mapped stream of token ids -> shuffled windows, for language-model training.

Every document is followed by <|endoftext|>. The stream is written once, as uint16 beside a manifest, under a name made
from the content of its source and of the tokenizer; both files appear whole or not at all.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.data.tokens import END_OF_TEXT, VOCABULARY, encode
from src.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.zst", ".txt")


def sources(path: Path) -> list[Path]:
    """The text files that `path`, a file or a folder, stands for, in a fixed order. Raises InputError for none."""
    if not path.exists():
        raise InputError(f"there is no text at {path}: set corpus.path to a .txt, .jsonl or .jsonl.zst file or a folder")
    files = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    if not files or not all(f.name.endswith(SUFFIXES) for f in files):
        raise InputError(f"{path} holds no text: files must end in {', '.join(SUFFIXES)}")
    return files


def documents(path: Path) -> Iterator[dict[str, Any]]:
    """Each document below `path` as {"text", ...}; a .txt file is one document. Raises InputError with file and line."""
    for file in sources(path):
        if file.name.endswith(".txt"):
            yield {"text": file.read_text(encoding="utf-8")}
            continue
        with _open(file) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    document = json.loads(line)
                    assert isinstance(document["text"], str)
                except (ValueError, KeyError, TypeError, AssertionError):
                    raise InputError(f'{file}, line {number}: expected a JSON object with a string "text"') from None
                yield document


def _open(file: Path) -> io.TextIOWrapper:
    if file.suffix == ".zst":
        import zstandard

        return io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file.open("rb")), encoding="utf-8")
    return file.open(encoding="utf-8")


def pack(path: str | Path, folder: str | Path) -> np.memmap:
    """The tokens of all documents at `path` as one uint16 array (N,), from `folder` if it was packed there before."""
    path, folder = Path(path), Path(folder)
    digest = hashlib.sha256(json.dumps(VOCABULARY, sort_keys=True).encode())
    for file in sources(path):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    stem = folder / f"{path.name.split('.')[0]}-{digest.hexdigest()[:16]}"
    tokens, manifest = stem.with_suffix(".uint16"), stem.with_suffix(".json")
    if not manifest.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, tokens, manifest, digest.hexdigest())
    expected = json.loads(manifest.read_text())["tokens"]
    array = np.memmap(tokens, dtype=np.uint16, mode="r")
    if len(array) != expected:
        raise InputError(f"{tokens} holds {len(array)} tokens, its manifest says {expected}: delete both to pack again")
    return array


def _write(path: Path, tokens: Path, manifest: Path, digest: str) -> None:
    with tempfile.NamedTemporaryFile(dir=tokens.parent, delete=False) as out, tempfile.NamedTemporaryFile(
        "w", dir=tokens.parent, delete=False
    ) as note:
        try:
            n_documents = n_tokens = 0
            stream = iter(tqdm(documents(path), desc=f"tokenizing {path.name}", unit=" documents"))
            while group := list(islice(stream, 1024)):
                for ids in encode([document["text"] for document in group]):
                    out.write(np.array([*ids, END_OF_TEXT], dtype=np.uint16).tobytes())
                    n_documents, n_tokens = n_documents + 1, n_tokens + len(ids) + 1
            json.dump({"source": path.name, "sha256": digest, "documents": n_documents, "tokens": n_tokens}, note)
            out.close(), note.close()
            os.replace(out.name, tokens)
            os.replace(note.name, manifest)  # last: a manifest stands for a whole stream
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            Path(note.name).unlink(missing_ok=True)
            raise


class Windows:
    """Batches (B, T + 1) of windows of a token stream: inputs are the first T tokens, targets the last T.

    Every window of an epoch comes once, in an order that depends on seed and epoch alone. `state_dict` is what Lightning
    stores in a checkpoint, so that a killed run goes on with the very next batch.
    """

    def __init__(self, tokens: np.ndarray, length: int, batch_size: int, seed: int | None) -> None:
        self.tokens, self.length, self.batch_size, self.seed = tokens, length, batch_size, seed
        self.n_windows = (len(tokens) - 1) // length
        if self.n_windows < batch_size:
            raise InputError(f"{len(tokens)} tokens give {self.n_windows} windows of {length}, not even one batch of {batch_size}")
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        return self.n_windows // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        if self.batch >= len(self):
            self.epoch, self.batch = self.epoch + 1, 0
        order = self.order()
        while self.batch < len(self):
            rows = order[self.batch * self.batch_size : (self.batch + 1) * self.batch_size]
            self.batch += 1
            starts = rows[:, None] * self.length + np.arange(self.length + 1)  # (B, T + 1)
            yield torch.from_numpy(self.tokens[starts].astype(np.int64))

    def order(self) -> np.ndarray:
        """The windows of this epoch, in the order in which they come; without a seed as they stand in the text."""
        if self.seed is None:
            return np.arange(self.n_windows)
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.n_windows)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]
