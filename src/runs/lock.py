"""File lock of a run folder: of all processes, on any machine that sees the folder, one writes in it.

The kernel frees the lock when its holder ends, however it ends. `.lock` names the holder; it is removed with the lock.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from src.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems without locks answer


class RunLockedError(InputError):
    """Another process, or another thread of this one, writes in the run folder."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; a thread that holds it already may take it again.

    Raises RunLockedError, which names the holder's process and host, at once.
    """
    lock = _acquire(folder)
    try:
        if lock.lock_counter == 1:
            _sign(lock)
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / ".lock").unlink(missing_ok=True)  # while it is held: who has opened it will open it again
        lock.release()


def _acquire(folder: Path) -> BaseFileLock:
    try:
        return _take(FileLock(folder / ".lock", timeout=0, is_singleton=True, fallback_to_soft=False))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    return _take(SoftFileLock(folder / ".held", timeout=0, is_singleton=True))


def _take(lock: BaseFileLock) -> BaseFileLock:
    try:
        lock.acquire()
        return lock
    except Timeout:
        path = Path(lock.lock_file)
        gone = f"; if that process is gone, delete {path}" if isinstance(lock, SoftFileLock) else ""
        raise RunLockedError(
            f"run {path.parent.name} is being written by {_holder(path)}: wait until that has ended, or stop it{gone}"
        ) from None


def _sign(lock: BaseFileLock) -> None:
    """Write who holds it, in the form in which filelock's soft lock does so itself."""
    path = Path(lock.lock_file)
    if not isinstance(lock, SoftFileLock):
        path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        return
    print(
        f"the file system of {path.parent} has no locks that end with their process: should this one be killed, "
        f"delete {path} before another machine goes on with the run",
        file=sys.stderr,
    )


def _holder(path: Path) -> str:
    try:
        pid, host, *_ = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return "another process"
    return f"process {pid} on {host}"
