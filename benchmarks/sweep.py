"""python -m benchmarks.sweep [runs=200] [workers=2] [folder=<an empty folder>]

What a sweep costs beside its runs: so many runs of a tiny GPT, by the engine of src.sweep and by the same function in a
plain loop in as many processes, one thread each, in turns of 20 runs. The start of the workers, and a first run in
each, are left out.
"""

import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from src.config.command_line import one_sentence
from src.config.options import AtLeast1, options
from src.sweeps import study
from src.sweeps.study_file import Study

BLOCK = 20  # runs of one way, then of the other: what else happens on the machine meets both
SETTINGS = (
    "gpt.n_layer=1 gpt.n_head=1 gpt.n_embd=8 gpt.context_length=64 gpt.weights=random trainer.max_epochs=1 "
    "trainer.accelerator=cpu task.trainable=last_layer data.fraction=0.05 data.max_length=16 logger=none cache=off"
)


@dataclass
class Options:
    """What the command line takes."""

    runs: AtLeast1 = 200
    workers: AtLeast1 = 2
    folder: str = ""


def trials(seeds: range) -> dict[str, study.Trial]:
    """A tiny run of each seed."""
    command = ["src.train", *SETTINGS.split(), "${args_no_hyphens}"]
    given = {"name": "tiny", "method": "grid", "command": command, "parameters": {"seed": {"values": list(seeds)}}}
    return study.check(study.trials(Study.model_validate(given)))


def main() -> None:
    """Time both."""
    from src.sweeps.do_trial import do
    from src.sweeps.engine import Board, Engine, local_workers

    given = options(Options, sys.argv[1:], __doc__ or "")
    runs, workers = given.runs, given.workers
    folder = Path(given.folder or tempfile.mkdtemp())
    os.environ["OMP_NUM_THREADS"] = "1"
    first, rest = trials(range(workers)), trials(range(workers, workers + runs))

    loop = swept = 0.0
    with (
        multiprocessing.get_context("spawn").Pool(workers) as pool,
        local_workers(workers, "127.0.0.1") as client,
    ):
        engine = Engine(client, folder / "sweep", 0, Board("tiny", workers + runs, 0))

        def by_loop(trials: dict[str, study.Trial]) -> None:
            pool.starmap(do, [(key, trial, str(folder / "loop")) for key, trial in trials.items()], chunksize=1)

        by_loop(first)
        engine.run(first)
        failed, keys = dict[str, str](), list(rest)
        for at in range(0, runs, BLOCK):
            block = {key: rest[key] for key in keys[at : at + BLOCK]}
            started = perf_counter()
            by_loop(block)
            middle = perf_counter()
            failed |= engine.run(block)
            loop, swept = loop + middle - started, swept + perf_counter() - middle
    print(f"{runs} runs, {workers} workers, {len(failed)} failed: plain loop {loop:.1f} s, sweep {swept:.1f} s")


if __name__ == "__main__":
    with one_sentence():
        main()
