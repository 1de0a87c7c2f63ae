"""Studies: their trials, what is found before the first run, and what W&B's agents make of the same file."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from scipy import stats

from src.config.command_line import compose, with_plus
from src.errors import InputError
from src.runs import identity, run_dir
from src.sweeps import study
from tests.sweeps.test_study_file import STUDIES
from tests.sweeps.tiny import AGENT, ROOT, content, values, write


def test_a_grid_gives_every_combination_seeds_last(tmp_path):
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
    assert [trial.overrides for trial in study.trials(read)] == [
        ("logger=none", f"task.trainable={trainable}", "gpt.causal=True", f"seed={seed}")
        for trainable in ("all", "lora")
        for seed in (1, 2)
    ]
    assert study.trials(read)[1].values == {"task.trainable": "all", "seed": 2}
    assert study.trials(read)[1].label == "task.trainable=all seed=2"


# ---- random studies

SPACE: dict[str, Any] = {
    "optimizer.lr": {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"},
    "gpt.dropout": {"min": 0.0, "max": 0.5},
    "task.lora.rank": {"min": 1, "max": 4},
    "task.trainable": {"values": ["all", "lora"]},
    "seed": {"value": 7},
}


def drawn(folder: Path, n: int, parameters: dict[str, Any] = SPACE, name: str = "draws") -> list[dict[str, Any]]:
    random = {"method": "random", "run_cap": n, "parameters": parameters}
    return [trial.values for trial in study.trials(study.read(write(folder, random, name)))]


def test_random_trials_are_the_same_everywhere_and_a_larger_run_cap_adds_to_them(tmp_path):
    trials = drawn(tmp_path, 6)
    assert drawn(tmp_path, 9)[:6] == trials
    assert drawn(tmp_path, 6, name="other") != trials
    fewer = {key: given for key, given in SPACE.items() if key != "task.lora.rank"}
    without = [{key: value for key, value in trial.items() if key != "task.lora.rank"} for trial in trials]
    assert drawn(tmp_path, 6, fewer) == without
    assert len({str(trial) for trial in trials}) == 6


def test_random_trials_follow_their_distributions(tmp_path):
    trials = drawn(tmp_path, 2000)
    found = {key: [trial[key] for trial in trials] for key in trials[0]}
    assert "seed" not in found
    assert stats.kstest(found["gpt.dropout"], stats.uniform(0, 0.5).cdf).pvalue > 0.01
    assert stats.kstest(found["optimizer.lr"], stats.loguniform(1e-3, 1e-1).cdf).pvalue > 0.01
    for key, expected in (("task.lora.rank", [1, 2, 3, 4]), ("task.trainable", ["all", "lora"])):
        counts = Counter(found[key])
        assert sorted(counts) == expected
        assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert {type(value) for value in found["task.lora.rank"]} == {int}


# ---- texts that Hydra's grammar would take apart


@pytest.mark.parametrize(
    "text",
    ["Spam? Answer yes, or no.", "spam (1).csv", "a=b", "it's, \"x\"", "x\\", "a\\'b,", "[a", " é, {}", "a\nb, c"],
)  # fmt: skip
def test_any_text_reaches_a_run_as_it_stands_here_and_under_an_agent_of_wandb(tmp_path, monkeypatch, text):
    path = write(tmp_path, {"method": "grid", "parameters": values({"data.instruction": [text, "Is it spam?"]})})
    first, second = study.trials(study.read(path))
    assert study.config(first).data.instruction == text
    assert second.overrides == ("data.instruction=Is it spam?",)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert compose("train", with_plus([f"data.instruction={text}"])) == study.config(first)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.slow
def test_an_agent_of_wandb_runs_what_src_sweep_runs(path, monkeypatch):
    """Its agents put key=value for ${args_no_hyphens}, unquoted, in the order of W&B's server."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    asked = study.read(path)
    command, trial = yaml.safe_load(path.read_text(encoding="utf-8"))["command"], study.trials(asked)[-1]
    given = {key: one.choices[-1] for key, one in sorted(asked.parameters.items())}
    words = command[4:-1] + [f"{key}={value}" for key, value in given.items()]
    cfg = identity.as_read(compose("train", with_plus(words)))
    assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(study.config(trial))


def test_the_real_command_takes_the_words_of_an_agent(tmp_path):
    """W&B refuses +experiment as the name of a parameter."""
    command = [sys.executable, "-m", "src.train", "experiment=lorra"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: In 'train': Could not find 'experiment/lorra'")


# ---- what is wrong is found before the first run


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"data": ["table"], "data.path": ["nowhere.tsv"], "seed": [1, 2]}, "nowhere.tsv"),
        ({"data": ["tabel"], "data.path": ["x.tsv"]}, "data/tabel"),
        ({"gpt.weights": ["nowhere"]}, "gpt.weights: there is no file nowhere"),
        ({"gpt.weights": ["pretrained"], "gpt.n_head": [6], "gpt.n_embd": [192]}, "n_layer"),
        ({"data.padding": ["none"]}, "data.padding=none needs data.batch_size=1"),
        ({"task.lora.scaling": ["beta"]}, "task.lora.scaling=beta"),
        ({"task.trainable": ["lst"]}, "task.trainable=lst"),
        ({"task.trainabl": ["lst"]}, "task.trainabl"),
        ({"optimizer.lr": [-1]}, "optimizer.lr"),
        ({"trainer.precision": ["8-foo"]}, "8-foo"),
        ({"held_out.path": ["nowhere.txt"]}, "nowhere.txt"),
        ({"seed": ["x"]}, "seed=x: Value 'x' of type"),
    ],
)
def test_a_fault_is_found_before_the_first_run_with_the_overrides_that_made_it(tmp_path, given, word):
    command = [*AGENT, "gpt.n_layer=2", "gpt.n_head=2", "gpt.n_embd=16", "gpt.weights=random", "${args_no_hyphens}"]
    path = write(tmp_path, {"method": "grid", "command": command, "parameters": values(given)})
    trials = study.trials(study.read(path))
    with pytest.raises(InputError) as caught:
        study.check(trials)
    (sentence,) = str(caught.value).splitlines()
    assert word in sentence
    such = f"({len(trials)} of {len(trials)} runs, such as: python -m src.train {' '.join(trials[0].overrides)})"
    assert such in sentence


def test_data_that_are_missing_are_looked_for_once_and_said_once_beside_other_faults(tmp_path, monkeypatch):
    from src.config import build

    looked, data = list[Any](), build.build_data
    monkeypatch.setattr(build, "build_data", lambda cfg: looked.append(cfg) or data(cfg))
    given = {"data": ["table"], "data.path": ["nowhere.tsv"], "task.trainable": ["all", "lora"], "seed": [1, 2, "x"]}
    asked = study.read(write(tmp_path, {"method": "grid", "parameters": values(given)}))
    with pytest.raises(InputError) as caught:
        study.check(study.trials(asked))
    missing, seed = str(caught.value).splitlines()
    assert re.search(r"nowhere\.tsv.*\(4 of 6 runs", missing)
    assert re.search(r"seed=x.*\(2 of 6 runs", seed)
    assert len(looked) == 1


def test_a_sound_study_gives_each_config_once_and_leaves_nothing_behind(tmp_path, messages):
    given = {"name": ["a", "b"], "task.trainable": ["all", "lora"], "seed": [1, 2]}
    asked = study.read(write(tmp_path, content(messages, given)))
    found = study.check(study.trials(asked))
    labels = [f"name=a task.trainable={way} seed={seed}" for way in ("all", "lora") for seed in (1, 2)]
    assert [trial.label for trial in found.values()] == labels
    assert list(found) == [run_dir.config_hash(study.config(trial)) for trial in found.values()]
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.yaml"]


def test_run_folders_that_cannot_be_read_are_named_and_left_out(tmp_path, messages, capsys):
    cfg = study.config(study.trials(study.read(write(tmp_path, content(messages, {"seed": [1]}))))[0])
    cfg.runs = str(tmp_path / "runs")
    key = run_dir.config_hash(cfg)
    for text in ("", "{", "{}", "[]", "\0", "é"):
        (run_dir.create(cfg) / "result.json").write_text(text, encoding="latin-1")
    for text in ("", "[]", "a: [", "é", "gpt: 5"):
        (run_dir.create(cfg) / "config.yaml").write_text(text, encoding="latin-1")
    left = run_dir.create(cfg)
    done = run_dir.create(cfg)
    (done / "result.json").write_text(json.dumps({"config_hash": key}), encoding="utf-8")
    assert study.finished(cfg.runs) == {key: done}
    assert study.begun(key, cfg.runs) == left
    capsys.readouterr()
    assert study.begun(f"{key[:8]} and other letters", cfg.runs) is None
    assert capsys.readouterr().err.count("left out") == 5


# ---- the project's studies

BOOK = {  # row -> experiment, and what of its config differs from the first row's
    1: ("last_block", {}),
    2: ("first_token", {"task.pooling": "first"}),
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
    16: ("last_real_token", {"task.pooling": "last_nonpad"}),
    17: ("no_causal_mask", {"gpt.causal": False}),
    18: ("ignore_padding_loss", {"task.ignore_index": 50256}),
    19: ("mean_pooling", {"task.pooling": "mean"}),
}
FIRST_ROW = """
    gpt.name=small gpt.weights=pretrained gpt.causal=true gpt.dropout=0.0
    data._target_=src.data.datasets.SmsSpam data.split=book data.padding=longest data.batch_size=8 data.fraction=1.0
    task._target_=src.finetune.classifier.Classifier task.trainable=last_block task.pooling=last task.ignore_index=-100
    task.lora.rank=16 task.lora.alpha=16 task.lora.scaling=alpha
    optimizer.lr=5e-5 optimizer.weight_decay=0.1 scheduler.shape=constant
    trainer.max_epochs=5 trainer.accumulate_grad_batches=1 trainer.precision=32-true seed=123
"""


@pytest.mark.slow
def test_the_book_table_is_the_nineteen_published_rows():
    configs = [study.config(trial) for trial in study.trials(study.read(ROOT / "experiments" / "book_table.yaml"))]
    assert [cfg.name for cfg in configs] == [name for name, _ in BOOK.values()]
    assert len({run_dir.config_hash(cfg) for cfg in configs}) == 19
    for cfg, (_, changes) in zip(configs, BOOK.values(), strict=True):
        expected = {key: yaml.safe_load(value) for key, value in (one.split("=") for one in FIRST_ROW.split())}
        expected |= {"optimizer.lr": 5e-5} | changes  # which YAML reads as a text
        assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
