"""Feature store: rows of numbers on disk, a memory-mapped safetensors file for each key of what they are made from.

Several ranks write a file each, their shares of an entry, which any number of them reads. A file holds its own name and
the version of what is in it, and ends with a checksum of all its other bytes, which is checked when it is opened. It is
written row by row under a temporary name, then renamed: no reader sees half of one.
"""

import json
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from xxhash import xxh3_128  # 12.5 GB/s, where crc32 makes 2.5, sha256 1.4 and blake2b 0.6; W&B brings it along

from src.data.batching import Batch

Rows = dict[int, Tensor]  # number of a message -> (T, C)
AddRows = Callable[[Sequence[int], Sequence[Tensor]], None]

VERSION = 1  # of what features are and how they are kept: raise it with every change of either
HEADER, CHECKSUM = 4096, 16  # bytes before and behind the numbers
ENTRIES = "[0-9a-f]" * 64
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
    """A file that is not what was written under its name."""


class FeatureStore:
    """Files in `folder`, of `max_bytes` together: the least recently used go first."""

    def __init__(self, folder: Path, max_bytes: float) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def path(self, key: str, rank: int = 0, world: int = 1) -> Path:
        """The file of a key, or of a rank's share of it."""
        return self.folder / f"{key}-{rank}-of-{world}.safetensors"

    def open(self, key: str) -> tuple[Rows, dict[str, Any]] | None:
        """Rows, still on disk, and facts of a key, by however many ranks they were written; None where some are
        missing.

        Raises DamagedError for what was not written so, OSError for what cannot be read.
        """
        shares = {int(path.stem.rpartition("-")[2]) for path in self.folder.glob(f"{key}-0-of-*.safetensors")}
        for world in sorted({1, *shares}):
            found = [share for rank in range(world) if (share := self._open(self.path(key, rank, world)))]
            if len(found) == world:
                return {number: row for rows, _ in found for number, row in rows.items()}, found[0][1]
        return None

    def _open(self, path: Path) -> tuple[Rows, dict[str, Any]] | None:
        try:
            with path.open("rb"), suppress(OSError):  # others' files, or a disk that can only be read
                os.utime(path)  # used just now
            if path.stat().st_size <= HEADER + CHECKSUM:
                raise DamagedError(f"{path} are damaged (cut short)")
            content = np.memmap(path, np.uint8, "r")
            if _checksum(content[HEADER:-CHECKSUM], content[:HEADER]) != content[-CHECKSUM:].tobytes():
                raise DamagedError(f"{path} are damaged (another checksum than when it was written)")
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                values, index = file.get_tensor("values"), file.get_tensor("index")
        except (FileNotFoundError, NotADirectoryError):
            return None
        if (metadata["name"], metadata["version"]) != (path.name, str(VERSION)):
            raise DamagedError(f"{path} are damaged (it is {metadata['name']} of version {metadata['version']})")
        numbers, sizes = index.clone().view(torch.int64).view(-1, 2).T.tolist()
        return dict(zip(numbers, values.split(sizes), strict=True)), json.loads(metadata["facts"])

    def write(
        self, key: str, facts: dict[str, Any], fill: Callable[[AddRows], None], rank: int = 0, world: int = 1
    ) -> None:
        """Keep what `fill` adds, a rank's share, and what is to be known of it. Raises OSError where it cannot, and
        leaves nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, unfinished = self.path(key, rank, world), self.folder / f"{UNFINISHED}{uuid4().hex}"
        try:
            with unfinished.open("xb") as file:
                entry = _Entry(file)
                fill(entry.add)
                entry.finish({"name": path.name, "version": str(VERSION), "facts": json.dumps(facts)})
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        self.evict(key)

    def evict(self, keep: str) -> None:
        """Remove the least recently used files until the rest fits, but not those of the key `keep`, nor what is none
        of the store's."""
        for path in self.folder.glob(f"{UNFINISHED}*"):
            with suppress(OSError):  # another process has just removed it, or it is another's
                if time() - path.stat().st_mtime > DAY:  # of a process that was killed
                    path.unlink()
        found = []
        for path in self.folder.glob(f"{ENTRIES}-*.safetensors"):
            with suppress(OSError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total > self.max_bytes and not path.name.startswith(keep):
                total -= size
                with suppress(OSError):
                    path.unlink()  # who reads it keeps what is mapped already


class _Entry:
    """A file that is being written: room for its header, rows as they come, their numbers and sizes, a checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.index, self.checksum = file, list[tuple[int, int]](), xxh3_128()
        self.type, self.width = "F32", 0
        file.seek(HEADER)

    def add(self, numbers: Sequence[int], rows: Sequence[Tensor]) -> None:
        """Write rows (T, C) and remember their numbers."""
        for number, row in zip(numbers, rows, strict=True):
            self._write(row.contiguous().view(torch.uint8).numpy())
            self.index.append((number, len(row)))
            self.type = ("BF" if row.dtype == torch.bfloat16 else "F") + str(8 * row.element_size())
            self.width = row.shape[1]

    def finish(self, metadata: dict[str, str]) -> None:
        """Write what is known now: safetensors' header says where each tensor's bytes lie behind it."""
        end = self.file.tell() - HEADER
        self._write(np.array(self.index, dtype=np.int64))
        sized = end + 16 * len(self.index)
        shape = [sum(size for _, size in self.index), self.width]
        header = {
            "__metadata__": metadata,
            "values": {"dtype": self.type, "shape": shape, "data_offsets": [0, end]},
            "index": {"dtype": "U8", "shape": [sized - end], "data_offsets": [end, sized]},
            "checksum": {"dtype": "U8", "shape": [CHECKSUM], "data_offsets": [sized, sized + CHECKSUM]},
        }
        head = struct.pack("<Q", HEADER - 8) + json.dumps(header).encode().ljust(HEADER - 8)
        assert len(head) == HEADER
        self.checksum.update(head)
        self.file.write(self.checksum.digest())
        self.file.seek(0)
        self.file.write(head)

    def _write(self, numbers: np.ndarray) -> None:
        self.file.write(numbers.data)
        self.checksum.update(numbers.data)


def _checksum(*parts: np.ndarray) -> bytes:
    whole = xxh3_128()
    for part in parts:
        whole.update(part.data)
    return whole.digest()
