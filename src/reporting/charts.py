"""Rows -> charts, as data: what is drawn against what. figures.py draws them for print, page.html in a browser."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from src.reporting.chart import Chart, Matrix, Panel, Series
from src.reporting.probability_charts import precision_recall, reliability
from src.reporting.rows import PART, Row, Run, brief, namer, shown

DATA = "data"
ACCURACY = "test accuracy (%)"
MEAN = "mean over seeds, and its 95% interval over test messages and seeds"
BEYOND = ("all", "lora")
DEPTHS = {"last_layer": 0, "last_block": 1, "last_two_blocks": 2}


def charts(rows: Sequence[Row], caption: str = "") -> list[Chart]:
    """Every chart that the finished rows of a study give; `caption` is a line under the titles of those that compare
    accuracies."""
    rows = [row for row in rows if row.runs]
    made = [
        depth(rows),
        fraction(rows),
        cost(rows),
        curves(rows, "loss", 1),
        curves(rows, "accuracy", 100),
        reliability(rows),
        precision_recall(rows),
        confusion(rows),
    ]
    return [
        replace(chart, note=f"{chart.note}\n{caption}") if caption and chart.y_label == ACCURACY else chart
        for chart in made
        if chart is not None
    ]


def lines(rows: Sequence[Row], *keys: str) -> dict[str, list[Row]]:
    """Rows that differ in `keys` alone, under the name of what they share."""
    others = [{k: v for k, v in row.values.items() if k not in keys} for row in rows]
    name = namer(others, "")
    found: dict[str, list[Row]] = {}
    for row, shared in zip(rows, others, strict=True):
        found.setdefault(name(shared), []).append(row)
    return found


def panels(rows: Sequence[Row], key: str, place: Callable[[Row], float | None], step: float = 0.0) -> list[Panel]:
    """A panel for each set of data; in it, of rows that differ in `key` alone, a series at their places on the x axis
    (None for nowhere), drawn `step` beside the others. A series looks the same in every panel."""
    series = [*enumerate(lines(rows, DATA, key).items())]
    found = []
    for data in dict.fromkeys(row.values.get(DATA) for row in rows):
        drawn = []
        for style, (name, group) in series:
            points = [(x, row) for row in group if row.values.get(DATA) == data and (x := place(row)) is not None]
            if points:
                joined = sum(row.values.get(key) not in BEYOND for _, row in points)  # these are no number of blocks
                shift = step * (style - (len(series) - 1) / 2)
                drawn.append(replace(accuracies(name, style, points, joined), shift=shift))
        found.append(Panel("" if data is None else brief(data), drawn))
    return [panel for panel in found if panel.series]


def accuracies(name: str, style: int, points: Sequence[tuple[float, Row]], joined: int) -> Series:
    """Test accuracy in % with its interval, of rows at their place on the x axis."""
    points = sorted(points, key=lambda point: point[0])
    return Series(
        name,
        style,
        [x for x, _ in points],
        [100 * row.accuracy for _, row in points],
        [100 * row.interval.low for _, row in points],
        [100 * row.interval.high for _, row in points],
        joined=joined,
    )


def depth(rows: Sequence[Row]) -> Chart | None:
    """Accuracy against how many blocks are unfrozen; everything and LoRA stand beyond the deepest."""
    key = "task.trainable"
    places = unfrozen({shown(row.values[key]) for row in rows if key in row.values})
    if len(places) < 2:
        return None
    named = {"last_layer": "head", "all": "all", "lora": "LoRA"}
    ticks = sorted({(place, named.get(value, str(int(place)))) for value, place in places.items()})
    return Chart(
        "depth",
        "Accuracy against unfrozen blocks",
        "unfrozen blocks",
        ACCURACY,
        panels(rows, key, lambda row: places.get(shown(row.values.get(key))), 0.06),
        MEAN,
        own_scales=True,
        ticks=ticks,
    )


def unfrozen(strategies: set[str]) -> dict[str, float]:
    """Strategy -> its place on an axis of unfrozen blocks."""
    blocks = {s: int(match[1]) for s in strategies if (match := re.fullmatch(r"(\d+)_blocks", s))}
    places: dict[str, float] = {s: float(n) for s, n in (blocks | DEPTHS).items() if s in strategies}
    for beyond in BEYOND:
        if beyond in strategies:
            places[beyond] = max(places.values(), default=-1.0) + 1
    return places


def fraction(rows: Sequence[Row]) -> Chart | None:
    """Accuracy against how many messages a row was trained on, a line for each of the other settings."""
    if len({row.values[PART] for row in rows if PART in row.values}) < 2:
        return None
    drawn = panels(rows, PART, lambda row: row.mean("data", "sizes", "train"), 0.02)
    title = "Accuracy against training messages"
    return Chart("fraction", title, "training messages", ACCURACY, drawn, MEAN, log_x=True, own_scales=True)


def curves(rows: Sequence[Row], quantity: str, unit: float) -> Chart | None:
    """Loss or accuracy against epochs, the range over seeds as a band, a panel a row; from runs that keep a curve."""
    panels = []
    for row in rows:
        if kept := [run.result["curve"] for run in row.runs if run.result.get("curve")]:
            series = [curve(kept, part, quantity, unit, style) for style, part in enumerate(("validation", "train"))]
            panels.append(Panel(row.label, series))
    label = {"loss": "loss (nats)", "accuracy": "accuracy (%)"}[quantity]
    title = f"Learning curves: {quantity}"
    return Chart(f"curves-{quantity}", title, "epoch", label, panels, "mean and range over seeds") if panels else None


def curve(kept: Sequence[list[dict[str, float]]], part: str, quantity: str, unit: float, style: int) -> Series:
    """Mean and range over seeds of a quantity after each epoch that all of them went through."""
    key = f"{part}_{quantity}"
    points = [same for same in zip(*kept, strict=False) if all(one.get(key) is not None for one in same)]
    epochs = [[unit * one[key] for one in same] for same in points]  # but those in which a loss was infinite
    return Series(
        {"train": "training"}.get(part, part),
        style,
        [float(same[0]["epoch"]) for same in points],
        [fmean(values) for values in epochs],
        [min(values) for values in epochs],
        [max(values) for values in epochs],
        joined=len(epochs),
        band=True,
    )


def confusion(rows: Sequence[Row]) -> Chart | None:
    """True against predicted labels, of all seeds together, a panel a row."""
    panels = [Panel(row.label, matrix=matrix(row.runs)) for row in rows]
    return Chart("confusion", "Confusion", "predicted", "true", panels, "all seeds together") if panels else None


def matrix(runs: Sequence[Run]) -> Matrix:
    """The confusion matrix of runs on the same labels; what was predicted beyond them comes last."""
    pairs = Counter((line["label"], line["predicted"]) for run in runs for line in run.predictions)
    known = list(runs[0].result["data"]["labels"])
    labels = known + sorted({label for pair in pairs for label in pair} - set(known))
    return Matrix(labels, [[pairs[true, said] for said in labels] for true in labels])


def cost(rows: Sequence[Row]) -> Chart | None:
    """Accuracy against training operations, for rows that were trained; a line over parts of the messages."""
    drawn = panels(rows, PART, lambda row: (row.mean("cost", "train_flops") or 0) / 1e12 or None)
    title = "Accuracy against the cost of training"
    if not drawn:
        return None
    return Chart("cost", title, "TFLOP of training", ACCURACY, drawn, MEAN, log_x=True, own_scales=True)
