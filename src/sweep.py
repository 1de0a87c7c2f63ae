"""python -m src.sweep experiments/<study>.yaml ... [workers=2 | scheduler=tcp://host:8786] [shard=1/4] [runs=runs]

Runs what a study asks for and has not finished yet, or several studies one after the other, and says how long it took.
Stopped or killed, it goes on with the same command: a run that was begun goes on from its last epoch. Sweeps that share
the folder of the runs share the work.
  workers=2        that many runs at a time on this machine; without it one a GPU, or one
  scheduler=...    the workers of a Dask scheduler that is running instead, of any number of machines
  host=127.0.0.1   where this machine's own scheduler and its dashboard listen
  shard=1/4        every fourth run, from the first on: one of the four tasks of an array job
  runs=runs        where the run folders are; what a run prints is kept in its .sweep
  retries=1        how often a run that failed or whose worker died is tried again
"""

import re
import shlex
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic

from src.config.command_line import one_sentence
from src.config.options import AtLeast0, AtLeast1, Place, options
from src.errors import InputError
from src.sweeps import study as studies
from src.sweeps.study import Study, Trial


@dataclass
class Options:
    """What the command line takes besides the studies."""

    workers: AtLeast1 | None = None
    scheduler: str | None = None
    host: str = "127.0.0.1"
    shard: str = "1/1"
    runs: Place = "runs"
    retries: AtLeast0 = 1


def plan(study: Study, runs: Path, shard: str) -> dict[str, Trial]:
    """The trials of a shard by the hash of their config; with bayes, those so far. Raises InputError for a study of
    which one cannot be run."""
    part = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if not part or int(part[1]) > int(part[2]):
        raise InputError(f"shard={shard} is unknown: use 1/4, 2/4, 3/4 and 4/4 for four tasks")
    trials, done = studies.trials(study, runs), studies.finished(runs)
    if study.method == "bayes":
        from src.sweeps import bayes

        bayes.choose(study, [], [])
        studies.check([studies.trial(study, values) for values in studies.draws(study)], done)
    return studies.check(trials[int(part[1]) - 1 :: int(part[2])], done)


def sweep(study: Study, planned: dict[str, Trial], given: Options) -> dict[str, str]:
    """Let workers do the trials, and show what ends. Returns label -> why, of those that were given up."""
    runs = Path(given.runs)
    done = studies.finished(runs).keys() & planned.keys()
    total = (study.run_cap or 0) if study.method == "bayes" else len(planned)
    print(f"{study.name}: {total} runs, {len(done)} have finished", flush=True)
    if len(done) == total:
        return {}
    from src.sweeps import bayes
    from src.sweeps.engine import Board, Engine, connect, dashboard, local_workers

    workers = given.workers or (1 if study.method == "bayes" else None)
    failed: dict[str, str] = {}
    with connect(given.scheduler) if given.scheduler else local_workers(workers, given.host) as client:
        print(f"Dask's dashboard: {dashboard(client)}; logs in {runs / '.sweep'}", flush=True)
        board = Board(study.name, total, len(done))
        with closing(board.bar):
            engine = Engine(client, runs, given.retries, board)
            for trials in bayes.rounds(study, runs) if study.method == "bayes" else [planned]:
                why = engine.run({key: trial for key, trial in trials.items() if key not in done})
                failed |= {trials[key].label: sentence for key, sentence in why.items()}
    return failed


def missing(study: Study, planned: dict[str, Trial], runs: Path) -> list[str]:
    """The runs that have not finished, by label."""
    done = studies.finished(runs)
    if study.method == "bayes":
        planned = studies.check(studies.trials(study, runs), done)
    return [trial.label for key, trial in planned.items() if key not in done]


def main() -> None:
    """Sweep the studies that are named, after all of them have been checked."""
    named = [argument for argument in sys.argv[1:] if "=" not in argument and argument not in ("-h", "--help")]
    given = options(Options, [argument for argument in sys.argv[1:] if argument not in named], __doc__ or "")
    if not named:
        raise InputError(f"give a study, as experiments/<study>.yaml\n{__doc__}")
    began, runs = monotonic(), Path(given.runs)
    planned = []
    for path in dict.fromkeys(named):
        planned.append(checked(path, runs, given))
        if len(named) > 1:  # all of the project's take more than a minute
            print(f"checked {path}: {len(planned[-1][1])} runs", flush=True)
    failed: dict[tuple[str, str], str] = {}
    try:
        for study, trials in planned:
            failed |= {(study.name, label): why for label, why in sweep(study, trials, given).items()}
    except (KeyboardInterrupt, SystemExit):  # the workers have been closed on the way
        lacking = {study.name: missing(study, trials, runs) for study, trials in planned}
        counts = ", ".join(f"{name} {len(labels)}" for name, labels in lacking.items() if labels)
        which = counts if len(planned) > 1 else "; ".join(lacking[planned[0][0].name])
        print(f"\nstopped; {sum(map(len, lacking.values()))} runs are missing: {which}", file=sys.stderr)
        print(f"go on with python -m src.sweep {shlex.join(sys.argv[1:])}", file=sys.stderr)
        raise
    took = timedelta(seconds=round(monotonic() - began))
    # what failed here may have been done by another sweep since
    if left := [(study.name, label) for study, trials in planned for label in missing(study, trials, runs)]:
        for name, label in left:
            study_too = "" if len(planned) == 1 else f"{name}: "
            print(f"missing: {study_too}{label}: {failed.get((name, label), 'it has no result')}", file=sys.stderr)
        sys.exit(1)
    where = [] if given.runs == "runs" else [f"runs={given.runs}"]
    print(f"all have finished in {took}: {shlex.join(['python', '-m', 'src.report', *named, *where])}")


def checked(path: str, runs: Path, given: Options) -> tuple[Study, dict[str, Trial]]:
    """A study and its trials. Raises InputError if one of them cannot be run."""
    study = studies.read(path)
    check_options(given, study)
    return study, plan(study, runs, given.shard)


def check_options(given: Options, study: Study) -> None:
    """Raises InputError for options that cannot be, or not beside each other."""
    if given.scheduler and given.workers:
        raise InputError("workers= are of this machine, those of scheduler= are started by themselves: leave one out")
    if given.scheduler and not re.match(r"(tcp|tls)://.+:\d+$", given.scheduler):
        raise InputError(f"scheduler={given.scheduler} is no address: give tcp://<host>:<port>")
    if study.method == "bayes" and (given.workers not in (None, 1) or given.shard != "1/1"):
        raise InputError("method: bayes learns from each run for the next: leave workers= and shard= out")


if __name__ == "__main__":
    with one_sentence():
        main()
