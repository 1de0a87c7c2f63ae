"""Class weights: torch's weighted cross-entropy, whatever the batches."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.data.batching import Batch
from src.data.prompts import Question
from src.errors import InputError
from src.finetune.base import FineTuner
from src.finetune.classifier import Classifier
from src.finetune.instruction import InstructionTuner
from src.gpt.model import GPT

QUESTION = Question("", ("ham", "spam"), "Spam?", {"ham": "no", "spam": "yes it is"})
TEMPLATE = "{instruction}\n{text}\nAnswer:"
LABELS = [0, 0, 0, 0, 0, 1, 0, 1, 0, 0]  # 8 and 2
BALANCED = [10 / 16, 10 / 4]
WAYS = {"classify": Classifier, "instruct": InstructionTuner}


def tuner(gpt: GPT, way: str, **settings: Any) -> FineTuner:
    torch.manual_seed(0)
    model: FineTuner = WAYS[way](gpt, [QUESTION], template=TEMPLATE, trainable="all", **settings)
    return model.double()


def batch(rows: list[int], **shared: Any) -> Batch:
    ids = torch.randint(1000, (10, 6), generator=torch.Generator().manual_seed(1))[rows]
    return Batch(ids, torch.full((len(rows),), 6), torch.tensor(LABELS)[rows], torch.tensor(rows), **shared)


def by_torch(model: FineTuner, given: Batch, weights: list[float]) -> Tensor:
    """Weighted cross-entropy of the classes, or over answers, each a batch of its own for torch's `weight`."""
    weight = torch.tensor(weights)
    if isinstance(model, Classifier):
        return F.cross_entropy(model(given.ids, given.length).float(), given.label, weight)
    assert isinstance(model, InstructionTuner)
    logits = model(*model.inputs(given)).float()
    targets = model.answers[given.label]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    of_token = weight[given.label][:, None] * (targets != -100)
    return (losses.view_as(targets) * of_token).sum() / of_token.sum()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("given", "weights"), [("balanced", BALANCED), ([1.0, 7.0], [1.0, 7.0])])
def test_the_loss_is_torchs_and_that_of_an_epoch_depends_on_no_batches(tiny_gpt, way, given, weights):
    model = tuner(tiny_gpt, way, class_weights=given)
    model.weigh(LABELS)
    everything = batch(list(range(10)))
    expected = by_torch(model, everything, weights)
    torch.testing.assert_close(model.loss(everything)[0], expected)
    plain = tuner(tiny_gpt, way)
    plain.weigh(LABELS)
    assert not torch.isclose(plain.loss(everything)[0], expected)
    for part in ([0, 1, 2, 5], [3, 4, 6], [7, 8, 9]):  # as uneven batches
        model._shared_step(batch(part), "validation")
    torch.testing.assert_close(model._mean("validation", "loss").compute(), expected)


@pytest.mark.parametrize("way", WAYS)
def test_the_shares_of_a_batch_add_up_to_it(tiny_gpt, way):
    model = tuner(tiny_gpt, way, class_weights="balanced")
    model.weigh(LABELS)
    whole = torch.tensor(LABELS)
    shares = [([0, 1, 2, 3, 4, 5, 6], 7), ([7, 8, 9], 3), ([0], 0)]  # uneven ones, and one that has nothing
    losses = [model.loss(batch(rows, counted=counted, whole=whole))[0] for rows, counted in shares]
    torch.testing.assert_close(torch.stack(losses).sum(), model.loss(batch(list(range(10))))[0])


def test_of_evenly_many_balanced_is_none(tiny_gpt):
    even = tuner(tiny_gpt, "classify", class_weights="balanced")
    even.weigh([0, 1])
    one = batch([0, 5, 6])
    torch.testing.assert_close(even.loss(one)[0], tuner(tiny_gpt, "classify").loss(one)[0])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [0.0, 1.0], [-1.0, 1.0]])
def test_weights_that_cannot_be_are_refused(tiny_gpt, weights):
    with pytest.raises(InputError, match=r"task\.class_weights"):
        tuner(tiny_gpt, "classify", class_weights=weights)


def test_a_mixture_has_no_class_weights(tiny_gpt):
    two = [Question("a", ("x", "y"), "?"), Question("b", ("x", "y"), "?", first_class=2)]
    with pytest.raises(InputError, match="one question"):
        InstructionTuner(tiny_gpt, two, TEMPLATE, class_weights="balanced")
