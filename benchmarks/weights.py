"""python -m benchmarks.weights folder=<where> [gpt=small] [tiny=false]

Writes a GPT of random weights, seed 123, as a Hugging Face folder: what both sides of a comparison start from. Prints
its number of parameters as JSON.
"""

import json
import sys
from dataclasses import dataclass

from benchmarks.setting import SEED, gpt_settings, yes
from src.config.command_line import compose, one_sentence
from src.config.options import options


@dataclass
class Options:
    """What the command line takes."""

    folder: str
    gpt: str = "small"
    tiny: str = "false"


def main() -> None:
    """Write the folder."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    from src.config import build
    from src.gpt import weights

    settings = gpt_settings(given.gpt, yes("tiny", given.tiny))
    gpt = build.build_gpt(compose("train", [*settings, "gpt.weights=random", f"seed={SEED}"]))
    weights.export(gpt, given.folder)
    print(json.dumps({"parameters": sum(p.numel() for p in gpt.parameters())}))


if __name__ == "__main__":
    with one_sentence():
        main()
