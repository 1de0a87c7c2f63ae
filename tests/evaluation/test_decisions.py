"""Thresholds chosen on validation, and temperature scaling, against scikit-learn and a plain minimisation."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn import metrics as sklearn_metrics

from src.errors import InputError
from src.evaluation import calibration, decisions
from src.evaluation.metrics import Predictions, measure

LABELS = ("ham", "spam")


def scored(seed: int, n: int = 300, k: int = 2, spread: float = 1.5) -> Predictions:
    """A model that is right more often than not, and surer than it should be; of two classes the first is common."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, size=n, p=[0.8, *[0.2 / (k - 1)] * (k - 1)])
    logits = 4 * (np.eye(k)[labels] + rng.normal(scale=spread / k, size=(n, k)))
    return Predictions(torch.from_numpy(logits).float().log_softmax(-1), torch.from_numpy(labels))


def by_sklearn(predictions: Predictions, positive: int) -> tuple[Any, Any, Any, Any]:
    """Labels, scores, and precision and recall at each of these."""
    labels, scores = (predictions.labels == positive).numpy(), predictions.log_odds[:, positive].numpy()
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    return labels, scores, precision[:-1], recall[:-1]


@pytest.mark.parametrize("positive", LABELS)
@pytest.mark.parametrize("aim", ["f1", "precision>=0.9", "precision>=.7", "precision>=1"])
def test_a_threshold_is_the_best_for_its_aim_on_validation(aim, positive):
    splits = {part: scored(seed) for seed, part in enumerate(("train", "validation", "test"))}
    decided, said = decisions.decide(splits, LABELS, positive, aim)
    number = LABELS.index(positive)
    labels, _, precision, recall = by_sklearn(splits["validation"], number)
    found = said["threshold"]["validation"]
    if aim == "f1":
        assert found["f1"] == pytest.approx(np.nanmax(2 * precision * recall / (precision + recall)))
    else:
        least = float(aim.partition(">=")[2])
        assert found["recall"] == pytest.approx(recall[precision >= least].max())
        assert found["precision"] >= least - 1e-6
    assert said["threshold"]["met"]
    for part in ("validation", "test"):
        labels, scores, _, _ = by_sklearn(splits[part], number)
        answered = scores >= said["threshold"]["log_odds"]
        expected = sklearn_metrics.precision_recall_fscore_support(labels, answered, average="binary")[:3]
        assert list(said["threshold"][part].values()) == pytest.approx(expected)
        assert measure(decided[part])["accuracy"] == pytest.approx((answered == labels).mean())


def test_what_a_run_recorded_decides_as_it_did():
    splits = {part: scored(seed) for seed, part in enumerate(("validation", "test"))}
    decided, said = decisions.decide(splits, LABELS, "ham", "precision>=0.95")
    result = json.loads(json.dumps({"data": {"labels": LABELS}, **said}))
    again = decisions.as_recorded(splits["test"], result)
    assert torch.equal(again.predicted, decided["test"].predicted)
    assert not torch.equal(again.predicted, splits["test"].predicted)
    assert measure(again) == measure(decided["test"])
    calibrated = calibration.scaled(again, 2.5)
    assert torch.equal(calibrated.predicted, again.predicted)
    assert not torch.equal(calibrated.probabilities, again.probabilities)


def test_a_precision_beyond_reach_gives_the_highest_there_is():
    logits = torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0], [0.0, -1.0]])
    validation = Predictions(logits.log_softmax(-1), torch.tensor([0, 1, 1, 0]))
    threshold, is_met = decisions.choose(validation, "precision>=0.9")
    assert (threshold, is_met) == (pytest.approx(0.0), False)  # two of three, in the middle between 1 and -1
    said = decisions.decide({"validation": validation, "test": validation}, LABELS, None, "precision>=0.9")[1]
    assert "precision>=0.9, of which it reached 66.67%" in decisions.in_words(said)


def test_without_an_aim_the_more_probable_class_is_answered():
    splits = {"validation": scored(0), "test": scored(1)}
    decided, said = decisions.decide(splits, LABELS, None, None)
    assert said == {"positive": "spam"}
    assert torch.equal(decided["test"].predicted, splits["test"].log_probabilities.argmax(-1))
    assert decisions.decide({"test": scored(0, k=3)}, ("a", "b", "c"), None, None)[1] == {}


def test_certainty_beyond_fp32_is_told_apart():
    log_p = torch.tensor([[-40.0, 0.0], [-60.0, 0.0], [-50.0, 0.0], [-0.1, -3.0]])
    validation = Predictions(log_p, torch.tensor([0, 1, 1, 0]))
    decided, said = decisions.decide({"validation": validation, "test": validation}, LABELS, None, "f1")
    assert said["threshold"]["probability"] == 1
    assert decided["test"].predicted.tolist() == [0, 1, 1, 0]
    assert measure(decided["test"])["average_precision"] == 1


@pytest.mark.parametrize("positive", [0, 1])
def test_average_precision_is_that_of_the_positive_class(positive):
    predictions = scored(0)._replace(positive=positive)
    labels, scores, _, _ = by_sklearn(predictions, positive)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert measure(predictions)["average_precision"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("aim", "positive", "labels", "named"),
    [
        ("recall", None, LABELS, "threshold=recall"),
        ("precision>=1.5", None, LABELS, "threshold=precision>=1.5"),
        ("0.9", None, LABELS, "threshold=0.9"),
        ("f1", None, ("a", "b", "c"), "two classes"),
        (None, "a", ("a", "b", "c"), "positive=a"),
        (None, "eggs", LABELS, "positive=eggs"),
    ],
)
def test_what_cannot_be_decided_is_refused(aim, positive, labels, named):
    with pytest.raises(InputError, match=named):
        decisions.check(aim, positive, labels)


# ---- temperature scaling


@pytest.mark.parametrize(("k", "factor"), [(2, 1.0), (2, 0.1), (4, 5.0)])
def test_the_temperature_is_that_of_a_plain_minimisation(k, factor):
    predictions = scored(k, k=k)
    predictions = predictions._replace(log_probabilities=(factor * predictions.log_probabilities).log_softmax(-1))
    log_p, labels = predictions.log_probabilities.numpy().astype(float), predictions.labels.numpy()

    def loss(temperature: Any) -> float:
        return -float(log_softmax(log_p / temperature[0], axis=1)[np.arange(len(labels)), labels].mean())

    expected = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}).x[0]
    found = calibration.temperature(predictions)
    assert found == pytest.approx(expected, rel=1e-4)
    after = calibration.scaled(predictions, found)
    assert torch.equal(after.predicted, predictions.predicted)
    assert measure(after)["loss"] == pytest.approx(loss([expected]), abs=1e-6)


def test_without_an_error_on_validation_nothing_is_scaled():
    """The loss would fall with the temperature down to nothing."""
    assert calibration.temperature(scored(0, spread=0.01)) == 1


def test_classes_of_other_tasks_stay_impossible():
    own = scored(0).log_probabilities
    mixed = torch.full((len(own), 4), -torch.inf)
    mixed[::2, :2], mixed[1::2, 2:] = own[::2], own[1::2]
    labels = scored(0).labels + torch.tensor([0, 2]).repeat(len(own) // 2)
    predictions = Predictions(mixed, labels)
    assert calibration.temperature(predictions) == pytest.approx(calibration.temperature(scored(0)), rel=1e-4)
    summary = calibration.summary(
        {"train": predictions, "validation": predictions, "test": predictions},
        {part: {"ece": 0.5, "loss": 9.0} for part in ("validation", "test")},
        {"one": [0, 1], "two": [2, 3]},
    )
    assert summary["after"]["test"]["loss"] < 1
    assert summary["before"]["test"] == {"ece": 0.5, "loss": 9.0}


def test_a_run_without_a_temperature_is_named():
    with pytest.raises(InputError, match="old-run"):
        calibration.recorded({"id": "old-run"})
