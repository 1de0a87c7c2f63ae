"""A study and the run folders -> its rows: the points that differ in more than the seed, each with its finished runs.

A row without any stays, as missing. How its runs are found: finished.py. Where a study varies data.fold, a row is over
all folds of each seed: each message was tested once, by the model of that seed which had not seen it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import InputError
from src.evaluation.intervals import Interval, accuracy_interval
from src.reporting.finished import WEIGHTS, Wanted, finished, of_row, reach, wanted
from src.reporting.published import Published, published_rows, repeated_by
from src.sweeps import study

PART = "data.fraction"
FOLD = "data.fold"

Message = tuple[str, str, int]  # sha256 of the text, label, and how many like it came before


@dataclass(frozen=True)
class Run:
    """A finished run: its result.json, the lines of its predictions.csv, and of weights and messages that the project
    ships and has made anew since, the setting -> sha256 then and now."""

    result: dict[str, Any]
    predictions: list[dict[str, str]]
    replaced: dict[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def right(self) -> list[bool]:
        """Which test messages it got right."""
        return [line["label"] == line["predicted"] for line in self.predictions]

    @cached_property
    def messages(self) -> list[Message]:
        """The test messages in order. Where a mix of tasks calls a class <task>/<label>, the task is left out."""
        seen = Counter[tuple[str, str]]()
        found = []
        for line in self.predictions:
            message = (line["text_sha256"], line["label"].rpartition("/")[2])
            found.append((*message, seen[message]))
            seen[message] += 1
        return found

    @cached_property
    def confidence(self) -> list[float] | None:
        """The probability of each predicted label; None where one has no probability."""
        given = [line.get(f"p_{line['predicted']}") for line in self.predictions]
        return None if None in given or "" in given else [float(p) for p in given if p]

    @cached_property
    def calibrated(self) -> list[float] | None:
        """The same after temperature scaling; None of a run without a temperature."""
        temperature = reach(self.result, ("calibration", "temperature"))
        if temperature is None or self.confidence is None:
            return None
        columns = [f"p_{label}" for label in self.result["data"]["labels"]]
        scaled = [sum(float(line[p]) ** (1 / temperature) for p in columns) for line in self.predictions]
        return [p ** (1 / temperature) / whole for p, whole in zip(self.confidence, scaled, strict=True)]


@dataclass(eq=False)
class Row:
    """What varies in it (dotted key -> value, without seed and fold), how many runs it wants, and those that finished:
    seed by seed, each with all of its folds."""

    label: str
    values: dict[str, Any]
    wanted: int = 0
    runs: list[Run] = field(default_factory=list)
    published: Published | None = None
    folds: int = 1

    @property
    def by_seed(self) -> list[list[Run]]:
        """The runs of each seed, one a fold."""
        return [self.runs[i : i + self.folds] for i in range(0, len(self.runs), self.folds)]

    @cached_property
    def places(self) -> dict[Message, int]:
        """The test messages that it was measured on, and where each stands; none where nothing has finished."""
        tested = (message for run in self.runs[: self.folds] for message in run.messages)
        return {message: i for i, message in enumerate(tested)}

    def covers(self, other: "Row") -> bool:
        """Whether both have finished and this one was tested on every test message of the other."""
        return bool(other.runs) and other.places.keys() <= self.places.keys()

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Seeds x test messages: what was answered rightly."""
        return np.array([[right for run in runs for right in run.right] for runs in self.by_seed], dtype=bool)

    def correct_on(self, other: "Row") -> NDArray[np.bool_]:
        """`right` on the test messages of a row that this one covers, in their order."""
        return self.right[:, [self.places[message] for message in other.places]]

    @property
    def seeds(self) -> list[int]:
        """Each seed."""
        return [runs[0].result["seed"] for runs in self.by_seed]

    @cached_property
    def accuracy(self) -> float:
        """Test accuracy, the mean over seeds."""
        return float(self.right.mean())

    @cached_property
    def groups(self) -> NDArray[np.int64] | None:
        """The number of each test message's group of near-duplicates; None where no run recorded it."""
        recorded = [runs for runs in self.by_seed if all("group" in line for run in runs for line in run.predictions)]
        if not recorded:
            return None
        names = [f"{fold} {line['group']}" for fold, run in enumerate(recorded[0]) for line in run.predictions]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def interval(self) -> Interval:
        return accuracy_interval(self.right, self.groups)

    def mean(self, *path: str) -> float | None:
        """The mean over seeds and folds of the number at a place in result.json; None where a run has none."""
        found = [reach(run.result, path) for run in self.runs]
        return None if not found or None in found else fmean(value for value in found if value is not None)

    def deviation(self, *path: str) -> float | None:
        """Standard deviation over seeds, each the mean over its folds, of such a number; None with fewer than two."""
        found = [[reach(run.result, path) for run in runs] for runs in self.by_seed]
        whole = [[value for value in of_seed if value is not None] for of_seed in found]
        return stdev(map(fmean, whole)) if len(found) > 1 and found == whole else None


def read(asked: study.Study, runs: str | Path, archive: Path | None = None) -> list[Row]:
    """The rows of a study in its order, with the runs below `runs`, or else in `archive`, that are theirs.
    Raises InputError for runs of one row that were measured on different test messages."""
    points, known = study.trials(asked, runs), published_rows()
    folds = list(dict.fromkeys(point.values.get(FOLD) for point in points))
    name = namer([{k: v for k, v in point.values.items() if k != FOLD} for point in points], asked.name)
    rows: dict[str, Row] = {}
    wants: dict[str, list[Wanted]] = {}
    places: dict[str, list[tuple[Any, Any]]] = {}  # seed and fold
    for point, cfg in zip(points, map(study.config, points), strict=True):
        values = {key: value for key, value in point.values.items() if key not in ("seed", FOLD)}
        label = name(values)
        if label not in rows:
            rows[label] = Row(label, values, published=repeated_by(cfg, known), folds=len(folds))
        rows[label].wanted += 1
        places.setdefault(label, []).append((point.values.get("seed"), point.values.get(FOLD)))
        wants.setdefault(label, []).append(wanted(cfg))
    found = finished(runs, archive)
    shared = Counter(settings for each in wants.values() for settings in {one.settings for one in each})
    is_only = {label: all(shared[one.settings] == 1 for one in each) for label, each in wants.items()}
    chosen = {label: of_row(each, found, is_only[label]) for label, each in wants.items()}
    pairs = [pair for label in rows for pair in zip(wants[label], chosen[label], strict=True)]
    weights = Counter(run.sha256.get(WEIGHTS) for one, run in pairs if run and one.reads_shipped_weights)
    if len(weights) > 1:  # rows are compared: they have those that most of them have
        ((most, _),) = weights.most_common(1)
        chosen = {label: of_row(each, found, is_only[label], most) for label, each in wants.items()}
    for label, row in rows.items():
        taken = zip(places[label], wants[label], chosen[label], strict=True)
        done = [(at, Run(run.result, run.predictions or [], one.replaced(run))) for at, one, run in taken if run]
        row.runs = [run for _, run in done] if folds == [None] else in_folds(dict(done), folds)
        refuse_other_messages(row, asked.name)
    return list(rows.values())


def in_folds(runs: dict[tuple[Any, Any], Run], folds: Sequence[Any]) -> list[Run]:
    """The runs seed by seed, of each one a fold; without the seeds of which one is missing."""
    whole = [seed for seed in dict.fromkeys(seed for seed, _ in runs) if all((seed, fold) in runs for fold in folds)]
    return [runs[seed, fold] for seed in whole for fold in folds]


def refuse_other_messages(row: Row, study: str) -> None:
    """Raises InputError for runs of a row that were measured on different test messages."""
    if any(run.messages != same.messages for runs in row.by_seed for run, same in zip(runs, row.runs, strict=False)):
        ids = " and ".join(run.result["id"] for run in row.runs)
        raise InputError(
            f"row {row.label} of {study}: runs {ids} were tested on different messages, so that no mean is "
            "taken over them; remove those on data that is no longer used"
        )


def namer(values: Sequence[dict[str, Any]], name: str) -> Callable[[dict[str, Any]], str]:
    """A function that names a row by what varies: strings alone, other values with the short name of their key."""
    short = short_names({key for one in values for key in one})
    text = {key: short_values([one[key] for one in values]) for key in short}

    def label(row: dict[str, Any]) -> str:
        texts = [(key, text[key][shown(value)], isinstance(value, str)) for key, value in row.items()]
        return ", ".join(value if plain else f"{short[key]}={value}" for key, value, plain in texts) or name

    return label


def short_names(keys: set[str]) -> dict[str, str]:
    """Dotted key -> its last part, where no other key ends in it."""
    last = {key: key.lstrip("+").rpartition(".")[2] for key in keys}
    return {key: part if list(last.values()).count(part) == 1 else key.lstrip("+") for key, part in last.items()}


def short_values(values: Sequence[Any]) -> dict[str, str]:
    """Value as text -> what it is called: a path by its end, a long number rounded, where that tells all apart."""
    names = {shown(value): brief(value) for value in values}
    return names if len(set(names.values())) == len(names) else {text: text for text in names}


def brief(value: Any) -> str:
    """A value in few letters."""
    if isinstance(value, float) and len(str(value)) > 6:
        return f"{value:.3g}"
    return shown(value).rstrip("/").rpartition("/")[2]


def shown(value: Any) -> str:
    """A config value as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def find(rows: Sequence[Row], wanted: str) -> list[Row]:
    """The rows that `wanted` names, by label or by key=value,key=value with short or dotted keys.

    Raises InputError for none.
    """
    if exact := [row for row in rows if row.label == wanted]:
        return exact
    short = short_names({key for row in rows for key in row.values})
    pairs = [part.partition("=")[::2] for part in wanted.split(",")]
    found = [row for row in rows if all(given in _pairs(row, short) for given in pairs)]
    if not found:
        raise InputError(f"reference={wanted} is no row: use key=value of {', '.join(row.label for row in rows)}")
    return found


def _pairs(row: Row, short: dict[str, str]) -> set[tuple[str, str]]:
    names = {key: (key, key.lstrip("+"), short[key]) for key in row.values}
    return {(name, shown(row.values[key])) for key in row.values for name in names[key]}
