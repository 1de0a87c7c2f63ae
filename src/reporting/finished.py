"""Finished run folders, and those in the archive beside the studies -> the runs of a row.

A run belongs to a row by its settings, and by the sha256 of the data and weights that it recorded: none of these needs
to be here. Where a row's data are here they must be those. Where weights or messages that the project ships have been
made anew since, runs of the present ones win, and else the newest.
"""

import atexit
import csv
import io
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from src.errors import InputError
from src.files import plain_cell
from src.runs import identity, run_dir

WEIGHTS = "gpt.weights"
NEEDED = (  # of result.json
    ("id",),
    ("sha256",),
    ("seed",),
    ("metrics", "test", "accuracy"),
    ("metrics", "validation", "accuracy"),
    ("data", "labels"),
    ("data", "sizes", "test"),
    ("cost", "peak_memory_bytes"),
    ("environment", "device"),
    ("environment", "torch"),
)
COLUMNS = ("text_sha256", "label", "predicted")  # of predictions.csv


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its settings, and its result.json."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def sha256(self) -> dict[str, str | None]:
        """What it read: setting -> sha256."""
        found: dict[str, str | None] = self.result["sha256"]
        return found

    @cached_property
    def settings(self) -> str:
        return identity.hash_of(identity.settings(self.config))

    @cached_property
    def predictions(self) -> list[dict[str, str]] | None:
        """The lines of its predictions.csv; None where they are damaged, which is said."""
        try:
            return predictions(self.folder / "predictions.csv", self.result["data"]["sizes"]["test"])
        except InputError as error:
            leave_out(error)
            return None


@dataclass(frozen=True)
class Wanted:
    """What a row wants of a run: settings, what is read now, and where."""

    settings: str
    sources: dict[str, Path | str]
    sha256: dict[str, str | None]

    def is_met(self, run: Finished, is_only: bool) -> bool:
        """Whether a run with these settings read what is wanted. What is not here, or was not recorded, is known by
        its path alone, and where no other row has these settings not even by that."""
        paths = identity.sources(run.config)
        for key, source in self.sources.items():
            if isinstance(source, str):  # the project's own, for `of_row` to choose
                continue
            if self.sha256[key] is not None and run.sha256.get(key) is not None:
                if self.sha256[key] != run.sha256[key]:
                    return False
            elif not is_only and paths.get(key) != source:
                return False
        return True

    @property
    def reads_shipped_weights(self) -> bool:
        """Whether its GPT starts from weights of the project's own."""
        return isinstance(self.sources.get(WEIGHTS), str)

    def replaced(self, run: Finished) -> dict[str, tuple[str, str]]:
        """What a run read of the project's that is another today: setting -> the sha256 then and now."""
        own = {key: source for key, source in self.sources.items() if isinstance(source, str)}
        then = {key: run.sha256.get(key) for key in own}
        return {key: (sha, own[key]) for key, sha in then.items() if sha is not None and sha != own[key]}


def wanted(cfg: Any) -> Wanted:
    """What a config asks for."""
    whole = identity.plain(cfg)
    return Wanted(identity.hash_of(identity.settings(whole)), identity.sources(whole), identity.contents(whole))


def of_row(
    asked: Sequence[Wanted], found: dict[str, list[Finished]], is_only: bool, weights: str | None = None
) -> list[Finished | None]:
    """The run of each of a row's points, all made from the same data and weights; None for one without any. Runs
    from a GPT with the sha256 `weights` are taken first, then those on the project's own data and weights of today."""
    fitting = [
        [run for run in found.get(one.settings, []) if one.is_met(run, is_only) and run.predictions] for one in asked
    ]
    every = [(one, run) for one, runs in zip(asked, fitting, strict=True) for run in runs]
    if not every:
        return [None] * len(asked)
    of_these = [run for _, run in every if weights and run.sha256.get(WEIGHTS) == weights]
    of_today = [run for one, run in every if not one.replaced(run)]
    candidates = of_these or of_today or [run for _, run in every]
    leader = max(candidates, key=lambda run: run.folder.name)  # which begins with the time
    return [next((run for run in runs if agree(run, leader)), None) for runs in fitting]


def agree(one: Finished, other: Finished) -> bool:
    """Whether two runs read the same, as far as both have recorded it."""
    shared = [key for key in one.sha256 if None not in (one.sha256[key], other.sha256.get(key))]
    return all(one.sha256[key] == other.sha256[key] for key in shared)


def finished(runs: str | Path, archive: Path | None) -> dict[str, list[Finished]]:
    """Settings -> finished runs, those below `runs` before those of the archive, the newest of each first."""
    found: dict[str, list[Finished]] = {}
    archived = [unpacked(archive, archive.stat().st_mtime_ns)] if archive and archive.is_file() else []
    for folder in (Path(runs), *archived):
        for result in sorted(folder.glob("*/result.json"), reverse=True):
            if one := read(result.parent, result.stat().st_mtime_ns):
                found.setdefault(one.settings, []).append(one)
    return found


@cache
def read(folder: Path, written: int) -> Finished | None:
    """A finished run of fine-tuning; None for what is none, or damaged, which is said."""
    try:
        result, config = run_dir.load_result(folder), run_dir.read_config(folder)
        if "corpus" in config or result.get("partial"):
            return None
        if lacking := [".".join(place) for place in NEEDED if reach(result, place) is None]:
            raise InputError(f"{folder / 'result.json'} is damaged (it lacks {lacking[0]})")
        return Finished(folder, config, result)
    except InputError as error:
        leave_out(error)
        return None


def leave_out(error: InputError) -> None:
    print(f"left out: {error}", file=sys.stderr, flush=True)


def reach(node: Any, path: Sequence[str]) -> Any:
    """What stands at a place in nested dicts; None where there is no such place."""
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def predictions(path: Path, messages: int) -> list[dict[str, str]]:
    """The lines of a predictions.csv, one for each of the test messages. Raises InputError if it is damaged."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read, without which nothing can be compared: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged ({error})") from None
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    whole = [line for line in lines if None not in line and None not in line.values() and line.keys() >= set(COLUMNS)]
    if not len(whole) == len(lines) == messages or not text.endswith("\n"):
        raise InputError(f"{path} is damaged: of {messages} test messages it has {len(whole)} whole lines")
    return [line | {key: plain_cell(line[key]) for key in ("label", "predicted")} for line in lines]


@cache
def unpacked(archive: Path, written: int) -> Path:
    """The run folders in an archive, in a temporary folder that goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="archived-runs-")
    atexit.register(folder.cleanup)
    try:
        with tarfile.open(archive) as content:
            if hasattr(tarfile, "data_filter"):  # not in Python before 3.11.4, which Debian 12 has
                content.extraction_filter = tarfile.data_filter
            content.extractall(folder.name)
    except run_dir.UNREADABLE as error:
        raise InputError(f"{archive} cannot be read: {error}; bring it back, or move it away") from None
    return Path(folder.name) / "runs"
