"""Stages of training: what is trained from which epoch on, at which learning rate, and left alone until then."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.optim.lr_scheduler import StepLR

from src.config.command_line import compose
from src.config.instantiate import check
from src.config.trainer import own_callbacks
from src.data.batching import chunked
from src.errors import InputError
from src.finetune.classifier import Classifier
from tests.finetune.test_classifier import BLOCK, EMBEDDINGS, FINAL_NORM, HEAD, classifier, fit, messages, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*isinstance.treespec.*")
BIASES = {name for block in BLOCK for name in block if name.endswith("bias")}


TOP = HEAD | FINAL_NORM
BITFIT = [HEAD | {"gpt.final_norm.bias"} | {n for n in BIASES if int(n.split(".")[2]) >= 3 - i} for i in range(4)]


@pytest.mark.parametrize(
    ("strategy", "settings", "expected"),
    [
        ("last_block", {}, [(0, 3, TOP | BLOCK[3])]),
        ("last_block", {"head_epochs": 2}, [(0, 4, HEAD), (2, 3, TOP | BLOCK[3])]),
        ("last_two_blocks", {"gradual_unfreezing": 3}, [(0, 3, TOP | BLOCK[3]), (3, 2, TOP | BLOCK[3] | BLOCK[2])]),
        (
            "all",
            {"head_epochs": 1, "gradual_unfreezing": 1},
            [
                (0, 4, HEAD),
                *((1 + i, 3 - i, TOP.union(*BLOCK[3 - i :])) for i in range(4)),
                (5, 0, TOP.union(EMBEDDINGS, *BLOCK)),
            ],
        ),
        ("bitfit", {"gradual_unfreezing": 1}, [(i, 3 - i, names) for i, names in enumerate(BITFIT)]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_stages_unfreeze_from_the_top(strategy, settings, expected):
    model = classifier(strategy, **settings)
    assert [(stage.first_epoch, stage.first_trainable, stage.trained) for stage in model.stages] == expected
    assert model.trained == expected[-1][2]


def test_each_epoch_moves_what_its_stage_trains_and_nothing_else():
    model, seen = classifier("3_blocks", head_epochs=1, gradual_unfreezing=2), list[dict[str, Tensor]]()
    note = LambdaCallback(on_train_epoch_start=lambda *_: seen.append(weights(model)))
    fit(model, messages(), max_epochs=6, callbacks=[note])
    top = TOP | BLOCK[3]
    expected = [HEAD, top, top, top | BLOCK[2], top | BLOCK[2], top | BLOCK[2] | BLOCK[1]]
    for before, after, moved in zip(seen, [*seen[1:], weights(model)], expected, strict=True):
        assert {name for name in before if not torch.equal(before[name], after[name])} == moved


def test_what_is_unfrozen_later_has_an_optimizer_that_begins_then():
    """Neither decay nor moments before: the weights are those of a plain loop with a second optimizer from there on."""
    adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    model, data = classifier(head_epochs=2, optimizer=adamw), messages()
    reference = classifier(optimizer=adamw)
    named = dict(reference.named_parameters())
    head, rest = (adamw([named[name] for name in sorted(names)]) for names in (HEAD, FINAL_NORM | BLOCK[3]))
    for epoch in range(4):
        for rows in chunked(list(range(len(data))), 4):
            reference.zero_grad()
            reference.loss(data[rows])[0].backward()
            for optimizer in [head] if epoch < 2 else [head, rest]:
                optimizer.step()
    fit(model, data, max_epochs=4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, named[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_block_has_the_rate_of_the_one_above_times_the_decay(decay):
    sgd, step = partial(torch.optim.SGD, lr=8.0, weight_decay=0.25), partial(StepLR, step_size=1)
    model = classifier("all", layer_decay=decay, optimizer=sgd, scheduler=step)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = model.configure_optimizers()["optimizer"].param_groups
    found = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    ladder = [HEAD | FINAL_NORM, BLOCK[3], BLOCK[2], BLOCK[1], BLOCK[0], EMBEDDINGS]
    assert found == {name: 8.0 * decay**distance for distance, those in enumerate(ladder) for name in those}
    assert {group["weight_decay"] for group in groups} == {0.25}


@pytest.mark.parametrize(
    ("strategy", "key", "value"),
    [
        ("last_layer", "head_epochs", 1),
        ("block_1", "gradual_unfreezing", 1),
        ("last_layer", "layer_decay", 0.5),
    ],
)
def test_stages_and_rates_that_change_nothing_are_refused(strategy: str, key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"task.{key}"):
        classifier(strategy, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("head_epochs", -1), ("gradual_unfreezing", -1), ("layer_decay", 0.0), ("layer_decay", 1.5)]
)
def test_stages_and_rates_that_cannot_be_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"task.{key}={value}"):
        check("task", Classifier, {key: value}, given={"gpt": None, "questions": None})


def run(model: Classifier, folder: Path, **settings: Any) -> Any:
    """Train with the checkpoints and the early stopping of a run."""
    callbacks = own_callbacks(compose("train", ["patience=1"]), folder)
    return fit(model, messages(), validation=True, enable_checkpointing=True, callbacks=callbacks, **settings)


def test_patience_counts_from_the_last_stage(tmp_path):
    still = partial(torch.optim.SGD, lr=1e-30)
    assert run(classifier(optimizer=still), tmp_path, max_epochs=9).current_epoch == 2
    assert run(classifier(optimizer=still, head_epochs=4), tmp_path, max_epochs=9).current_epoch == 6
