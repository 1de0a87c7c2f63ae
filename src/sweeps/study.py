"""A W&B sweep file in experiments/ -> the runs that it asks for. The same file serves W&B's agents and `src.sweep`.

A study has flat, dotted `parameters`, and in `command`, after `src.train`, overrides that all its runs share. Methods:

    grid     every combination of `value` and `values`
    random   run_cap points, drawn from `values` or between `min` and `max` (see Range)
    bayes    run_cap points, each chosen by Optuna from what the ones before came to (see bayes.py)

`experiment` chooses experiments, as +experiment does: W&B refuses a plus in a parameter's name.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.config.command_line import CONF, with_plus
from src.runs import run_dir
from src.sweeps.spec import load


@dataclass(frozen=True)
class Point:
    """One run of a study: the values that vary, and the Hydra overrides that make its config."""

    values: dict[str, Any]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Numbers between low and high, both included: uniform, int_uniform, q_uniform (the multiples of q) or
    log_uniform_values (every factor as likely as any other)."""

    distribution: str
    low: float
    high: float
    q: float = 1.0

    def draw(self, rng: random.Random) -> float:
        match self.distribution:
            case "int_uniform":
                return rng.randint(int(self.low), int(self.high))
            case "q_uniform":
                return round(self.q * rng.randint(round(self.low / self.q), round(self.high / self.q)), 12)
            case "log_uniform_values":
                return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True)
class Study:
    """A sweep file: its name, its question (`description`), and the values of each parameter.

    run_cap   how many points at most
    metric    W&B's name of the number that `bayes` makes as large as it can, or as small if `goal` is minimize
    lines     where in the file a parameter stands, and with its place each of its values
    """

    name: str
    description: str
    method: str
    shared: tuple[str, ...]
    parameters: dict[str, list[Any] | Range]
    run_cap: int | None = None
    metric: str = "final/validation/accuracy"
    goal: str = "maximize"
    path: Path = Path()
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict, compare=False)


def read(path: str | Path) -> Study:
    """The study in a sweep file. Raises InputError with all that is wrong with the file, line by line."""
    content, lines = load(Path(path))
    command = content.get("command", [])
    metric = content.get("metric", {})
    lines |= {("command", part): lines["command", i] for i, part in enumerate(command)}
    return Study(
        name=content.get("name", Path(path).stem),
        description=content.get("description", ""),
        method=content["method"],
        shared=tuple(part for part in command if "=" in part),
        parameters={str(key): _values(given) for key, given in content["parameters"].items()},
        run_cap=content.get("run_cap"),
        metric=metric.get("name", Study.metric),
        goal=metric.get("goal", Study.goal),
        path=Path(path),
        lines=lines,
    )


def _values(given: dict[str, Any]) -> list[Any] | Range:
    if "value" in given:
        return [given["value"]]
    if "values" in given:
        return list(given["values"])
    whole = isinstance(given["min"], int) and isinstance(given["max"], int)
    distribution = given.get("distribution", "int_uniform" if whole else "uniform")  # as W&B infers it
    return Range(distribution, given["min"], given["max"], given.get("q", 1.0))


def points(study: Study, runs: str | Path = "runs") -> list[Point]:
    """The runs that a study asks for, seeds last; of a bayes study those that it has asked for so far below `runs`."""
    match study.method:
        case "grid":
            keys = sorted(study.parameters, key=lambda key: key == "seed")
            choices = [given for key in keys if isinstance(given := study.parameters[key], list)]
            found = [dict(zip(keys, values, strict=True)) for values in product(*choices)]
        case "random":
            found = draws(study)
        case _:
            found = asked(study, runs)
    return [point(study, values) for values in found[: study.run_cap]]


def point(study: Study, values: dict[str, Any]) -> Point:
    """The run with these values of all parameters."""
    varying = {
        key: value
        for key, value in values.items()
        if isinstance(given := study.parameters[key], Range) or len(given) > 1
    }
    return Point(varying, (*study.shared, *(f"{key}={value}" for key, value in values.items())))


def draws(study: Study) -> list[dict[str, Any]]:
    """run_cap random points. Each parameter has a generator of its own, seeded with the names of study and parameter:
    every machine draws the same, a larger run_cap adds points, and a new parameter leaves the others' values."""
    drawn = {}
    for key, given in study.parameters.items():
        rng = random.Random(f"{study.name} {key}")
        n = range(study.run_cap or 0)
        drawn[key] = [given.draw(rng) if isinstance(given, Range) else rng.choice(given) for _ in n]
    return [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)]


def asked(study: Study, runs: str | Path) -> list[dict[str, Any]]:
    """The points of a bayes study so far, one a line of its record; a line that a kill cut short does not count."""
    path = record(study, runs)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def record(study: Study, runs: str | Path) -> Path:
    """Where a bayes study keeps what it has asked for."""
    return Path(runs) / ".sweep" / f"{study.name}.jsonl"


def config(point: Point, *more: str) -> DictConfig:
    """The composed config of a run, as src.train would see it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", with_plus([*point.overrides, *more]))


def configs(points: Sequence[Point]) -> list[DictConfig]:
    """The composed configs of runs. Those that differ in the seed alone are composed once, which takes a sixth of a
    second."""
    composed: dict[tuple[str, ...], DictConfig] = {}
    found = []
    for point in points:
        others = tuple(part for part in point.overrides if not part.startswith("seed="))
        cfg = composed.get(others) or composed.setdefault(others, config(point))
        if "seed" in point.values:
            cfg = cfg.copy()
            cfg.seed = point.values["seed"]
        found.append(cfg)
    return found


def finished(runs: str | Path) -> dict[str, Path]:
    """config_hash -> folder of every finished run below `runs`; of several with one hash, the first."""
    found: dict[str, Path] = {}
    for result in sorted(Path(runs).glob("*/result.json")):
        found.setdefault(_hash(result.parent, result.stat().st_mtime_ns), result.parent)
    return found


@cache  # thousands of runs are looked at again and again while a sweep goes on
def _hash(run: Path, written: int) -> str:
    return str(run_dir.load_result(run)["config_hash"])
