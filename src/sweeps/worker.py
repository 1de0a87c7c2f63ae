"""A worker of a sweep: a process that takes runs which nobody has done and nobody is doing, until none is left.

Runs share the process and so its imports; their train() is src.train's own. Weights and tokens are read anew each time:
of GPT mini that takes 0.2 s, of the UCI collection 0.3 s (2 CPU cores, 2026-11).
"""

import os
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from time import sleep
from typing import NamedTuple

from src.config.command_line import one_sentence
from src.errors import InputError
from src.runs import run_dir
from src.sweeps import study
from src.sweeps.claims import Claim, Claims
from src.sweeps.study import Point, Study

PAUSE = 1.0  # seconds between two looks at what others do


class Job(NamedTuple):
    """A run to be done: the hash of its config, its name for people, and where it stands in the study."""

    key: str
    label: str
    point: Point


class Given(NamedTuple):
    """What a sweep was told: where the run folders are, runs at a time, second tries of a run."""

    runs: Path
    workers: int
    retries: int

    def claims(self) -> Claims:
        """Who does what among these run folders."""
        return Claims(self.runs / ".claims")


def work(jobs: Sequence[Job], claims: Claims, given: Given) -> None:
    """Do the jobs with all others who do them, until each has a result, or a sentence why it has none."""
    while waiting := unsettled(jobs, claims, given.runs):
        taken = next(((job, claim) for job in waiting if (claim := claims.take(job.key))), None)
        if taken is None:
            sleep(PAUSE)  # others are at the rest; what they drop is ours
            continue
        job, claim = taken
        if unsettled([job], claims, given.runs):  # it may have ended between the two looks
            with claim.alive():
                attempt(job, claim, given)
        claim.release()


def unsettled(jobs: Sequence[Job], claims: Claims, runs: Path) -> list[Job]:
    """The jobs that have neither finished nor failed."""
    settled = study.finished(runs).keys() | claims.failures().keys()
    return [job for job in jobs if job.key not in settled]


def attempt(job: Job, claim: Claim, given: Given) -> None:
    """Do a job, again if it fails, and keep the last failure for all to see."""
    print(f"---- {job.label}: {' '.join(job.point.overrides)}", flush=True)
    sentence = ""
    for _ in range(given.retries + 1):
        try:
            return run(job, claim, given.runs)
        except InputError as error:  # a second try would come to the same
            sentence = str(error)
            print(f"error: {sentence}", flush=True)
            break
        except Exception as error:  # whatever it is, the other runs go on
            traceback.print_exc()
            sentence = " ".join(traceback.format_exception_only(error)[-1].split())
    claim.claims.fail(job.key, sentence)


def run(job: Job, claim: Claim, runs: Path) -> None:
    """Train in the folder that was begun under the claim, on from its last epoch, or else in a new one."""
    from src.train import train

    cfg = study.config(job.point)
    cfg.runs = str(runs)
    folder = begun(job, claim, runs)
    if folder is None:
        folder = run_dir.create(cfg)
        claim.begin(folder.name)
    cfg.resume = folder.name
    try:
        made = train(cfg).result["config_hash"]
    except Exception:
        if not (folder / "checkpoints").is_dir():  # nothing to go on from, nothing to look at
            shutil.rmtree(folder)
        raise
    if made != job.key:
        raise RuntimeError(f"{folder} is a run of another config, {made}: its config.yaml was changed meanwhile")


def begun(job: Job, claim: Claim, runs: Path) -> Path | None:
    """The unfinished run folder of the job, left by a try that failed or by a process that died."""
    folder = runs / (claim.run or "-")
    if not (folder / "config.yaml").is_file() or run_dir.config_hash(run_dir.load_config(folder)) != job.key:
        return None
    return folder


def rounds(asked: Study, jobs: Sequence[Job], runs: Path) -> Iterator[Sequence[Job]]:
    """Jobs that are known together: all of them, or with bayes one after the other."""
    if asked.method != "bayes":
        yield jobs
        return
    from src.sweeps import bayes

    for values in bayes.rounds(asked, runs):
        yield [job_of(study.point(asked, values))]


def job_of(point: Point) -> Job:
    """The job of a point."""
    return Job(_key(point.overrides), label(point), point)


@cache
def _key(overrides: tuple[str, ...]) -> str:
    return run_dir.config_hash(study.config(Point({}, overrides)))


def label(point: Point) -> str:
    """What varies in a point, for people."""
    return " ".join(f"{key.lstrip('+')}={value}" for key, value in point.values.items()) or "the run"


def start(asked: Study, jobs: Sequence[Job], given: Given, log: Path) -> None:
    """What a worker's process does. All that it prints goes to `log`."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8")
    for standard in (1, 2):  # what is no Python prints too
        os.dup2(sys.stdout.fileno(), standard)
    if given.workers > 1:  # before torch is imported: more threads than cores only wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // given.workers)))
    with one_sentence():
        for round in rounds(asked, jobs, given.runs):
            work(round, given.claims(), given)


def end_with_parent() -> None:
    """A killed sweep leaves no worker behind."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
