"""python -m benchmarks.peer weights=<Hugging Face folder> [spam=<UCI file>] [precision=32-true] [epochs=5] [fraction=1]

The job as it is usually written, with transformers: GPT2ForSequenceClassification and Trainer, all frozen but the last
block, the final norm and the score head. It reads the last token that is no padding. Prints as JSON what it took and
the accuracy on every split.

Equal to ours: weights, messages and split, token ids, batch size, learning rate (constant), weight decay, epochs, no
dropout, no clipping of gradients. As Trainer has it: dynamic padding to the longest message of a batch, AdamW without
weight decay on biases and norms, a score layer without bias. In its favour: it keeps no checkpoint, so that the last
epoch is measured and not the best one, and no cache of keys and values.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.setting import BATCH_SIZE, LR, SEED, WEIGHT_DECAY
from src.config.command_line import one_sentence
from src.config.options import options

Rows = list[dict[str, Any]]


@dataclass
class Options:
    """What the command line takes."""

    weights: str
    spam: str = ""
    precision: str = "32-true"
    epochs: str = "5"
    fraction: str = "1"


def rows(spam: str, fraction: float) -> dict[str, Rows]:
    """The published split, tokenized by our tokenizer and cut, as ours is, to the longest training message."""
    from src.data.sms_spam import read_sms_spam
    from src.data.splits import book, fraction_of
    from src.data.tokenizer import encode

    corpus = read_sms_spam(spam or None, Path("~/.cache/two-ways").expanduser(), quoted=True)
    splits = book(corpus.examples)
    splits = splits._replace(train=fraction_of(splits.train, fraction, SEED))
    ids = {part: encode([example.text for example in examples]) for part, examples in splits._asdict().items()}
    longest = max(map(len, ids["train"]))
    return {
        part: [
            {"input_ids": row[:longest], "labels": corpus.labels.index(example.label)}
            for row, example in zip(ids[part], examples, strict=True)
        ]
        for part, examples in splits._asdict().items()
    }


def pad(batch: Rows) -> dict[str, Any]:
    """A batch as tensors, padded on the right to its longest message."""
    import torch

    from src.data.tokenizer import END_OF_TEXT

    T = max(len(row["input_ids"]) for row in batch)
    ids = torch.full((len(batch), T), END_OF_TEXT)
    mask = torch.zeros(len(batch), T, dtype=torch.long)
    for i, row in enumerate(batch):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in batch])}


def classifier(weights: str) -> Any:
    """GPT-2 with a score head of two classes; the last block, the final norm and the head are trained."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification
    from transformers.utils import logging

    from src.data.tokenizer import END_OF_TEXT

    logging.set_verbosity_error()  # that the score layer is new is as it should be
    logging.disable_progress_bar()
    config: Any = GPT2Config.from_pretrained(weights, num_labels=2, pad_token_id=END_OF_TEXT, use_cache=False)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model: Any = GPT2ForSequenceClassification.from_pretrained(weights, config=config, dtype=torch.float32)
    model.requires_grad_(False)
    for part in (model.transformer.h[-1], model.transformer.ln_f, model.score):
        part.requires_grad_(True)
    return model


def arguments(folder: str, precision: str, epochs: int) -> Any:
    """Trainer's settings."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=0.0,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        bf16="bf16" in precision,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=SEED,
        report_to="none",
        disable_tqdm=True,
    )


def accuracy(outcome: Any) -> dict[str, float]:
    """What Trainer calls with logits and labels of a split."""
    return {"accuracy": float((outcome.predictions.argmax(-1) == outcome.label_ids).mean())}


def job(given: Options, folder: str) -> dict[str, Any]:
    """Train with an evaluation after every epoch, then measure every split."""
    started = perf_counter()
    from transformers import Trainer, set_seed

    set_seed(SEED)
    parts: Any = rows(given.spam, float(given.fraction))  # Trainer asks for a Dataset, a list will do
    model = classifier(given.weights)
    trainer = Trainer(
        model=model,
        args=arguments(folder, given.precision, int(given.epochs)),
        data_collator=pad,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        compute_metrics=accuracy,
    )
    ready = perf_counter()
    trainer.train()
    trained = perf_counter()
    validating = sum(entry.get("eval_runtime", 0.0) for entry in trainer.state.log_history)
    measured = {part: trainer.evaluate(messages)["eval_accuracy"] for part, messages in parts.items()}
    return {
        "accuracy": measured,
        "sizes": {part: len(messages) for part, messages in parts.items()},
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "setup_seconds": ready - started,
        "train_seconds": trained - ready - validating,
        "evaluate_seconds": validating + perf_counter() - trained,
    }


def main() -> None:
    """Run the job, print what it took."""
    given = options(Options, sys.argv[1:], __doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(job(given, folder)))


if __name__ == "__main__":
    with one_sentence():
        main()
