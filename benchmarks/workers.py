"""python -m benchmarks.workers [tiny=true]

Two studies of twelve runs each, by one worker of src.sweep, by two, and by two that Dask's own commands start: one
thread each, an empty feature cache and an empty folder every time. Shows the seconds from start to exit, the efficiency
of two workers (seconds of one / twice the seconds of two), and whether all tables hold the same numbers.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import pandas as pd

from benchmarks import machine, process, record
from benchmarks.setting import TINY_FRACTION, TINY_GPT, yes
from src.config.command_line import one_sentence
from src.config.options import options
from src.errors import InputError

STUDIES = {  # of the bundled messages: what differs from run to run
    "rows": {"experiment": ["last_block", "last_layer", "first_token", "mean_pooling"], "seed": [123, 124, 125]},
    "ways": {
        "experiment": ["last_real_token", "instruct"],
        "data.fraction": [0.1, 0.5],
        "seed": [123, 124, 125],
    },
}
WAYS = ("1 worker", "2 workers", "2 separate workers")
SPENT = ("train_seconds", "peak_memory_bytes")  # columns of a table that no two runs have alike
NOTES = """\
- Seconds are of the whole command, from start to exit: imports, the start of workers, and twelve runs. The third way
  adds the start of a scheduler and of two workers, which came before the clock.
- Efficiency: seconds of one worker / (2 x seconds of two).
- Same table: every column of the study's CSV but for seconds and memory, to the last digit, as with one worker.
"""


@dataclass
class Options:
    """What the command line takes."""

    tiny: str = "false"


def write_study(name: str, folder: Path, tiny: bool) -> Path:
    """A study's file."""
    settings = ["data=bundled", "logger=none", "trainer.accelerator=cpu"]
    settings += [*TINY_GPT, f"data.fraction={TINY_FRACTION}", "gpt.weights=random"] if tiny else []
    given = {key: values for key, values in STUDIES[name].items() if not (tiny and key == "data.fraction")}
    study = {
        "name": name,
        "description": "A benchmark",
        "method": "grid",
        "command": ["${env}", "${interpreter}", "-m", "src.train", *settings, "${args_no_hyphens}"],
        "parameters": {key: {"values": values} for key, values in given.items()},
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(study), encoding="utf-8")  # JSON is YAML
    return file


@contextmanager
def separate_workers(n: int, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """The address of a scheduler with n workers of one thread, each started by Dask's own command."""
    place = folder / "scheduler.json"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(place)]
    one = ["worker", "--scheduler-file", str(place), "--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
    commands = [[sys.executable, "-m", "dask", *arguments] for arguments in (scheduler, *[one] * n)]
    log = (folder / "dask.log").open("wb")
    started = [subprocess.Popen(each, cwd=process.ROOT, env=env, stdout=log, stderr=log) for each in commands]
    try:
        until = monotonic() + 60
        while not place.is_file():
            if monotonic() > until:
                raise InputError(f"Dask's scheduler has not started: {folder / 'dask.log'}")
            sleep(0.1)
        yield str(json.loads(place.read_text())["address"])
    finally:
        for each in reversed(started):
            each.terminate()
        for each in started:
            each.wait()


def run(command: list[str], env: dict[str, str], log: Path) -> float:
    """Seconds of a command from start to exit. Raises InputError if it fails."""
    started = perf_counter()
    with log.open("ab") as out:
        done = subprocess.run([sys.executable, "-m", *command], cwd=process.ROOT, env=env, stdout=out, stderr=out)
    if done.returncode:
        raise InputError(f"{command[0]} failed with exit status {done.returncode}: {log}")
    return perf_counter() - started


def timed(study: Path, way: str, folder: Path) -> tuple[float, pd.DataFrame]:
    """Seconds of a study done in one of WAYS, and its table."""
    folder.mkdir()
    env = os.environ | {"OMP_NUM_THREADS": "1", "TWO_WAYS_CACHE": str(folder / "cache")}
    env["DASK_DISTRIBUTED__WORKER__DAEMON"] = "False"
    sweep = ["src.sweep", str(study), f"runs={folder / 'runs'}"]
    log = folder / "log"
    if way == WAYS[2]:
        own = {"MKL_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}  # as docs/studies.md says
        with separate_workers(2, folder, env | own) as address:
            seconds = run([*sweep, f"scheduler={address}"], env, log)
    else:
        seconds = run([*sweep, f"workers={way[0]}"], env, log)
    run(["src.report", str(study), "format=csv", f"runs={folder / 'runs'}"], env, log)
    table = pd.read_csv(study.parent / "tables" / f"{study.stem}.csv")
    return seconds, table.drop(columns=[name for name in SPENT if name in table])


def compare(tiny: bool) -> list[dict[str, Any]]:
    """One dict for each study and way."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name in STUDIES:
            study = write_study(name, Path(place), tiny)
            done = {way: timed(study, way, Path(place) / f"{name} {way}") for way in WAYS}
            alone, table = done[WAYS[0]]
            for way, (seconds, other) in done.items():
                efficiency = None if way == WAYS[0] else alone / (2 * seconds)
                same = other.equals(table)
                found.append({"study": name, "way": way, "seconds": seconds, "efficiency": efficiency, "same": same})
    return found


def main() -> None:
    """Measure, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    tiny = yes("tiny", given.tiny)
    facts = machine.facts() | {"peak_flops_per_second": {"32-true": machine.peak("32-true", 2048)}}
    record.warn(facts)
    found = compare(tiny)
    rows = [
        [
            f"{one['study']}, {one['way']}",
            f"{one['seconds']:.0f}",
            "" if one["efficiency"] is None else f"{one['efficiency']:.2f}",
            "yes" if one["same"] else "NO",
        ]
        for one in found
    ]
    names = ["study", "s", "efficiency", "same table"]
    record.write("workers", record.folder(tiny), facts, {"found": found}, [("Workers", names, rows)], NOTES)


if __name__ == "__main__":
    with one_sentence():
        main()
