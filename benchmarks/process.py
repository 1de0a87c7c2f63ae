"""A command -> a process of its own, from start to exit: wall seconds, CPU seconds, peak resident memory. On Linux.

Who measures imports nothing heavy: Linux gives a new process the peak memory of the one that it was forked from, and a
large parent would be found in every child.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from src.errors import InputError

ROOT = Path(__file__).parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # all weights lie on this disk: nobody's time should depend on a network


class Measured(NamedTuple):
    """What a finished process used, and what everything else on the machine used meanwhile.

    Only where others used next to nothing are the wall seconds worth anything: beside two busy processes on two cores,
    threads that wait for each other took the peer's evaluations of a tiny GPT from 0.7 s to 26 s.
    """

    wall_seconds: float
    cpu_seconds: float
    others_cpu_seconds: float
    peak_memory_bytes: int


def measured(module: str, arguments: list[str], log: Path) -> Measured:
    """Run `python -m module arguments` to its end, what it prints into `log`. Raises InputError if it fails."""
    errors = log.with_suffix(".errors")
    with log.open("wb") as out, errors.open("wb") as err:
        started, busy = perf_counter(), cpu_seconds()
        child = subprocess.Popen(_command(module, arguments), stdout=out, stderr=err, cwd=ROOT, env=_env())
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            raise
        wall, own = perf_counter() - started, used.ru_utime + used.ru_stime
        others = max(0.0, cpu_seconds() - busy - own)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise InputError(f"{module} failed with exit status {child.returncode}:\n{_tail(errors.read_text())}")
    return Measured(wall, own, others, used.ru_maxrss * 1024)


def cpu_seconds() -> float:
    """What all processes of the machine have used so far, and what its host took from it (man 5 proc_stat)."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def ask(module: str, arguments: list[str]) -> dict[str, Any]:
    """The JSON object that `python -m module arguments` prints last. Raises InputError if it fails."""
    done = subprocess.run(_command(module, arguments), capture_output=True, text=True, cwd=ROOT, env=_env())
    if done.returncode:
        raise InputError(f"{module} failed with exit status {done.returncode}:\n{_tail(done.stderr)}")
    return _last_json(done.stdout)


def last_json(log: Path) -> dict[str, Any]:
    """The JSON object that a process printed last into its log."""
    return _last_json(log.read_text(encoding="utf-8"))


def _last_json(text: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(text.splitlines()[-1])
    return answer


def _command(module: str, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _env() -> dict[str, str]:
    return os.environ | OFFLINE


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-15:])
