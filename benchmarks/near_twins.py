"""python -m benchmarks.near_twins [spam=<SMSSpamCollection>] [runs=runs]

What near-duplicates are worth in the study near_twins: test messages that stand in train, repeated or nearly so, in
each split, and the accuracy of the study's finished runs with and without them. It trains nothing.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.process import ROOT
from benchmarks.record import RESULTS, markdown, show
from src.config.command_line import one_sentence
from src.config.options import Place, options
from src.data.datasets import SmsSpam
from src.data.near_duplicates import near_duplicates
from src.data.splits import normalise
from src.reporting.columns import percent
from src.reporting.rows import read
from src.runs.run_dir import ARCHIVE, write_text
from src.sweeps import study

STUDY = ROOT / "experiments" / "near_twins.yaml"


@dataclass
class Options:
    """What the command line takes."""

    spam: str = os.environ.get("SMS_SPAM", "")
    runs: Place = "runs"


def doubles(data: SmsSpam) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which test messages stand in train, up to case, digits and spaces; and which are of a group of near-duplicates
    (see near_duplicates.py) that train has a message of, those included."""
    train, test = ([normalise(example.text) for example in data.all_examples[part]] for part in ("train", "test"))
    group = near_duplicates([*train, *test])
    return np.isin(test, train), np.isin(group[len(train) :], group[: len(train)])


def main() -> None:
    """Count, and write the tables."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    path = str(Path(given.spam).resolve()) if given.spam else None
    if path:
        os.environ["SMS_SPAM"] = path  # where the study's settings look for its data
    found: dict[str, Any] = {}
    counts, accuracies = [], []
    for split in ("grouped", "deduplicated", "book"):
        found[split] = doubles(SmsSpam(path=path, split=split))
        equal, near = found[split]
        counts.append([split, str(len(near)), str(equal.sum()), str(near.sum())])
    for row in read(study.read(STUDY), given.runs, ARCHIVE):
        near = found[row.values["data.split"]][1]
        parts = [row.right, row.right[:, ~near], row.right[:, near]]
        shares = [percent(float(right.mean())) if right.size else "" for right in parts]
        accuracies.append([row.values["experiment"], row.values["data.split"], str(len(row.runs)), *shares])
    tables = [
        ("Test messages that stand in train", ["split", "test messages", "repeated", "near-duplicates"], counts),
        (
            "Test accuracy of the study near_twins, mean over its runs",
            ["model", "split", "runs", "all", "without near-duplicates", "these alone"],
            accuracies,
        ),
    ]
    lines = ["`python -m benchmarks.near_twins`", ""]
    for title, names, cells in tables:
        show(title, names, cells)
        lines += [f"**{title}**", "", *markdown(names, cells), ""]
    write_text(file := RESULTS / "near_twins.md", "\n".join(lines).rstrip() + "\n")
    print(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    with one_sentence():
        main()
