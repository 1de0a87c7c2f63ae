"""One thread that computes for all requests: those that wait are answered together, as one batch."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

MOST = 512  # items that are computed together


class Job(NamedTuple):
    """Items for a function that gives as many results; `alone`: others' items beside them would change these."""

    function: Callable[[list[Any]], list[Any]]
    items: list[Any]
    alone: bool
    result: "Future[list[Any]]"


class Worker:
    """Works from `start` to `stop`; PyTorch's own threads then serve one caller, and no two batches compete."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def ask(
        self, function: Callable[[list[Any]], list[Any]], items: list[Any], alone: bool = False
    ) -> "Future[list[Any]]":
        """function(items), in time."""
        job = Job(function, items, alone, Future())
        self._waiting.put(job)
        return job.result

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            for jobs in together(self._with_those_behind(first)):
                answer(jobs)

    def _with_those_behind(self, first: Job) -> list[Job]:
        jobs, n = [first], len(first.items)
        while n < MOST:
            try:
                job = self._waiting.get_nowait()
            except Empty:
                break
            if job is None:
                self._waiting.put(None)
                break
            jobs.append(job)
            n += len(job.items)
        return jobs


def together(jobs: list[Job]) -> list[list[Job]]:
    """Jobs in the groups that are computed at once: those for one function, but for those that stay alone."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.result if job.alone else job.function, []).append(job)
    return list(groups.values())


def answer(jobs: list[Job]) -> None:
    """Give each job of a group its part of the results, or what went wrong."""
    jobs = [job for job in jobs if job.result.set_running_or_notify_cancel()]
    if not jobs:
        return
    try:
        results = jobs[0].function([item for job in jobs for item in job.items])
    except Exception as error:  # whatever it is, those who wait are told, and the next are answered
        for job in jobs:
            job.result.set_exception(error)
        return
    start = 0
    for job in jobs:
        job.result.set_result(results[start : start + len(job.items)])
        start += len(job.items)
