"""The lock of a run folder: one writer at a time, freed by the kernel, named to the second."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from src.runs.lock import RunLockedError, run_lock

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from unittest.mock import Mock
from src.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_who_holds_a_run_until_that_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"held\n"
            named = f"process {holder.pid} on {socket.gethostname()}"
            with pytest.raises(RunLockedError, match=named), run_lock(tmp_path):
                pass
        finally:
            holder.kill()
    with run_lock(tmp_path):
        assert (tmp_path / ".lock").read_text().split() == [str(os.getpid()), socket.gethostname()]
    assert not any(tmp_path.iterdir())


def test_a_thread_may_take_its_own_lock_again_and_another_thread_may_not(tmp_path):
    def take() -> None:
        with run_lock(tmp_path):
            pass

    with ThreadPoolExecutor() as other:
        with run_lock(tmp_path):
            for mine in (run_lock(tmp_path), nullcontext()):  # still its own when it has left the inner one
                with mine, pytest.raises(RunLockedError):
                    other.submit(take).result()
        other.submit(take).result()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_gets_one_that_stays_and_says_so(tmp_path, monkeypatch, capsys, code):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(code, os.strerror(code))))
    with run_lock(tmp_path):
        assert f"delete {tmp_path / '.held'}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    (tmp_path / ".held").write_text("17\nanother-host\n")
    with pytest.raises(RunLockedError, match=f"process 17 on another-host.*delete {tmp_path}"), run_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match="file cannot be written"), run_lock(tmp_path / "file"):
        pass
