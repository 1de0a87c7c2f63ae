"""Schema of a study: a W&B sweep file -> Study, or one error that names every fault with its line.

The same file serves `wandb sweep`, so that only what W&B's agents can hand on passes: flat dotted keys, no null.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.config.command_line import is_one_value, override
from src.errors import InputError

MACRO = "${args_no_hyphens}"
RESERVED = ("runs", "resume")  # what src.sweep itself gives to a run

Place = tuple[Any, ...]  # keys and indices from the top
Lines = dict[tuple[str, ...], int]


def changes_a_setting(key: str) -> str:
    """A key that a study may vary. Raises ValueError for one that adds or removes, which W&B refuses, or is taken."""
    if key[0] in "+~" and key.lstrip("+~").partition("@")[0] != "experiment":
        raise ValueError("adds or removes a setting: that may stand in the command alone")
    return not_reserved(key)


def not_reserved(key: str) -> str:
    """A key of a run. Raises ValueError for those of the sweep."""
    if key.lstrip("+~") in RESERVED:
        raise ValueError("is src.sweep's to give: leave it out here; runs= may stand on its command line")
    return key


def reaches_hydra(value: Any) -> Any:
    """A value that W&B and src.sweep hand on alike. Raises ValueError for others."""
    if value is None or value == "None":
        raise ValueError('W&B would hand on null as the word None: write "null", with its quotes')
    if not is_one_value(override("key", value)):
        raise ValueError(f"{value} is nothing that Hydra can read: put it into an experiment in conf/experiment/")
    return value


def is_a_word(part: str) -> str:
    """A word of the command, of which key=value is checked. Raises ValueError."""
    key, equals, value = part.partition("=")
    return f"{not_reserved(key)}={reaches_hydra(value)}" if equals else part


def is_number(value: Any) -> Any:
    """A number. Raises ValueError for anything else."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"must be a number, got {value!r}; in YAML 1e-4 is a text, 1.0e-4 a number")
    return value


Value = Annotated[Any, AfterValidator(reaches_hydra)]
Number = Annotated[Any, AfterValidator(is_number)]
Key = Annotated[str, AfterValidator(changes_a_setting)]


class Section(BaseModel):
    """A part of the file: no key that nothing reads, no value of another type than is said."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Parameter(Section):
    """The values of a setting: one, several, or all between min and max, both included.

    distribution   uniform, int_uniform, or log_uniform_values (every factor as likely as any other); as W&B infers it,
                   int_uniform between whole numbers, and uniform else
    """

    value: Value = None
    values: Annotated[list[Value], Field(min_length=1)] = []
    min: Number = None
    max: Number = None
    distribution: Literal["uniform", "int_uniform", "log_uniform_values"] | None = None

    @model_validator(mode="after")
    def fits(self) -> Self:
        given = sorted(self.model_fields_set)
        if given not in (["value"], ["values"], ["max", "min"], ["distribution", "max", "min"]):
            raise ValueError(f"give value, or values, or min and max, and those a distribution; not {', '.join(given)}")
        if not self.choices and not self.min < self.max:
            raise ValueError(f"min={self.min} must be less than max={self.max}")
        if self.kind == "log_uniform_values" and self.min <= 0:
            raise ValueError(f"log_uniform_values needs min > 0, got {self.min}")
        if self.kind == "int_uniform" and not isinstance(self.min + self.max, int):
            raise ValueError(f"int_uniform needs whole numbers, got min={self.min} and max={self.max}")
        return self

    @property
    def choices(self) -> list[Any]:
        """The values that are listed; none where they lie between min and max."""
        return [self.value] if "value" in self.model_fields_set else self.values

    @property
    def kind(self) -> str:
        """The distribution between min and max."""
        whole = {type(self.min), type(self.max)} == {int}
        return self.distribution or ("int_uniform" if whole else "uniform")

    def includes(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return value in self.choices if self.choices else self.min <= value <= self.max

    def draw(self, rng: random.Random) -> Any:
        """A random value."""
        if self.choices:
            return rng.choice(self.choices)
        if self.kind == "int_uniform":
            return rng.randint(self.min, self.max)
        if self.kind == "uniform":
            return rng.uniform(self.min, self.max)
        return math.exp(rng.uniform(math.log(self.min), math.log(self.max)))


class Metric(Section):
    """The number that a study is about, by its name in W&B; the default goal is W&B's."""

    name: Annotated[str, Field(pattern=r"^final/(train|validation|test)/\w+$")]
    goal: Literal["maximize", "minimize"] = "minimize"


class Study(Section):
    """A study: its question (`description`), the values of each parameter, and in `command`, behind src.train, what all
    its runs share. run_cap is how many runs at most."""

    name: Annotated[str, Field(pattern=r"^[^/\x00]+$")]  # becomes part of files' names
    description: str = ""
    method: Literal["grid", "random", "bayes"]
    metric: Metric = Metric(name="final/validation/accuracy", goal="maximize")
    command: list[Annotated[str, AfterValidator(is_a_word)]] = []
    parameters: Annotated[dict[Key, Parameter], Field(min_length=1)]
    run_cap: Annotated[int, Field(ge=1)] | None = None
    program: str | None = None
    project: str | None = None
    entity: str | None = None

    @property
    def shared(self) -> tuple[str, ...]:
        """The settings of all runs, as overrides."""
        pairs = (part.partition("=") for part in self.command)
        return tuple(override(key, value) for key, equals, value in pairs if equals)

    def faults(self) -> Iterator[tuple[Place, str]]:
        """What is wrong between sections that are right by themselves."""
        if self.command and ("src.train" not in self.command or self.command[-1] != MACRO):
            yield ("command",), f'must hold "-m", "src.train", what all runs share as key=value, and "{MACRO}" last'
        if self.method != "grid" and self.run_cap is None:
            yield ("run_cap",), f"method: {self.method} needs the number of runs"
        if self.method == "bayes" and "metric" not in self.model_fields_set:
            yield ("metric",), "method: bayes needs a metric as W&B shows it, such as final/validation/accuracy"
        for key, given in self.parameters.items():
            if self.method == "grid" and not given.choices:
                yield ("parameters", key), "a grid needs value or values"


def read(path: str | Path) -> Study:
    """The study in a sweep file. Raises InputError with all that is wrong with the file, line by line."""
    path = Path(path)
    content, lines = load(path)
    try:
        study = Study.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        raise refusal(path, lines, [(tuple(one["loc"]), in_words(one)) for one in error.errors()]) from None
    if faults := list(study.faults()):
        raise refusal(path, lines, faults)
    return study


def load(path: Path) -> tuple[dict[str, Any], Lines]:
    """Content of a YAML file and the line of each place in it. Raises InputError for a file that is none."""
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in Path("experiments").glob("*.yaml")))
        raise InputError(f"there is no study {path}; experiments/ has {there or 'none'}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}, line {line}: this is no YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}, line 1: a study has the keys {', '.join(Study.model_fields)}")
    lines, faults = Lines(), list[tuple[Place, str]]()
    walk(tree, (), lines, faults, ())
    if faults:
        raise refusal(path, lines, faults)
    return {key: value for key, value in content.items() if value is not None}, lines  # an empty key says nothing


def walk(node: Any, place: Place, lines: Lines, faults: list[tuple[Place, str]], above: tuple[int, ...]) -> None:
    """Note the line of each place below a node of YAML, and what YAML itself takes without a word."""
    if id(node) in above:
        faults.append((place, "contains itself"))
        return
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        faults += [((*place, key), "stands twice: keep one") for key in dict.fromkeys(keys) if keys.count(key) > 1]
        pairs = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(i, value, value) for i, value in enumerate(node.value)]
    for name, at, value in pairs:
        here = (*place, str(name))
        lines[here] = at.start_mark.line + 1
        walk(value, here, lines, faults, (*above, id(node)))


def in_words(fault: Any) -> str:
    """A fault that pydantic found, for people."""
    if fault["type"] == "extra_forbidden":
        nested = "; nested parameters do not reach Hydra, dotted names do" if fault["loc"][-1] == "parameters" else ""
        return f"there is no such key{nested}"
    if fault["type"] == "model_type":
        return "must be a mapping, such as {value: x} or {values: [x, y]}"
    return str(fault["msg"]).removeprefix("Value error, ")


def refusal(path: Path, lines: Lines, faults: list[tuple[Place, str]]) -> InputError:
    """The error that names all faults, each with its line and key."""
    found = set()
    for where, sentence in faults:
        place = tuple(str(part) for part in where)
        known = next((place[:n] for n in range(len(place), 0, -1) if place[:n] in lines), ())
        key = ".".join(part for part in place if part != "[key]")
        found.add((lines.get(known, 1), f"{key}: {sentence}" if key else sentence))
    return InputError("\n".join(f"{path}, line {line}: {sentence}" for line, sentence in sorted(found)))
