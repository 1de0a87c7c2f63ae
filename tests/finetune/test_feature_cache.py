"""What frozen blocks make of each message is computed once: nothing changes by it, and what is kept is never wrong."""

import errno
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from src.config import build
from src.config.command_line import compose
from src.data.batching import PADDING, TOKENS, Messages, ShuffledBatches, evaluation_batches, packed_batches
from src.data.datamodule import evaluation_loader, loader
from src.data.prompts import Question, make_task
from src.data.tokenizer import END_OF_TEXT
from src.errors import InputError
from src.evaluation.metrics import Predictions, predict
from src.finetune.base import FineTuner
from src.finetune.classifier import Classifier
from src.finetune.cost import Cost, Flops, OrdinaryFlops, count_flops
from src.finetune.feature_cache import FeatureCache, FrozenBlocks, free_bytes, key_of
from src.finetune.feature_store import CHECKSUM, HEADER, DamagedError, FeatureStore, Rows
from src.finetune.instruction import InstructionTuner
from src.gpt.model import GPT, GPTConfig
from src.pretraining.causal_lm import CausalLM
from src.pretraining.losses import mean_loss
from src.runs import run_dir
from src.train import Run, train
from tests.shared import outspoken_gpt, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*isinstance.treespec.*")

CONFIG = GPTConfig(n_layer=6, n_head=2, n_embd=16, context_length=64)
MUCH = 1e9
COUNTED = Flops.of


@pytest.fixture(autouse=True)
def uncounted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting operations takes most of a tiny run's time; it is part of the runs end to end."""
    if "home" not in request.fixturenames:
        monkeypatch.setattr(Flops, "of", lambda *_: 7)


def gpt(seed: int = 0, **changes: Any) -> GPT:
    """Six tiny blocks whose logits differ: with GPT-2's small initial weights, features would hardly matter."""
    return outspoken_gpt(replace(CONFIG, **changes), seed)


def adamw(lr: float) -> Any:
    return partial(torch.optim.AdamW, lr=lr, weight_decay=0.1, fused=True)


def classifier(
    strategy: str = "last_block", pooling: str = "last", body: GPT | None = None, seed: int = 0, **given: Any
) -> Classifier:
    torch.manual_seed(seed)
    given = {"optimizer": adamw(1e-3), **given}
    return Classifier(body or gpt(), [Question("", ("ham", "spam"))], strategy, pooling, **given)


TEMPLATE = "{instruction}{text}:"
MAIL = Question("mail", ("ham", "spam"), "?", {"ham": "no", "spam": "yes"})
# answers of one, two and three tokens; the last two share their first one
ANSWERS = {"a": "fine", "b": "very good", "c": "very bad indeed"}
WORDY = Question("wordy", ("a", "b", "c"), "What is this? ", ANSWERS, first_class=2)
MAIL_PROMPT, WORDY_PROMPT = (make_task(question, TEMPLATE).prompt for question in (MAIL, WORDY))


def instruct(strategy: str = "last_block", body: GPT | None = None, **given: Any) -> InstructionTuner:
    """Two tasks, with two and three classes, for one model."""
    torch.manual_seed(0)
    given = {"optimizer": adamw(5e-4), **given}
    return InstructionTuner(body or gpt(), [MAIL, WORDY], TEMPLATE, strategy, **given)


def split(padding: str = "fixed", n_classes: int = 2) -> dict[str, Messages]:
    """Random messages of 2 to 11 tokens in three parts, two of them equal and two that begin alike; five classes are
    those of `instruct`, each in its prompt."""
    rng = np.random.default_rng(0)

    def part(name: str, n: int) -> Messages:
        ids = [rng.integers(50256, size=rng.integers(2, 12)).tolist() for _ in range(n)]
        ids[1], ids[3] = ids[0][:], ids[2][: len(ids[2]) // 2] + ids[3][:5]
        labels = rng.integers(n_classes, size=n).tolist()
        if n_classes == 5:
            prompts = [MAIL_PROMPT if label < 2 else WORDY_PROMPT for label in labels]
            ids = [prompt.around(row, 60) for prompt, row in zip(prompts, ids, strict=True)]
        return Messages(ids, labels, 12 if padding == "fixed" else None, padding, name)

    return {name: part(name, n) for name, n in (("train", 24), ("validation", 7), ("test", 9))}


class Outcome(NamedTuple):
    """Losses of training, the last one of validation, and the final predictions of every part."""

    losses: list[float]
    validation: float
    predictions: dict[str, Predictions]


def outcome(
    tuner: FineTuner, parts: dict[str, Messages], cache: FeatureCache | None = None, steps: int = 50, **settings: Any
) -> Outcome:
    losses: list[float] = []
    note = LambdaCallback(on_train_batch_end=lambda trainer, model, output, *_: losses.append(output["loss"].item()))
    trainer = quiet_trainer(max_steps=steps, max_epochs=-1, callbacks=[note], check_val_every_n_epoch=2, **settings)
    if cache:
        cache.prepare(tuner, parts, trainer)
    messages = parts["train"]
    lengths = [len(ids) for ids in messages.ids] if messages.padding == "batch" else None
    batches = ShuffledBatches(len(messages), 1 if messages.padding == "none" else 4, 0, lengths)
    trainer.fit(tuner, loader(messages, batches, 0), evaluation_loader(parts["validation"], 4))
    validation = trainer.callback_metrics["validation/loss"].item()
    return Outcome(losses, validation, {n: predict(trainer, tuner, evaluation_loader(p, 4)) for n, p in parts.items()})


def losses_apart(found: Outcome, expected: Outcome) -> float:
    """The largest difference between losses, relative for those above 1."""
    a, b = (torch.tensor([*outcome.losses, outcome.validation], dtype=torch.float64) for outcome in (found, expected))
    return ((a - b).abs() / b.abs().clamp(min=1)).max().item()


def predictions_apart(found: Outcome, expected: Outcome) -> float:
    """The largest difference between log-probabilities."""
    differences = []
    for part, p in expected.predictions.items():
        q = found.predictions[part]
        possible = p.log_probabilities > -math.inf  # classes of the message's own task
        assert torch.equal(q.log_probabilities > -math.inf, possible)
        assert q.labels.tolist() == p.labels.tolist()
        differences.append((q.log_probabilities - p.log_probabilities)[possible].abs().max().item())
    return max(differences)


def said(outcome: Outcome) -> list[int]:
    """What an instructed model says of all messages."""
    return [number for p in outcome.predictions.values() if p.said is not None for number in p.said.tolist()]


def cache_in(folder: Path, kind: str = "disk", max_bytes: float = MUCH) -> FeatureCache:
    return FeatureCache(kind, FeatureStore(folder / "features", max_bytes), max_bytes)


# cached = uncached

# every two of pooling, padding, strategy and kind together, where they can be; each of them in the seven quick ones
CASES = """
first free last_block disk
last_nonpad free last_layer disk
last_nonpad none 3_blocks memory
last fixed last_two_blocks memory
last batch 3_blocks disk
mean fixed last_layer memory
mean batch last_block memory
first none last_layer memory
first free last_two_blocks memory
first free 3_blocks disk
last_nonpad none last_block disk
last_nonpad none last_two_blocks disk
last none last_layer disk
last fixed last_block disk
mean batch last_two_blocks disk
mean fixed 3_blocks memory
mean none last_block memory
"""


@pytest.mark.parametrize(
    ("pooling", "padding", "strategy", "kind"),
    [pytest.param(*case.split(), marks=[pytest.mark.slow] * (i > 1)) for i, case in enumerate(CASES.split("\n")[1:-1])],
)
def test_a_classifier_learns_the_same_from_features(pooling, padding, strategy, kind, tmp_path):
    parts, tuner = split(padding), classifier(strategy, pooling)
    expected = outcome(classifier(strategy, pooling), parts)
    found = outcome(tuner, parts, cache_in(tmp_path, kind))
    assert max(expected.losses) - min(expected.losses) > 0.05
    assert losses_apart(found, expected) < 1e-6
    assert predictions_apart(found, expected) < 1e-6
    assert set(tuner.features) == set(parts)
    assert (tmp_path / "features").exists() == (kind == "disk")


@pytest.mark.parametrize(
    ("strategy", "padding"),
    [
        ("last_block", "none"),
        pytest.param("last_layer", "free", marks=pytest.mark.slow),
        pytest.param("last_two_blocks", "free", marks=pytest.mark.slow),
        pytest.param("last_layer", "none", marks=pytest.mark.slow),
        pytest.param("last_block", "free", marks=pytest.mark.slow),
        pytest.param("3_blocks", "none", marks=pytest.mark.slow),
    ],
)
def test_an_instructed_model_learns_the_same_from_features(strategy, padding, tmp_path):
    parts, tuner = split(padding, 5), instruct(strategy)
    expected = outcome(instruct(strategy), parts)
    found = outcome(tuner, parts, cache_in(tmp_path, "disk" if padding == "free" else "memory"))
    assert max(expected.losses) - min(expected.losses) > 0.5
    assert losses_apart(found, expected) < 1e-6
    assert predictions_apart(found, expected) < 2e-5  # a whole answer's is about -33, whose last bit is 4e-6
    assert set(tuner.features) == set(parts)


def test_stages_learn_the_same_from_features(tmp_path):
    """Of the head phase those of a run that trains the head alone, which such a run reads back."""
    parts, stages = split("free"), {"pooling": "last_nonpad", "head_epochs": 3, "gradual_unfreezing": 2}
    expected = outcome(classifier("last_two_blocks", **stages), parts)
    tuner = classifier("last_two_blocks", **stages)
    found = outcome(tuner, parts, cache_in(tmp_path))
    assert max(expected.losses) - min(expected.losses) > 0.05
    assert losses_apart(found, expected) < 1e-6
    assert predictions_apart(found, expected) < 1e-6
    assert [(stage.first_trainable, set(stage.features)) for stage in tuner.stages] == [
        (k, set(parts)) for k in (6, 5, 4)
    ]
    alone = cache_in(tmp_path)
    alone.prepare(classifier("last_layer", pooling="last_nonpad"), parts, quiet_trainer())
    assert alone.reused == [*parts]


@pytest.mark.slow
def test_an_instructed_model_learns_the_same_in_stages_from_features(tmp_path):
    parts = split("free", 5)
    expected = outcome(instruct("last_two_blocks", gradual_unfreezing=3), parts)
    found = outcome(instruct("last_two_blocks", gradual_unfreezing=3), parts, cache_in(tmp_path))
    assert losses_apart(found, expected) < 1e-6
    assert predictions_apart(found, expected) < 2e-5


def eager() -> GPT:
    """A GPT that soon learns to say its answers."""
    body = gpt(n_embd=32)
    with torch.no_grad():
        body.token_embedding.weight.mul_(6)
    return body


@pytest.mark.parametrize("strategy", [pytest.param("last_layer", marks=pytest.mark.slow), "last_two_blocks"])
def test_an_instructed_model_says_the_same_from_features(strategy, tmp_path):
    """Trained well enough to say right answers, wrong ones, and none."""
    parts, tuner = split("free", 5), instruct(strategy, body=eager(), optimizer=adamw(1e-2))
    found = outcome(tuner, parts, cache_in(tmp_path, "memory"), steps=150 if strategy == "last_layer" else 50)
    tuner.features.clear()
    batches = {part: evaluation_loader(messages, 4) for part, messages in parts.items()}
    expected = found._replace(predictions={part: predict(quiet_trainer(), tuner, b) for part, b in batches.items()})
    assert predictions_apart(found, expected) < 5e-5
    assert said(found) == said(expected)
    assert set(said(found)) >= {-1, 1, 4}


@pytest.mark.parametrize("make", [classifier, instruct])
@pytest.mark.slow
def test_dropout_in_trained_blocks_is_the_same(make, tmp_path):
    parts = split("free", 2 if make is classifier else 5)
    settings = {"pooling": "last_nonpad"} if make is classifier else {}
    expected = outcome(make("last_block", body=gpt(dropout=0.3), **settings), parts, steps=12)
    found = outcome(make("last_block", body=gpt(dropout=0.3), **settings), parts, cache_in(tmp_path, "memory"), 12)
    assert losses_apart(found, expected) < 1e-6


@pytest.mark.parametrize("make", [classifier, instruct])
@pytest.mark.parametrize("strategy", ["all", "lora"])
def test_where_no_block_is_frozen_nothing_is_prepared(make, strategy, tmp_path):
    tuner, cache = make(strategy), cache_in(tmp_path)
    cache.prepare(tuner, split("free", 5), quiet_trainer())
    assert tuner.features == {}
    assert cache.facts() == {"features_seconds": 0, "features_reused": [], "features_flops": 0}
    assert not (tmp_path / "features").exists()


# what begins alike is computed once


def distinct(messages: Messages) -> int:
    """How many tokens differ in themselves or in one before."""
    padded = [ids + [END_OF_TEXT] * ((messages.width or 0) - len(ids)) for ids in messages.ids]
    return len({tuple(ids[: n + 1]) for ids in padded for n in range(len(ids))})


@pytest.mark.parametrize("strategy", ["last_layer", "last_block"])
@pytest.mark.parametrize("kind", ["fixed", "batch", "free", "none", "instruct"])
def test_a_token_behind_the_same_ones_is_computed_once(kind, strategy, tmp_path):
    if kind == "instruct":
        tuner, parts = instruct(strategy), split("free", 5)
    else:
        pooling = "last_nonpad" if kind in ("free", "none") else "last"
        tuner, parts = classifier("last_block" if kind == "batch" else strategy, pooling), split(kind)
    rows = list[int]()
    layer = tuner.gpt.blocks[0].mlp.up
    layer.register_forward_hook(lambda _, x, __: rows.append(x[0].flatten(0, -2).shape[0]))
    for part, messages in parts.items():
        rows.clear()
        cache_in(tmp_path, "memory").prepare(tuner, {part: messages}, quiet_trainer())
        if kind == "batch":  # as wide as the longest, and not only as the longest beside it
            messages = Messages(messages.ids, messages.labels, max(map(len, messages.ids)))
        answers = tuner.answer_rows * len(messages)
        assert sum(rows) == distinct(messages) + answers or (kind == "none" and sum(rows) >= distinct(messages))
        assert sum(rows) < sum(messages.width or len(ids) for ids in messages.ids) + answers


def test_operations_are_counted_as_if_nothing_began_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(Flops, "of", COUNTED)
    ids, other = IDS[:4], [[row, *ids[1:]] for row, ids in enumerate(IDS[:4])]
    flops = []
    for messages in (ids, [ids[0]] * 4, other):
        parts = {"train": changed(ids=messages, labels=[0] * 4)}
        cache = cache_in(tmp_path, "memory")
        cache.prepare(tuner := classifier(), parts, quiet_trainer())
        flops.append(cache.flops["train"])
    with torch.device("meta"):
        expected = 4 * count_flops(Prefix(tuner), torch.zeros(1, 12, dtype=torch.long))
    assert flops == [expected] * 3


class Prefix(torch.nn.Module):
    def __init__(self, tuner: FineTuner) -> None:
        super().__init__()
        self.gpt, self.k = tuner.gpt, tuner.first_trainable

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.gpt.lower_blocks(ids, self.k)


@pytest.mark.parametrize("padding", ["fixed", "free", "none"])
def test_packed_batches_are_full_of_distinct_tokens(padding):
    rng = np.random.default_rng(1)
    starts = [rng.integers(9, size=20).tolist() for _ in range(10)]
    ids = [starts[rng.integers(10)][: rng.integers(1, 20)] + rng.integers(9, size=n % 60).tolist() for n in range(600)]
    ids[7] = [1] * (2 * TOKENS)
    if padding == "fixed":
        ids = [row[:80] for row in ids]
    messages = Messages(ids, [0] * 600, 80 if padding == "fixed" else None, padding)
    batches = packed_batches(messages, 3)
    assert sorted(row for batch in batches for row in batch) == list(range(600))
    rectangles = 0
    for rows in batches:
        batch = Messages([ids[row] for row in rows], [0] * len(rows), messages.width)
        wide = messages.width or max(map(len, batch.ids))
        rectangles += len(rows) * wide
        assert len(rows) == 1 or distinct(batch) + 3 * len(rows) <= TOKENS
        assert len(rows) == 1 or len(rows) * wide <= 4 * TOKENS
        assert padding != "none" or len(set(map(len, batch.ids))) == 1
        assert batch.ids == sorted(batch.ids)
    assert rectangles <= 1.25 * sum(messages.width or len(row) for row in ids)
    if padding != "none":
        assert len(batches) <= (distinct(messages) + 3 * 600) / (0.9 * TOKENS) + 1


# what of a message depends on those beside it


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_to_the_longest_of_a_batch_is_sliced_from_full_width(pooling, tmp_path):
    parts, tuner = split("batch"), classifier("last_block", pooling)
    longest = {part: max(map(len, messages.ids)) for part, messages in parts.items()}
    cache_in(tmp_path, "memory").prepare(tuner, parts, quiet_trainer())
    narrow = 0
    for part, features in tuner.features.items():
        assert {len(row) for row in features.rows.values()} == {longest[part]}
        for batch in evaluation_loader(parts[part], 2):
            with torch.no_grad():
                expected = tuner.encode_frozen(batch.ids, batch.length)
            torch.testing.assert_close(features.of(batch), expected, atol=1e-5, rtol=0)
            narrow += batch.ids.shape[1] < longest[part]
    assert narrow > 5


@pytest.mark.parametrize(
    ("causal", "strategy", "pooling", "cached"),
    [
        (True, "last_block", "last", True),
        (True, "last_layer", "last", False),  # which place is read depends on the batch's width
        (True, "last_layer", "mean", False),
        (False, "last_block", "last", False),  # every place has seen the padding
        (False, "last_layer", "mean", False),
    ],
)
@pytest.mark.slow
def test_what_depends_on_the_batch_is_not_cached(causal, strategy, pooling, cached, tmp_path):
    parts, tuner = split("batch"), classifier(strategy, pooling, gpt(causal=causal))
    expected = outcome(classifier(strategy, pooling, gpt(causal=causal)), parts, steps=12)
    found = outcome(tuner, parts, cache_in(tmp_path), steps=12)
    assert set(tuner.features) == (set(parts) if cached else set())
    assert (losses_apart(found, expected) < 1e-6) if cached else (found.losses == expected.losses)


@pytest.mark.parametrize("pooling", ["last_nonpad", "mean"])
def test_without_a_causal_mask_one_width_for_all_is_cached(pooling, tmp_path):
    parts, tuner = split("fixed"), classifier("last_block", pooling, gpt(causal=False))
    expected = outcome(classifier("last_block", pooling, gpt(causal=False)), parts, steps=12)
    assert losses_apart(outcome(tuner, parts, cache_in(tmp_path), 12), expected) < 1e-6
    assert set(tuner.features) == set(parts)


# half precision


@pytest.mark.parametrize(
    ("padding", "precision", "frozen"),
    [("fixed", "bf16-mixed", "run"), ("fixed", "bf16-true", "run"), ("batch", "32-true", "bf16")],
)
@pytest.mark.slow
def test_half_precision_is_the_same_from_features(padding, precision, frozen, tmp_path):
    """Up to the last bit of bf16, 4e-3, where the kernel depends on the batch."""
    parts = split(padding)
    exact = outcome(classifier(), parts, steps=12)
    expected = outcome(classifier(frozen_precision=frozen), parts, steps=12, precision=precision)
    found = outcome(classifier(frozen_precision=frozen), parts, cache_in(tmp_path), 12, precision=precision)
    assert losses_apart(found, expected) < 4e-3
    assert predictions_apart(found, expected) < 2e-2
    assert 0 < losses_apart(found, exact) < (0.1 if precision == "bf16-true" else 2e-2)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_an_instructed_model_answers_in_half_precision(precision, tmp_path):
    messages, tuner, trainer = split("free", 5)["validation"], instruct(), quiet_trainer(precision=precision)
    expected = predict(trainer, tuner, evaluation_loader(messages, 4))
    cache_in(tmp_path, "memory").prepare(tuner, {"validation": messages}, trainer)
    found = predict(trainer, tuner, evaluation_loader(messages, 4))
    possible = expected.log_probabilities > -math.inf
    assert (found.log_probabilities - expected.log_probabilities)[possible].abs().max() < 0.1  # of answers of -33


def test_an_instructed_model_answers_with_frozen_blocks_in_half_precision(tmp_path):
    messages, trainer = split("free", 5)["validation"], quiet_trainer()

    def answered(frozen: str, cache: FeatureCache | None = None) -> torch.Tensor:
        tuner = instruct(frozen_precision=frozen)
        if cache:
            cache.prepare(tuner, {"validation": messages}, trainer)
        log_p = predict(trainer, tuner, evaluation_loader(messages, 4)).log_probabilities
        return log_p[log_p > -math.inf]

    exact, rounded = answered("run"), answered("bf16")
    found = answered("bf16", cache_in(tmp_path, "memory"))
    assert (found - rounded).abs().max() < (exact - rounded).abs().max() / 3


@torch.no_grad()
def test_frozen_precision_is_that_of_the_rows(tmp_path):
    tuner, parts = classifier(frozen_precision="bf16"), split()
    batch = parts["train"][list(range(24))]
    cache_in(tmp_path, "memory").prepare(tuner, parts, quiet_trainer())
    kept, exact = tuner.features["train"].of(batch), tuner.gpt.lower_blocks(batch.ids, tuner.first_trainable)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tuner.gpt.lower_blocks(batch.ids, tuner.first_trainable)
    assert (kept - rounded).abs().max() < (kept - exact).abs().max() / 4
    assert (kept - exact).abs().max() < 0.05


# the key


def prepared(tuner: FineTuner, messages: Messages, folder: Path, **settings: Any) -> bool:
    """Whether features were read back."""
    cache = cache_in(folder)
    cache.prepare(tuner, {"train": messages}, quiet_trainer(**settings))
    assert set(tuner.features) == {"train"}
    return cache.reused == ["train"]


@torch.no_grad()
def shift(tuner: FineTuner, name: str) -> FineTuner:
    """With another value in a parameter."""
    tuner.get_parameter(name).view(-1)[-1] += 1e-3
    return tuner


def changed(**changes: Any) -> Messages:
    """The training messages with other ids, labels or width."""
    train = split()["train"]
    return Messages(**{"ids": train.ids, "labels": train.labels, "width": 12, "part": "train", **changes})


IDS = split()["train"].ids
SHORT = min(range(24), key=lambda row: len(IDS[row]))
OTHER_TOKEN = [*IDS[:-1], [*IDS[-1][:-1], 7]]
LONGER = [[*ids, END_OF_TEXT] if row == SHORT else ids for row, ids in enumerate(IDS)]  # the same tokens when padded


MISSES: dict[str, Callable[[], tuple[FineTuner, Messages, dict[str, Any]]]] = {
    "weight": lambda: (shift(classifier(), "gpt.blocks.0.norm1.bias"), changed(), {}),
    "weight_below": lambda: (shift(classifier(), "gpt.blocks.4.mlp.down.weight"), changed(), {}),
    "embedding": lambda: (shift(classifier(), "gpt.token_embedding.weight"), changed(), {}),
    "seed": lambda: (classifier(body=gpt(seed=1)), changed(), {}),
    "token": lambda: (classifier(), changed(ids=OTHER_TOKEN), {}),
    "length": lambda: (classifier(), changed(ids=LONGER), {}),
    "order": lambda: (classifier(), changed(ids=[*IDS[1:], IDS[0]]), {}),
    "fewer": lambda: (classifier(), changed(ids=IDS[:-1], labels=[0] * 23), {}),
    "width": lambda: (classifier(), changed(width=13), {}),
    "padding": lambda: (classifier(), changed(width=None, padding="none"), {}),
    "k": lambda: (classifier("last_two_blocks"), changed(), {}),
    "last_layer": lambda: (classifier("last_layer"), changed(), {}),
    "causal": lambda: (classifier(body=gpt(causal=False)), changed(), {}),
    "heads": lambda: (classifier(body=gpt(n_head=4)), changed(), {}),
    "precision": lambda: (classifier(), changed(), {"precision": "bf16-mixed"}),
    "frozen_precision": lambda: (classifier(frozen_precision="bf16"), changed(), {}),
    "first": lambda: (classifier(pooling="first"), changed(), {}),
}
HITS: dict[str, Callable[[], tuple[FineTuner, Messages]]] = {
    "same": lambda: (classifier(), changed()),
    "head": lambda: (classifier(seed=1), changed()),
    "rate": lambda: (classifier(optimizer=adamw(1.0)), changed()),
    "trained_block": lambda: (shift(classifier(), "gpt.blocks.5.mlp.down.weight"), changed()),
    "trained_norm": lambda: (shift(classifier(), "gpt.final_norm.weight"), changed()),
    "dropout": lambda: (classifier(body=gpt(dropout=0.5)), changed()),
    "pooling": lambda: (classifier(pooling="mean"), changed()),
    "labels": lambda: (classifier(), changed(labels=[1] * 24)),
    "part": lambda: (classifier(), changed(part="test")),
}


@pytest.mark.parametrize("change", MISSES)
def test_a_change_of_what_features_depend_on_misses(change, tmp_path):
    tuner, messages, settings = MISSES[change]()
    assert not prepared(classifier(), changed(), tmp_path)
    assert not prepared(tuner, messages, tmp_path, **settings)
    assert prepared(classifier(), changed(), tmp_path)
    assert prepared(tuner, messages, tmp_path, **settings)


def test_the_tokens_of_a_longer_message_can_be_those_of_padding():
    longer, plain, rows = changed(ids=LONGER), changed(), list(range(24))
    assert torch.equal(longer[rows].ids, plain[rows].ids)
    assert not torch.equal(longer[rows].length, plain[rows].length)


@pytest.mark.parametrize("change", HITS)
def test_a_change_of_anything_else_hits(change, tmp_path):
    assert not prepared(classifier(), changed(), tmp_path)
    assert prepared(*HITS[change](), tmp_path)


def test_the_place_of_a_message_in_its_split_counts(tmp_path):
    """Also where batches, sorted by length, hold the same."""
    ids = [[token] * (2 + token) for token in range(8)]
    there, back = (changed(ids=i, labels=[0] * 8, width=None, padding="free") for i in (ids, ids[::-1]))
    assert not prepared(classifier(pooling="last_nonpad"), there, tmp_path)
    assert not prepared(classifier(pooling="last_nonpad"), back, tmp_path)
    assert prepared(classifier(pooling="last_nonpad"), there, tmp_path)


def test_the_pooling_counts_where_only_what_is_read_is_kept(tmp_path):
    assert not prepared(classifier("last_layer", "last"), changed(), tmp_path)
    assert not prepared(classifier("last_layer", "mean"), changed(), tmp_path)
    assert prepared(classifier("last_layer", "last"), changed(), tmp_path)


@pytest.mark.parametrize("strategy", ["last_layer", "last_block"])
def test_the_answers_count_for_an_instructed_model(strategy, tmp_path):
    def model(answer: str) -> InstructionTuner:
        return InstructionTuner(gpt(), [replace(MAIL, answers={"ham": answer, "spam": "yes"})], TEMPLATE, strategy)

    messages = changed(width=None, padding="free")
    assert not prepared(model("no"), messages, tmp_path)
    assert not prepared(model("never"), messages, tmp_path)
    assert prepared(model("no"), messages, tmp_path)


def test_device_arithmetic_and_versions_count(monkeypatch):
    def key(device: str) -> str:
        trainer: Any = SimpleNamespace(precision="32-true", strategy=SimpleNamespace(root_device=torch.device(device)))
        return key_of(FrozenBlocks(classifier()), [changed()[[0, 1]]], trainer)

    keys = [key("cpu")]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    keys.append(key("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    keys.append(key("cuda"))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    keys.append(key("cpu"))
    monkeypatch.setattr(torch, "__version__", "0.1")
    keys.append(key("cpu"))
    monkeypatch.setattr("src.finetune.feature_cache.VERSION", 0)
    keys.append(key("cpu"))
    assert len(set(keys)) == 6


def test_a_gpu_keeps_features_in_half_of_what_training_leaves(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000_000, 20_000_000))
    tuner = classifier()
    trained = sum(p.numel() for p in tuner.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in tuner.parameters()) - trained
    needed = 4 * frozen + 16 * trained  # bytes: a weight, its gradient and two moments
    assert free_bytes(tuner, torch.device("cuda")) == (10_000_000 - needed) / 2
    assert free_bytes(tuner, torch.device("cpu")) == 0


# the store

KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(4)]


def rows(n: int = 20) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return {number: torch.randn(3 + number % 4, 8, generator=generator) for number in range(n)}


def write(store: FeatureStore, key: str, given: Rows, flops: int = 5) -> Path:
    """An entry, filled by four rows at a time."""

    def fill(add: Callable[..., None]) -> None:
        numbers = list(given)
        for start in range(0, len(numbers), 4):
            few = numbers[start : start + 4]
            add(few, [given[number] for number in few])

    store.write(key, {"flops": flops}, fill)
    return store.path(key)


def same(found: tuple[Rows, dict[str, Any]] | None, given: Rows, flops: int = 5) -> bool:
    if found is None or set(found[0]) != set(given) or found[1]["flops"] != flops:
        return False
    return all(found[0][n].dtype == row.dtype and torch.equal(found[0][n], row) for n, row in given.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("width", [8, 3])
def test_rows_come_back_as_they_were(dtype, width, tmp_path):
    given = {number: row[:, :width].to(dtype) for number, row in rows().items()}
    path = write(FeatureStore(tmp_path / "a" / "b", MUCH), KEYS[0], given)
    assert same(FeatureStore(tmp_path / "a" / "b", MUCH).open(KEYS[0]), given)
    assert list(path.parent.iterdir()) == [path]
    kept = load_file(path)["values"]  # any reader of safetensors can
    assert torch.equal(kept, torch.cat(list(given.values())))


def test_a_file_can_be_read_by_whoever_may_read_the_folder(tmp_path):
    before = os.umask(0o022)
    try:
        path = write(FeatureStore(tmp_path / "features", MUCH), KEYS[0], rows())
    finally:
        os.umask(before)
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o755, 0o644)


def replaced(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))


def swap(file: Path) -> None:
    shutil.copy(write(FeatureStore(file.parent, MUCH), KEYS[1], rows()), file)


def of_another_version(file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.finetune.feature_store.VERSION", 0)
        write(FeatureStore(file.parent, MUCH), KEYS[0], rows())


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "half a file": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a byte less": lambda file: os.truncate(file, file.stat().st_size - 1),
    "a byte more": lambda file: os.truncate(file, file.stat().st_size + 1),
    "an empty file": lambda file: os.truncate(file, 0),
    "a header alone": lambda file: os.truncate(file, HEADER + CHECKSUM),
    "a value": lambda file: replaced(file, rows()[5][2].numpy().tobytes(), rows()[5][1].numpy().tobytes()),
    "flops": lambda file: replaced(file, b'flops\\": 5', b'flops\\": 6'),
    "the type": lambda file: replaced(file, b'"F32"', b'"I32"'),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "no safetensors": lambda file: file.write_text("mine" * 5000),
    "another's": lambda file: save_file({"values": torch.ones(5000)}, file),
    "swapped": swap,
    "of another version": of_another_version,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_was_not_written_so_is_refused_and_written_anew(how, tmp_path):
    store = FeatureStore(tmp_path, MUCH)
    DAMAGE[how](write(store, KEYS[0], rows()))
    with pytest.raises(DamagedError):
        store.open(KEYS[0])
    write(store, KEYS[0], rows())
    assert same(store.open(KEYS[0]), rows())


def test_no_flipped_bit_is_taken_for_what_was_written(tmp_path):
    rng, store = random.Random(0), FeatureStore(tmp_path, MUCH)
    content = (file := write(store, KEYS[0], rows())).read_bytes()
    for place in rng.sample(range(len(content)), 200):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(DamagedError):
            store.open(KEYS[0])


def test_what_was_not_finished_is_never_read_and_goes_after_a_day(tmp_path):
    store = FeatureStore(tmp_path, MUCH)

    def killed(add: Callable[..., None]) -> None:
        add([0], [rows()[0]])
        (unfinished,) = tmp_path.iterdir()
        shutil.copy(unfinished, tmp_path / ".unfinished-of-a-killed-process")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(KEYS[0], {}, killed)
    (left,) = tmp_path.iterdir()
    assert store.open(KEYS[0]) is None
    write(store, KEYS[0], rows())
    assert left.exists()
    os.utime(left, (0, 0))
    write(store, KEYS[1], rows())
    assert set(tmp_path.iterdir()) == {store.path(key) for key in KEYS[:2]}


def test_damaged_features_are_built_anew_by_a_run(tmp_path, capsys):
    parts = split()
    expected = outcome(classifier(), parts, cache_in(tmp_path), steps=12)
    files = sorted((tmp_path / "features").iterdir(), key=lambda file: file.stat().st_size)  # validation, test, train
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[:-50] + bytes([content[-50] ^ 64]) + content[-49:])
    first = files[0].read_bytes()
    shutil.copy(files[1], files[0])  # swapped
    capsys.readouterr()
    found = outcome(classifier(), parts, cache := cache_in(tmp_path), steps=12)
    out = capsys.readouterr().out
    assert [out.count(f"the cached features {file} are damaged") for file in files] == [1, 0, 1]
    assert cache.reused == ["test"]
    assert (found.losses, found.validation) == (expected.losses, expected.validation)
    assert (files[0].read_bytes(), files[-1].read_bytes()) == (first, content)
    outcome(classifier(), parts, cache := cache_in(tmp_path), steps=12)
    assert cache.reused == ["train", "validation", "test"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_two_processes_build_an_entry_at_once(tmp_path):
    """Both have found nothing and written everything before either puts it in its place."""
    fork = multiprocessing.get_context("fork")
    both, answers = fork.Barrier(2, timeout=60), fork.Queue()
    replace_file = os.replace

    def meet(*paths: Path) -> None:
        both.wait()
        replace_file(*paths)

    def build() -> None:
        os.replace = meet  # type: ignore[assignment]
        tuner, cache = classifier(), cache_in(tmp_path)
        cache.prepare(tuner, {"train": changed()}, quiet_trainer())
        found = {number: row.tolist() for number, row in tuner.features["train"].rows.items()}
        answers.put((found, cache.reused, cache.warned))

    processes = [fork.Process(target=build) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    tuner = classifier()
    cache_in(tmp_path / "other", "memory").prepare(tuner, {"train": changed()}, quiet_trainer())
    alone = {number: row.tolist() for number, row in tuner.features["train"].rows.items()}
    assert found == [(alone, [], set())] * 2
    (entry,) = (tmp_path / "features").iterdir()
    assert re.fullmatch(r"[0-9a-f]{64}-0-of-1\.safetensors", entry.name)
    assert prepared(classifier(), changed(), tmp_path)


# no room


def assert_said_once(capsys: pytest.CaptureFixture[str], folder: Path, why: str) -> None:
    """That a line names the cache, and why it is not used."""
    (line,) = capsys.readouterr().out.splitlines()
    assert str(folder) in line
    assert f"({why})" in line


def assert_trains_from_memory(capsys: pytest.CaptureFixture[str], folder: Path, why: str) -> None:
    """That training with a cache in `folder` says once why it is not used, and is as without one."""
    parts, tuner = split("batch"), classifier()
    expected = outcome(classifier(), parts, steps=12)
    capsys.readouterr()
    found = outcome(tuner, parts, FeatureCache("disk", FeatureStore(folder, MUCH), MUCH), steps=12)
    assert_said_once(capsys, folder, why)
    assert losses_apart(found, expected) < 1e-6
    assert set(tuner.features) == set(parts)


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("method", ["__init__", "add", "finish"])
def test_on_a_full_disk_training_goes_on_from_memory(method, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(f"src.finetune.feature_store._Entry.{method}", no_space)
    assert_trains_from_memory(capsys, tmp_path / "features", "No space left on device")
    assert list((tmp_path / "features").iterdir()) == []


def test_behind_a_limit_on_the_size_of_files_training_goes_on_from_memory(tmp_path, capsys):
    tuner, before = classifier(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        cache_in(tmp_path).prepare(tuner, split(), quiet_trainer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_said_once(capsys, tmp_path / "features", "File too large")
    assert set(tuner.features) == {"train", "validation", "test"}
    assert list((tmp_path / "features").iterdir()) == []


def denied(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_cache_that_can_only_be_read_is_used(tmp_path, monkeypatch, capsys):
    """As root may write everywhere, these are the errors that others get."""
    parts = split()
    cache_in(tmp_path).prepare(classifier(), {name: parts[name] for name in ("train", "test")}, quiet_trainer())
    kept = {path: path.stat().st_mtime for path in (tmp_path / "features").iterdir()}
    for name in ("utime", "replace", "unlink"):
        monkeypatch.setattr(os, name, denied)
    monkeypatch.setattr(FeatureStore, "write", denied)
    (cache := cache_in(tmp_path)).prepare(tuner := classifier(), parts, quiet_trainer())
    assert cache.reused == ["train", "test"]
    assert set(tuner.features) == set(parts)
    assert_said_once(capsys, tmp_path / "features", "Permission denied")
    assert {path: path.stat().st_mtime for path in (tmp_path / "features").iterdir()} == kept


def test_a_cache_that_cannot_be_read_is_left_alone(tmp_path, monkeypatch, capsys):
    parts = split()
    cache_in(tmp_path).prepare(classifier(), parts, quiet_trainer())
    kept = {path: path.read_bytes() for path in (tmp_path / "features").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        (cache := cache_in(tmp_path)).prepare(tuner := classifier(), parts, quiet_trainer())
    assert (cache.reused, set(tuner.features)) == ([], set(parts))
    assert_said_once(capsys, tmp_path / "features", "Permission denied")
    assert {path: path.read_bytes() for path in (tmp_path / "features").iterdir()} == kept


@pytest.mark.parametrize(("below", "why"), [("", "File exists"), ("below", "Not a directory")])
def test_where_a_file_stands_in_the_folder_s_place_training_goes_on_from_memory(below, why, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert_trains_from_memory(capsys, tmp_path / "file" / below, why)
    assert (tmp_path / "file").read_text() == "kept"


# bounds


def test_the_least_recently_used_entry_goes(tmp_path):
    """Opening an entry counts as using it."""
    one = write(FeatureStore(tmp_path, MUCH), KEYS[0], rows()).stat().st_size
    store = FeatureStore(tmp_path, 2.5 * one)
    os.utime(store.path(KEYS[0]), (1000, 1000))
    os.utime(write(store, KEYS[1], rows()), (2000, 2000))
    assert same(store.open(KEYS[0]), rows())
    write(store, KEYS[2], rows())
    assert set(tmp_path.iterdir()) == {store.path(KEYS[0]), store.path(KEYS[2])}
    os.utime(store.path(KEYS[0]), (1000, 1000))
    os.utime(store.path(KEYS[2]), (2000, 2000))
    write(store, KEYS[3], rows())
    assert set(tmp_path.iterdir()) == {store.path(KEYS[2]), store.path(KEYS[3])}


def test_the_newest_entry_stays_however_small_the_bound_and_rows_outlive_theirs(tmp_path):
    store = FeatureStore(tmp_path, 0)
    for key in KEYS:
        before = store.open(KEYS[0]) if key == KEYS[1] else None
        path = write(store, key, rows())
        assert list(tmp_path.iterdir()) == [path]
        assert before is None or same(before, rows())


def test_what_is_no_entry_is_never_removed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x" * 5000)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_text("mine")
    (tmp_path / ".hidden").mkdir()
    os.utime(tmp_path / ".hidden", (0, 0))
    (tmp_path / KEYS[3]).mkdir()
    mine = set(tmp_path.iterdir())
    for key in KEYS[:2]:
        path = write(FeatureStore(tmp_path, 0), key, rows())
    assert set(tmp_path.iterdir()) == {*mine, path}


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_features_that_are_too_large_are_computed_in_every_epoch(kind, tmp_path, capsys):
    """24 messages of 12 tokens with 16 channels take 18,432 bytes, the other parts 5,376 and 6,912."""
    parts, tuner = split(), classifier()
    expected = outcome(classifier(), parts, steps=12)
    capsys.readouterr()
    found = outcome(tuner, parts, cache_in(tmp_path, kind, 18_431), steps=12)
    (line,) = capsys.readouterr().out.splitlines()
    assert "train" in line
    assert "cache.max_gb" in line
    assert set(tuner.features) == {"validation", "test"}
    assert losses_apart(found, expected) < 1e-6
    for most, kept in ((30_719, {"train", "validation"}), (30_720, set(parts))):  # of all parts together
        tuner.features.clear()
        cache_in(tmp_path, "memory", most).prepare(tuner, parts, quiet_trainer())
        assert set(tuner.features) == kept


@pytest.mark.parametrize("strategy", ["last_layer", pytest.param("last_block", marks=pytest.mark.slow)])
def test_operations_with_features_are_those_of_each_step(strategy, tmp_path, monkeypatch):
    """An instructed model is given fewer rows than its features have: prompt and one answer, not all answers."""
    monkeypatch.setattr(Flops, "of", COUNTED)
    tuner, parts, cost, counted = instruct(strategy), split("free", 5), Cost(), list[int]()
    cache_in(tmp_path).prepare(tuner, parts, quiet_trainer())
    count = LambdaCallback(
        on_train_batch_start=lambda trainer, module, batch, index: counted.append(
            count_flops(module, *module.inputs(batch), module.cached_features(batch))
        )
    )
    batches = loader(parts["train"], ShuffledBatches(24, 4, seed=0), 0)
    quiet_trainer(max_epochs=1, callbacks=[cost, count]).fit(tuner, batches)
    assert (len(set(counted)) == 1) is (strategy == "last_layer")  # of which a message has as many rows, however long
    assert cost.spent["train_flops"] == sum(counted)


@pytest.mark.parametrize(("strategy", "products"), [("last_layer", 2), ("last_block", 2), ("all", 3)])
def test_logits_at_every_position_cost_their_products(strategy, products):
    """In the forward pass, and back into what is trained: the output layer's own weights, or its input, or both."""
    tuner = instruct(strategy)
    batch = next(iter(loader(split("free", 5)["train"], ShuffledBatches(24, 4, seed=0), 0)))
    ids, length = tuner.inputs(batch)
    B, T = ids.shape
    once, everywhere = OrdinaryFlops(tuner).of(ids, length)
    V, C = tuner.vocabulary.shape
    assert everywhere - once == products * 2 * B * (T - tuner.answers.shape[1]) * V * C


# batches that are not trained on


@pytest.mark.parametrize("padding", ["fixed", "batch", "free", "none"])
@pytest.mark.parametrize("some", [False, True])
def test_every_row_is_read_once(padding, some):
    rng = np.random.default_rng(1)
    ids = [[0] * n for n in rng.integers(1, 200, size=500)]
    messages = Messages(ids, [0] * 500, 200 if padding == "fixed" else None, padding)
    rows = range(100, 300, 3) if some else range(500)
    batches = evaluation_batches(messages, 8, rows if some else None)
    sizes, lengths = [len(batch) for batch in batches], [[len(ids[row]) for row in batch] for batch in batches]
    assert sorted(row for batch in batches for row in batch) == list(rows)
    match padding:
        case "batch":
            assert sizes == [8] * (len(rows) // 8) + [len(rows) % 8]
            assert [n for batch in lengths for n in batch] == sorted(len(ids[row]) for row in rows)
        case "fixed":
            full = max(8, TOKENS // 200)
            assert sizes == [full] * (len(rows) // full) + [left for left in [len(rows) % full] if left]
        case _:
            wide = [len(batch) * max(n) for batch, n in zip(batches, lengths, strict=True) if len(batch) > 8]
            assert all(tokens <= TOKENS for tokens in wide)
            if padding == "none":
                assert all(len(set(n)) == 1 for n in lengths)
                assert len({n[0] for n in lengths}) == len(batches)
            else:  # none could have held one more without too much padding
                for batch, following in pairwise(lengths):
                    full = (len(batch) + 1) * following[0] > max(TOKENS, 8 * following[0])
                    assert full or (len(batch) >= 8 and following[0] > PADDING * batch[0])
                assert all(max(n) <= PADDING * min(n) or len(n) * max(n) < TOKENS / 2 for n in lengths)
                assert len(batches) <= len(rows) / 8


def test_a_batch_is_never_smaller_than_in_training():
    for padding, width in (("fixed", 1000), ("free", None)):
        messages = Messages([[0] * 1000] * 40, [0] * 40, width, padding)
        assert [len(batch) for batch in evaluation_batches(messages, 20)] == [20, 20]


# means of epochs


@torch.no_grad()
def test_the_means_of_an_epoch_weigh_every_message_alike():
    data, tuner = split("free")["train"], classifier("all", "last_nonpad", optimizer=adamw(1e-30))
    batches = [[0, 1, 2, 3, 4], [5], list(range(6, 24))]
    logits = torch.cat([tuner(*data[[row]][:2]) for row in range(24)])
    labels = torch.tensor(data.labels)
    losses, right = F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(-1) == labels).float()
    for values in (losses, right):  # equal weights for batches would give something else
        assert (torch.stack([values[batch].mean() for batch in batches]).mean() - values.mean()).abs() > 0.01
    trainer = quiet_trainer(max_epochs=1)
    with torch.enable_grad():
        trainer.fit(tuner, loader(data, batches, 0), loader(data, batches, 0))
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for phase in ("train", "validation"):
        assert found[f"{phase}/loss"] == pytest.approx(losses.mean().item(), abs=1e-6)
        assert found[f"{phase}/accuracy"] == pytest.approx(right.mean().item(), abs=1e-6)


@torch.no_grad()
def test_the_validation_loss_of_a_language_model_weighs_every_token_alike():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(50257, shape, generator=generator) for shape in ((1, 5), (6, 9), (2, 3))]
    module, trainer = CausalLM(gpt()), quiet_trainer()
    trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    expected, tokens = mean_loss(module.gpt, batches)
    equal = sum(mean_loss(module.gpt, [batch])[0] for batch in batches) / 3
    assert tokens == 4 + 48 + 4
    assert abs(equal - expected) > 1e-2
    assert trainer.callback_metrics["validation/loss"].item() == pytest.approx(expected, abs=1e-5)


# whole runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with messages.tsv: 30 ham, 30 spam."""
    folder, rng = tmp_path_factory.mktemp("runs"), random.Random(0)
    words = {"ham": "lunch home later tea see you soon ok", "spam": "free prize win cash urgent call now claim"}
    lines = [
        f"{label}\t{' '.join(rng.choices(words[label].split(), k=rng.randint(3, 12)))} {number}\n"
        for number in range(30)
        for label in words
    ]
    (folder / "messages.tsv").write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return folder


def config(home: Path, *overrides: str) -> DictConfig:
    tiny = "gpt.weights=random gpt.n_layer=3 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=64 trainer.max_epochs=3"
    given = [*tiny.split(), "trainer.accelerator=cpu", "logger=none", "optimizer.lr=1e-2"]
    given += ["data=table", f"data.path={home / 'messages.tsv'}", f"runs={home / 'all'}"]
    return compose("train", [*given, *overrides])


def predictions(run: Run) -> bytes:
    return (run.folder / "predictions.csv").read_bytes()


PARTS = ["train", "validation", "test"]


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["last_block", "last_layer"])
def test_a_second_run_reads_back_what_the_first_has_made(home, tmp_path, trainable):
    task, disk = f"task.trainable={trainable}", ("cache=disk", f"cache.folder={tmp_path}")
    off, memory = train(config(home, task, "cache=off")), train(config(home, task, "cache=memory"))
    first, second = train(config(home, task, *disk)), train(config(home, task, *disk))
    assert predictions(second) == predictions(first) == predictions(memory)
    assert second.result["metrics"] == first.result["metrics"] == memory.result["metrics"]
    for part in PARTS:
        assert first.result["metrics"][part] == pytest.approx(off.result["metrics"][part], abs=1e-5)
    cost = [run.result["cost"] for run in (off, memory, first, second)]
    assert [c["features_reused"] for c in cost] == [[], [], [], PARTS]
    assert cost[1]["train_flops"] == cost[2]["train_flops"] == cost[3]["train_flops"]
    assert cost[1]["features_flops"] == cost[2]["features_flops"] == cost[3]["features_flops"]
    assert len({c["train_tokens"] for c in cost}) == 1
    assert cost[0]["features_flops"] == cost[0]["features_seconds"] == 0 < cost[3]["features_seconds"]
    # every message is 1 of 60, and the 42 of train are gone through three times without a cache
    assert cost[0]["train_flops"] - cost[1]["train_flops"] == 2 * 42 * cost[1]["features_flops"] // 60
    assert json.loads((second.folder / "result.json").read_text())["cost"]["features_reused"] == PARTS
    assert {run_dir.config_hash(run_dir.load_config(run.folder)) for run in (off, memory, first)} == {
        off.result["config_hash"]
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_resumed_run_with_a_cache_equals_a_straight_one(home, tmp_path, monkeypatch, kind):
    given = (f"cache={kind}", *((f"cache.folder={tmp_path / 'features'}",) if kind == "disk" else ()))
    given = (*given, "task.pooling=last_nonpad", "data.padding=batch")
    straight, step = train(config(home, *given)), Classifier.training_step

    def interrupted(self: Classifier, batch: Any, batch_index: int) -> Any:
        if (self.current_epoch, batch_index) == (1, 2):
            raise KeyboardInterrupt
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupted)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train(config(home, *given, f"runs={tmp_path / 'runs'}"))
    (folder,) = (tmp_path / "runs").iterdir()
    resumed = train(config(home, f"runs={tmp_path / 'runs'}", f"resume={folder.name}"))
    assert predictions(resumed) == predictions(straight)
    assert resumed.result["metrics"] == straight.result["metrics"]
    assert resumed.result["cost"]["features_reused"] == (PARTS if kind == "disk" else [])
    for name in ("train_flops", "train_tokens", "features_flops"):
        assert resumed.result["cost"][name] == straight.result["cost"][name]


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "ram"), ("max_gb", "-1"), ("max_gb", "null"), ("folder", "null"), ("folder", "''")]
)
def test_a_cache_that_cannot_be_is_refused_before_a_run_begins(home, tmp_path, key, value):
    cfg = config(home, f"cache.{key}={value}", f"runs={tmp_path / 'runs'}")
    for refused in (build.build_cache, train):
        with pytest.raises(InputError, match=f"cache.{key}"):
            refused(cfg)
    assert not (tmp_path / "runs").exists()


def test_the_cache_of_a_config(home, monkeypatch):
    monkeypatch.setenv("TWO_WAYS_CACHE", "~/elsewhere")
    kept = build.build_cache(config(home))
    assert (kept.kind, kept.store.folder, kept.max_bytes) == ("disk", Path("~/elsewhere/features").expanduser(), 20e9)
    assert kept.store.max_bytes == 20e9
    monkeypatch.delenv("TWO_WAYS_CACHE")
    assert build.build_cache(config(home)).store.folder == Path("~/.cache/two-ways/features").expanduser()
    assert [build.build_cache(config(home, f"cache={kind}")).kind for kind in ("memory", "off")] == ["memory", "off"]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (("task.pooling=last",), True),
        (("task.pooling=mean",), True),
        (("task.pooling=first",), False),
        (("task.pooling=last_nonpad",), False),
        (("task.pooling=last_nonpad", "gpt.causal=false"), True),
        (("task.pooling=first", "gpt.causal=false"), True),
        (("task=instruct",), False),
    ],
)
@pytest.mark.slow
def test_whether_padding_is_read(home, given, read):
    cfg = config(home, *given, "data.batch_size=1")
    for padding, if_read in {"longest": "fixed", "context": "fixed", "batch": "batch", "none": "none"}.items():
        cfg.data.padding = padding
        data, task = build.data_and_task(cfg)
        assert task.reads_padding is read
        for messages in data.splits.values():
            assert messages.padding == (if_read if read or padding == "none" else "free")
            assert (messages.width is None) == (messages.padding != "fixed")
