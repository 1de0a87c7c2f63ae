"""Messages as they come -> their answers as they come, in the form that is asked for; what fails -> stderr."""

import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from src.errors import InputError
from src.serving import inputs, outputs

if TYPE_CHECKING:
    from src.serving.predictor import Predictor


class Form(NamedTuple):
    """How answers are written: as text, which is a table for messages of a table, or jsonl; and what JSON escapes."""

    kind: str
    labels_only: bool
    ascii: bool


def answered(
    predictor: "Predictor", source: inputs.Input, count: Counter[str], bar_shown: bool
) -> Iterator[outputs.Pairs]:
    """Each batch with its answers; what cannot be read goes to stderr, and both are counted. Raises InputError where
    there is nothing, and ends the process where nothing can be read."""
    batches = inputs.all_at_once(source.batches) if predictor.answers_depend_on_each_other else source.batches
    with tqdm(total=source.n, unit=" messages", disable=not bar_shown) as bar:
        for batch in batches:
            for message in batch:
                count["failed" if message.fault else "read"] += 1
                if message.fault:
                    tqdm.write(f"error: {message.where}: {message.fault}", sys.stderr)
            texts = [message.text for message in batch if message.text is not None]
            answers = iter(predictor.answers(texts) if texts else [])
            yield [(message, None if message.fault else next(answers)) for message in batch]
            bar.update(len(batch))
    if predictor.cut:
        n = f"{predictor.cut} of {count['read']}"
        print(f"{n} messages are longer than {predictor.limit} tokens and were cut", file=sys.stderr)
    if not count:
        raise InputError(f"{source.name} holds no message: give one a line")
    if not count["read"]:
        sys.exit(2)


def pieces(
    batches: Iterator[outputs.Pairs], table: inputs.Table | None, predictor: "Predictor", form: Form
) -> Iterator[str | bytes]:
    """What is written, batch by batch."""
    if table is not None and (form.kind == "text" or form.kind == table.kind[1:]):
        added = outputs.Added(predictor.labels, predictor.writes, form.labels_only)
        return outputs.table(batches, table, added, form.ascii)
    if form.kind == "jsonl":
        return outputs.json_lines(batches, form.labels_only, form.ascii)
    return outputs.lines(batches, form.labels_only)
