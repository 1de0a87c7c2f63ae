"""A W&B sweep file -> its content and the lines that things stand on, or one error that names all its faults by line.

Only what both W&B and Hydra take passes: W&B's agent writes key=value unquoted on the command line that Hydra reads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from src.errors import InputError

TOP = ("name", "description", "method", "metric", "parameters", "command", "run_cap", "program", "project", "entity")
METHODS = ("grid", "random", "bayes")
RANGES = ("uniform", "int_uniform", "q_uniform", "log_uniform_values")
PARAMETER = ("value", "values", "distribution", "min", "max", "q")
MACRO = "${args_no_hyphens}"
RESERVED = ("runs", "resume")  # what src.sweep itself gives to a run

Place = tuple[Any, ...]  # keys and indices from the top
Lines = dict[Place, int]
Fault = tuple[Place, str]


def load(path: Path) -> tuple[dict[str, Any], Lines]:
    """Content of a sweep file and the line of each place in it. Raises InputError with every fault that is seen."""
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in Path("experiments").glob("*.yaml")))
        raise InputError(f"there is no study {path}; experiments/ has {there or 'none'}")
    text = path.read_text(encoding="utf-8")
    try:
        tree, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}, line {line}: this is no YAML: {error.problem}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}, line 1: a study has the keys {', '.join(TOP[:6])}")
    content = {key: value for key, value in content.items() if value is not None}  # a key without a value says nothing
    faults = list(_repeated(tree, ()))
    lines = dict(_lines(tree, ()))
    refuse(path, lines, [*faults, *_faults(content)])
    return content, lines


def refuse(path: Path, lines: Lines, faults: list[Fault]) -> None:
    """Raises InputError that names `faults`, each with its line."""
    if faults:
        found = sorted({(line_of(lines, place), sentence) for place, sentence in faults})
        raise InputError("\n".join(f"{path}, line {line}: {sentence}" for line, sentence in found))


def line_of(lines: Lines, place: Place) -> int:
    """The line of a place, or of what it would stand in."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _lines(node: Any, place: Place) -> Iterator[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line + 1
            yield from _lines(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*place, i), value.start_mark.line + 1
            yield from _lines(value, (*place, i))


def _repeated(node: Any, place: Place) -> Iterator[Fault]:
    """YAML would take the last of two equal keys and say nothing."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key in {key for key in keys if keys.count(key) > 1}:
            yield (*place, key), f"{key} stands twice: keep one"
        for key, value in node.value:
            yield from _repeated(value, (*place, key.value))


def _faults(content: dict[str, Any]) -> Iterator[Fault]:
    method, parameters = content.get("method"), content.get("parameters")
    for key in content:
        if key not in TOP:
            yield (key,), f"there is no key {key}: a study has {', '.join(TOP)}"
    if method not in METHODS:
        yield ("method",), f"method: {method} is unknown: use {', '.join(METHODS)}"
        return
    cap = content.get("run_cap")
    if (cap is None and method != "grid") or (cap is not None and (type(cap) is not int or cap < 1)):
        yield ("run_cap",), f"run_cap: {cap} must be a whole number of runs, at least 1; random and bayes need one"
    if "/" in str(content.get("name", "")):
        yield ("name",), f"name: {content['name']} becomes part of a file's name: it must not contain /"
    yield from _metric_faults(content.get("metric"), method)
    yield from _command_faults(content.get("command", []))
    if not isinstance(parameters, dict) or not parameters:
        yield ("parameters",), "parameters: is missing or empty: give <key>: {values: [...]}"
        return
    for key, given in parameters.items():
        for place, sentence in _parameter_faults(key, given, method):
            yield ("parameters", key, *place), sentence


def _metric_faults(metric: Any, method: str) -> Iterator[Fault]:
    if metric is None and method != "bayes":
        return
    name = metric.get("name") if isinstance(metric, dict) else None
    if not isinstance(name, str) or len(name.split("/")) != 3 or not name.startswith("final/"):
        yield ("metric",), "metric: needs a name as W&B shows it, such as final/validation/accuracy"
    elif metric.get("goal", "minimize") not in ("maximize", "minimize"):
        yield ("metric", "goal"), f"goal: {metric['goal']} is unknown: use maximize or minimize"


def _command_faults(command: Any) -> Iterator[Fault]:
    if command and (not isinstance(command, list) or "src.train" not in command or command[-1] != MACRO):
        yield (
            ("command",),
            f'command: must hold "-m", "src.train", what all runs share as key=value, and "{MACRO}" last',
        )
        return
    for i, part in enumerate(command):
        key, equals, value = str(part).partition("=")
        if equals:
            for sentence in (*_key_faults(key), *_value_faults(key, value)):
                yield ("command", i), sentence


def _parameter_faults(key: Any, given: Any, method: str) -> Iterator[Fault]:
    for sentence in _key_faults(str(key)):
        yield (), sentence
    if not isinstance(given, dict):
        yield (), f"{key}: give {{value: x}} or {{values: [x, y]}}"
    elif "parameters" in given:
        inner = next(iter(given["parameters"] or {"<key>": None}))
        yield ("parameters",), f"nested parameters do not reach Hydra: write {key}.{inner}: instead"
    elif unknown := [name for name in given if name not in PARAMETER]:
        yield (unknown[0],), f"{key} has no {unknown[0]}: use value, values, or min and max, with a distribution"
    elif method == "grid" and not {"value", "values"} & set(given):
        yield (), f"{key}: a grid needs value or values"
    elif method == "grid" and "distribution" in given:
        yield ("distribution",), f"{key}: a grid takes every value and has no distribution: remove it"
    elif {"value", "values"} & set(given):
        yield from _choice_faults(str(key), given)
    else:
        for sentence in _range_faults(str(key), given):
            yield (), sentence


def _choice_faults(key: str, given: dict[str, Any]) -> Iterator[Fault]:
    if len(set(given) - {"distribution"}) > 1:
        yield (), f"{key}: {', '.join(given)} exclude each other: give one of value, values, min and max"
    elif given.get("distribution", "categorical") not in ("categorical", "constant"):
        yield ("distribution",), f"{key}: distribution: {given['distribution']} needs min and max instead of values"
    elif "value" in given:
        for sentence in _value_faults(key, given["value"]):
            yield ("value",), sentence
    elif not isinstance(given["values"], list) or not given["values"]:
        yield ("values",), f"{key}: values must be a list of at least one value"
    else:
        for i, value in enumerate(given["values"]):
            for sentence in _value_faults(key, value):
                yield ("values", i), sentence


def _range_faults(key: str, given: dict[str, Any]) -> Iterator[str]:
    distribution, numbers = (
        given.get("distribution", "uniform"),
        [given.get("min"), given.get("max"), given.get("q", 1)],
    )
    if distribution not in RANGES:
        yield f"{key}: distribution: {distribution} is unknown: use {', '.join(RANGES)}, or categorical with values"
    elif text := [value for value in numbers if type(value) not in (int, float)]:
        yield f"{key}: min, max and q must be numbers, got {text[0]!r}; in YAML 1e-4 is a text, 1.0e-4 a number"
    elif not numbers[0] < numbers[1]:
        yield f"{key}: min={numbers[0]} must be less than max={numbers[1]}"
    elif distribution == "log_uniform_values" and numbers[0] <= 0:
        yield f"{key}: log_uniform_values needs min > 0, got {numbers[0]}"
    elif distribution == "int_uniform" and not all(type(value) is int for value in numbers[:2]):
        yield f"{key}: int_uniform needs whole numbers, got min={numbers[0]} and max={numbers[1]}"
    elif distribution == "q_uniform" and not all(_is_multiple(value, numbers[2]) for value in numbers[:2]):
        yield f"{key}: q_uniform needs q > 0 and min and max that are multiples of it, got q={numbers[2]}"


def _is_multiple(value: float, q: float) -> bool:
    return q > 0 and abs(value / q - round(value / q)) < 1e-9


def _key_faults(key: str) -> Iterator[str]:
    name = key.lstrip("+~")
    if key != name and name.partition("@")[0] != "experiment":
        yield f"{key}: adds or removes a setting; a study changes those that there are, and only experiment is added"
    if name in RESERVED:
        yield f"{key} is src.sweep's to give: leave it out here; runs= may stand on its command line"


def _value_faults(key: str, value: Any) -> Iterator[str]:
    if value is None or value == "None":
        yield f'{key}: W&B would hand on null as the word None: write "null", with its quotes'
        return
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException as error:
        yield (
            f"{key}={value} is nothing that Hydra can read ({str(error).splitlines()[0]}), and W&B quotes no value: "
            "put it into an experiment in conf/experiment/"
        )
        return
    if override.is_sweep_override():
        yield f"{key}={value} would be several values to Hydra: list them in values:"
