"""python -m benchmarks.devices [steps=40] [tiny=true]

One process with two threads beside two processes with one thread each (DDP over gloo), with the same global batch: GPT
mini fine-tuned whole for an epoch (+experiment=all_layers), and pretrained for so many steps of 32 windows of 128
tokens, with the softmax over a sample of 3,000 words. On a CPU that is no way to gain time; it shows what the exchange
of gradients costs.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, process, record
from benchmarks.setting import TINY_GPT, yes
from src.config.command_line import one_sentence
from src.config.options import AtLeast1, options
from src.errors import InputError

TURNS = 3  # of each, one after the other: a processor that slows down does so for both
NOTES = """\
- Seconds of training as the run itself counts them (cost.train_seconds): no imports, no set-up, no evaluation at the
  end. The median of so many turns, one way after the other.
- The validation loss of fine-tuning is the same in both ways; of pretraining each process samples words of its own.
"""


@dataclass
class Options:
    """What the command line takes."""

    steps: AtLeast1 = 40
    tiny: str = "false"


def commands(steps: int, tiny: bool, folder: Path) -> dict[str, list[str]]:
    """What is done, but for its devices: name -> command."""
    shape = [*TINY_GPT, "gpt.weights=random"] if tiny else []
    corpus = {
        "path": write_text(folder / "train.jsonl", 20_000),
        "validation_path": write_text(folder / "held.jsonl", 400),
    }
    pretrain = ["src.pretrain", *(f"corpus.{key}={file}" for key, file in corpus.items()), f"corpus.cache={folder}"]
    pretrain += ["window=128", f"max_steps={steps}", f"validate_every={steps}", "validation_batches=1", "prompts=[]"]
    pretrain += [f"checkpoint_every={steps}", "trainer.precision=32-true", "num_sampled=3000"]
    return {
        "all layers": ["src.train", "+experiment=all_layers", "trainer.max_epochs=1", "cache=off", *shape],
        "pretraining": [*pretrain, *shape],
    }


def write_text(file: Path, lines: int) -> Path:
    """A made-up text of so many documents, of about thirty tokens each."""
    words = (f"message {i} says {i * 7 % 1009} {i * 31 % 997} times that {i * 17 % 991} is less" for i in range(lines))
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in words), encoding="utf-8")
    return file


def result(command: list[str], devices: int, batch_size: str, size: int, folder: Path) -> dict[str, float]:
    """Seconds and loss of a command on so many devices, with two threads in all."""
    runs = folder / "runs"
    env = os.environ | {"OMP_NUM_THREADS": str(2 // devices)}
    given = [f"runs={runs}", "logger=none", "trainer.accelerator=cpu", f"trainer.devices={devices}"]
    given += [f"{batch_size}={size // devices}"]
    done = subprocess.run(
        [sys.executable, "-m", *command, *given], cwd=process.ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"{command[0]} failed with exit status {done.returncode}:\n{done.stderr[-2000:]}")
    (file,) = runs.glob("*/result.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    validation = found["metrics"]["validation"]
    loss = validation["all"]["loss"] if "all" in validation else validation["loss"]
    file.unlink()
    return {"seconds": found["cost"]["train_seconds"], "loss": loss}


def compare(steps: int, tiny: bool) -> list[dict[str, Any]]:
    """One dict for each job and number of processes."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name, command in commands(steps, tiny, Path(place)).items():
            key, size = ("batch_size", 32) if command[0] == "src.pretrain" else ("data.batch_size", 8)
            turns = [[result(command, devices, key, size, Path(place)) for devices in (1, 2)] for _ in range(TURNS)]
            for devices, ones in zip((1, 2), zip(*turns, strict=True), strict=True):
                seconds = sorted(one["seconds"] for one in ones)[TURNS // 2]
                found.append({"job": name, "processes": devices, "seconds": seconds, "loss": ones[0]["loss"]})
    return found


def main() -> None:
    """Measure, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    tiny = yes("tiny", given.tiny)
    facts = machine.facts() | {"peak_flops_per_second": {"32-true": machine.peak("32-true", 2048)}}
    record.warn(facts)
    found = compare(given.steps, tiny)
    rows = [
        [
            f"{one['job']}, {one['processes']} x {2 // one['processes']} threads",
            f"{one['seconds']:.1f}",
            f"{one['loss']:.4f}",
        ]
        for one in found
    ]
    names = ["job", "s", "validation loss"]
    record.write("devices", record.folder(tiny), facts, {"found": found}, [("Devices", names, rows)], NOTES)


if __name__ == "__main__":
    with one_sentence():
        main()
