"""Decisions between two classes: from which probability of the positive one on it is predicted, chosen on validation.

f1                the threshold of the highest F1
precision>=0.99   of those with at least this precision, the one of the highest recall
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchmetrics.functional.classification as tm

from src.errors import InputError
from src.evaluation.metrics import Predictions, precision_recall


def check(aim: str | None, positive: str | None, labels: Sequence[str], questions: int = 1) -> None:
    """Raises InputError for an aim that is none, and for one, or a positive class, that these classes cannot have."""
    if aim is not None and aim != "f1" and least_precision(aim) is None:
        raise InputError(f"threshold={aim} is no aim: use f1, or precision>=0.99 with any precision up to 1")
    named = {"threshold": aim, "positive": positive}
    if (given := [key for key, value in named.items() if value is not None]) and (len(labels) != 2 or questions > 1):
        raise InputError(
            f"{given[0]}={named[given[0]]} is for two classes, and here are {', '.join(labels)}: leave it out"
        )
    if positive is not None and positive not in labels:
        raise InputError(f"positive={positive} is none of the classes {', '.join(labels)}")


def least_precision(aim: str) -> float | None:
    """That of the aim precision>=..., None of another."""
    found = re.fullmatch(r"precision>=(0\.\d+|\.\d+|1(?:\.0*)?)", aim)
    return float(found[1]) if found else None


def positive_class(positive: str | None, labels: Sequence[str]) -> int:
    """The number of the class that is looked for: the last one unless another is named."""
    return len(labels) - 1 if positive is None else list(labels).index(positive)


def decide(
    predictions: Mapping[str, Predictions], labels: Sequence[str], positive: str | None, aim: str | None
) -> tuple[dict[str, Predictions], dict[str, Any]]:
    """The predictions of each split by the threshold that `aim` chooses on validation, and what result.json says of it:
    nothing where there are not two classes."""
    if len(labels) != 2:
        return dict(predictions), {}
    number = positive_class(positive, labels)
    found = {part: one._replace(positive=number) for part, one in predictions.items()}
    if aim is None:
        return found, {"positive": labels[number]}
    threshold, is_met = choose(found["validation"], aim)
    found = {part: one._replace(threshold=threshold) for part, one in found.items()}
    chosen = {
        "aim": aim,
        "met": is_met,
        "probability": torch.tensor(threshold, dtype=torch.float64).sigmoid().item(),
        "log_odds": threshold,
    }
    qualities = {part: quality(found[part]) for part in ("validation", "test")}
    return found, {"positive": labels[number], "threshold": chosen | qualities}


def choose(validation: Predictions, aim: str) -> tuple[float, bool]:
    """The threshold for an aim, in log-odds, and whether it is met: where no threshold has the precision, it is the one
    of the highest. It lies in the middle between the last message above it and the first one below."""
    positive, least = validation.positive % 2, least_precision(aim)
    odds, precision, recall = precision_recall(validation.log_odds[:, positive], validation.labels == positive)
    if least is None:
        value = (2 * precision * recall / (precision + recall)).nan_to_num()
    else:
        value = recall * (precision >= min(least, precision.max().item()))
    best = int((value == value.max()).nonzero().max())  # of equals the one that predicts it least
    return odds[max(0, best - 1) : best + 1].mean().item(), least is None or bool(precision[best] >= least)


def quality(predictions: Predictions) -> dict[str, float]:
    """Precision, recall and F1 of the positive class as it is predicted."""
    said, true = ((which == predictions.positive % 2).long() for which in (predictions.predicted, predictions.labels))
    metrics = {"precision": tm.binary_precision, "recall": tm.binary_recall, "f1": tm.binary_f1_score}
    return {name: metric(said, true).item() for name, metric in metrics.items()}


def in_words(result: Mapping[str, Any]) -> str:
    """The threshold that a run's result.json holds, in a sentence; "" where it has none."""
    if not (chosen := result.get("threshold")):
        return ""
    reached = "" if chosen["met"] else f", of which it reached {chosen['validation']['precision']:.2%}"
    return (
        f"{result['positive']} is the answer from a probability of {chosen['probability']:.6g} on: chosen on "
        f"validation for {chosen['aim']}{reached}; test precision {chosen['test']['precision']:.2%}, recall "
        f"{chosen['test']['recall']:.2%}"
    )


def log_odds(probability: float) -> float:
    """Those of a probability; infinite at 0 and 1."""
    return torch.tensor(probability, dtype=torch.float64).logit().item()


def as_recorded(predictions: Predictions, result: Mapping[str, Any]) -> Predictions:
    """Predictions by the decision that a run's result.json holds."""
    if (positive := result.get("positive")) is None:
        return predictions
    number = result["data"]["labels"].index(positive)
    return predictions._replace(positive=number, threshold=result.get("threshold", {}).get("log_odds"))
