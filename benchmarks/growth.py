"""python -m benchmarks.growth [gpt=small] [precision=32-true] [epochs=1] [spam=<UCI file>]
python -m benchmarks.growth tiny=true      a smoke run: two small blocks

How the cost of our job (row 16, an empty feature cache, random weights) grows: with 1x, 4x and 16x the training
messages, and with 1, 2, 6 and 12 trained blocks on a quarter of them. Validation and test keep their 149 and 300
messages throughout. Without spam= and SMS_SPAM, the UCI collection is downloaded once.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours, process, record
from benchmarks.setting import EXPERIMENTS, Setting, yes
from src.config.command_line import one_sentence
from src.config.options import AtLeast1, options

FRACTIONS = (0.0625, 0.25, 1.0)
BLOCKS = (1, 2, 6, 12)
NOTES = """\
- Each job is a process of its own, its features computed anew: wall seconds from start to exit, imports included.
  Others' CPU is what everything else on the machine used meanwhile: where that is not near 0, the row says nothing.
- Messages are those of training; validation (149) and test (300) do not grow, so that evaluation hardly does.
- / first: wall seconds over those of the first row of the table. TFLOP: what the job needs when each piece of work is
  done once (benchmarks/floor.py).
"""


@dataclass
class Options:
    """What the command line takes."""

    gpt: str = "small"
    precision: str = "32-true"
    epochs: AtLeast1 = 1
    spam: str = os.environ.get("SMS_SPAM", "")
    tiny: str = "false"


def job(setting: Setting, fraction: float, blocks: int, folder: Path) -> dict[str, Any]:
    """Our job with a part of the messages and that many trained blocks."""
    settings = [*setting.ours(EXPERIMENTS["16"]), f"data.fraction={fraction}", f"task.trainable={blocks}_blocks"]
    floor = process.ask("benchmarks.floor", settings)
    found = {"fraction": fraction, "blocks": blocks} | ours.run(settings, folder, folder / "cache")
    print(f"{found['sizes']['train']} messages, {blocks} blocks: {found['wall_seconds']:.1f} s", flush=True)
    return found | {"flops": sum(floor.values())}


def grow(given: Options, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The machine, the jobs that grow by messages, and those that grow by blocks."""
    tiny = yes("tiny", given.tiny)
    size = 512 if tiny else 2048
    machine = process.ask("benchmarks.machine", [f"precision={given.precision}", f"size={size}"])
    record.warn(machine)
    setting = Setting(given.gpt, folder / "weights", given.spam, given.precision, given.epochs, tiny)
    process.ask("benchmarks.weights", [f"folder={setting.weights}", f"gpt={given.gpt}", f"tiny={given.tiny}"])
    process.measured("benchmarks.warm", [], folder / "warm.log")
    by_messages = [job(setting, fraction, 1, folder / f"fraction-{fraction}") for fraction in FRACTIONS]
    blocks = (1, 2) if tiny else BLOCKS
    by_blocks = [job(setting, 0.25, n, folder / f"blocks-{n}") for n in blocks]
    return machine, by_messages, by_blocks


def table(title: str, jobs: list[dict[str, Any]]) -> record.Table:
    """Seconds of jobs, and their growth over the first."""
    seconds = {"others_cpu": "others' CPU", "setup": "set-up", "features": "features", "train": "training"}
    seconds["evaluate"] = "evaluation"
    names = ["messages", "blocks", "wall s", "/ first", *seconds.values(), "TFLOP", "/ first", "peak memory, MiB"]
    first, rows = jobs[0], []
    for found in jobs:
        wall, flops = found["wall_seconds"], found["flops"]
        row = [f"{found['sizes']['train']:,}", str(found["blocks"])]
        row += [f"{wall:.1f}", f"{wall / first['wall_seconds']:.2f}"]
        row += [f"{found[f'{name}_seconds']:.1f}" for name in seconds]
        row += [f"{flops / 1e12:.2f}", f"{flops / first['flops']:.2f}", f"{found['peak_memory_bytes'] / 2**20:.0f}"]
        rows.append(row)
    return title, names, rows


def main() -> None:
    """Run all jobs, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    with tempfile.TemporaryDirectory(prefix="two-ways-") as folder:
        machine, by_messages, by_blocks = grow(given, Path(folder))
    tables = [table("More messages", by_messages), table("More trained blocks", by_blocks)]
    found = {"by_messages": by_messages, "by_blocks": by_blocks}
    record.write("growth", record.folder(yes("tiny", given.tiny)), machine, found, tables, NOTES)


if __name__ == "__main__":
    with one_sentence():
        main()
