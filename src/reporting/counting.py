"""Models without a GPT beside a study whose rows have none: the best by validation of those that other studies ran."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from src.reporting.columns import percent
from src.reporting.finished import Finished
from src.reporting.rows import Message, Row, Run

Data = tuple[str, int, tuple[Message, ...]]  # name, number of training messages, test messages


def data_of(run: Run) -> Data:
    """What a run was trained and tested on, as far as accuracies must agree in it to stand side by side."""
    return run.result["data"].get("name", ""), run.result["data"]["sizes"].get("train", 0), tuple(run.messages)


def has_gpt(result: dict[str, Any]) -> bool:
    """Whether a run's result is that of a GPT."""
    return "trainable_parameters" in result.get("task", {})


def counting_note(rows: Sequence[Row], finished: Iterable[Finished]) -> list[str]:
    """What the best model without a GPT comes to on the same messages, where a row has a GPT and none has not."""
    firsts = [row.runs[0] for row in rows if row.runs and row.folds == 1]
    beside = {data_of(run) for run in firsts if not has_gpt(run.result)}
    asked = dict.fromkeys(data_of(run) for run in firsts if has_gpt(run.result) and data_of(run) not in beside)
    sizes = {(train, len(tested)) for _, train, tested in asked}
    known: dict[Data, dict[str, list[dict[str, Any]]]] = {}
    for one in finished:
        of = one.result["data"]["sizes"]
        if not has_gpt(one.result) and (of.get("train"), of["test"]) in sizes and one.predictions:
            models = known.setdefault(data_of(Run(one.result, one.predictions)), {})
            models.setdefault(one.result["name"], []).append(one.result["metrics"])
    said = [f"{data[0]}, {data[1]:,} messages: {best(known[data])}" for data in asked if data in known]
    label = "Without a GPT, the best by validation on as many training and the same test messages: "
    return [label + "; ".join(said) + "."] if said else []


def best(models: dict[str, list[dict[str, Any]]]) -> str:
    """The model with the highest mean validation accuracy, and its test accuracy over its runs."""
    name = max(models, key=lambda name: fmean(each["validation"]["accuracy"] for each in models[name]))
    tested = [each["test"]["accuracy"] for each in models[name]]
    spread = f" ± {percent(stdev(tested))}" if len(tested) > 1 else ""
    return f"{name} {percent(fmean(tested))}{spread} ({len(tested)} run{'s' * (len(tested) > 1)})"
