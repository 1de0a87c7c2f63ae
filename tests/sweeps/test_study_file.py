"""Study files: what they say, and every fault with its line and key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from src.errors import InputError
from src.sweeps import study
from src.sweeps.study_file import Metric
from tests.sweeps.tiny import ROOT, write

STUDIES = sorted((ROOT / "experiments").glob("*.yaml"))


def check_faults(path: Path, faults: dict[int, str]) -> None:
    """Each line of the error names a line of the file and the key."""
    with pytest.raises(InputError) as caught:
        study.read(path)
    found = str(caught.value).splitlines()
    assert len(found) == len(faults), found
    for sentence, (line, start) in zip(found, faults.items(), strict=True):
        assert sentence.startswith(f"{path}, line {line}: {start}")


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("a: 1\nmethod: grid\nparameters: {seed: {value: 1}}", {1: "a: "}),
        ("method: gird\nparameters: {seed: {value: 1}}", {1: "method: "}),
        ("method: grid", {1: "parameters: "}),
        ("method: grid\nparameters: {}", {2: "parameters: "}),
        ("method: grid\nmethod: grid\nparameters: {seed: {value: 1}}", {2: "method: stands twice"}),
        ("method: grid\nname: a/b\nparameters: {seed: {value: 1}}", {2: "name: "}),
        ("method: random\nparameters: {seed: {value: 1}}", {1: "run_cap: "}),
        ("method: grid\nrun_cap: 0\nparameters: {seed: {value: 1}}", {2: "run_cap: "}),
        ("method: bayes\nrun_cap: 3\nparameters: {seed: {value: 1}}", {1: "metric: "}),
        ("method: grid\nmetric:\n  name: loss\n  goal: min\nparameters: {seed: {value: 1}}", {3: "me", 4: "me"}),
        ('method: grid\ncommand: ["${args}"]\nparameters: {seed: {value: 1}}', {2: "command: "}),
        (
            "method: grid\ncommand:\n  - src.train\n  - runs=x\n  - 5\nparameters: {seed: {value: 1}}",
            {4: "command.1: ", 5: "command.2: "},
        ),
        ("method: grid\nparameters: [", {2: "this is no YAML: "}),
        ("", {1: "a study has the keys "}),
        ("method: grid\nparameters:\n  seed: &a\n    values: [*a]", {3: "parameters.seed.values.0: contains itself"}),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_study_is_said_with_its_line(tmp_path, text, faults):
    check_faults(write(tmp_path, text), faults)


@pytest.mark.parametrize("method", ["grid", "random"])
def test_all_faults_of_the_parameters_are_said_at_once(tmp_path, method):
    lines = f"""method: {method}
parameters:
  +task.foo: {{value: 1}}
  runs: {{value: here}}
  seed:
    values: [1,
      null,
      None]
  data.path:
    values:
      - {{a: 1}}
      - a b/c-d.tsv
  task: {{parameters: {{lora.rank: {{values: [1]}}}}}}
  gpt.dropout: {{values: [0.1], distribution: uniform}}
  data.max_length: {{values: []}}
  trainer.precision: [32-true]
  task.lora.alpha: {{values: [1], probabilities: [1]}}
  5: {{value: 1}}
"""
    faults = {
        3: "parameters.+task.foo: ",
        4: "parameters.runs: ",
        7: "parameters.seed.values.1: ",
        8: "parameters.seed.values.2: ",
        11: "parameters.data.path.values.0: ",
        13: "parameters.task.parameters: ",
        14: "parameters.gpt.dropout: ",
        15: "parameters.data.max_length.values: ",
        16: "parameters.trainer.precision: ",
        17: "parameters.task.lora.alpha.probabilities: ",
        18: "parameters.5: ",
    }
    check_faults(write(tmp_path, lines), faults)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("min: 1", ": give value"),
        ("min: 1e-5, max: 1", ".min: must be a number, got '1e-5'"),
        ("min: 2, max: 2", ": min=2 must be less than max=2"),
        ("min: 0, max: 1, distribution: log_uniform_values", ": log_uniform_values"),
        ("min: 0.5, max: 2, distribution: int_uniform", ": int_uniform"),
        ("min: 0, max: 1, distribution: normal", ".distribution: "),
        ("min: 0, max: 1, distribution: constant", ".distribution: "),
        ("min: 0, max: .inf", ".max: must be a number"),
        ("min: 0, max: 1, values: [1]", ": give value"),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_refused(tmp_path, given, fault):
    path = write(tmp_path, f"method: random\nrun_cap: 3\nparameters:\n  gpt.dropout: {{{given}}}\n")
    check_faults(path, {4: f"parameters.gpt.dropout{fault}"})


@pytest.mark.parametrize("parameters", ["seed: {min: 1, max: 2}", "seed: {values: [1], distribution: constant}"])
def test_a_grid_wants_values(tmp_path, parameters):
    check_faults(write(tmp_path, f"method: grid\nparameters:\n  {parameters}"), {3: "parameters.seed"})


@pytest.mark.parametrize(
    "text",
    [b"a: \x00", "a: \xe9".encode("latin-1"), "a: b".encode("utf-16"), b"a: 2020-99-99", b"[" * 1500, b"? [a]\n: b"],
    ids=["NUL", "Latin-1", "UTF-16", "no such day", "deep", "a list as key"],
)
def test_a_file_that_is_no_yaml_gets_a_sentence(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=rf"^{path}.* is no "):
        study.read(path)


def test_a_study_that_is_not_there_is_answered_with_those_that_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"experiments/x\.yaml.*mini_table"):
        study.read("experiments/x.yaml")


def test_a_key_without_a_value_is_as_good_as_absent(tmp_path):
    found = study.read(write(tmp_path, "method: grid\ncommand:\nmetric:\nparameters:\n  seed: {values: [1, 2]}\n"))
    assert (found.name, found.shared, found.metric.name) == ("tiny", (), "final/validation/accuracy")
    assert [trial.overrides for trial in study.trials(found)] == [("seed=1",), ("seed=2",)]
    assert Metric(name="final/test/loss").goal == "minimize", "as W&B has it"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_of_the_project_is_one_of_wandb_s(path):
    """W&B takes a parameter by this pattern, and its agents run `command`."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["name"] == path.stem
    assert content["command"][:4] == ["${env}", "${interpreter}", "-m", "src.train"]
    assert study.read(path).description.endswith((".", "?"))
    for key, given in content["parameters"].items():
        assert key.replace(".", "").isidentifier()
        assert len(given["values"]) == len(set(map(str, given["values"])))
