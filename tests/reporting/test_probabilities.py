"""Columns and charts of probabilities: a rare class, and calibration before and after."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from src.reporting import probability_charts, rows, table
from src.reporting.charts import charts
from src.reporting.comparisons import references
from tests.reporting.test_report import answers, finished_rows

RANKED = {"threshold": {"probability": 0.75, "test": {"precision": 0.9, "recall": 0.5, "f1": 0.6}}}


def scaled(temperature: float, before: float, after: float) -> dict[str, Any]:
    found = {"before": before, "after": after}
    parts = {when: {"test": {"ece": ece, "loss": 10 * ece}} for when, ece in found.items()}
    return {"calibration": {"temperature": temperature, **parts}}


def written(folder: Path, *results: dict[str, Any], **more: Any) -> list[rows.Row]:
    """A row with a run of each of these additions to result.json."""
    extra = dict(enumerate(results, start=1))
    outcome = lambda seed: {"right": answers(40, 30, seed), **extra[seed], **more}  # noqa: E731
    return finished_rows(folder, {"seed": [*extra]}, outcome)


def headings(found: list[rows.Row], metric: str) -> dict[str, str]:
    made = table.table("rare", "", found, references(found), metric=metric)
    return {column.heading: column.texts[0] for column in made.columns if column.heading}


def test_readers_see_what_the_study_is_about_and_csv_has_all(tmp_path):
    found = written(tmp_path, RANKED | scaled(2.0, 0.04, 0.02), RANKED | scaled(3.0, 0.06, 0.03))
    usual, about = headings(found, "final/test/accuracy"), headings(found, "final/test/ece")
    new = {key: text for key, text in about.items() if key not in usual}
    spread = np.std([0.04, 0.06], ddof=1)
    assert new["ECE (%)"] == f"5.00 ± {100 * spread:.2f}"
    assert new["temperature"] == f"2.50 ± {np.std([2, 3], ddof=1):.2f}"
    assert "threshold" not in about
    assert headings(found, "final/test/average_precision")["its recall (%)"] == "50.00 ± 0.00"
    made = table.table("rare", "", found, references(found))
    assert {"ece", "ece_scaled_deviation", "threshold", "recall"} <= {column.name for column in made.columns}


def test_runs_of_before_have_the_columns_and_charts_of_before(tmp_path):
    found = written(tmp_path, {}, {})
    names = [column.name for column in table.table("rare", "", found, references(found)).columns]
    assert not {"ece", "average_precision", "temperature", "threshold"} & set(names)
    (reliability,) = (one for one in charts(found) if one.kind == "reliability")
    assert [series.name for series in reliability.panels[0].series] == [""]


def test_reliability_is_drawn_before_and_after_scaling(tmp_path):
    found = written(tmp_path, scaled(2.0, 0.1, 0.1), confidence=0.9)
    (panel,) = next(one for one in charts(found) if one.kind == "reliability").panels
    before, after = panel.series
    p = np.sqrt(0.9) / (np.sqrt(0.9) + np.sqrt(0.1))
    assert (before.x, after.x) == (pytest.approx([0.9]), pytest.approx([p]))
    assert panel.title.endswith(f"ECE {0.9 - 0.75:.3f}, scaled {abs(p - 0.75):.3f}")


def test_precision_and_recall_of_a_rare_class_are_scikit_learns(tmp_path):
    found = written(tmp_path, {}, {})
    assert not [one for one in charts(found) if one.kind == "precision-recall"]  # as common as the other
    rng = np.random.default_rng(0)
    for run in found[0].runs:
        for i, line in enumerate(run.predictions):
            odds = rng.normal(2.0 * (i % 5 == 0))
            line["label"] = "spam" if i % 5 == 0 else "ham"
            line["p_spam"], line["p_ham"] = (f"{1 / (1 + np.exp(sign * odds)):.6g}" for sign in (-1, 1))
    (chart,) = (one for one in charts(found) if one.kind == "precision-recall")
    (series,) = chart.panels[0].series
    curves = []
    for run in found[0].runs:
        labels = [line["label"] == "spam" for line in run.predictions]
        scores = [float(line["p_spam"]) for line in run.predictions]
        precision, recall, _ = precision_recall_curve(labels, scores)
        curves.append([precision[recall >= at].max() for at in probability_charts.RECALLS])
    assert series.y == pytest.approx(np.mean(curves, 0))
    assert (series.low, series.high) == (pytest.approx(np.min(curves, 0)), pytest.approx(np.max(curves, 0)))
