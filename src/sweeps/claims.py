"""Who does what, among processes of one machine and of several that share a folder: a claim is a file <key>.<n>.

A claim is made by linking a finished file to its name, which fails where there is one: so exactly one gets it. Its
holder touches it every few seconds. If the holder's process is dead (on this machine), or the file has not been touched
for a minute of the onlooker's own clock, the claim is stale, and exactly one takes it over by linking <key>.<n+1>. The
claim with the highest n counts.

Claims say who is at work, never that something is done: whoever gets one looks first whether there is anything to do.
"""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from uuid import uuid4

BEAT = 5.0  # seconds between two signs of life
STALE = 60.0  # seconds without one after which a holder counts as dead
LOST = 75  # exit code of a process whose claim another has taken over


@dataclass(frozen=True)
class Holder:
    """What a claim's file says: who holds it, since when, and the run folder that was begun under it."""

    id: str
    host: str
    pid: int
    start: str
    run: str | None = None


class Claims:
    """The claims in a folder, as one process sees them; beat and stale are in seconds."""

    def __init__(self, folder: Path, beat: float = BEAT, stale: float = STALE) -> None:
        self.folder, self.beat, self.stale = folder, beat, stale
        self.seen: dict[Path, tuple[int, float]] = {}  # last touch of others' claims, and when it was noticed
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, key: str) -> "Claim | None":
        """The claim on `key`; None where a living process holds it. What a dead one had begun stands in `run`."""
        generation, before = self._last(key)
        if before and self._alive(self._path(key, generation), before):
            return None
        me = Holder(uuid4().hex, socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
        claim = Claim(self, key, generation + 1, replace(me, run=before.run if before else None))
        if not claim._link():
            return None  # another was faster
        if before and self._read(self._path(key, generation)) != before:
            claim.path.unlink()  # what was stale has ended meanwhile, so that it was not ours to take over
            return None
        return claim

    def held_by(self, pid: int) -> str | None:
        """The key that a process of this machine holds."""
        for path in self.folder.glob("*.*"):
            key, _, n = path.name.rpartition(".")
            if (
                n.isdigit()
                and (holder := self._read(path))
                and (holder.host, holder.pid) == (socket.gethostname(), pid)
            ):
                return key
        return None

    def fail(self, key: str, sentence: str) -> None:
        """Keep why `key` cannot be done, for all to see."""
        self._write(self.folder / f"{key}.failed", sentence)

    def failures(self) -> dict[str, str]:
        """Key -> why it could not be done."""
        found = {}
        for path in self.folder.glob("*.failed"):
            with suppress(FileNotFoundError):  # another lets it be tried again just now
                found[path.stem] = path.read_text(encoding="utf-8")
        return found

    def forget_failure(self, key: str) -> None:
        """Let `key` be tried again."""
        (self.folder / f"{key}.failed").unlink(missing_ok=True)

    def _last(self, key: str) -> tuple[int, Holder | None]:
        """The highest claim on `key` and its holder; 0 and None where there is none."""
        names = (re.fullmatch(rf"{re.escape(key)}\.(\d+)", path.name) for path in self.folder.iterdir())
        generation = max((int(name[1]) for name in names if name), default=0)
        holder = self._read(self._path(key, generation)) if generation else None
        return (generation, holder) if holder else (0, None)

    def _alive(self, path: Path, holder: Holder) -> bool:
        if holder.host == socket.gethostname() and not is_running(holder.pid):
            return False
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:
            return True  # it ends just now: the next look will tell
        if self.seen.get(path, (None, 0.0))[0] != touched:
            self.seen[path] = touched, monotonic()  # never compared with our clock: those of two machines differ
        return monotonic() - self.seen[path][1] < self.stale

    def _path(self, key: str, generation: int) -> Path:
        return self.folder / f"{key}.{generation}"

    def _read(self, path: Path) -> Holder | None:
        try:
            return Holder(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def _write(self, path: Path, text: str) -> None:
        unfinished = self._unfinished(text)
        os.replace(unfinished, path)

    def _unfinished(self, text: str) -> Path:
        path = self.folder / f".{uuid4().hex}"
        path.write_text(text, encoding="utf-8")
        return path


class Claim:
    """A claim that this process holds."""

    def __init__(self, claims: Claims, key: str, generation: int, holder: Holder) -> None:
        self.claims, self.key, self.generation, self.holder = claims, key, generation, holder
        self.path = claims._path(key, generation)

    def _link(self) -> bool:
        unfinished = self.claims._unfinished(json.dumps(asdict(self.holder)))
        try:
            os.link(unfinished, self.path)
        except FileExistsError:
            return False
        finally:
            unfinished.unlink()
        return True

    @property
    def run(self) -> str | None:
        """The run folder that was begun under this claim, by this process or by one that died."""
        return self.holder.run

    def begin(self, run: str | None) -> None:
        """Keep the name of the run folder that is begun."""
        self.holder = replace(self.holder, run=run)
        self.claims._write(self.path, json.dumps(asdict(self.holder)))

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life meanwhile. A process that was away for so long that another has its claim ends at once."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.claims.beat):
                if not self._touch():
                    os._exit(LOST)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _touch(self) -> bool:
        """Whether the claim is still ours."""
        try:
            found = self.claims._read(self.path)
            os.utime(self.path)
            taken_over = self.claims._path(self.key, self.generation + 1).exists()
        except FileNotFoundError:
            return False
        except OSError:  # a shared folder may be away for a while
            return True
        return found is not None and found.id == self.holder.id and not taken_over

    def release(self) -> None:
        """Give the claim back, with the stale ones below it, the highest last."""
        for generation in range(1, self.generation + 1):
            self.claims._path(self.key, generation).unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
