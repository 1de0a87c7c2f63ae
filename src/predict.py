"""python -m src.predict run=<id> text="..."          one message
python -m src.predict run=<id> file=messages.txt    one message a line, which ends with \\n or \\r\\n; file=- or a pipe
                                                    reads stdin, and answers what is there while more is written
python -m src.predict run=<id> file=messages.csv text_column=text
                                                    a CSV, TSV, JSONL or Parquet file, as the same table with columns
                                                    added; of a pipe JSON lines. to=<file> writes it there
python -m src.predict run=<id> prompt="..."         what an instruct run writes after any prompt; new_tokens=40 at most

Prints label, probability and message (control characters as \\t, \\n, ...); format=jsonl: one JSON object a message,
with the probability of every class; labels_only=true: the label alone. What cannot be read goes to stderr with its
line, and the rest is answered: exit status 1, or 2 where nothing could be.
Of two classes, threshold=<probability> is that from which on the positive one is the answer, in place of the run's own;
calibrated=true gives probabilities that were scaled on validation (temperature scaling).
Further options: runs=<folder of the run folders>; task=<which question>, for a run on data=mix; encoding= and
separator= of a table. Messages are padded as in training; with data.padding=batch and a pooling that reads padding,
what is predicted for a message depends on those beside it, so that such a run reads all before it answers.
"""

import codecs
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from src.config.command_line import one_sentence
from src.config.options import AtLeast1, Place, options
from src.errors import InputError
from src.files import whole_file
from src.serving import inputs
from src.serving.answering import Form, answered, pieces

if TYPE_CHECKING:
    from src.serving.predictor import Predictor


@dataclass
class Options:
    """What the command line takes."""

    run: str
    text: str | None = None
    file: Place | None = None
    text_column: str | None = None
    to: Place | None = None
    format: Literal["text", "jsonl"] = "text"
    labels_only: bool = False
    encoding: str | None = None
    separator: str | None = None
    runs: Place = "runs"
    task: str | None = None
    prompt: str | None = None
    new_tokens: AtLeast1 = 40
    threshold: Annotated[float, Ge(0), Le(1)] | None = None
    calibrated: bool = False


def check(given: Options) -> None:
    """Raises InputError for options that do not fit together."""
    excluded = {"prompt": ("text", "file", "text_column", "to", "task", "threshold"), "text": ("file", "text_column")}
    for name, others in excluded.items():
        if clash := [other for other in others if None not in (getattr(given, name), getattr(given, other))]:
            raise InputError(f"{name}= and {clash[0]}= exclude each other: give one of them")


def check_to(to: str | None, table: inputs.Table | None) -> None:
    """Raises InputError for a file that is there, or not named as its table, and for a terminal as a Parquet file."""
    if to is not None and (Path(to).exists() or not Path(to).parent.is_dir()):
        raise InputError(f"to={to} must be a new file in a folder that exists")
    if to is not None and table is not None and Path(to).suffix.lower() != table.kind:
        raise InputError(f"to={to} must end in {table.kind}, as the table that is answered")
    if to is None and table is not None and table.kind == ".parquet" and sys.stdout.isatty():
        raise InputError("Parquet is nothing for a terminal: give to=<file>.parquet")


def read(given: Options) -> inputs.Input:
    """The messages that the options name. Raises InputError for a file that is none, or no table."""
    if given.text is not None:
        return inputs.one(os.fsencode(given.text))
    if given.file not in (None, "-"):
        path = Path(given.file or "")
        if given.text_column is None:
            return inputs.file(path)
        return inputs.table(path, given.text_column, given.encoding, given.separator)
    if given.file is None and sys.stdin.isatty():
        raise InputError("nothing to read: give text=..., file=... or pipe messages in, one a line")
    if given.text_column is None:
        return inputs.lines(sys.stdin.buffer, "stdin")
    return inputs.json_lines(sys.stdin.buffer, "stdin", given.text_column)


def load(
    run: str, runs: str, task: str | None = None, threshold: float | None = None, calibrated: bool = False
) -> "Predictor":
    """A finished run, with a threshold beside its own, and calibrated. Raises InputError for what is none, or was not
    fine-tuned."""
    from src.runs import identity, run_dir

    if not identity.has_gpt(run_dir.read_config(folder := run_dir.find(runs, run))):
        from src.serving.baseline import BaselinePredictor

        return BaselinePredictor(folder, task, threshold, calibrated)
    from src.serving.predictor import Predictor  # after the options were read, as torch takes its time

    return Predictor.load(runs, run, task, threshold, calibrated)


def predict_texts(
    run: str,
    texts: list[str],
    runs: str = "runs",
    task: str | None = None,
    threshold: float | None = None,
    calibrated: bool = False,
) -> Iterator[dict[str, Any]]:
    """{"text", "label", "probability", "probabilities"} of each text by a finished run, in their order; of a run that
    writes its answers also "said", the label that it wrote, or null."""
    yield from load(run, runs, task, threshold, calibrated).answers(texts)


def write(run: str, prompt: str, new_tokens: int, runs: str = "runs") -> str:
    """What the GPT of an instruct run writes after `prompt`, word for word, by greedy decoding."""
    from src.data.tokenizer import encode

    return load(run, runs).write(encode([prompt]), new_tokens)[0]


@contextmanager
def output(to: str | None) -> Iterator[Any]:
    """A new file, whole or not at all, or else stdout."""
    if to is None:
        yield sys.stdout
        return
    with whole_file(Path(to)) as path, path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file


def main() -> None:
    """Read messages, print their labels."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    check(given)
    if given.prompt is not None:
        print(write(given.run, given.prompt, given.new_tokens, given.runs))
        return
    source, count = read(given), Counter[str]()
    check_to(given.to, source.table if given.format == "text" else None)
    for note in source.notes:
        print(f"{source.name}: {note}", file=sys.stderr)
    predictor = load(given.run, given.runs, given.task, given.threshold, given.calibrated)
    ascii = given.to is None and codecs.lookup(sys.stdout.encoding).name != "utf-8"
    form = Form(given.format, given.labels_only, ascii)
    bar_shown = sys.stderr.isatty() and (given.to is not None or not sys.stdout.isatty())
    with output(given.to) as out:
        for piece in pieces(answered(predictor, source, count, bar_shown), source.table, predictor, form):
            (out.buffer if isinstance(piece, bytes) else out).write(piece)
            out.flush()
    sys.exit(1 if count["failed"] else 0)


if __name__ == "__main__":
    with one_sentence():
        main()
