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

from benchmarks import machine, process, record
from src.config.command_line import one_sentence
from src.config.options import AtLeast1, options

LIST = 256
NOTES = """\
- Models are loaded, and each job has run once, before the clock starts. predict is what src.predict does with a batch
  of 256 messages; the others send JSON to src.serve over loopback and read the answers. The jobs take turns, 256
  messages each, so that whatever else the machine does falls to all of them.
- CPU of the machine is what all its processes used meanwhile: these, and any others.
"""


@dataclass
class Options:
    """What the command line takes."""

    run: str
    messages: AtLeast1 = 2048
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


def in_turn(works: dict[str, Callable[[list[str]], object]], texts: list[str]) -> list[dict[str, Any]]:
    """Each job does a list of texts to warm up, then all of them by the clock, a list after the other, in turn with the
    other jobs: a processor that slows down does so for all of them."""
    seconds, busy = dict.fromkeys(works, 0.0), dict.fromkeys(works, 0.0)
    for number, some in enumerate([texts[:LIST], *lists(texts)]):
        for job, work in works.items():
            started, cpu = perf_counter(), process.cpu_seconds()
            work(some)
            if number:
                seconds[job] += perf_counter() - started
                busy[job] += process.cpu_seconds() - cpu
    return [
        {"job": job, "messages_per_second": len(texts) / spent, "cpu_seconds": busy[job], "seconds": spent}
        for job, spent in seconds.items()
    ]


def lists(texts: list[str]) -> list[list[str]]:
    """As long as a request may be."""
    return [texts[start : start + LIST] for start in range(0, len(texts), LIST)]


def compare(given: Options) -> list[dict[str, Any]]:
    """One dict for each job."""
    from src.config import build
    from src.predict import load

    predictor = load(given.run, given.runs)
    data, _ = build.data_and_task(predictor.run.cfg)
    rows = zip(data.texts("train"), data.ids["train"], strict=True)
    whole_ones = [text for text, ids in rows if len(ids) <= predictor.limit]
    texts = list(islice(cycle(whole_ones), given.messages))
    with server(given) as address:
        works: dict[str, Callable[[list[str]], object]] = {
            "predict": predictor.answers,
            "lists of 256": lambda some: ask(address, some),
            "single messages, 1 client": lambda some: by_clients(address, some, 1),
            "single messages, 16 clients": lambda some: by_clients(address, some, 16),
        }
        return in_turn(works, texts)


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
