"""Trials -> finished run folders, by Dask workers: this machine's own, or those of a scheduler that is running.

Dask starts workers, carries trials to them and tells which are gone. What has been done stands in the run folders
alone, so that a client, a scheduler or a worker may die at any moment: the same command goes on from what is there.
"""

import logging
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import dask
from distributed import Client, Future, KilledWorker, Nanny, Scheduler, SpecCluster, wait
from tqdm import tqdm

from src.errors import InputError
from src.runs.lock import RunLockedError
from src.sweeps.do_trial import do
from src.sweeps.study import Trial

LOOK = 0.5  # seconds between two looks at which workers there are
ANSWER = 10  # seconds in which a scheduler must answer
PAUSE = 5.0  # seconds until a run that another sweep is at is looked at again
QUIET = logging.CRITICAL  # what Dask says of workers that die is said here in a line
ENDED = ("finished", "error")
DIED = "its worker died (killed, often for want of memory)"
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # Ctrl-C is the sweep's to answer
LOCAL = {
    "distributed.worker.daemon": False,  # else a DataLoader could have no workers of its own
    "distributed.worker.profile.enabled": False,  # a hundred looks a second at what a run is doing
    "distributed.nanny.pre-spawn-environ": {},  # it would set the number of threads to 1, and give memory back early
}


def sees(runs: str, token: str) -> bool:
    """Whether a worker sees the folder of the run folders: what the sweep has just written there."""
    return (Path(runs) / ".sweep" / token).is_file()


@contextmanager
def local_workers(n: int | None, host: str) -> Iterator[Client]:
    """Workers of this machine: one a GPU, or `n` processes with their share of the threads."""
    from torch.cuda import device_count

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible and device_count() else [str(i) for i in range(device_count())]
    n = n or len(gpus) or 1
    env = {}
    if n > 1 and "OMP_NUM_THREADS" not in os.environ:  # more threads than cores only wait for each other
        env["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // n))
    options = {"host": host, "nthreads": 1, "memory_limit": 0, "preload": [DEAF], "silence_logs": QUIET}
    # a lone worker sees all: a run on several devices needs them
    gpu = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus and n > 1 else {} for i in range(n)]
    workers = {i: {"cls": Nanny, "options": options | {"dashboard": False, "env": env | gpu[i]}} for i in range(n)}
    scheduler = {"cls": Scheduler, "options": {"host": host, "port": 0, "dashboard_address": f"{host}:8787"}}
    with dask.config.set(LOCAL), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Port 8787 is already in use")  # of another sweep: the address is shown
        with SpecCluster(workers, scheduler, silence_logs=QUIET) as cluster, Client(cluster) as client:
            yield client


def connect(address: str) -> Client:
    """A client of a scheduler that is running, with its workers. Raises InputError where it does not answer."""
    for name in ("distributed", "distributed.client", "asyncio"):  # each has a level of its own
        logging.getLogger(name).setLevel(QUIET)
    try:
        return Client(address, timeout=ANSWER)
    except (OSError, ValueError) as error:
        raise InputError(f"scheduler={address} does not answer: {error}") from None


def dashboard(client: Client) -> str:
    """The address of Dask's own pages: plots where bokeh is installed, else tables."""
    status = str(client.dashboard_link)
    return status if find_spec("bokeh") else status.removesuffix("status") + "info/main/workers.html"


class Engine:
    """Hands trials to the workers of a client, one at a time each, until every one is done or given up.

    A trial is tried again `retries` times where it fails or its worker dies.
    """

    def __init__(self, client: Client, runs: Path, retries: int, board: "Board") -> None:
        self.client, self.runs, self.retries, self.board = client, str(runs.resolve()), retries, board
        self.at_work: dict[str, tuple[str, Future[str]]] = {}  # worker -> key of its trial
        self.workers: dict[str, bool] = {}  # whether it sees the run folders
        self.tries = Counter[str]()
        self.alone = False

    def run(self, trials: dict[str, Trial]) -> dict[str, str]:
        """Do trials. Returns why, of those that were given up."""
        self.trials, self.failed = trials, dict[str, str]()
        self.due = dict.fromkeys(trials, 0.0)  # when to hand it out
        while self.due or self.at_work:
            self._meet()
            for worker in [one for one, good in self.workers.items() if good and one not in self.at_work]:
                self._hand_out(worker)
            if futures := [future for _, future in self.at_work.values()]:
                with suppress(TimeoutError, CancelledError):  # cancelled where the scheduler is gone
                    wait(futures, timeout=LOOK, return_when="FIRST_COMPLETED")
            else:
                sleep(LOOK)
            for worker, (key, future) in list(self.at_work.items()):
                if future.status in ENDED:
                    del self.at_work[worker]
                    self._settle(key, future)
        return self.failed

    def _meet(self) -> None:
        """Get to know workers that came, and take back the trials of those that are gone."""
        try:
            present = set(self.client.nthreads())
            alive = self.client.status == "running"
        except (OSError, RuntimeError, TimeoutError):
            alive = False
        if not alive:
            raise InputError("Dask's scheduler is gone: start it again, and give the same command")
        for worker in self.workers.keys() - present:
            del self.workers[worker]
            if worker in self.at_work and self.at_work[worker][1].status not in ENDED:
                key, future = self.at_work.pop(worker)
                future.cancel()
                self._failed(key, DIED)
        if new := sorted(present - self.workers.keys()):
            self.workers |= self._check(new)
            if not any(self.workers.values()):
                raise InputError("none of the workers can be used: see above")
        if not present and not self.alone:
            self.board.say("no worker is there: start some with python -m dask worker <the scheduler's address>")
        self.alone = not present

    def _check(self, new: list[str]) -> dict[str, bool]:
        """Whether each worker sees the run folders; one that does not is named, and gets no trial."""
        token = Path(self.runs) / ".sweep" / uuid4().hex
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
        try:
            answers: dict[str, Any] = self.client.run(sees, self.runs, token.name, workers=new, on_error="return")
        finally:
            token.unlink()
        for worker, answer in answers.items():
            if isinstance(answer, Exception):
                self.board.say(f"{worker} cannot run this code ({answer}): start it in the project's folder")
            elif not answer:
                self.board.say(f"{worker} does not see {self.runs}: all machines need one shared folder, at one path")
        return {worker: answers.get(worker) is True for worker in new}

    def _hand_out(self, worker: str) -> None:
        key = next((key for key, due in self.due.items() if due <= monotonic()), None)
        if key is not None:
            del self.due[key]
            name = f"{self.trials[key].label}-{uuid4().hex}"  # never shared with another client: each has its own tries
            future = self.client.submit(do, key, self.trials[key], self.runs, key=name, workers=[worker])
            self.at_work[worker] = key, future

    def _settle(self, key: str, future: "Future[str]") -> None:
        error = future.exception()
        if error is None:
            self.board.ended(self.trials[key].label, future.result())
        elif isinstance(error, RunLockedError):
            self.due[key] = monotonic() + PAUSE  # whoever is at it may end or die
        elif isinstance(error, KilledWorker):
            self._failed(key, DIED)
        else:  # after an InputError a second try would come to the same
            why = error if isinstance(error, InputError) else traceback.format_exception_only(error)[-1]
            self._failed(key, " ".join(str(why).split()), for_good=isinstance(error, InputError))

    def _failed(self, key: str, why: str, for_good: bool = False) -> None:
        self.tries[key] += 1
        if not for_good and self.tries[key] <= self.retries:
            self.due[key] = 0.0
            return
        log = Path(self.runs) / ".sweep" / key[:16] / "log"
        self.failed[key] = why if for_good else f"{why}; tried {self.tries[key]} times, see {log}"
        self.board.ended(self.trials[key].label, f"failed, {self.failed[key]}")


class Board:
    """What standard error shows: a line for each run that ends, and in a terminal a bar with the time left."""

    def __init__(self, name: str, total: int, before: int) -> None:
        self.total, self.before, self.ends, self.started = total, before, before, monotonic()
        self.bar = tqdm(total=total, initial=before, desc=name, unit="run", smoothing=0, disable=None, file=sys.stderr)

    def say(self, line: str) -> None:
        """Show a line."""
        self.bar.write(line, file=sys.stderr)
        sys.stderr.flush()

    def ended(self, label: str, outcome: str) -> None:
        """Show that a run has ended, and how long the rest takes if it goes on like this."""
        self.ends += 1
        rest = (self.total - self.ends) * (monotonic() - self.started) / (self.ends - self.before)
        left = f"; about {tqdm.format_interval(rest)} left" if self.ends < self.total and self.bar.disable else ""
        self.say(f"[{self.ends}/{self.total}] {label}: {outcome}{left}")
        self.bar.update()
