"""Runs on rare spam: class weights, choice of the epoch, threshold, temperature, and who uses them afterwards."""

import csv
import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from transformers import AutoConfig

from src.eval import evaluate
from src.export import export
from src.predict import predict_texts
from src.runs import identity, printed_table
from src.serve import Options, load
from src.serving.page import Page
from src.sweeps import study
from src.train import Run, train
from tests.sweeps.tiny import SETTINGS, WORDS

WAYS = {"classify": ("task.pooling=last_nonpad",), "instruct": ("task=instruct", "data.instruction='Is it spam?'")}
GIVEN = (
    *("task.trainable=all", "optimizer.lr=3e-3", "trainer.max_epochs=4", "task.class_weights=balanced"),
    *("monitor=validation/average_precision", "positive=spam", "threshold='precision>=0.6'"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, uncounted: None) -> Path:
    """A folder with messages.tsv: 80 ham and 30 spam, of which a third have words of ham."""
    folder, rng = tmp_path_factory.mktemp("decided"), random.Random(0)

    def text(label: str, i: int) -> str:
        words = WORDS["ham" if i % 3 == 0 else label].split()
        return f"{' '.join(rng.choices(words, k=rng.randint(3, 9)))} {label[0]}{i}"

    lines = [f"{label}\t{text(label, i)}\n" for label, n in (("ham", 80), ("spam", 30)) for i in range(n)]
    (folder / "messages.tsv").write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return folder


def config(home: Path, *more: str) -> DictConfig:
    given = (*SETTINGS.split(), f"data.path={home / 'messages.tsv'}", f"runs={home / 'runs'}")
    return study.config(study.Trial({}, (*given, *more)))


@pytest.fixture(scope="module", params=WAYS)
def run(request: pytest.FixtureRequest, home: Path) -> Run:
    return train(config(home, f"name={request.param}", *WAYS[request.param], *GIVEN))


def lines(run: Run) -> list[dict[str, Any]]:
    with (run.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_epoch_of_the_highest_average_precision_is_kept(run):
    values = [point["validation_average_precision"] for point in run.result["curve"]]
    best = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)["epoch"]
    assert best == values.index(max(values))
    assert run.result["metrics"]["validation"]["average_precision"] == pytest.approx(values[best], abs=1e-6)


def test_a_run_answers_by_the_threshold_that_it_chose(run, capsys):
    chosen, rows, texts = run.result["threshold"], lines(run), run.data.texts("test")
    assert run.result["positive"] == "spam"
    assert chosen["probability"] != pytest.approx(0.5, abs=1e-3)
    expected = ["spam" if float(row["p_spam"]) >= chosen["probability"] else "ham" for row in rows]
    assert [row["predicted"] for row in rows] == expected
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert run.result["metrics"]["test"]["accuracy"] == pytest.approx(right / len(rows))

    answers = list(predict_texts(str(run.folder), texts))
    assert [one["label"] for one in answers] == expected
    for given in (0.0, 0.3, 1.0):
        answers = list(predict_texts(str(run.folder), texts, threshold=given))
        assert [one["label"] == "spam" for one in answers] == [one["probabilities"]["spam"] >= given for one in answers]
    served = load(Options(str(run.folder)))["run"]
    assert [one["label"] for one in served.answers(texts)] == expected
    said = f"spam is the answer from a probability of {chosen['probability']:.6g} on"
    assert said in Page({"run": served}, None).render()
    printed_table.show(run.result, run.folder)
    assert said in capsys.readouterr().out


def test_what_is_printed_can_be_pasted_into_a_shell(run, capsys):
    printed_table.show(run.result, Path("/tmp/my runs/20260101-mini[new]"))
    command = capsys.readouterr().out.partition("use it:")[2]
    expected = ["python", "-m", "src.predict", "run=20260101-mini[new]", "runs=/tmp/my runs", "text=..."]
    assert shlex.split(command) == expected


def test_calibrated_probabilities_are_scaled_and_say_the_same(run):
    said, texts = run.result["calibration"], run.data.texts("test")
    plain, scaled = (list(predict_texts(str(run.folder), texts, calibrated=flag)) for flag in (False, True))
    assert [one["label"] for one in scaled] == [one["label"] for one in plain]
    p = torch.tensor([list(one["probabilities"].values()) for one in plain], dtype=torch.float64)
    expected = (p.log() / said["temperature"]).softmax(-1)
    torch.testing.assert_close(torch.tensor([list(one["probabilities"].values()) for one in scaled]), expected.float())
    assert said["before"]["test"]["loss"] == run.result["metrics"]["test"]["loss"]
    assert said["after"]["validation"]["loss"] <= said["before"]["validation"]["loss"]
    measured = {flag: evaluate(str(run.folder), calibrated=flag)[0] for flag in (False, True)}
    assert measured[False]["test"] == pytest.approx(run.result["metrics"]["test"], abs=1e-6)
    assert measured[True]["test"]["ece"] == pytest.approx(said["after"]["test"]["ece"], abs=1e-6)
    assert measured[True]["test"]["accuracy"] == measured[False]["test"]["accuracy"]


def test_an_export_names_the_positive_class_and_the_threshold(run, tmp_path):
    export(str(run.folder), tmp_path / "model")
    made = AutoConfig.from_pretrained(tmp_path / "model")
    chosen = run.result["threshold"]["probability"]
    assert (made.positive_id, made.threshold) == (1, chosen)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"*spam* is the answer from a probability of {chosen:.6g} on" in card


def test_class_weights_and_a_threshold_move_the_numbers_and_the_defaults_do_not(home):
    plain = config(home)
    without = identity.plain(plain)
    for key in ("monitor", "positive", "threshold"):
        del without[key]
    del without["task"]["class_weights"]
    assert identity.settings(without) == identity.settings(identity.plain(plain))
    hashes = [identity.config_hash(config(home, one)) for one in GIVEN[3:]]
    assert len({*hashes, identity.config_hash(plain)}) == len(GIVEN[3:]) + 1


def test_a_run_without_the_newer_settings_is_used_as_ever(home):
    """As one that had finished before them: its config and result do not name them."""
    made = train(config(home, "trainer.max_epochs=1"))
    path, result = made.folder / "config.yaml", made.folder / "result.json"
    kept = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith(("mon", "pos", "thr"))]
    path.write_text("".join(line for line in kept if "class_weights" not in line))
    older = {key: value for key, value in made.result.items() if key not in ("positive", "calibration")}
    result.write_text(json.dumps(older))
    assert evaluate(str(made.folder))[0]["test"] == pytest.approx(made.result["metrics"]["test"], abs=1e-6)
    texts = made.data.texts("test")
    assert [one["label"] for one in predict_texts(str(made.folder), texts)] == [row["predicted"] for row in lines(made)]
