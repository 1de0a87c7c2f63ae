"""Rows of numbers on disk, under a key of what they are made from: folders of memory-mapped safetensors files.

An entry is written under a temporary name and renamed, so that no reader sees half of one; of two processes that build
the same at once, one entry is kept. Every file carries the sha256 of its rows, which is checked when it is opened.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from src.data.batching import Batch

Rows = dict[int, Tensor]  # number of a message -> (T, C)

SHARD_BYTES = 256 * 2**20  # held in memory at most before a file is written
UNFINISHED, DAY = ".unfinished-", 86_400


class Features:
    """The rows (T, C) of a split, by number; `sliced` where a batch may be narrower than they are."""

    def __init__(self, rows: Rows, sliced: bool) -> None:
        self.rows, self.sliced = rows, sliced

    def of(self, batch: Batch) -> Tensor:
        """Those of a batch that is still in host memory, (B, T, C); behind a row stand zeros, which nobody reads."""
        found = pad_sequence([self.rows[row] for row in batch.row.tolist()], batch_first=True)
        return found[:, : batch.ids.shape[1]] if self.sliced else found

    @property
    def bytes(self) -> int:
        return sum(row.numel() * row.element_size() for row in self.rows.values())

    def to(self, device: torch.device) -> "Features":
        return Features({number: row.to(device) for number, row in self.rows.items()}, self.sliced)


class DamagedError(Exception):
    """An entry that is not what was written."""


class Store:
    """Entries below `folder`, of `max_bytes` together: the least recently used go first."""

    def __init__(self, folder: Path, max_bytes: float) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def open(self, key: str) -> tuple[Rows, dict[str, Any]] | None:
        """The rows and facts of an entry, None where there is none. A damaged one is removed, and said so."""
        entry = self.folder / key
        try:
            os.utime(entry)  # used just now
            files = sorted(entry.iterdir())
            shards = [_read(file) for file in files]
            rows = {number: row for found, _ in shards for number, row in found.items()}
            facts = json.loads(shards[-1][1]) if shards else {}
            if len(rows) != facts.get("rows"):
                raise DamagedError("a file is missing")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedError as error:
            print(f"the feature cache {entry} is damaged ({error}): it is made anew", flush=True)
            shutil.rmtree(entry, ignore_errors=True)
            return None
        return rows, facts

    def new(self, key: str) -> "Entry":
        """An entry to be filled. Raises OSError where the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Entry(self, key, Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder)))

    def evict(self, keep: str) -> None:
        """Remove the least recently used entries until the rest fits, but not `keep`, nor what is no entry."""
        for path in self.folder.glob(f"{UNFINISHED}*"):
            if time() - _used(path) > DAY:  # of a process that was killed
                shutil.rmtree(path, ignore_errors=True)
        entries = [(_used(path), path) for path in self.folder.glob("[0-9a-f]" * 64)]
        total = sum(_size(path) for _, path in entries)
        for _, path in sorted(entries):
            if total <= self.max_bytes:
                return
            if path.name != keep:
                total -= _size(path)
                shutil.rmtree(path, ignore_errors=True)  # who reads it keeps what is mapped already


class Entry:
    """An entry that is being written; raises OSError where there is no room, and leaves nothing behind then."""

    def __init__(self, store: Store, key: str, unfinished: Path) -> None:
        self.store, self.key, self.unfinished = store, key, unfinished
        self.numbers: list[int] = []
        self.rows: list[Tensor] = []
        self.bytes = self.files = self.written = 0

    def add(self, numbers: Sequence[int], rows: Sequence[Tensor]) -> None:
        """Take rows (T, C) with their numbers."""
        if self.bytes >= SHARD_BYTES:
            self._flush({})
        self.numbers += numbers
        self.rows += rows
        self.bytes += sum(row.numel() * row.element_size() for row in rows)

    def finish(self, facts: dict[str, Any]) -> None:
        """Put the entry under its key, with what is to be known of it."""
        self._flush(facts | {"rows": self.written + len(self.numbers)})
        try:
            os.rename(self.unfinished, self.store.folder / self.key)
        except OSError:  # another process was faster
            self.drop()
        self.store.evict(self.key)

    def drop(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _flush(self, facts: dict[str, Any]) -> None:
        values = torch.cat(self.rows)
        tensors = {
            "values": values,
            "numbers": torch.tensor(self.numbers),
            "sizes": torch.tensor([len(row) for row in self.rows]),
        }
        said = json.dumps(facts)
        metadata = {"sha256": _digest(tensors, said), "facts": said}
        try:
            save_file(tensors, self.unfinished / f"{self.files:05}.safetensors", metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        self.written += len(self.numbers)
        self.files += 1
        self.numbers, self.rows, self.bytes = [], [], 0


def _read(file: Path) -> tuple[Rows, str]:
    """The rows of a file, memory-mapped, and the facts in it."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in ("values", "numbers", "sizes")}
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise DamagedError(str(error)) from None
    if _digest(tensors, said := metadata.get("facts", "")) != metadata.get("sha256"):
        raise DamagedError(f"{file.name} has another sha256 than when it was written")
    rows = tensors["values"].split(tensors["sizes"].tolist())
    return dict(zip(tensors["numbers"].tolist(), rows, strict=True)), said


def _digest(tensors: dict[str, Tensor], facts: str) -> str:
    whole = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0


def _size(entry: Path) -> int:
    try:
        return sum(file.stat().st_size for file in entry.iterdir())
    except FileNotFoundError:  # another process has just removed it
        return 0
