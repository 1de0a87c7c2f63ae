"""python -m src.sweep experiments/<study>.yaml [workers=2] [shard=1/4] [runs=runs] [retries=1]

Runs what a study asks for and has not finished yet. Stopped or killed, it goes on with the same command: a run that was
begun goes on from its last epoch. Machines that share the folder of the runs share the work.
  workers=2   that many runs at a time
  shard=1/4   every fourth run, from the first on: one of the four tasks of an array job
  runs=runs   where the run folders are; what the workers print is kept in its .sweep
  retries=1   how often a run that failed or was killed is tried again
"""

import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from socket import gethostname
from time import sleep

from src.config.command_line import one_sentence, options, whole
from src.errors import InputError
from src.runs import run_dir
from src.sweeps import study
from src.sweeps.board import Board
from src.sweeps.claims import LOST, Claims
from src.sweeps.study import Study
from src.sweeps.worker import Given, Job, job_of, label, start

LOOK = 0.5  # seconds between two looks at what has ended


@dataclass
class Options:
    """What the command line takes besides the study."""

    workers: str = "1"
    shard: str = "1/1"
    runs: str = "runs"
    retries: str = "1"


class Pool:
    """The workers of this process. One that dies is replaced; the run that it had is given up after some deaths."""

    def __init__(self, asked: Study, jobs: Sequence[Job], given: Given) -> None:
        self.asked, self.jobs, self.given, self.claims = asked, jobs, given, given.claims()
        self.deaths = Counter[str | None]()
        self.processes = [self._start(i) for i in range(given.workers)]

    def _log(self, i: int) -> Path:
        return self.given.runs / ".sweep" / f"{self.asked.name}-{gethostname()}-{i + 1}.log"

    def _start(self, i: int) -> SpawnProcess:
        process = get_context("spawn").Process(target=start, args=(self.asked, self.jobs, self.given, self._log(i)))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is the sweep's to answer
        process.start()
        signal.signal(signal.SIGINT, before)
        return process

    def at_work(self) -> bool:
        """Whether a worker still has something to do."""
        for i, process in enumerate(self.processes):
            if process.exitcode:
                if process.exitcode != LOST:
                    self._bury(process, self._log(i))
                self.processes[i] = self._start(i)
        return any(process.exitcode is None for process in self.processes)

    def _bury(self, process: SpawnProcess, log: Path) -> None:
        key = self.claims.held_by(process.pid or 0)
        self.deaths[key] += 1
        if self.deaths[key] <= self.given.retries:
            return
        how = f"ended with exit code {process.exitcode} (-9: killed, often for want of memory): see {log}"
        if key is None:
            raise InputError(f"a worker {how}")
        self.claims.fail(key, f"its worker {how}")

    def stop(self) -> None:
        """End the workers now; what they were at can be gone on with."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(10)
            process.kill()
            process.join()


class Watch:
    """Tells the board what has ended, whoever did it."""

    def __init__(self, asked: Study, jobs: Sequence[Job], given: Given, claims: Claims) -> None:
        self.asked, self.jobs, self.given, self.claims = asked, jobs, given, claims
        self.total = (asked.run_cap or 0) if asked.method == "bayes" else len(jobs)
        self.shown = {job.key for job in jobs} & study.finished(given.runs).keys()
        self.failed: dict[str, str] = {}

    def look(self, board: Board) -> None:
        """Show what has ended since the last look."""
        if self.asked.method == "bayes":
            self.jobs = [job_of(point) for point in study.points(self.asked, self.given.runs)]
        finished, failures = study.finished(self.given.runs), self.claims.failures()
        for key, name, _ in self.jobs:
            if key in self.shown:
                continue
            if key in finished:
                board.finished(name, run_dir.load_result(finished[key]))
            elif key in failures:
                board.failed(name, failures[key])
                self.failed[key] = f"{name}: {failures[key]}"
            self.shown |= {key} & (finished.keys() | failures.keys())


def sweep(asked: Study, jobs: Sequence[Job], given: Given) -> list[str]:
    """Let workers do the jobs, and show what ends. Returns what failed and why, a line each."""
    claims = given.claims()
    for job in jobs:
        claims.forget_failure(job.key)
    watch = Watch(asked, jobs, given, claims)
    logs = given.runs / ".sweep"
    print(f"{asked.name}: {watch.total} runs, {len(watch.shown)} have finished; logs in {logs}", flush=True)
    if len(watch.shown) == watch.total:
        return []
    logs.mkdir(exist_ok=True)
    pool = Pool(asked, jobs, given)
    try:
        with Board(asked.name, watch.total, len(watch.shown)) as board:
            while pool.at_work():
                watch.look(board)
                sleep(LOOK)
            watch.look(board)
    finally:
        pool.stop()
    # what failed here may have been done by another sweep since
    return [line for key, line in watch.failed.items() if key not in study.finished(given.runs)]


def plan(asked: Study, runs: Path, shard: str) -> list[Job]:
    """The jobs of a shard, each config once. Raises InputError for a study of which a run is bound to fail."""
    from src.sweeps.rehearsal import rehearse

    part = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if not part or int(part[1]) > int(part[2]):
        raise InputError(f"shard={shard} is unknown: use 1/4, 2/4, 3/4 and 4/4 for four tasks")
    finished = study.finished(runs).keys()
    if asked.method == "bayes":
        from src.sweeps import bayes

        bayes.choose(asked, [], [])
        rehearse(asked, [study.point(asked, values) for values in study.draws(asked)], finished)
        return [job_of(point) for point in study.points(asked, runs)]
    points = study.points(asked)[int(part[1]) - 1 :: int(part[2])]
    jobs: dict[str, Job] = {}
    for point, cfg in zip(points, rehearse(asked, points, finished), strict=True):
        jobs.setdefault(key := run_dir.config_hash(cfg), Job(key, label(point), point))
    return list(jobs.values())


def main() -> None:
    """Sweep the study that is named."""
    named = [argument for argument in sys.argv[1:] if "=" not in argument and argument not in ("-h", "--help")]
    words = options(Options, [argument for argument in sys.argv[1:] if argument not in named], __doc__ or "")
    if len(named) != 1:
        raise InputError(f"give one study, as experiments/<study>.yaml\n{__doc__}")
    given = Given(Path(words.runs), whole("workers", words.workers, 1), whole("retries", words.retries, 0))
    asked = study.read(named[0])
    if asked.method == "bayes" and (given.workers, words.shard) != (1, "1/1"):
        raise InputError("method: bayes learns from each run for the next: leave workers= and shard= out")
    try:
        failed = sweep(asked, plan(asked, given.runs, words.shard), given)
    except KeyboardInterrupt:
        print(f"\nstopped; go on with python -m src.sweep {shlex.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(130)
    if failed:
        print(*(f"failed: {line}" for line in failed), sep="\n", file=sys.stderr)
        sys.exit(1)
    where = [] if words.runs == "runs" else [f"runs={words.runs}"]
    print(f"all have finished: {shlex.join(['python', '-m', 'src.report', named[0], *where])}")


if __name__ == "__main__":
    with one_sentence():
        main()
