"""Studies of method bayes: where they search, and how they go on."""

import json
import re
import sys
from typing import Any

import pytest

from src.errors import InputError
from src.runs import run_dir
from src.sweeps import bayes, study
from src.sweeps.study_file import Metric, Study
from tests.sweeps.tiny import content, write

METRIC = {"name": "final/validation/accuracy", "goal": "maximize"}
SEARCH: dict[str, Any] = {
    "gpt.dropout": {"min": 0.0, "max": 0.5},
    "task.lora.rank": {"min": 1, "max": 8},
    "optimizer.lr": {"min": 1e-5, "max": 1e-1, "distribution": "log_uniform_values"},
    "task.trainable": {"values": ["all", "lora"]},
}
ASKED = Study.model_validate({"name": "s", "method": "bayes", "metric": METRIC, "parameters": SEARCH, "run_cap": 40})


def test_bayes_searches_where_the_metric_is_best_and_keeps_to_its_ranges():
    pytest.importorskip("optuna")
    trials, found = list[dict[str, Any]](), list[float | None]()
    for i in range(40):
        trial = bayes.choose(ASKED, trials, found)
        trials.append(trial)
        found.append(None if i == 3 else -abs(trial["gpt.dropout"] - 0.4) - (trial["task.trainable"] == "all"))
    assert bayes.choose(ASKED, trials[:20], found[:20]) == trials[20]
    for trial in trials:
        assert 0 <= trial["gpt.dropout"] <= 0.5
        assert trial["task.lora.rank"] in range(1, 9)
        assert 1e-5 <= trial["optimizer.lr"] <= 1e-1
    late = trials[20:]
    assert sum(trial["task.trainable"] == "lora" for trial in late) >= 15
    assert sum(abs(trial["gpt.dropout"] - 0.4) < 0.1 for trial in late) >= 12  # 6 of 20 by chance
    low = ASKED.model_copy(update={"metric": Metric(name=METRIC["name"], goal="minimize")})
    assert bayes.choose(low, trials, found) != bayes.choose(ASKED, trials, found)


def test_a_bayes_study_goes_on_after_a_kill_with_what_it_had_requested(tmp_path, messages):
    pytest.importorskip("optuna")
    given = content(messages, {"task.trainable": ["all", "lora"]}, method="bayes", metric=METRIC, run_cap=3)
    given["parameters"]["gpt.dropout"] = {"min": 0.0, "max": 0.5}
    asked = study.read(write(tmp_path, given))

    def finish(values: dict[str, Any]) -> None:
        cfg = study.config(study.trial(asked, values))
        cfg.runs = str(tmp_path)
        metrics = {"validation": {"accuracy": cfg.gpt.dropout}}
        result = {"config_hash": run_dir.config_hash(cfg), "metrics": metrics}
        run_dir.write_text(run_dir.create(cfg) / "result.json", json.dumps(result))

    def next_of(rounds: Any) -> dict[str, Any]:
        (trial,) = next(rounds).values()
        return dict(trial.values)

    rounds = bayes.rounds(asked, tmp_path)
    first = next_of(rounds)
    finish(first)
    second = next_of(rounds)
    record = study.record(asked, tmp_path)
    assert [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] == [first, second]
    with record.open("a", encoding="utf-8") as file:
        file.write('{"task.trainable": "al')  # cut short
    again = bayes.rounds(asked, tmp_path)
    assert [next_of(again), next_of(again)] == [first, second]
    finish(second)
    third = next_of(again)
    assert not list(again)
    found = [first["gpt.dropout"], second["gpt.dropout"]]
    assert bayes.outcomes(asked, [first, second, third], tmp_path) == [*found, None]
    assert third == bayes.choose(asked, [first, second], found)
    assert [trial.values for trial in study.trials(asked, tmp_path)] == [first, second, third]
    speed = asked.model_copy(update={"metric": Metric(name="final/test/speed")})
    with pytest.raises(InputError, match="final/test/speed"):
        bayes.outcomes(speed, [first], tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task.lora.rank": None}, "task.lora.rank"),
        ({"task.lora.alpha": {"values": [8, 16]}}, "task.lora.alpha"),
        ({"gpt.dropout": {"min": 0.0, "max": 0.1}}, "gpt.dropout"),
        ({"task.trainable": {"values": ["all", "last_block"]}}, "task.trainable"),
    ],
)
def test_a_bayes_study_whose_parameters_have_changed_is_refused(tmp_path, change, named):
    record = study.record(ASKED, tmp_path)
    record.parent.mkdir()
    requested = {"gpt.dropout": 0.3, "task.lora.rank": 2, "optimizer.lr": 1e-3, "task.trainable": "lora"}
    record.write_text(json.dumps(requested) + "\n", encoding="utf-8")
    assert study.requested(ASKED, tmp_path) == [requested]
    changed = {key: value for key, value in (SEARCH | change).items() if value is not None}
    other = Study.model_validate({"name": "s", "method": "bayes", "parameters": changed, "run_cap": 40})
    with pytest.raises(InputError, match=re.escape(named)):
        study.trials(other, tmp_path)
    record.write_text("[]\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"s\.jsonl is damaged"):
        study.trials(ASKED, tmp_path)


def test_without_optuna_bayes_is_answered_with_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="Optuna"):
        bayes.choose(ASKED, [], [])
