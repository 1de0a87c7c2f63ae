"""python -m src.predict run=<id> text="..."          one message
python -m src.predict run=<id> file=messages.txt    one message a line, which ends with \\n or \\r\\n; file=- or a pipe
                                                    reads stdin
python -m src.predict run=<id> file=... format=jsonl
python -m src.predict run=<id> prompt="..."        what an instruct run writes after any prompt; new_tokens=40 at most

Prints label, probability and message (control characters as \\t, \\n, ...), or one JSON object a message with the
probability of every class.
Further options: runs=<folder of the run folders>; task=<which question>, for a run on data=mix. Messages are padded as
in training; with data.padding=batch and a position that reads padding, what is predicted for a message depends on those
beside it.
"""

import codecs
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config.command_line import one_sentence, options, whole
from src.errors import InputError
from src.runs import run_dir

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass
class Options:
    """What the command line takes; all of it text."""

    run: str
    text: str | None = None
    file: str | None = None
    format: str = "text"
    runs: str = "runs"
    task: str | None = None
    prompt: str | None = None
    new_tokens: str = "40"


def messages(given: Options, stdin: "Iterator[bytes] | None" = None) -> list[str]:
    """The messages that the options name. Raises InputError for none, an empty one, or one that is not UTF-8."""
    if given.text is not None and given.file is not None:
        raise InputError("text= and file= exclude each other: give one of them")
    if given.text is not None:
        lines, source = [os.fsencode(given.text)], "text="
    elif given.file in (None, "-"):
        lines, source = list(stdin if stdin is not None else sys.stdin.buffer), "stdin"
    else:
        lines, source = lines_of(Path(given.file or "")), str(given.file)
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8").removesuffix("\n"))
            if source != "text=":
                texts[-1] = texts[-1].removesuffix("\r")
        except UnicodeDecodeError:
            raise InputError(f"{source}, line {number}: not UTF-8; save the file as UTF-8") from None
        if not texts[-1].strip():
            raise InputError(f"{source}, line {number}: the message is empty; remove the line")
    if not texts:
        raise InputError(f"{source} holds no message: give one a line")
    return texts


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file, or of a pipe, that end with \\n or \\r\\n. Raises InputError for a table."""
    if set(path.suffixes) & {".gz", ".zst", ".zip"} or path.suffix.lower() in TABLES:
        raise InputError(
            f"file={path} is a table, and file= takes one message a line: write its texts alone to a file, or measure "
            f"on it, with its labels, by python -m src.eval run=<id> data.name=table data.path={path}"
        )
    if path.is_dir() or not path.exists():
        raise InputError(f"there is no file {path}")
    with path.open("rb") as file:
        return list(file)


def escaped(text: str) -> str:
    """A text on one line of a terminal: control characters, of which a tab would part the columns, as \\t, \\n, ..."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def predict_texts(run: str, texts: list[str], runs: str = "runs", task: str | None = None) -> Iterator[dict[str, Any]]:
    """{"text", "label", "probability", "probabilities"} of each text by a finished run, in their order; of a run that
    writes its answers also "said", the label that it wrote, or null."""
    from src.config import build
    from src.data.datamodule import evaluation_loader
    from src.data.tokenizer import encode
    from src.evaluation.metrics import predict
    from src.exporting.finished_run import FinishedRun

    run_dir.trained_on(run_dir.find(runs, run))
    finished = FinishedRun.load(runs, run, merged=False)
    ids = encode(texts)
    limit = finished.data["max_length"] - finished.question(task)[0].overhead
    if cut := sum(len(row) > limit for row in ids):
        print(f"{cut} of {len(texts)} messages are longer than {limit} tokens and were cut", file=sys.stderr)
    trainer = build.trainer(finished.cfg, logger=False, enable_checkpointing=False)
    loader = evaluation_loader(finished.messages(ids, task), finished.cfg.data.batch_size)
    yield from finished.answers(texts, predict(trainer, finished.model, loader), task)


def write(run: str, prompt: str, new_tokens: int, runs: str = "runs") -> str:
    """What the GPT of an instruct run writes after `prompt`, word for word, by greedy decoding."""
    from src.data.tokenizer import encode
    from src.exporting.finished_run import FinishedRun
    from src.serving.predictor import Predictor

    run_dir.trained_on(run_dir.find(runs, run))
    return Predictor(FinishedRun.load(runs, run, merged=False)).write(encode([prompt]), new_tokens)[0]


def main() -> None:
    """Read messages, print their labels."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    if given.format not in ("text", "jsonl"):
        raise InputError(f"format={given.format} is unknown: use text or jsonl")
    if given.prompt is not None:
        if others := [name for name in ("text", "file", "task") if getattr(given, name) is not None]:
            raise InputError(f"prompt= and {others[0]}= exclude each other: give one of them")
        print(write(given.run, given.prompt, whole("new_tokens", given.new_tokens, 1), given.runs))
        return
    if given.text is None and given.file is None and sys.stdin.isatty():
        raise InputError("nothing to read: give text=..., file=... or pipe messages in, one a line")
    texts = messages(given)
    for prediction in predict_texts(given.run, texts, given.runs, given.task):
        if given.format == "jsonl":
            print(json.dumps(prediction, ensure_ascii=codecs.lookup(sys.stdout.encoding).name != "utf-8"))
        else:
            print(f"{escaped(prediction['label'])}\t{prediction['probability']:.3f}\t{escaped(prediction['text'])}")


if __name__ == "__main__":
    with one_sentence():
        main()
