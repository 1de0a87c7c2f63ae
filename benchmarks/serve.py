"""python -m benchmarks.serve run=<id> [messages=2048] [runs=runs]

Messages a second of src.serve, in a process of its own: in lists of 256 from one client, and one at a time from 1 and
from 16 clients; beside src.predict's on the same messages. The run is a finished one of `runs`, whose training messages
are sent; those that it would cut are left out.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import Any
from unittest.mock import patch

from benchmarks import machine, process, record
from src.config.command_line import one_sentence, options, whole

LIST = 256
NOTES = """\
- Models are loaded, and each job has run once, before the clock starts. predict is src.predict.predict_texts as it
  stands, given the loaded model; the others send JSON to src.serve over loopback and read the answers.
- CPU of the machine is what all its processes used meanwhile: these, and any others.
"""


@dataclass
class Options:
    """What the command line takes."""

    run: str
    messages: str = "2048"
    runs: str = "runs"


@contextmanager
def server(given: Options) -> Iterator[str]:
    """The address of src.serve, while it runs."""
    command = [sys.executable, "-m", "src.serve", f"run={given.run}", f"runs={given.runs}", "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=process.ROOT) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().split()[0]
        finally:
            child.terminate()


def ask(address: str, text: str | list[str]) -> Any:
    """The answer of POST /predict."""
    body, kind = json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/predict", body, kind)) as answer:
        return json.load(answer)


def by_clients(address: str, texts: list[str], n: int) -> None:
    """One message a request, from n clients."""
    with ThreadPoolExecutor(n) as clients:
        list(clients.map(lambda text: ask(address, text), texts))


def timed(job: str, work: Callable[[list[str]], object], texts: list[str]) -> dict[str, Any]:
    """Do some, then all of it by the clock."""
    work(texts[:LIST])
    started, busy = perf_counter(), process.cpu_seconds()
    work(texts)
    seconds = perf_counter() - started
    rate = len(texts) / seconds
    print(f"{job}: {rate:.1f} messages/s", flush=True)
    return {"job": job, "messages_per_second": rate, "cpu_seconds": process.cpu_seconds() - busy, "seconds": seconds}


def compare(given: Options) -> list[dict[str, Any]]:
    """One dict for each job."""
    from src.config import build
    from src.exporting.finished_run import FinishedRun
    from src.predict import predict_texts
    from src.serving.predictor import Predictor

    finished = FinishedRun.load(given.runs, given.run, merged=False)
    limit, n = Predictor(finished).limit, whole("messages", given.messages, 1)
    data = build.data(finished.cfg)
    rows = zip(data.texts("train"), data.ids["train"], strict=True)
    texts = list(islice(cycle([text for text, ids in rows if len(ids) <= limit]), n))
    lists = [texts[start : start + LIST] for start in range(0, n, LIST)]
    with patch("src.config.build.restore", lambda folder: finished.model):
        jobs = [timed("predict", lambda some: list(predict_texts(given.run, some, given.runs)), texts)]
    with server(given) as address:
        jobs.append(timed("lists of 256", lambda _: [ask(address, one) for one in lists], texts))
        jobs.append(timed("single messages, 1 client", lambda some: by_clients(address, some, 1), texts))
        jobs.append(timed("single messages, 16 clients", lambda some: by_clients(address, some, 16), texts))
    return jobs


def main() -> None:
    """Measure, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    facts = machine.facts() | {"peak_flops_per_second": {"32-true": machine.peak("32-true", 2048)}}
    record.warn(facts)
    jobs = compare(given)
    names = ["job", "messages/s", "of predict's", "s", "CPU of the machine, s"]
    rows = [
        [
            job["job"],
            f"{job['messages_per_second']:.1f}",
            f"{job['messages_per_second'] / jobs[0]['messages_per_second']:.0%}",
            f"{job['seconds']:.1f}",
            f"{job['cpu_seconds']:.1f}",
        ]
        for job in jobs
    ]
    record.write("serve", record.RESULTS, facts, {"jobs": jobs}, [("Serving", names, rows)], NOTES)


if __name__ == "__main__":
    with one_sentence():
        main()
