"""Studies: reading them, claims, workers that are killed, what is shown, and W&B's agents on the same files."""

import csv
import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console
from scipy import stats

from src import sweep
from src.config.command_line import with_plus
from src.errors import InputError
from src.gpt.pinned import GPT_MINI
from src.runs import run_dir
from src.sweeps import bayes, study, worker
from src.sweeps.board import Board, duration
from src.sweeps.claims import LOST, Claim, Claims, is_running
from src.sweeps.rehearsal import rehearse
from src.sweeps.study import Point, Range, Study
from src.sweeps.worker import Given, Job
from src.train import train

ROOT = Path(__file__).parents[1]
STUDIES = [ROOT / "experiments" / f"{name}.yaml" for name in (
    "book_table", "leakage", "mini_table", "precision", "token_position", "unfreezing",
)]  # fmt: skip
TINY = (
    "gpt.n_layer=2 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=64 gpt.weights=random trainer.max_epochs=2 "
    "trainer.accelerator=cpu data=table data.max_length=32 logger=none"
)
WORDS = {"ham": "lunch home later tea see you soon ok", "spam": "free prize win cash urgent call now claim"}
AGENT = ["${env}", "${interpreter}", "-m", "src.train"]


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """Composing a config takes a tenth of a second, and several tests need the same ones."""
    compose, known = study.config, dict[tuple[str, ...], Any]()

    def config(point: Point, *more: str) -> Any:
        overrides = (*point.overrides, *more)
        if overrides not in known:
            known[overrides] = compose(point, *more)
        return known[overrides].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "config", config)
        yield


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 24 ham and 24 spam."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("data") / "messages.tsv"
    lines = [
        f"{label}\t{' '.join(rng.choices(words.split(), k=rng.randint(3, 9)))} {letter}\n"
        for letter in "abcdefghijklmnopqrstuvwx"
        for label, words in WORDS.items()
    ]
    path.write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes that a test starts, as conftest.py has it for this one: other numbers of threads, other numbers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def write(folder: Path, content: dict[str, Any] | str, name: str = "tiny") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def tiny(messages: Path, parameters: dict[str, list[Any]], **more: Any) -> dict[str, Any]:
    """The content of a study of tiny runs."""
    command = [*AGENT, *TINY.split(), f"data.path={messages}", "${args_no_hyphens}"]
    given = {key: {"values": values} for key, values in parameters.items()}
    return {"method": "grid", "command": command, "parameters": given, **more}


# ---- a study file


def test_a_grid_gives_every_combination_seeds_last(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        name: depth
        description: How deep?
        method: grid
        metric: {name: final/test/accuracy, goal: maximize}
        command: ["${env}", "${interpreter}", "-m", src.train, logger=none, "${args_no_hyphens}"]
        parameters:
          seed: {values: [1, 2]}
          task.trainable: {values: [all, lora]}
          gpt.causal: {value: true}
        """,
    )
    read = study.read(path)
    assert (read.name, read.description, read.shared) == ("depth", "How deep?", ("logger=none",))
    assert [point.overrides for point in study.points(read)] == [
        ("logger=none", f"task.trainable={trainable}", "gpt.causal=True", f"seed={seed}")
        for trainable in ("all", "lora")
        for seed in (1, 2)
    ]
    assert study.points(read)[1].values == {"task.trainable": "all", "seed": 2}


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ("a: 1\nmethod: grid\nparameters: {seed: {value: 1}}", {1: "there is no key a: a study has name, "}),
        ("method: gird\nparameters: {}", {1: "method: gird is unknown: use grid, random, bayes"}),
        ("method: grid", {1: "parameters: is missing or empty"}),
        ("method: grid\nmethod: grid\nparameters: {seed: {value: 1}}", {2: "method stands twice: keep one"}),
        ("method: grid\nname: a/b\nparameters: {seed: {value: 1}}", {2: "name: a/b becomes part of a file's name"}),
        ("method: random\nparameters: {seed: {value: 1}}", {1: "run_cap: None must be a whole number of runs"}),
        ("method: grid\nrun_cap: 0\nparameters: {seed: {value: 1}}", {2: "run_cap: 0 must be a whole number"}),
        ("method: bayes\nrun_cap: 3\nparameters: {seed: {value: 1}}", {1: "metric: needs a name as W&B shows it"}),
        (
            "method: grid\nmetric:\n  name: final/test/loss\n  goal: min\nparameters: {seed: {value: 1}}",
            {4: "goal: min is unknown: use maximize or minimize"},
        ),
        ('method: grid\ncommand: ["${args}"]\nparameters: {seed: {value: 1}}', {2: 'command: must hold "-m", "src'}),
        (
            'method: grid\ncommand:\n  - src.train\n  - +a.b=1\n  - data.path=x=y\n  - "${args_no_hyphens}"\n'
            "parameters: {seed: {value: 1}}",
            {4: "+a.b: adds or removes a setting", 5: "data.path=x=y is nothing that Hydra can read"},
        ),
        ("method: grid\nparameters: [", {2: "this is no YAML: "}),
        ("", {1: "a study has the keys name, "}),
    ],
)
def test_what_is_wrong_with_a_study_is_said_with_its_line(tmp_path: Path, lines: str, faults: dict[int, str]) -> None:
    check_faults(write(tmp_path, lines), faults)


def check_faults(path: Path, faults: dict[int, str]) -> None:
    with pytest.raises(InputError) as caught:
        study.read(path)
    found = str(caught.value).splitlines()
    assert len(found) == len(faults)
    for sentence, (line, start) in zip(found, faults.items(), strict=True):
        assert sentence.startswith(f"{path}, line {line}: {start}")


def test_all_faults_of_the_parameters_are_said_at_once(tmp_path: Path) -> None:
    lines = """method: {method}
{more}parameters:
  +task.foo: {{value: 1}}
  runs: {{value: here}}
  seed:
    values: [1,
      null,
      None]
  data.path:
    values:
      - a=b
      - f(x)
      - a,b
      - a b/c-d.tsv
  task: {{parameters: {{lora.rank: {{values: [1]}}}}}}
  gpt.n_layer: {{min: 1, max: 2}}
  gpt.dropout: {{values: [0.1], distribution: uniform}}
  data.max_length: {{values: []}}
  trainer.precision: [32-true]
  task.lora.alpha: {{values: [1], probabilities: [1]}}
"""
    shared = {
        3: "+task.foo: adds or removes a setting",
        4: "runs is src.sweep's to give",
        7: 'seed: W&B would hand on null as the word None: write "null", with its quotes',
        8: 'seed: W&B would hand on null as the word None: write "null", with its quotes',
        11: "data.path=a=b is nothing that Hydra can read",
        12: "data.path=f(x) is nothing that Hydra can read",
        13: "data.path=a,b would be several values to Hydra: list them in values:",
        15: "nested parameters do not reach Hydra: write task.lora.rank: instead",
        18: "data.max_length: values must be a list",
        19: "trainer.precision: give {value: x} or {values: [x, y]}",
        20: "task.lora.alpha has no probabilities: use value, values, or min and max",
    }
    grid = {16: "gpt.n_layer: a grid needs value or values", 17: "gpt.dropout: a grid takes every value"}
    check_faults(write(tmp_path, lines.format(method="grid", more="")), dict(sorted({**shared, **grid}.items())))
    drawn = {18: "gpt.dropout: distribution: uniform needs min and max instead of values"}
    later = {line + 1: sentence for line, sentence in shared.items()}
    check_faults(
        write(tmp_path, lines.format(method="random", more="run_cap: 3\n")), dict(sorted({**later, **drawn}.items()))
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("min: 1", "min, max and q must be numbers, got None"),
        ("min: 1e-5, max: 1", "min, max and q must be numbers, got '1e-5'; in YAML 1e-4 is a text, 1.0e-4 a number"),
        ("min: 2, max: 2", "min=2 must be less than max=2"),
        ("min: 0, max: 1, distribution: log_uniform_values", "log_uniform_values needs min > 0, got 0"),
        ("min: 0.5, max: 2, distribution: int_uniform", "int_uniform needs whole numbers, got min=0.5 and max=2"),
        ("min: 0.1, max: 1, q: 0.25, distribution: q_uniform", "q_uniform needs q > 0 and min and max that are mult"),
        ("min: 0, max: 1, distribution: normal", "distribution: normal is unknown: use uniform, int_uniform, "),
        ("min: 0, max: 1, values: [1]", "min, max, values exclude each other"),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_refused(tmp_path: Path, given: str, sentence: str) -> None:
    path = write(tmp_path, f"method: random\nrun_cap: 3\nparameters:\n  gpt.dropout: {{{given}}}\n")
    check_faults(path, {4: f"gpt.dropout: {sentence}"})


def test_a_study_that_is_not_there_is_answered_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"^there is no study experiments/x\.yaml; experiments/ has .*mini_table, "):
        study.read("experiments/x.yaml")


# ---- random studies

SPACE: dict[str, Any] = {
    "task.optimizer.lr": {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"},
    "gpt.dropout": {"min": 0.0, "max": 0.5},
    "task.lora.rank": {"min": 1, "max": 4},
    "data.fraction": {"min": 0.25, "max": 1.0, "q": 0.25, "distribution": "q_uniform"},
    "task.trainable": {"values": ["all", "lora"], "distribution": "categorical"},
    "seed": {"value": 7},
}


def drawn(folder: Path, n: int, parameters: dict[str, Any] = SPACE, name: str = "draws") -> list[dict[str, Any]]:
    content = {"method": "random", "run_cap": n, "parameters": parameters}
    return [point.values for point in study.points(study.read(write(folder, content, name)))]


def test_random_points_are_the_same_everywhere_and_a_larger_run_cap_adds_to_them(tmp_path: Path) -> None:
    points = drawn(tmp_path, 6)
    assert drawn(tmp_path, 9)[:6] == points
    assert drawn(tmp_path, 6, name="other") != points
    fewer = {key: given for key, given in SPACE.items() if key != "task.lora.rank"}
    without = [{key: value for key, value in point.items() if key != "task.lora.rank"} for point in points]
    assert drawn(tmp_path, 6, fewer) == without
    assert len({str(point) for point in points}) == 6


def test_random_points_follow_their_distributions(tmp_path: Path) -> None:
    points = drawn(tmp_path, 2000)
    values = {key: [point[key] for point in points] for key in points[0]}
    assert "seed" not in values
    assert stats.kstest(values["gpt.dropout"], stats.uniform(0, 0.5).cdf).pvalue > 0.01
    assert stats.kstest(values["task.optimizer.lr"], stats.loguniform(1e-3, 1e-1).cdf).pvalue > 0.01
    for key, expected in (
        ("task.lora.rank", [1, 2, 3, 4]),
        ("data.fraction", [0.25, 0.5, 0.75, 1.0]),
        ("task.trainable", ["all", "lora"]),
    ):
        counts = Counter(values[key])
        assert sorted(counts) == expected
        assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert {type(value) for value in values["task.lora.rank"]} == {int}


# ---- what is wrong is found before the first run


def test_a_rehearsal_names_every_wrong_setting_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """method: grid
command:
  - src.train
  - gpt.weights=random
  - task.trainabl=x
  - "${args_no_hyphens}"
parameters:
  task.trainable:
    values: [last_block,
      lst]
  experiment: {value: lorra}
  data.batch_size: {value: 0}
  gpt.n_embd: {values: [192, 193]}
  trainer.precision: {value: 8-foo}
""",
    )
    asked = study.read(path)
    with pytest.raises(InputError) as caught:
        rehearse(asked, study.points(asked))
    expected = [
        (5, "task.trainabl=x: there is no setting task.trainabl: task has kind, trainable, "),
        (10, "task.trainable=lst is unknown: use last_layer, "),
        (11, "experiment=lorra: In 'train': Could not find 'experiment/lorra' Available options "),
        (12, "data.batch_size=0 must be at least 1"),
        (13, "gpt.n_embd=193 must be a multiple of gpt.n_head=6"),
        (14, "trainer.precision=8-foo: trainer: Precision '8-foo' is invalid."),
    ]
    found = str(caught.value).splitlines()
    assert len(found) == len(expected)
    for sentence, (line, words) in zip(found, expected, strict=True):
        assert sentence.startswith(f"{path}, line {line}: {words}")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"data": ["table"], "data.path": ["nowhere.tsv"], "seed": [1, 2]},
            "data.path=nowhere.tsv: data.path: there is no file nowhere.tsv; data=table needs a .csv, .tsv, .jsonl or "
            ".parquet file",
        ),
        ({"data": ["tabel"], "data.path": ["x.tsv"]}, "data=tabel: In 'train': Could not find 'data/tabel'"),
        ({"gpt.weights": ["nowhere"]}, "gpt.weights=nowhere: gpt.weights: there is no file nowhere; "),
        (
            {"gpt.weights": ["pretrained"], "gpt.n_head": [6], "gpt.n_embd": [192]},
            "gpt.n_layer=2: {mini}: tensor h.2.attn.c_attn.bias has no place in this GPT",
        ),
        ({"data.padding": ["none"]}, "data.padding=none needs data.batch_size=1, not 8"),
        ({"task.lora.scaling": ["beta"]}, "task.lora.scaling=beta is unknown: use alpha or alpha_over_rank"),
        ({"task.optimizer.lr": [-1]}, "task.optimizer.lr=-1: an optimizer needs lr > 0"),
        ({"seed": ["x"]}, "seed=x must be a whole number"),
    ],
)
def test_a_rehearsal_builds_what_a_run_would(tmp_path: Path, given: dict[str, list[Any]], sentence: str) -> None:
    command = [*AGENT, "gpt.n_layer=2", "gpt.n_head=2", "gpt.n_embd=16", "gpt.weights=random", "${args_no_hyphens}"]
    parameters = {key: {"values": values} for key, values in given.items()}
    asked = study.read(path := write(tmp_path, {"method": "grid", "command": command, "parameters": parameters}))
    expected = f"{path}, line 1: {sentence.replace('{mini}', str(GPT_MINI))}"
    with pytest.raises(InputError) as caught:
        rehearse(asked, study.points(asked))
    (found,) = str(caught.value).splitlines()
    assert found.startswith(expected)


def test_a_rehearsal_of_a_sound_study_gives_its_configs_and_no_run(tmp_path: Path, messages: Path) -> None:
    asked = study.read(write(tmp_path, tiny(messages, {"task.trainable": ["all", "lora"], "seed": [1, 2]})))
    points = study.points(asked)
    configs = rehearse(asked, points)
    assert [(cfg.task.trainable, cfg.seed) for cfg in configs] == [("all", 1), ("all", 2), ("lora", 1), ("lora", 2)]
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]


# ---- the project's studies


def covering(points: list[Point]) -> list[Point]:
    """As few of the points as have every value that varies: composing a config takes a tenth of a second."""
    settings = [{(key, str(value)) for key, value in point.values.items()} for point in points]
    left, chosen = set().union(*settings), list[Point]()
    while left:
        best = max(range(len(points)), key=lambda i: len(left & settings[i]))
        chosen.append(points[best])
        left -= settings[best]
    return chosen


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_has_what_wandb_asks_of_a_sweep(path: Path) -> None:
    """Hand-copied from the schema that W&B's server checks a sweep with; wandb 0.31 itself ships none."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) == {"name", "description", "method", "metric", "command", "parameters"}
    assert (content["name"], content["method"]) == (path.stem, "grid")
    assert content["metric"] == {"name": "final/test/accuracy", "goal": "maximize"}
    assert content["description"].strip().endswith((".", "?"))
    assert content["command"][:4] == AGENT
    assert content["command"][-1] == "${args_no_hyphens}"
    for key, given in content["parameters"].items():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key), "W&B's pattern for the name of a parameter"
        assert set(given) == {"values"}
        assert len(given["values"]) == len(set(map(str, given["values"]))) >= 1


def test_configs_that_differ_in_the_seed_alone_are_composed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"task.position": ["last", "first"], "seed": [1, 2, 3], "gpt": ["mini"]}
    path = tmp_path / "seeds.yaml"
    given = {key: {"values": values} for key, values in parameters.items()}
    path.write_text(json.dumps({"method": "grid", "parameters": given}), encoding="utf-8")
    points = study.points(study.read(path))
    expected = [study.config(point) for point in points]
    compose, composed = study.config, list[study.Point]()
    monkeypatch.setattr(study, "config", lambda point: composed.append(point) or compose(point))
    assert study.configs(points) == expected
    assert [cfg.seed for cfg in expected] == [1, 2, 3, 1, 2, 3]
    assert len(composed) == 2


def agent_command(folder: Path, command: list[str], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line that W&B's agent runs for a point, built by the agent itself."""
    from wandb import wandb_agent

    started: list[list[str]] = []
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._function, agent._in_jupyter = list(command), None, False
    agent._forward_signals, agent._run_processes = False, {}

    def process(command: list[str], **_: Any) -> Any:
        started.append(command)
        return type("Process", (), {})()

    monkeypatch.setattr(wandb_agent, "AgentProcess", process)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_RUN_ID", "is set by the agent")
    arguments = {key: {"value": value} for key, value in json.loads(json.dumps(values)).items()}  # as the server sends
    agent._command_run({"run_id": "run", "args": arguments, "program": None})
    return started[0]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_an_agent_of_wandb_runs_what_src_sweep_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, asked = yaml.safe_load(path.read_text(encoding="utf-8")), study.read(path)
    keys = sorted(asked.parameters)
    for i, point in enumerate(covering(study.points(asked))):
        values = dict(override.split("=", 1) for override in point.overrides[len(asked.shared) :])
        given = {key: next(v for v in asked.parameters[key] if str(v) == values[key]) for key in keys}  # type: ignore[union-attr]
        words = agent_command(tmp_path, content["command"], given, monkeypatch)
        assert words[:4] == ["/usr/bin/env", "python", "-m", "src.train"]
        assert sorted(words[4:]) == sorted(point.overrides)
        assert words[4 : 4 + len(asked.shared)] == list(asked.shared)
        if i == 0:
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                cfg = compose("train", with_plus(words[4:]))
            assert run_dir.config_hash(cfg) == run_dir.config_hash(study.config(point))


def test_the_real_command_takes_the_words_of_an_agent(tmp_path: Path, one_thread: None) -> None:
    """W&B refuses +experiment as the name of a parameter."""
    command = [sys.executable, "-m", "src.train", "experiment=lorra"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: In 'train': Could not find 'experiment/lorra'")


BOOK = {  # row -> experiment, and what of its config differs from the first row's
    1: ("last_block", {}),
    2: ("first_token", {"task.position": "first"}),
    3: ("last_layer", {"task.trainable": "last_layer"}),
    4: ("last_two_blocks", {"task.trainable": "last_two_blocks"}),
    5: ("all_layers", {"task.trainable": "all"}),
    6: ("medium", {"gpt.name": "medium"}),
    7: ("large", {"gpt.name": "large"}),
    8: ("xl", {"gpt.name": "xl"}),
    9: ("xl_all_layers", {"gpt.name": "xl", "task.trainable": "all"}),
    10: ("random_weights", {"gpt.weights": "random", "task.trainable": "all"}),
    11: ("lora", {"task.trainable": "lora"}),
    12: ("xl_lora", {"gpt.name": "xl", "task.trainable": "lora", "task.lora.alpha": 8}),
    13: ("full_context", {"data.padding": "context"}),
    14: ("no_padding", {"data.padding": "none", "data.batch_size": 1}),
    15: ("no_padding_accumulate", {"data.padding": "none", "data.batch_size": 1, "trainer.accumulate_grad_batches": 8}),
    16: ("last_real_token", {"task.position": "last_real"}),
    17: ("no_causal_mask", {"gpt.causal": False}),
    18: ("ignore_padding_loss", {"task.ignore_index": 50256}),
    19: ("mean_pooling", {"task.position": "mean"}),
}
FIRST_ROW = {
    "gpt.name": "small",
    "gpt.weights": "pretrained",
    "gpt.causal": True,
    "gpt.dropout": 0.0,
    "data.name": "sms_spam",
    "data.split": "book",
    "data.padding": "longest",
    "data.batch_size": 8,
    "data.fraction": 1.0,
    "task.kind": "classify",
    "task.trainable": "last_block",
    "task.position": "last",
    "task.lora.rank": 16,
    "task.lora.alpha": 16,
    "task.lora.scaling": "alpha",
    "task.ignore_index": -100,
    "task.optimizer.lr": 5e-5,
    "task.optimizer.weight_decay": 0.1,
    "task.optimizer.schedule": "constant",
    "trainer.max_epochs": 5,
    "trainer.accumulate_grad_batches": 1,
    "trainer.precision": "32-true",
    "seed": 123,
}
WIDTHS = {"small": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280), "xl": (48, 25, 1600)}


def leaf(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_the_book_table_is_the_nineteen_published_rows() -> None:
    points = study.points(study.read(ROOT / "experiments" / "book_table.yaml"))
    configs = [study.config(point) for point in points]
    assert [cfg.name for cfg in configs] == [name for name, _ in BOOK.values()]
    assert len({run_dir.config_hash(cfg) for cfg in configs}) == 19
    for cfg, (_, changes) in zip(configs, BOOK.values(), strict=True):
        expected = FIRST_ROW | changes
        assert {key: leaf(cfg, key) for key in expected} == expected
        assert (cfg.gpt.n_layer, cfg.gpt.n_head, cfg.gpt.n_embd) == WIDTHS[cfg.gpt.name]
        assert (cfg.gpt.context_length, cfg.gpt.vocab_size) == (1024, 50257)


def test_each_row_of_the_book_table_has_the_published_settings(real_data: Path) -> None:
    points = study.points(study.read(ROOT / "experiments" / "book_table.yaml"))
    with (real_data / "book_table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    padding = {"longest": "longest", "context (1024)": "context", "no padding": "none"}
    for point, row in zip(points, rows, strict=True):
        cfg, settings = study.config(point), row["settings"]
        assert f"gpt2-{cfg.gpt.name}" == row["model"]
        assert (cfg.gpt.weights, cfg.task.position, cfg.task.trainable) == (
            row["weights"],
            row["position"],
            row["trainable"],
        )
        assert cfg.data.padding == padding[row["context"]]
        assert cfg.gpt.causal == ("no causal mask" not in settings)
        assert (cfg.task.ignore_index == 50256) == ("padding id ignored" in settings)
        for pattern, value in (
            (r"rank (\d+)", cfg.task.lora.rank),
            (r"alpha (\d+)", cfg.task.lora.alpha),
            (r"batch size (\d+)", cfg.data.batch_size),
            (r"accumulation (\d+)", cfg.trainer.accumulate_grad_batches),
        ):
            if match := re.search(pattern, settings):
                assert value == int(match[1])
            elif "batch" in pattern or "accumulation" in pattern:
                assert value == (8 if "batch" in pattern else 1)


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [
        ("mini_table", 84, {"gpt.name": {"mini"}, "data.name": {"bundled", "sms_spam"}}),
        ("unfreezing", 24, {"gpt.name": {"mini"}, "data.split": {"deduplicated"}, "gpt.n_layer": {6}}),
        ("precision", 24, {"trainer.precision": {"32-true", "bf16-mixed", "bf16-true", "16-mixed"}}),
        ("leakage", 12, {"data.name": {"sms_spam"}, "data.split": {"book", "deduplicated"}, "data.balance": {True}}),
        ("token_position", 48, {"task.position": {"first", "last", "last_real", "mean"}, "gpt.causal": {True, False}}),
    ],
)
def test_a_study_asks_for_these_runs(name: str, n: int, expected: dict[str, set[Any]]) -> None:
    """Three seeds of each row."""
    points = study.points(study.read(ROOT / "experiments" / f"{name}.yaml"))
    seeds = Counter(point.values["seed"] for point in points)
    assert (len(points), set(seeds.values())) == (n, {n // 3})
    configs = [study.config(point) for point in covering(points)]
    for key, values in expected.items():
        assert {leaf(cfg, key) for cfg in configs} == values
    rows = {name for row, (name, _) in BOOK.items() if row not in (6, 7, 8, 9, 12)}
    assert {cfg.name for cfg in configs} == (rows if name == "mini_table" else {name})
    assert len({run_dir.config_hash(cfg) for cfg in configs}) == len(configs)


# ---- claims


def as_held_by(claim: Claim, **changes: Any) -> None:
    """Let a claim's file say something else of its holder."""
    claim.holder = replace(claim.holder, **changes)
    claim.begin(claim.run)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_claim_is_one_process_s_until_it_is_given_back(tmp_path: Path) -> None:
    claims, others = Claims(tmp_path), Claims(tmp_path)
    claim = claims.take("a")
    assert claim is not None
    assert claims.take("a") is None
    assert others.take("a") is None
    assert others.take("b") is not None
    claim.release()
    again = others.take("a")
    assert again is not None
    again.release()
    assert [path.name for path in tmp_path.iterdir()] == ["b.1"]


def test_a_claim_of_a_dead_process_is_taken_over_with_the_run_that_it_began(tmp_path: Path) -> None:
    first = Claims(tmp_path).take("a")
    assert first is not None
    first.begin("the-run")
    assert Claims(tmp_path).take("a") is None
    as_held_by(first, pid=dead_pid())
    second = Claims(tmp_path).take("a")
    assert second is not None
    assert second.run == "the-run"
    assert Claims(tmp_path).take("a") is None
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_of_another_machine_is_stale_when_nobody_has_touched_it_for_a_while(tmp_path: Path) -> None:
    onlooker = Claims(tmp_path, stale=0.3)
    claim = Claims(tmp_path, beat=0.02).take("a")
    assert claim is not None
    as_held_by(claim, host="elsewhere", pid=dead_pid())
    os.utime(claim.path, (0, 0))  # what the clock of another machine says means nothing
    with claim.alive():
        deadline = time.monotonic() + 0.8
        while time.monotonic() < deadline:
            assert onlooker.take("a") is None
            time.sleep(0.02)
    while onlooker.take("a") is None:
        assert time.monotonic() < deadline + 5
        time.sleep(0.02)
    assert time.monotonic() > deadline + 0.1


def test_who_lost_a_claim_notices(tmp_path: Path) -> None:
    claim = Claims(tmp_path).take("a")
    assert claim is not None
    assert claim._touch()
    as_held_by(claim, pid=dead_pid())
    taken = Claims(tmp_path).take("a")
    assert taken is not None
    assert not claim._touch()
    assert taken._touch()
    taken.path.unlink()
    assert not taken._touch()


@pytest.mark.parametrize("stale", [False, True], ids=["free", "stale"])
def test_of_many_that_reach_for_a_claim_exactly_one_gets_it(tmp_path: Path, stale: bool) -> None:
    keys, pid = [f"k{i}" for i in range(40)], dead_pid()
    if stale:
        for key in keys:
            claim = Claims(tmp_path).take(key)
            assert claim is not None
            as_held_by(claim, pid=pid)
    at_once, n = threading.Barrier(8), len(keys)

    def reach(_: int) -> list[str]:
        claims, got = Claims(tmp_path), []
        for key in keys:
            at_once.wait()
            got += [key] if claims.take(key) else []
        return got

    with ThreadPoolExecutor(8) as pool:
        got = [key for some in pool.map(reach, range(8)) for key in some]
    assert sorted(got) == sorted(keys)
    assert len(list(tmp_path.iterdir())) == (2 * n if stale else n)


def test_a_stale_claim_that_ends_while_it_is_taken_over_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its work was taken over and done by another between the look and the reach; a third holds the key by now."""
    claim = Claims(tmp_path).take("a")
    assert claim is not None
    as_held_by(claim, pid=dead_pid())
    claims, link = Claims(tmp_path), Claim._link

    def late(self: Claim) -> bool:
        claim.path.unlink()
        monkeypatch.setattr(Claim, "_link", link)
        assert Claims(tmp_path).take("a") is not None
        return link(self)

    monkeypatch.setattr(Claim, "_link", late)
    assert claims.take("a") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.1"]
    assert Claims(tmp_path).take("a") is None


def test_a_failure_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claims.fail("a", "too late, é")
    assert Claims(tmp_path).failures() == {"a": "too late, é"}
    claims.forget_failure("a")
    claims.forget_failure("a")
    assert claims.failures() == {}


def test_a_process_is_known_by_what_it_holds(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claims.fail("b", "x")
    assert claims.held_by(os.getpid()) is None
    claims.take("a")
    assert claims.held_by(os.getpid()) == "a"
    assert claims.held_by(dead_pid()) is None


# ---- workers


def jobs_of(path: Path) -> list[Job]:
    return [worker.job_of(point) for point in study.points(study.read(path))]


def outcomes(runs: Path) -> dict[str, bytes]:
    """config_hash -> predictions of the finished runs, of which no two may have the same hash."""
    found = {}
    for result in runs.glob("*/result.json"):
        key = json.loads(result.read_text(encoding="utf-8"))["config_hash"]
        assert key not in found, "a run was done twice"
        found[key] = (result.parent / "predictions.csv").read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(messages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A study of four tiny runs, and what they come to when each is trained by src.train alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write(folder, tiny(messages, {"task.trainable": ["last_block", "all"], "seed": [1, 2]}))
    for point in study.points(study.read(path)):
        cfg = study.config(point)
        cfg.runs = str(folder / "runs")
        train(cfg)
    return path, outcomes(folder / "runs")


def test_a_worker_does_what_src_train_does(undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    path, expected = undisturbed
    given = Given(tmp_path, 1, 0)
    worker.work(jobs_of(path), given.claims(), given)
    assert outcomes(tmp_path) == expected
    assert list((tmp_path / ".claims").iterdir()) == []
    worker.work(jobs_of(path), given.claims(), given)
    assert outcomes(tmp_path) == expected


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_killed_worker_loses_nothing_and_its_run_is_gone_on_with(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = undisturbed
    given, jobs = Given(tmp_path, 2, 0), jobs_of(path)
    # a fork, for it has all imports already
    process = multiprocessing.get_context("fork").Process(target=worker.work, args=(jobs, given.claims(), given))
    process.start()
    wait_for(lambda: outcomes(tmp_path) and len(list(tmp_path.glob("*/checkpoints/last.ckpt"))) == 2)
    process.kill()
    process.join()
    (claim,) = (tmp_path / ".claims").glob("*.1")
    cut_short = tmp_path / json.loads(claim.read_text(encoding="utf-8"))["run"]
    assert (cut_short / "checkpoints" / "last.ckpt").is_file()

    worker.work(jobs, given.claims(), given)
    assert outcomes(tmp_path) == expected
    assert len([folder for folder in tmp_path.iterdir() if folder.name[0] != "."]) == 4
    assert (cut_short / "result.json").is_file()
    assert list((tmp_path / ".claims").iterdir()) == []


class Trained:
    """Stands in for src.train: fails as often as told, and keeps what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **failures: list[Exception]) -> None:
        self.failures, self.calls = failures, list[Any]()
        monkeypatch.setattr("src.train.train", self)

    def __call__(self, cfg: Any) -> Any:
        self.calls.append(cfg)
        left = self.failures.get(cfg.task.trainable, [])
        if left:
            (Path(cfg.runs) / cfg.resume / "checkpoints").mkdir(exist_ok=True)
            raise left.pop(0)
        result = {"config_hash": run_dir.config_hash(cfg)}
        run_dir.write_text(Path(cfg.runs) / cfg.resume / "result.json", json.dumps(result))
        return type("Run", (), {"result": result})


@pytest.fixture
def two_jobs(messages: Path, tmp_path: Path) -> list[Job]:
    return jobs_of(write(tmp_path, tiny(messages, {"task.trainable": ["last_block", "all"]})))


def test_a_failed_run_is_tried_again_where_it_stopped(
    two_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, trained = Given(tmp_path / "runs", 1, 2), Trained(monkeypatch, last_block=[OSError("a"), OSError("b")])
    worker.work(two_jobs, given.claims(), given)
    assert [cfg.task.trainable for cfg in trained.calls] == ["last_block"] * 3 + ["all"]
    assert len({cfg.resume for cfg in trained.calls}) == 2
    assert set(study.finished(given.runs)) == {job.key for job in two_jobs}
    assert given.claims().failures() == {}


@pytest.mark.parametrize(
    ("error", "tries", "sentence"),
    [(OSError("disk\nfull"), 2, "OSError: disk full"), (InputError("the loss became NaN"), 1, "the loss became NaN")],
)
def test_a_run_that_goes_on_failing_is_given_up_and_the_rest_goes_on(
    two_jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    tries: int,
    sentence: str,
) -> None:
    given, trained = Given(tmp_path / "runs", 1, 1), Trained(monkeypatch, last_block=[error] * 9)
    worker.work(two_jobs, given.claims(), given)
    assert [cfg.task.trainable for cfg in trained.calls] == ["last_block"] * tries + ["all"]
    assert given.claims().failures() == {two_jobs[0].key: sentence}
    assert set(study.finished(given.runs)) == {two_jobs[1].key}
    assert [path.name for path in (given.runs / ".claims").iterdir()] == [f"{two_jobs[0].key}.failed"]


def test_a_run_that_fails_before_it_learns_leaves_no_folder(
    two_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: Any) -> None:
        raise InputError("no such data")

    monkeypatch.setattr("src.train.train", fail)
    given = Given(tmp_path / "runs", 1, 1)
    worker.work(two_jobs, given.claims(), given)
    assert set(given.claims().failures().values()) == {"no such data"}
    assert [path.name for path in given.runs.iterdir()] == [".claims"]


def test_a_run_of_another_machine_is_waited_for_and_done_by_us_if_it_is_dropped(
    two_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PAUSE", 0.01)
    given, trained = Given(tmp_path / "runs", 1, 1), Trained(monkeypatch)
    theirs = Claims(given.runs / ".claims", beat=0.01).take(two_jobs[0].key)
    assert theirs is not None
    as_held_by(theirs, host="elsewhere")
    claims = Claims(given.runs / ".claims", stale=0.3)
    thread = threading.Thread(target=worker.work, args=(two_jobs, claims, given))
    with theirs.alive():
        thread.start()
        wait_for(lambda: len(study.finished(given.runs)) == 1)
        time.sleep(0.5)
        assert [cfg.task.trainable for cfg in trained.calls] == ["all"]
    thread.join(10)
    assert [cfg.task.trainable for cfg in trained.calls] == ["all", "last_block"]


# ---- the command


def test_shards_share_the_runs_of_a_study_out(tmp_path: Path, messages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.sweeps.rehearsal.Rehearsal.build", lambda self, cfg: None)
    asked = study.read(write(tmp_path, tiny(messages, {"seed": [1, 2, 3, 4, 5]})))
    whole = [job.label for job in sweep.plan(asked, tmp_path, "1/1")]
    assert whole == [f"seed={seed}" for seed in (1, 2, 3, 4, 5)]
    parts = [[job.label for job in sweep.plan(asked, tmp_path, f"{i}/3")] for i in (1, 2, 3)]
    assert parts == [whole[0::3], whole[1::3], whole[2::3]]
    for shard in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(InputError, match=rf"^shard={shard} is unknown: use 1/4, 2/4"):
            sweep.plan(asked, tmp_path, shard)


def test_points_with_one_config_are_one_run(tmp_path: Path, messages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.sweeps.rehearsal.Rehearsal.build", lambda self, cfg: None)
    asked = study.read(write(tmp_path, tiny(messages, {"name": ["a", "b"], "task.trainable": ["all", "lora"]})))
    assert [job.label for job in sweep.plan(asked, tmp_path, "1/1")] == [
        "name=a task.trainable=all",
        "name=a task.trainable=lora",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{study}", "workers=0"], "workers=0 must be a whole number, at least 1"),
        (["{study}", "retries=x"], "retries=x must be a whole number, at least 0"),
        (["{study}", "worker=2"], "'worker=2' is not understood: give key=value with one of workers, shard, "),
        ([], "give one study, as experiments/<study>.yaml"),
        (["{study}", "{study}"], "give one study, as experiments/<study>.yaml"),
        (["{bayes}", "workers=2"], "method: bayes learns from each run for the next: leave workers= and shard= out"),
    ],
)
def test_a_wrong_command_is_answered_with_a_sentence(
    tmp_path: Path, messages: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    files = {
        "study": write(tmp_path, tiny(messages, {"seed": [1]})),
        "bayes": write(tmp_path, tiny(messages, {"seed": [1]}, method="bayes", run_cap=2, metric=METRIC), "bayes"),
    }
    monkeypatch.setattr(sys, "argv", ["sweep", *(argument.format(**files) for argument in arguments)])
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        sweep.main()


METRIC = {"name": "final/validation/accuracy", "goal": "maximize"}


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`python -m src.sweep <arguments>` from this process; its workers are forks, for they have all imports already."""
    monkeypatch.setattr(sweep, "get_context", lambda _: multiprocessing.get_context("fork"))
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    capsys.readouterr()
    status = 0
    try:
        sweep.main()
    except SystemExit as exit:
        status = int(exit.code or 0)
    return status, *capsys.readouterr()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_the_command_runs_a_study_shows_what_ends_and_does_nothing_twice(
    messages: Path,
    tmp_path: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path, tiny(messages, {"task.optimizer.lr": [0.01, 1e30]}))
    runs = tmp_path / "all runs"
    asked = study.read(path)
    spawned = (asked, [worker.job_of(point) for point in study.points(asked)], Given(runs, 1, 1), runs)
    assert pickle.loads(pickle.dumps(spawned)) == spawned
    status, out, error = call([str(path), f"runs={runs}"], monkeypatch, capsys)
    assert status == 1
    assert out == f"tiny: 2 runs, 0 have finished; logs in {runs / '.sweep'}\n"
    lines = error.splitlines()
    accuracy = r"test accuracy \d+\.\d\d%, \d+ s of training; about .* left"
    assert re.fullmatch(rf"\[1/2\] task\.optimizer\.lr=0\.01: {accuracy}", lines[0])
    why = "the loss became infinite or NaN in epoch 1: training stopped, "
    assert lines[1].startswith(f"[2/2] task.optimizer.lr=1e+30: failed, {why}")
    assert lines[2].startswith(f"failed: task.optimizer.lr=1e+30: {why}")
    assert len(lines) == 3
    (log,) = (runs / ".sweep").iterdir()
    assert "epoch 2/2  train/accuracy" in log.read_text(encoding="utf-8")
    before = outcomes(runs)
    assert len(before) == 1

    path = write(tmp_path, tiny(messages, {"task.optimizer.lr": [0.01]}))
    command = f"all have finished: python -m src.report {path} 'runs={runs}'\n"
    assert call([str(path), f"runs={runs}"], monkeypatch, capsys) == (
        0,
        f"tiny: 1 runs, 1 have finished; logs in {runs / '.sweep'}\n{command}",
        "",
    )
    assert outcomes(runs) == before


def test_a_worker_that_dies_is_replaced_and_its_run_given_up_after_some_deaths(
    two_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Process:
        pid, exitcode = os.getpid(), -9

    started: list[Process] = []
    monkeypatch.setattr(sweep.Pool, "_start", lambda self, i: started.append(Process()) or started[-1])  # type: ignore[func-returns-value]
    given = Given(tmp_path / "runs", 1, 1)
    given.claims().take(two_jobs[0].key)
    pool = sweep.Pool(Study("tiny", "", "grid", (), {}), two_jobs, given)
    pool.at_work()
    assert (len(started), given.claims().failures()) == (2, {})
    pool.at_work()
    (sentence,) = given.claims().failures().values()
    assert sentence.startswith("its worker ended with exit code -9 (-9: killed, often for want of memory): see ")
    assert len(started) == 3


def test_a_key_without_a_value_is_as_good_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("method: grid\ncommand:\nmetric:\nparameters:\n  seed: {values: [1, 2]}\n")
    found = study.read(path)
    assert (found.shared, found.metric) == ((), Study.metric)
    assert [point.overrides for point in study.points(found)] == [("seed=1",), ("seed=2",)]


def test_a_worker_that_lost_its_claim_is_replaced_and_blamed_for_nothing(
    two_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is another's now, and a suspended machine can wake with all its claims lost."""

    class Process:
        pid, exitcode = os.getpid(), LOST

    started: list[Process] = []
    monkeypatch.setattr(sweep.Pool, "_start", lambda self, i: started.append(Process()) or started[-1])  # type: ignore[func-returns-value]
    given = Given(tmp_path / "runs", 2, 0)
    pool = sweep.Pool(Study("tiny", "", "grid", (), {}), two_jobs, given)
    pool.at_work()
    assert (len(started), given.claims().failures()) == (4, {})


def test_what_failed_and_was_then_done_by_another_sweep_is_no_failure(
    two_jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, done = Given(tmp_path / "runs", 1, 0), dict[str, Path]()

    class Pool:
        looks = 0

        def __init__(self, *_: Any) -> None: ...

        def at_work(self) -> bool:
            self.looks += 1
            if self.looks == 1:
                for job in two_jobs:
                    given.claims().fail(job.key, "no such data")
            else:
                done[two_jobs[0].key] = tmp_path
            return self.looks < 3

        def stop(self) -> None: ...

    monkeypatch.setattr(sweep, "Pool", Pool)
    monkeypatch.setattr(sweep, "LOOK", 0.0)
    monkeypatch.setattr(study, "finished", lambda runs: done)
    asked = Study("tiny", "", "grid", (), {})
    assert sweep.sweep(asked, two_jobs, given) == [f"{two_jobs[1].label}: no such data"]


def start_sweep(path: Path, runs: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "src.sweep", str(path), f"runs={runs}", "workers=2", *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_comes_to_the_same(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path, one_thread: None
) -> None:
    """The whole process group is killed at a random moment after its first sign of work, until the study is done: at
    first too early for it to be, and later and later, so that it will be, on whatever machine."""
    path, expected = undisturbed
    started = time.monotonic()
    assert start_sweep(path, tmp_path / "straight").wait(600) == 0
    whole = time.monotonic() - started
    runs, rng, kills = tmp_path / "killed", random.Random(0), 0
    while True:
        process = start_sweep(path, runs)
        seen = {*runs.glob("*/*"), *runs.glob(".claims/*")}
        while process.poll() is None and {*runs.glob("*/*"), *runs.glob(".claims/*")} == seen:
            time.sleep(0.05)
        try:
            process.wait(rng.uniform(0, (0.4 + 0.1 * kills) * whole))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL) if kills % 2 else process.kill()
            process.wait()
            kills += 1
    assert process.returncode == 0
    assert kills > 0
    assert outcomes(runs) == outcomes(tmp_path / "straight") == expected
    assert list((runs / ".claims").glob("*.*")) == []


def holders(runs: Path) -> dict[str, int]:
    """Key of a run -> the living process that holds its claim: one whose holder was killed stays until it is taken
    over."""
    found = {}
    for claim in runs.glob(".claims/*.[0-9]*"):
        with suppress(FileNotFoundError):  # it ends just now
            if is_running(pid := json.loads(claim.read_text(encoding="utf-8"))["pid"]):
                found[claim.stem] = pid
    return found


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path, one_thread: None
) -> None:
    path, expected = undisturbed
    process, killed = start_sweep(path, tmp_path), set[str]()
    while len(killed) < 3:  # a run whose worker dies twice counts as failed
        wait_for(lambda: holders(tmp_path).keys() - killed, 300)
        for key, pid in holders(tmp_path).items():
            if key not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(key)
                break
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert outcomes(tmp_path) == expected


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(
    undisturbed: tuple[Path, dict[str, bytes]], tmp_path: Path, one_thread: None
) -> None:
    path, expected = undisturbed
    process = start_sweep(path, tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("*/checkpoints"))) > 0, 300)
    pids = holders(tmp_path).values()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out.endswith(f"\nstopped; go on with python -m src.sweep {path} runs={tmp_path} workers=2\n")
    assert "Traceback" not in out
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert start_sweep(path, tmp_path).wait(600) == 0
    assert outcomes(tmp_path) == expected


# ---- what is shown


def result(accuracy: float, seconds: float) -> dict[str, Any]:
    return {"metrics": {"test": {"accuracy": accuracy}}, "cost": {"train_seconds": seconds}}


def test_the_time_left_follows_from_what_was_done_since_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("src.sweeps.board.monotonic", lambda: now)
    with Board("mini", 10, 4) as board:
        now = 160.0
        board.finished("a=1", result(0.5, 30.4))
        now = 340.0
        board.failed("a=2", "no [data]")
    assert capsys.readouterr() == (
        "",
        "[5/10] a=1: test accuracy 50.00%, 30 s of training; about 5 min left\n"
        "[6/10] a=2: failed, no [data]; about 8 min left\n",
    )


def test_a_terminal_shows_a_bar_and_what_ended_last() -> None:
    board = Board("mini", 40, 0)
    screen = StringIO()
    board.console = Console(file=screen, force_terminal=True, width=100, height=13, color_system=None)
    for i in range(20):
        board.finished(f"seed={i}", result(i / 20, 1))
    board.console.print(board._render())
    lines = screen.getvalue().splitlines()
    assert re.match(r"mini .*20/40 about ", lines[0])
    assert [line.split()[0] for line in lines[1:] if line.strip()] == [f"seed={i}" for i in range(19, 14, -1)]
    assert "test accuracy 95.00%" in lines[1]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (120, "2 min"), (5300, "88 min"), (9000, "2.5 h")]
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ---- bayes


SEARCH = {
    "gpt.dropout": Range("uniform", 0.0, 0.5),
    "task.lora.rank": Range("int_uniform", 1, 8),
    "task.optimizer.lr": Range("log_uniform_values", 1e-5, 1e-1),
    "data.fraction": Range("q_uniform", 0.25, 1.0, 0.25),
    "task.trainable": ["all", "lora"],
}


def test_bayes_searches_where_the_metric_is_best_and_keeps_to_its_ranges() -> None:
    pytest.importorskip("optuna")
    asked = Study("s", "", "bayes", (), SEARCH, run_cap=40)
    points, values = list[dict[str, Any]](), list[float | None]()
    for i in range(40):
        point = bayes.choose(asked, points, values)
        points.append(point)
        values.append(None if i == 3 else -abs(point["gpt.dropout"] - 0.4) - (point["task.trainable"] == "all"))
    assert bayes.choose(asked, points[:20], values[:20]) == points[20]
    for point in points:
        assert 0 <= point["gpt.dropout"] <= 0.5
        assert point["task.lora.rank"] in range(1, 9)
        assert 1e-5 <= point["task.optimizer.lr"] <= 1e-1
        assert point["data.fraction"] in (0.25, 0.5, 0.75, 1.0)
    late = points[20:]
    assert sum(point["task.trainable"] == "lora" for point in late) >= 15
    assert sum(abs(point["gpt.dropout"] - 0.4) < 0.1 for point in late) >= 12  # 6 of 20 by chance
    low = replace(asked, goal="minimize")
    assert bayes.choose(low, points, values) != bayes.choose(asked, points, values)


def test_a_bayes_study_goes_on_after_a_kill_with_what_it_had_asked_for(
    tmp_path: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    path = write(
        tmp_path, tiny(messages, {"task.trainable": ["all", "lora"]}, method="bayes", metric=METRIC, run_cap=3)
    )
    content = json.loads(path.read_text(encoding="utf-8"))
    content["parameters"]["gpt.dropout"] = {"min": 0.0, "max": 0.5}
    asked = study.read(write(tmp_path, content))

    def finish(values: dict[str, Any]) -> None:
        cfg = study.config(study.point(asked, values))
        cfg.runs = str(tmp_path)
        metrics = {"validation": {"accuracy": cfg.gpt.dropout}}
        run_dir.write_text(
            run_dir.create(cfg) / "result.json",
            json.dumps({"config_hash": run_dir.config_hash(cfg), "metrics": metrics}),
        )

    rounds = bayes.rounds(asked, tmp_path)
    first = next(rounds)
    finish(first)
    second = next(rounds)
    record = study.record(asked, tmp_path)
    assert [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] == [first, second]
    with record.open("a", encoding="utf-8") as file:
        file.write('{"task.trainable": "al')  # cut short
    again = bayes.rounds(asked, tmp_path)
    assert [next(again), next(again)] == [first, second]
    finish(second)
    (third,) = again
    values = [first["gpt.dropout"], second["gpt.dropout"]]
    assert bayes.outcomes(asked, [first, second, third], tmp_path) == [*values, None]
    assert third == bayes.choose(asked, [first, second], values)
    assert [point.values for point in study.points(asked, tmp_path)] == [first, second, third]
    with pytest.raises(InputError, match=r"^metric: no run has final/test/speed: use final/<train, "):
        bayes.outcomes(replace(asked, metric="final/test/speed"), [first], tmp_path)


def test_without_optuna_bayes_is_answered_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"^method: bayes needs Optuna: pip install -e '\.\[sweeps\]', or use method:"):
        bayes.choose(Study("s", "", "bayes", (), SEARCH, run_cap=4), [], [])
