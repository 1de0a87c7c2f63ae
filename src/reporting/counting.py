"""Models without a GPT beside a study that ran none of them: the best by validation, from the runs of other studies."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from src.reporting.columns import with_deviation
from src.reporting.finished import Finished
from src.reporting.rows import Message, Row, Run
from src.runs import identity

Data = tuple[int | None, tuple[Message, ...]]  # number of training messages, test messages


def data_of(run: Run) -> Data:
    """What a run was trained and tested on, as far as accuracies must agree in it to stand side by side."""
    return run.result["data"]["sizes"].get("train"), tuple(run.messages)


def trains_gpt(run: Run) -> bool:
    """Whether it was a GPT that a run trained."""
    return "trainable_parameters" in run.result.get("task", {})


def counting_note(rows: Sequence[Row], finished: Iterable[Finished]) -> list[str]:
    """What the best model without a GPT comes to on the same messages, where a row has a GPT and none has not."""
    firsts = [row.runs[0] for row in rows if row.runs and row.folds == 1]
    beside = {data_of(run) for run in firsts if not trains_gpt(run)}
    asked = {data_of(run): run for run in firsts if trains_gpt(run) and data_of(run) not in beside}
    sizes = {(train, len(tested)) for train, tested in asked}
    known: dict[Data, dict[str, list[dict[str, Any]]]] = {}
    seen = set()  # a run may stand in runs/ and in the archive
    for one in finished:
        of, key = one.result["data"]["sizes"], (one.settings, one.result["seed"], str(one.sha256))
        if identity.has_gpt(one.config) or (of.get("train"), of["test"]) not in sizes or key in seen:
            continue
        if one.predictions:
            seen.add(key)
            models = known.setdefault(data_of(Run(one.result, one.predictions)), {})
            models.setdefault(one.config["name"], []).append(one.result["metrics"])
    said = [
        f"{run.result['data'].get('name', 'data')}, {data[0]:,} messages: {best(known[data])}"
        for data, run in asked.items()
        if data in known
    ]
    label = "Test accuracy of the best model without a GPT, by validation, with as many training messages: "
    return [label + "; ".join(said) + "."] if said else []


def best(models: dict[str, list[dict[str, Any]]]) -> str:
    """The model with the highest mean validation accuracy, and its test accuracy over its runs."""
    name = max(models, key=lambda name: fmean(each["validation"]["accuracy"] for each in models[name]))
    tested = [each["test"]["accuracy"] for each in models[name]]
    (shown,) = with_deviation([fmean(tested)], [stdev(tested) if len(tested) > 1 else None])
    return f"{name} {shown}% ({len(tested)} run{'s' * (len(tested) > 1)})"
