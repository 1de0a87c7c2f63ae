"""python -m benchmarks.gpu [rows=1,5,8,12,9] [precision=bf16-mixed] [epochs=5] [spam=<UCI file>]
python -m benchmarks.gpu tiny=true      a smoke run, which takes the CPU where there is no GPU

Rows of the published table on a GPU, from the start of the process to its exit, with random weights and an empty
feature cache: seconds, tokens a second in training, and the share of the card's measured peak. Row 1 trains the last
block of GPT-2 small, row 5 all of it; rows 8, 9 and 12 the last block, all, and low-rank adapters of GPT-2 xl. Row 9 is
trained for one epoch, after which it writes 25 GB of checkpoints.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours, process, record
from benchmarks.setting import EXPERIMENTS, Setting, yes
from src.command import one_sentence, options, whole
from src.errors import InputError

XL = ("8", "9", "12")
EPOCHS = {"9": 1}  # at most
NOTES = """\
- Wall seconds are those of the whole process, imports included: set-up (with the making of random weights on the CPU,
  and their hash), features, training, evaluation (of validation after every epoch, of every split at the end) and
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
    epochs: str = "5"
    spam: str = os.environ.get("SMS_SPAM", "")
    tiny: str = "false"


def job(row: str, given: Options, folder: Path, peak: float) -> dict[str, Any]:
    """The run of a row, and what follows from it."""
    tiny = yes("tiny", given.tiny)
    epochs = 1 if tiny else min(whole("epochs", given.epochs, 1), EPOCHS.get(row, sys.maxsize))
    setting = Setting("xl" if row in XL else "small", "random", given.spam, given.precision, epochs, tiny, "auto")
    settings = setting.ours(EXPERIMENTS[row])
    floor = process.ask("benchmarks.floor", settings)
    found = {"row": row, "gpt": setting.gpt, "epochs": epochs, "flops": sum(floor.values())}
    found |= ours.run(settings, folder / row, folder / "cache")
    busy = found["features_seconds"] + found["train_seconds"] + found["evaluate_seconds"]
    found["tokens_per_second"] = found["train_tokens"] / found["train_seconds"]
    found["share_of_peak"] = found["flops"] / peak / busy
    print(f"row {row}: {found['wall_seconds']:.1f} s", flush=True)
    return found


def table(jobs: list[dict[str, Any]]) -> record.Table:
    """What each row took."""
    names = ["row", "gpt", "epochs", "wall s", "set-up", "features", "training", "evaluation", "tokens/s"]
    names += ["needed TFLOP", "share of peak", "peak memory, MiB", "test"]
    rows = []
    for job in jobs:
        row = [job["row"], job["gpt"], str(job["epochs"]), f"{job['wall_seconds']:.1f}"]
        row += [f"{job[f'{part}_seconds']:.1f}" for part in ("setup", "features", "train", "evaluate")]
        row += [f"{job['tokens_per_second']:,.0f}", f"{job['flops'] / 1e12:.1f}", f"{job['share_of_peak']:.1%}"]
        rows.append([*row, f"{job['allocated_bytes'] / 2**20:,.0f}", f"{job['accuracy']['test']:.2%}"])
    return "Rows on a GPU", names, rows


def main() -> None:
    """Run the rows, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    tiny = yes("tiny", given.tiny)
    if unknown := sorted(set(given.rows.split(",")) - set(EXPERIMENTS)):
        raise InputError(f"rows={unknown[0]} is unknown: use {', '.join(EXPERIMENTS)}")
    size = 512 if tiny else 8192
    machine = process.ask("benchmarks.machine", [f"precision={given.precision}", f"size={size}", "device=auto"])
    with tempfile.TemporaryDirectory(prefix="two-ways-") as folder:
        peak = machine["peak_flops_per_second"][given.precision]
        jobs = [job(row, given, Path(folder), peak) for row in given.rows.split(",")]
    record.write("gpu", record.folder(tiny), machine, {"jobs": jobs}, [table(jobs)], NOTES)


if __name__ == "__main__":
    with one_sentence():
        main()
