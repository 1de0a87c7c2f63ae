"""python -m src.predict run=<id> text="..."          one message
python -m src.predict run=<id> file=messages.txt    one message a line; file=- or a pipe reads stdin
python -m src.predict run=<id> file=... format=jsonl

Prints label, probability and message, or one JSON object a message with the probability of every class.
Further option: runs=<folder of the run folders>. Messages are padded as in training; with data.padding=batch and a
position that reads padding, what is predicted for a message depends on those beside it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src import results
from src.command import one_sentence, options
from src.errors import InputError


@dataclass
class Options:
    """What the command line takes; all of it text."""

    run: str
    text: str | None = None
    file: str | None = None
    format: str = "text"
    runs: str = "runs"


def messages(given: Options, stdin: "Iterator[bytes] | None" = None) -> list[str]:
    """The messages that the options name. Raises InputError for none, an empty one, or one that is not UTF-8."""
    if given.text is not None and given.file is not None:
        raise InputError("text= and file= exclude each other: give one of them")
    if given.text is not None:
        lines, source = [given.text.encode()], "text="
    elif given.file in (None, "-"):
        lines, source = list(stdin if stdin is not None else sys.stdin.buffer), "stdin"
    elif not Path(given.file or "").is_file():
        raise InputError(f"there is no file {given.file}")
    else:
        lines, source = Path(given.file or "").read_bytes().splitlines(), str(given.file)
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError:
            raise InputError(f"{source}, line {number}: not UTF-8; save the file as UTF-8") from None
        if not texts[-1].strip():
            raise InputError(f"{source}, line {number}: the message is empty; remove the line")
    if not texts:
        raise InputError(f"{source} holds no message: give one a line")
    return texts


def predict_texts(run: str, texts: list[str], runs: str = "runs") -> Iterator[dict[str, object]]:
    """{"text", "label", "probability", "probabilities"} of each text by a finished run, in their order."""
    from src import build
    from src.data.batch import Messages
    from src.data.datamodule import evaluation_loader
    from src.data.tokens import encode
    from src.finetune.measure import predict

    folder = results.find(runs, run)
    read = results.load_result(folder)["data"]
    cfg = results.load_config(folder)
    model = build.restore(folder)
    ids = encode(texts)
    if cut := sum(len(row) > read["max_length"] for row in ids):
        print(f"{cut} of {len(ids)} messages are longer than {read['max_length']} tokens and were cut", file=sys.stderr)
    rows = Messages([row[: read["max_length"]] for row in ids], [0] * len(ids), read["width"])
    loader = evaluation_loader(rows, cfg.data.batch_size)
    trainer = build.trainer(cfg, logger=False, enable_checkpointing=False)
    predictions = predict(trainer, model, loader)
    for text, best, p in zip(texts, predictions.predicted.tolist(), predictions.probabilities.tolist(), strict=True):
        probabilities = dict(zip(read["labels"], p, strict=True))
        yield {"text": text, "label": read["labels"][best], "probability": p[best], "probabilities": probabilities}


def main() -> None:
    """Read messages, print their labels."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    if given.format not in ("text", "jsonl"):
        raise InputError(f"format={given.format} is unknown: use text or jsonl")
    if given.text is None and given.file is None and sys.stdin.isatty():
        raise InputError("nothing to read: give text=..., file=... or pipe messages in, one a line")
    texts = messages(given)
    for prediction in predict_texts(given.run, texts, given.runs):
        if given.format == "jsonl":
            print(json.dumps(prediction, ensure_ascii=False))
        else:
            print(f"{prediction['label']}\t{prediction['probability']:.3f}\t{prediction['text']}")


if __name__ == "__main__":
    with one_sentence():
        main()
