"""The house: import directions, sizes of files and functions, experiments that only change what exists."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = sorted((ROOT / "src").rglob("*.py"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def test_entry_points_answer_before_anything_heavy_is_imported():
    names = "train eval predict export serve pretrain sweep report reporting.wandb_dashboard"
    imports = "".join(f"import src.{module}\n" for module in names.split())
    code = f"import sys\n{imports}print({{'torch', 'lightning', 'wandb', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_model_is_read_in_one_go():
    assert len((ROOT / "src/gpt/model.py").read_text(encoding="utf-8").splitlines()) < 250


@cache  # composing takes a tenth of a second
def composed(*overrides: str, conf: Path = CONF) -> DictConfig:
    """The config of src.train, Hydra's own part too."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@cache
def flat(*overrides: str, conf: Path = CONF) -> dict[str, Any]:
    """Dotted key -> value of every leaf of the config of src.train, without Hydra's own part."""

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(node, dict):
            yield prefix, node
            return
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))

    cfg = composed(*overrides, conf=conf)
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return dict(leaves(OmegaConf.to_container(own, resolve=True), ""))


def difference(experiment: str, *overrides: str, conf: Path = CONF) -> set[str]:
    """Dotted keys that the root has not, or that only the root has, under an experiment."""
    given = flat(f"+experiment={experiment}", *overrides, conf=conf)
    return set(given) ^ set(flat(*chosen(experiment, *overrides, conf=conf), conf=conf))


def chosen(experiment: str, *overrides: str, conf: Path = CONF) -> list[str]:
    """The options that an experiment, and what is given with it, take of each group."""
    cfg = composed(f"+experiment={experiment}", *overrides, conf=conf)
    return [f"{group}={cfg.hydra.runtime.choices[group]}" for group in ("gpt", "data", "task", "trainer", "scheduler")]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_changes_a_few_values_of_the_root_and_adds_no_key(name):
    plain, given = flat(*chosen(name)), flat(f"+experiment={name}")  # another option of a group is one change
    changed = {key for key in given if given[key] != plain.get(key)}
    assert difference(name) == set()
    assert given["name"] == name
    assert "name" in changed
    assert len(changed) <= 6


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_what_it_asks_in_few_lines(name):
    first, question, *lines = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first == "# @package _global_"
    assert question.startswith("# ")
    assert len(question.split()) >= 5
    assert 1 <= len(lines) <= 6


@pytest.mark.parametrize(
    "name", ["last_block", "xl", "random_block", "answer_head", "instruct_news", "specialist_news"]
)
def test_groups_given_on_the_command_line_win_over_an_experiment(name):
    cfg = composed(f"+experiment={name}", "gpt=small", "data=sms_spam")
    assert (cfg.gpt.name, cfg.gpt.n_embd, cfg.data.split) == ("small", 768, "book")
    assert cfg.data._target_ == "src.data.datasets.SmsSpam"
    assert cfg.name == name
    assert difference(name, "gpt=small", "data=sms_spam") == set()


def test_a_value_given_on_the_command_line_wins_over_an_experiment():
    assert composed("+experiment=lora", "task.trainable=all", "name=mine").task.trainable == "all"
    given, usual = (composed("+experiment=xl_lora", *more).task.lora for more in (["task.lora.alpha=4"], []))
    assert dict(given) == dict(usual) | {"alpha": 4} != dict(usual)


def test_a_misspelt_key_in_an_experiment_is_noticed(tmp_path):
    conf = shutil.copytree(CONF, tmp_path / "conf")
    text = "# @package _global_\n# Does a misspelt key count?\nname: typo\ntask: {trainabel: all, lora: {rnk: 4}}\n"
    (conf / "experiment" / "typo.yaml").write_text(text, encoding="utf-8")
    assert difference("typo", conf=conf) == {"task.trainabel", "task.lora.rnk"}


@pytest.mark.parametrize("gpt", sorted(path.stem for path in (CONF / "gpt").glob("*.yaml")))
def test_every_gpt_has_the_same_keys_and_its_own_learning_rate(gpt):
    cfg = composed(f"gpt={gpt}")
    assert set(flat(f"gpt={gpt}")) == set(flat())
    assert cfg.gpt.name == gpt
    file = OmegaConf.load(CONF / "gpt" / f"{gpt}.yaml")
    assert (cfg.optimizer.lr, cfg.trainer.max_epochs) == (file.optimizer.lr, file.trainer.max_epochs)
