"""Rows -> columns of their probabilities: ranking and threshold of a rare class, and calibration before and after.

CSV has them of all runs that measured them; readers see those that the study's own metric is about.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from src.reporting.columns import Column, column, percent, with_deviation
from src.reporting.rows import Row


class Number(NamedTuple):
    """A number of result.json: its names, where it stands, and how it is shown."""

    name: str
    heading: str
    place: tuple[str, ...]
    show: Callable[[float], str] = percent


RANKING = [
    Number("average_precision", "average precision (%)", ("metrics", "test", "average_precision")),
    Number("recall_at_p99", "recall at 99% precision", ("metrics", "test", "recall_at_p99")),
    Number("threshold", "threshold", ("threshold", "probability"), "{:.3f}".format),
    Number("precision", "its precision (%)", ("threshold", "test", "precision")),
    Number("recall", "its recall (%)", ("threshold", "test", "recall")),
    Number("f1_positive", "its F1 (%)", ("threshold", "test", "f1")),
]
CALIBRATION = [
    Number("ece", "ECE (%)", ("calibration", "before", "test", "ece")),
    Number("ece_scaled", "scaled", ("calibration", "after", "test", "ece")),
    Number("nll", "loss", ("calibration", "before", "test", "loss"), "{:.3f}".format),
    Number("nll_scaled", "scaled loss", ("calibration", "after", "test", "loss"), "{:.3f}".format),
    Number("temperature", "temperature", ("calibration", "temperature"), "{:.2f}".format),
]
ABOUT = {"average_precision": RANKING, "recall_at_p99": RANKING, "ece": CALIBRATION}


def probability_columns(rows: Sequence[Row], metric: str) -> list[Column]:
    """Means over seeds, for readers with their standard deviations; `metric` is the study's, as its file names it."""
    shown = ABOUT.get(metric.rpartition("/")[2], [])
    found = []
    for number in (*RANKING, *CALIBRATION):
        means = [row.mean(*number.place) for row in rows]
        if all(mean is None for mean in means):
            continue
        deviations = [row.deviation(*number.place) for row in rows]
        heading = number.heading if number in shown else ""
        found.append(Column(number.name, heading, means, with_deviation(means, deviations, number.show)))
        found.append(column(f"{number.name}_deviation", "", deviations))
    return found


def probability_notes(metric: str) -> list[str]:
    """What these columns mean, where readers see them."""
    shown = ABOUT.get(metric.rpartition("/")[2])
    if shown is RANKING:
        return [
            "Average precision, and the highest recall with a precision of 99% or more: of the rare class on test, "
            "over all thresholds. threshold: of its probability, chosen on validation for the row's aim; precision, "
            "recall and F1 of the rare class by it on test. Accuracies are by it too."
        ]
    if shown is CALIBRATION:
        return [
            "ECE: distance of the top probability from the accuracy on test, in 15 bins; scaled: after the logits (or "
            "the answers' log-probabilities) were divided by the temperature that validation chose (Guo et al. 2017), "
            "1 where validation has no error. loss: negative log-likelihood in nats."
        ]
    return []
