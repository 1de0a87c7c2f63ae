"""python -m benchmarks.gpu [rows=1,5,8,12,9] [precision=bf16-mixed] [epochs=5] [spam=<UCI file>]
python -m benchmarks.gpu tiny=true      a smoke run, which takes the CPU where there is no GPU

Rows of the published table on a GPU, one after the other in one process, with random weights and without features of
earlier runs: seconds, tokens a second in training, and the share of the card's measured peak. Row 1 trains the last
block of GPT-2 small, row 5 all of it; rows 8, 9 and 12 the last block, all, and low-rank adapters of GPT-2 xl. Row 9 is
trained for one epoch, after which it writes 25 GB of checkpoints.
"""

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import machine, record
from benchmarks.floor import work
from benchmarks.setting import Setting, yes
from src.config.command_line import began, compose, one_sentence
from src.config.options import AtLeast1, options
from src.errors import InputError

ROWS = {  # of the published table -> experiment, size of the GPT, epochs at most
    "1": ("last_block", "small", sys.maxsize),
    "5": ("all_layers", "small", sys.maxsize),
    "8": ("xl", "xl", sys.maxsize),
    "9": ("xl_all_layers", "xl", 1),
    "12": ("xl_lora", "xl", sys.maxsize),
}
NOTES = """\
- Wall seconds are those of the whole job without imports: set-up (with the making of random weights on the CPU, and
  their hash), features, training, evaluation (of validation after every epoch, of every split at the end) and
  checkpoints, of which the best epoch's and the last one's are kept.
- Tokens a second: of training alone, padding included. With features they pass through the last block only.
- Needed TFLOP are those of the floor (benchmarks/floor.py): each piece of work once. Share of peak: at the measured
  peak of a large matrix product in that precision, the part of the seconds for features, training and evaluation that
  they would have taken. Batches hold 8 messages, as in the published table, which no large GPU is filled by.
- Peak memory is what was allocated on the GPU at the highest.
"""


@dataclass
class Options:
    """What the command line takes."""

    rows: str = "1,5,8,12,9"
    precision: str = "bf16-mixed"
    epochs: AtLeast1 = 5
    spam: str = os.environ.get("SMS_SPAM", "")
    tiny: str = "false"


def job(row: str, given: Options, folder: Path, peak: float) -> dict[str, Any]:
    """The run of a row, and what follows from it."""
    from src.train import train

    tiny, (experiment, gpt, most) = yes("tiny", given.tiny), ROWS[row]
    epochs = 1 if tiny else min(given.epochs, most)
    setting = Setting(gpt, "random", given.spam, given.precision, epochs, tiny, "auto")
    cfg = compose("train", [*setting.ours(experiment), f"runs={folder}", "cache=memory"])
    floor = work(cfg)
    started = perf_counter()
    result = train(cfg).result
    found = {"row": row, "gpt": gpt, "epochs": epochs, "wall_seconds": perf_counter() - started} | result["cost"]
    shutil.rmtree(folder)  # checkpoints of a large GPT
    busy = found["features_seconds"] + found["train_seconds"] + found["evaluate_seconds"]
    found |= {"flops": sum(floor), "share_of_peak": sum(floor) / peak / busy}
    found["tokens_per_second"] = found["train_tokens"] / found["train_seconds"]
    return found | {"accuracy": {part: metrics["accuracy"] for part, metrics in result["metrics"].items()}}


def table(jobs: list[dict[str, Any]]) -> record.Table:
    """What each row took."""
    names = ["row", "gpt", "epochs", "wall s", "set-up", "features", "training", "evaluation", "tokens/s"]
    names += ["needed TFLOP", "share of peak", "peak memory, MiB", "test"]
    rows = []
    for job in jobs:
        row = [job["row"], job["gpt"], str(job["epochs"]), f"{job['wall_seconds']:.1f}"]
        row += [f"{job[f'{part}_seconds']:.1f}" for part in ("setup", "features", "train", "evaluate")]
        row += [f"{job['tokens_per_second']:,.0f}", f"{job['flops'] / 1e12:.1f}", f"{job['share_of_peak']:.1%}"]
        rows.append([*row, f"{job['peak_memory_bytes'] / 2**20:,.0f}", f"{job['accuracy']['test']:.2%}"])
    return "Rows on a GPU", names, rows


def main() -> None:
    """Run the rows, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    import torch

    tiny = yes("tiny", given.tiny)
    if unknown := sorted(set(given.rows.split(",")) - set(ROWS)):
        raise InputError(f"rows={unknown[0]} is unknown: use {', '.join(ROWS)}")
    if given.precision not in machine.PRECISIONS:
        raise InputError(f"precision={given.precision} is unknown: use {', '.join(sorted(machine.PRECISIONS))}")
    gpu = torch.cuda.is_available()
    peak = machine.peak(given.precision, 512 if tiny else 8192, gpu)
    facts = machine.facts(gpu) | {"peak_flops_per_second": {given.precision: peak}}
    began()  # imports are none of the first job's
    where, jobs = record.folder(tiny), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="two-ways-") as folder:
        for row in given.rows.split(","):
            jobs.append(job(row, given, Path(folder) / row, peak))
            record.write("gpu", where, facts, {"jobs": jobs}, [table(jobs)], NOTES)  # the next may not fit the card


if __name__ == "__main__":
    with one_sentence():
        main()
