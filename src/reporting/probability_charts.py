"""Rows -> charts of their probabilities: how often these are right, and how well they part two classes."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from src.reporting.chart import Chart, Panel, Series
from src.reporting.rows import Row, Run, brief

BINS = 15
AS_TRAINED, SCALED = "as trained", "temperature scaled"
RECALLS = [i / 50 for i in range(1, 51)]
RARE = 1 / 3  # of the test messages, below which precision and recall of a class say more than accuracy


def reliability(rows: Sequence[Row]) -> Chart | None:
    """Accuracy against confidence in 15 bins, of all seeds together, a panel a row."""
    panels = []
    for row in rows:
        if any(run.confidence is None for run in row.runs):
            continue
        right = [r for run in row.runs for r in run.right]
        series = bins([p for run in row.runs for p in run.confidence or []], right)
        title, drawn = f"{row.label}\nECE {calibration_error(series):.3f}", [series]
        if all(run.calibrated for run in row.runs):
            scaled = replace(bins([p for run in row.runs for p in run.calibrated or []], right), name=SCALED, style=1)
            title, drawn = (
                f"{title}, scaled {calibration_error(scaled):.3f}",
                [replace(series, name=AS_TRAINED), scaled],
            )
        panels.append(Panel(title, drawn))
    if not panels:
        return None
    return Chart("reliability", "Reliability", "confidence", "accuracy", panels, "all seeds together", diagonal=True)


def bins(confidence: Sequence[float], right: Sequence[bool]) -> Series:
    """Mean confidence and accuracy of the messages of each bin that has any."""
    held: dict[int, list[tuple[float, bool]]] = {}
    for p, is_right in zip(confidence, right, strict=True):
        held.setdefault(min(int(p * BINS), BINS - 1), []).append((p, is_right))
    full = [held[i] for i in sorted(held)]
    return Series(
        "",
        0,
        [sum(p for p, _ in one) / len(one) for one in full],
        [sum(is_right for _, is_right in one) / len(one) for one in full],
        sizes=[len(one) / len(right) for one in full],
        joined=len(full),
    )


def calibration_error(drawn: Series) -> float:
    """How far accuracy is from confidence, over the messages of all bins that are drawn."""
    return sum(size * abs(x - y) for size, x, y in zip(drawn.sizes, drawn.x, drawn.y, strict=True))


def precision_recall(rows: Sequence[Row]) -> Chart | None:
    """Precision against recall of a rare positive class, mean and range over seeds, a panel for each set of data."""
    panels: dict[str, list[Series]] = {}
    for row in rows:
        curves = [curve for run in row.runs if (curve := interpolated(run)) is not None]
        if len(curves) == len(row.runs):
            drawn = panels.setdefault(brief(row.values.get("data", "")), [])
            points = list(zip(*curves, strict=True))
            mean, low, high = ([of(point) for point in points] for of in (fmean, min, max))
            drawn.append(Series(row.label, len(drawn), RECALLS, mean, low, high, joined=len(points), band=True))
    if not panels:
        return None
    made = [Panel(data, drawn) for data, drawn in panels.items()]
    return Chart("precision-recall", "Precision and recall", "recall", "precision", made, "mean and range over seeds")


def interpolated(run: Run) -> list[float] | None:
    """The highest precision at each of RECALLS or beyond, on test (Manning et al. 2008, Introduction to Information
    Retrieval, 8.4); None where there are not two classes of which the positive one is rare."""
    import numpy as np
    from sklearn.metrics import precision_recall_curve

    labels = run.result["data"]["labels"]
    positive = run.result.get("positive", labels[-1])
    is_positive = np.array([line["label"] == positive for line in run.predictions])
    if len(labels) != 2 or not 0 < is_positive.mean() < RARE or run.confidence is None:
        return None
    p = {label: np.array([float(line[f"p_{label}"]) for line in run.predictions]) for label in labels}
    (other,) = (label for label in labels if label != positive)
    odds = np.log(np.maximum(p[positive], 1e-300)) - np.log(np.maximum(p[other], 1e-300))
    precision, recall, _ = precision_recall_curve(is_positive, odds)
    highest = np.maximum.accumulate(precision)  # recall falls along it
    return [float(highest[recall >= at][-1]) for at in RECALLS]
