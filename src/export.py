"""python -m src.export run=<id> to=<folder>                      a finished run as a folder that transformers loads
python -m src.export run=<id> to=<folder> hub=<user/name>    and as a repository on the Hugging Face hub, private
python -m src.export run=<id> to=<folder> onnx=true          with onnx/model.onnx; pip install -e '.[onnx]'

The folder holds weights, tokenizer, and README.md, a model card that says how they are used.
Further option: runs=<folder of the run folders>.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from src.config.command_line import one_sentence
from src.config.options import Place, options
from src.errors import InputError


@dataclass
class Options:
    """What the command line takes."""

    run: str
    to: Place
    hub: str | None = None
    onnx: bool = False
    runs: Place = "runs"


def export(run: str, to: str | Path, hub: str | None = None, onnx: bool = False, runs: str | Path = "runs") -> str:
    """Write the folder, push it where that is asked for; where it is now. Raises InputError before anything is written
    for what cannot be done."""
    from src.exporting import folder, model_card, onnx_file, transformers_folder
    from src.exporting import hub as the_hub
    from src.exporting.finished_run import FinishedRun

    to = Path(to)
    folder.check(to)
    if onnx:
        onnx_file.check()
    if hub is not None:
        the_hub.check(hub)
    finished = FinishedRun.load(runs, run)
    with folder.appearing(to) as unfinished:
        transformers_folder.write(finished, unfinished)
        if onnx:
            onnx_file.write(finished, unfinished / "onnx" / "model.onnx")
        model_card.card(finished, hub, onnx).save(unfinished / "README.md")
    return the_hub.push(to, hub, finished.result["id"]) if hub is not None else str(to)


def main() -> None:
    """Export, say where."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    if not given.to:
        raise InputError("to= is empty: give a new folder")
    print(export(given.run, given.to, given.hub, given.onnx, given.runs))


if __name__ == "__main__":
    with one_sentence():
        main()
