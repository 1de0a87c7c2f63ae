"""python -m benchmarks.job [rows=1,16] [precision=32-true,bf16-mixed] [epochs=5] [gpt=small] [spam=<UCI file>]
python -m benchmarks.job tiny=true      a smoke run: two small blocks, 63 training messages, one epoch

A whole fine-tuning job, from the start of the process to its exit, beside the same job written with transformers. In
turn, never two at once: our job of each row with an empty feature cache, the same again with the cache that it left,
and the peer (benchmarks/peer.py). Both start from one folder of random weights, seed 123. Without spam= and SMS_SPAM,
the UCI collection is downloaded once.

Row 1 pads to the longest training message and reads the last position, row 16 reads the last token that is no padding.
Trainer's model does what row 16 does; row 1 is held against that same run, which computes less than row 1 asks for.
"""

import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import ours, process, record
from benchmarks.setting import EXPERIMENTS, Setting, yes
from src.config.command_line import one_sentence
from src.config.options import AtLeast1, options
from src.errors import InputError

PEER_ROW = "16"  # whose work transformers' classifier does
SECONDS = {"cpu": "CPU", "others_cpu": "others' CPU", "setup": "set-up", "features": "features"}
SECONDS |= {"train": "training", "evaluate": "evaluation"}

NOTES = """\
- Wall seconds are those of the whole process, imports included; set-up, features, training and evaluation are what each
  job says of itself. CPU is what its threads used, others' CPU what everything else on the machine used meanwhile:
  where that is not near 0, the row says nothing.
- peer / this: seconds of transformers in that precision, over seconds of this job, both of this run.
- Row 16 and transformers read the last token that is no padding. transformers has no row 1: that row is held against
  the same run, which computes less than the row asks for.
- Equal on both sides: weights (random, seed 123), messages, split, token ids, batch size 8, learning rate 5e-5
  (constant), weight decay 0.1, epochs, an evaluation after every epoch and one of every split at the end, dropout 0, no
  clipping. transformers pads each batch to its longest message, decays no biases and norms, has a score layer without
  bias, keeps no checkpoint and measures its last epoch; ours keeps two checkpoints and measures the best epoch.
- The floor is what cannot be done without when each piece of work is done once (benchmarks/floor.py), at the measured
  peak of a matrix product in that precision: the frozen blocks once for every message
  (no linear layer twice for what those of a split begin with alike), the live block and the head
  forward and backward in every epoch, forward in every evaluation. Where features are read from the cache, theirs is
  not counted. Imports, data, optimizer and everything that is no matrix product are in the time, not in the floor.
- Peak memory is the resident memory of the process at its highest, pages of mapped files included.
"""


@dataclass
class Options:
    """What the command line takes."""

    rows: str = "1,16"
    precision: str = "32-true,bf16-mixed"
    epochs: AtLeast1 = 5
    gpt: str = "small"
    spam: str = os.environ.get("SMS_SPAM", "")
    tiny: str = "false"


def compare(given: Options, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine, and one dict a job, in the order in which they ran."""
    tiny, rows = yes("tiny", given.tiny), given.rows.split(",")
    if unknown := sorted(set(rows) - set(EXPERIMENTS)):
        raise InputError(f"rows={unknown[0]} is unknown: use {', '.join(EXPERIMENTS)}")
    machine = process.ask("benchmarks.machine", [f"precision={given.precision}", f"size={512 if tiny else 2048}"])
    record.warn(machine)
    base = Setting(given.gpt, folder / "weights", given.spam, "32-true", 1 if tiny else given.epochs, tiny)
    process.ask("benchmarks.weights", [f"folder={base.weights}", f"gpt={given.gpt}", f"tiny={given.tiny}"])
    floors = {row: process.ask("benchmarks.floor", base.ours(EXPERIMENTS[row])) for row in {*rows, PEER_ROW}}
    process.measured("benchmarks.warm", [], folder / "warm.log")
    jobs = []
    for precision in given.precision.split(","):
        setting = replace(base, precision=precision)
        for row in rows:
            jobs += our_jobs(setting, row, floors[row], folder / f"{precision}-row-{row}")
        jobs.append(peer_job(setting, floors[PEER_ROW], folder / f"{precision}-peer.log"))
    return machine, jobs


def our_jobs(setting: Setting, row: str, floor: dict[str, int], folder: Path) -> list[dict[str, Any]]:
    """Our job of a row, twice: with an empty cache, and with the one that the first left."""
    jobs = []
    for state in ("cold", "warm"):
        job: dict[str, Any] = {"row": row, "precision": setting.precision, "job": f"ours, {state} cache"}
        job |= ours.run(setting.ours(EXPERIMENTS[row]), folder / state, folder / "cache")
        if (state == "warm") != bool(job["features_reused"]):
            raise InputError(f"row {row}, {state} cache: features of {job['features_reused']} were read from it")
        job["flops"] = floor["train"] + floor["evaluate"] + (floor["features"] if state == "cold" else 0)
        jobs.append(say(job))
    return jobs


def peer_job(setting: Setting, floor: dict[str, int], log: Path) -> dict[str, Any]:
    """The peer's job."""
    job: dict[str, Any] = {"row": PEER_ROW, "precision": setting.precision, "job": "transformers"}
    job |= process.measured("benchmarks.peer", setting.peer(), log)._asdict() | process.last_json(log)
    return say(job | {"flops": sum(floor.values())})


def say(job: dict[str, Any]) -> dict[str, Any]:
    """Print that a job ended, and give it back."""
    print(f"row {job['row']}, {job['precision']}, {job['job']}: {job['wall_seconds']:.1f} s", flush=True)
    return job


def add_ratios(machine: dict[str, Any], jobs: list[dict[str, Any]]) -> None:
    """To each job: its floor in seconds, the share of it that was reached, and the peer's seconds over its own."""
    peer = {job["precision"]: job["wall_seconds"] for job in jobs if job["job"] == "transformers"}
    for job in jobs:
        job["floor_seconds"] = job["flops"] / machine["peak_flops_per_second"][job["precision"]]
        job["share_of_floor"] = job["floor_seconds"] / job["wall_seconds"]
        job["peer_over_this"] = peer[job["precision"]] / job["wall_seconds"]


def time_table(jobs: list[dict[str, Any]]) -> record.Table:
    """Seconds, all of them, ratio and floor of each job."""
    names = ["row", "precision", "job", "wall s", "peer / this", *SECONDS.values()]
    names += ["needed TFLOP", "floor s", "share of floor"]
    rows = []
    for job in jobs:
        row = [job["row"], job["precision"], job["job"], f"{job['wall_seconds']:.1f}", f"{job['peer_over_this']:.1f}"]
        row += [f"{job[f'{name}_seconds']:.1f}" if f"{name}_seconds" in job else "" for name in SECONDS]
        row += [f"{job['flops'] / 1e12:.2f}", f"{job['floor_seconds']:.1f}", f"{job['share_of_floor']:.0%}"]
        rows.append(row)
    return "Whole jobs: time", names, rows


def quality_table(jobs: list[dict[str, Any]]) -> record.Table:
    """Accuracy and memory of each job."""
    names = ["row", "precision", "job", "train", "validation", "test", "peak memory, MiB", "trained parameters"]
    rows = []
    for job in jobs:
        row = [job["row"], job["precision"], job["job"]]
        row += [f"{job['accuracy'][part]:.2%}" for part in ("train", "validation", "test")]
        rows.append([*row, f"{job['peak_memory_bytes'] / 2**20:.0f}", f"{job['trainable_parameters']:,}"])
    return "Whole jobs: accuracy and memory", names, rows


def main() -> None:
    """Run all jobs, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    with tempfile.TemporaryDirectory(prefix="two-ways-") as folder:
        machine, jobs = compare(given, Path(folder))
    add_ratios(machine, jobs)
    where = record.folder(yes("tiny", given.tiny))
    record.write("job", where, machine, {"jobs": jobs}, [time_table(jobs), quality_table(jobs)], NOTES)


if __name__ == "__main__":
    with one_sentence():
        main()
