"""Models that are no GPT: the numbers of plain scikit-learn, and runs like any other."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.special import log_softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from src.config import build
from src.config.command_line import compose
from src.data.datasets import Bundled
from src.data.mixture import Mixture
from src.errors import InputError
from src.eval import evaluate
from src.evaluation.baselines import NBSVM, Labelled, Majority, TextClassifier, TfidfLogistic, choose, predict
from src.export import export
from src.predict import predict_texts, write
from src.reporting import rows
from src.runs import identity, run_dir
from src.serve import Options, load
from src.sweeps import study
from src.train import main, train
from tests.sweeps import tiny

WORDS = [word for words in tiny.WORDS.values() for word in words.split()]
CLASSES = ("train", "validation", "test")


def texts_of(classes: int, each: int, seed: int = 0) -> Labelled:
    """Texts of which each class has favourite words."""
    rng = np.random.default_rng(seed)
    labels = [i % classes for i in range(classes * each)]
    favourites = [rng.dirichlet(np.full(len(WORDS), 0.5)) for _ in range(classes)]
    return Labelled([" ".join(rng.choice(WORDS, 6, p=favourites[label])) for label in labels], labels)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("analyzer", "ngrams"), [("word", (1, 2)), ("char", (2, 5))])
def test_tfidf_is_scikit_learns(classes, analyzer, ngrams):
    texts, labels = texts_of(classes, 20)
    model = TfidfLogistic(analyzer, ngrams, C=10.0)
    model.fit(texts, labels)
    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True)
    plain = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=10_000)).fit(texts, labels)
    np.testing.assert_allclose(model.log_probabilities(texts), plain.predict_log_proba(texts), rtol=1e-9)


def margins(texts: list[str], labels: list[int], asked: list[str], C: float, beta: float) -> Any:  # noqa: N803
    """Wang and Manning's classifier, stated anew: scikit-learn's naive Bayes gives the ratios, its SVM the weights."""
    vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2)).fit(texts)
    features, found = vectorizer.transform(texts).toarray(), []
    for k in range(max(labels) + 1) if max(labels) > 1 else [1]:
        is_k = np.array(labels) == k
        counts = [1 + features[is_k].sum(0), 1 + features[~is_k].sum(0)]
        ratio = np.log(counts[0] / np.linalg.norm(counts[0], 1) / (counts[1] / np.linalg.norm(counts[1], 1)))
        svm = LinearSVC(C=C, dual=False).fit(features * ratio, is_k)
        w = svm.coef_[0]
        weights = (1 - beta) * np.linalg.norm(w, 1) / len(w) + beta * w
        found.append(vectorizer.transform(asked).toarray() * ratio @ weights + svm.intercept_[0])
    return np.array(found).T


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_nb_svm_is_the_papers_with_probabilities_from_its_margins(classes, beta):
    texts, labels = texts_of(classes, 20)
    model = NBSVM(C=0.1, beta=beta)
    model.fit(texts, labels)
    expected = margins(texts, labels, texts, 0.1, beta)
    logits = np.hstack([-expected, expected]) if classes == 2 else expected
    scale = model.model.calibrated_classifiers_[0].calibrators[0].beta_  # 1 / temperature, of cross-fitted margins
    np.testing.assert_allclose(model.log_probabilities(texts), log_softmax(scale * logits, 1), rtol=1e-4, atol=1e-6)
    plain = CalibratedClassifierCV(model.svm, method="temperature", cv=5, ensemble=False)
    plain.fit(CountVectorizer(binary=True, ngram_range=(1, 2)).fit_transform(texts), labels)
    assert plain.calibrated_classifiers_[0].calibrators[0].beta_ == scale


def test_majority_knows_shares_alone():
    model = Majority()
    model.fit(["a", "b", "c", "d"], [0, 1, 1, 1])
    assert np.exp(model.log_probabilities(["x", "y"])).tolist() == pytest.approx(np.array([[0.25, 0.75]] * 2))


class Fixed(Majority):
    """Says p of class 1, whatever it has learned."""

    def __init__(self, p: float) -> None:
        self.p = p

    def log_probabilities(self, texts: list[str]) -> Any:
        return np.log([[1 - self.p, self.p]] * len(texts))


def test_the_constants_with_the_least_validation_loss_are_chosen_the_first_of_equals():
    data = Labelled(["a"] * 4, [1, 1, 1, 0])
    for grid, best in (([0.1, 0.7, 0.9], 0.7), ([0.75, 0.1, 0.75], 0.75)):
        model, constants = choose(lambda constants: Fixed(**constants), {"p": grid}, data, data, 2)
        assert (constants, model.p) == ({"p": best}, best)


@pytest.mark.parametrize("p", [1.2, float("nan")])
def test_what_are_no_log_probabilities_is_refused(p):
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match="log_probabilities"):
        predict(Fixed(p), Labelled(["a"], [0]), 2)
    with pytest.raises(InputError, match="log_probabilities"):
        predict(Fixed(0.5), Labelled(["a"], [0]), 3)


# ---- runs


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_messages(tmp_path_factory.mktemp("data") / "messages.tsv")


def overrides(messages: Path, runs: Path, *more: str) -> list[str]:
    return ["data=table", f"data.path={messages}", "data.split=deduplicated", "logger=csv", f"runs={runs}", *more]


@pytest.fixture(scope="module")
def finished(messages: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    runs = tmp_path_factory.mktemp("runs")
    return train(compose("train", overrides(messages, runs, "+experiment=nb_svm", "data.fraction=0.6")))


def test_its_run_folder_holds_what_any_run_s_does(finished):
    result = json.loads((finished.folder / "result.json").read_text())
    assert set(OmegaConf.load(finished.folder / "config.yaml")) == set(identity.WITHOUT_GPT)
    assert set(result["metrics"]) == set(CLASSES)
    assert result["task"]["constants"].keys() == {"C", "beta"}
    assert result["data"]["sizes"] == {"train": 20, "validation": 4, "test": 10}
    assert len((finished.folder / "predictions.csv").read_text().splitlines()) == 11
    assert "final/test/accuracy" in next(finished.folder.glob("csv/**/metrics.csv")).read_text()


def test_it_is_known_by_what_it_reads(messages, finished):
    def hash_of(*more: str) -> str:
        given = (*overrides(messages, Path("elsewhere"), "+experiment=nb_svm", "data.fraction=0.6"), *more)
        return identity.config_hash(study.config(study.Trial({}, given)))

    before = finished.result["config_hash"]
    unread = ("gpt=small", "optimizer.lr=1", "trainer.max_epochs=9", "data.padding=batch", "patience=2", "cache=off")
    assert hash_of() == hash_of(*unread) == before == run_dir.recorded(finished.folder)["config_hash"]
    others = ("seed=7", "threshold=f1", "data.fraction=1.0", "task.param_grid.beta=[1]", "data.split=grouped")
    assert len({before, *(hash_of(one) for one in others)}) == 1 + len(others)


def test_it_is_measured_and_used_after_its_folder_was_moved(finished, messages, tmp_path):
    moved = shutil.copytree(finished.folder, tmp_path / "moved")
    assert evaluate(str(moved))[0] == finished.result["metrics"]
    metrics, sizes = evaluate(str(moved), changes=["data=table", f"data.path={messages}"])
    assert sizes == {"all": 48}
    assert metrics["all"]["accuracy"] > 0.5
    texts = finished.data.texts("test")
    lines = run_dir.prediction_rows(texts, ["ham", "spam"], _predictions(finished))
    answers = list(predict_texts(str(moved), texts))
    assert [one["label"] for one in answers] == [predicted for _, _, predicted, _ in lines]
    assert [one["probability"] for one in answers] == pytest.approx([max(p) for *_, p in lines])


def test_it_decides_by_a_threshold_and_is_calibrated_like_a_gpt(messages, tmp_path):
    given = overrides(messages, tmp_path, "task=majority", "threshold='precision>=0.3'", "positive=ham")
    run = train(compose("train", given))
    assert run.result["threshold"]["test"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3})
    assert run.result["calibration"]["temperature"] > 0
    folder = str(run.folder)
    assert [one["label"] for one in predict_texts(folder, ["hello"])] == ["ham"]
    assert [one["label"] for one in predict_texts(folder, ["hello"], threshold=0.9)] == ["spam"]
    assert evaluate(folder, calibrated=True)[0]["test"]["accuracy"] == 0.5


def _predictions(finished: Any) -> Any:
    from src.config.baseline import predict_splits

    return predict_splits(finished.model, finished.data)["test"]


def test_what_needs_a_gpt_says_so(finished, tmp_path):
    run = str(finished.folder)
    for use in (
        lambda: export(run, tmp_path / "to"),
        lambda: load(Options(run)),
        lambda: build.build_gpt(compose("train", [f"gpt.weights={run}"])),
        lambda: evaluate(run, changes=["trainer.precision=bf16-mixed"]),
        lambda: write(run, "hello", 3),
        lambda: list(predict_texts(run, ["hello"], task="spam")),
        lambda: train(compose("train", [f"resume={run}"]), longer=9),
    ):
        with pytest.raises(InputError, match=r"no GPT|fixed labels|task=|trainer"):
            use()
    assert not (tmp_path / "to").exists()


def test_what_it_learned_from_is_checked(finished, tmp_path):
    moved = shutil.copytree(finished.folder, tmp_path / "moved")
    kept = moved / "checkpoints" / "training.json"
    kept.write_text(kept.read_text().replace("lunch", "lunches", 1))
    with pytest.raises(InputError, match=r"training\.json is damaged"):
        list(predict_texts(str(moved), ["hello"]))


def test_an_interrupted_run_is_done_again(finished, tmp_path):
    moved = shutil.copytree(finished.folder, tmp_path / finished.folder.name)
    with pytest.raises(InputError, match="has finished"):
        train(compose("train", [f"resume={moved.name}", f"runs={tmp_path}"]))
    (moved / "result.json").unlink()
    again = train(compose("train", [f"resume={moved.name}", f"runs={tmp_path}"]))
    assert again.result["metrics"] == finished.result["metrics"]


@pytest.mark.parametrize(
    ("more", "key"),
    [
        *(("nb_svm task.param_grid.beta=[2]", "beta"), ("nb_svm task.param_grid.C=[]", "task.param_grid")),
        *(("nb_svm task.param_grid.C=3", "task.param_grid"), ("nb_svm +task.C=3", "task.C")),
        *(("tfidf_words task.ngrams=[1,x]", "task.ngrams"), ("tfidf_words +task.param_grid.D=[1]", "task.D")),
        ("majority task._target_=collections.Counter", "log_probabilities"),
    ],
)
def test_what_does_not_fit_is_found_before_a_run_folder_exists(messages, tmp_path, more, key):
    with pytest.raises(InputError, match=key):
        train(compose("train", [*overrides(messages, tmp_path / "runs"), *f"task={more}".split()]))
    assert not (tmp_path / "runs").exists()


def test_several_questions_at_once_are_for_a_gpt_alone():
    with pytest.raises(InputError, match="name one dataset"):
        Mixture(sources={"one": Bundled(), "other": Bundled()}).labelled_texts()


def test_it_stands_in_a_study_beside_gpts(messages, tmp_path):
    content = tiny.content(messages, {"experiment": ["last_block", "majority", "tfidf_chars"], "seed": [1, 2]})
    path = tiny.write(tmp_path, content)
    trials = tiny.keyed(study.read(path))
    assert len(trials) == 6
    for trial in trials.values():
        if trial.values["experiment"] != "last_block":
            cfg = study.config(trial)
            cfg.runs = str(tmp_path / "runs")
            train(cfg)
    assert set(study.finished(tmp_path / "runs")) <= set(trials)
    found = {row.label: row for row in rows.read(study.read(path), tmp_path / "runs")}
    assert {label: len(row.runs) for label, row in found.items()} == {"last_block": 0, "majority": 2, "tfidf_chars": 2}
    assert found["majority"].accuracy == 0.5 < found["tfidf_chars"].accuracy


THEIRS = '''
import random
import numpy as np


class Letter:
    """How often texts with a letter of its choice are of each class."""

    def __init__(self, letter: str, noise: float = 0.0) -> None:
        self.letter, self.noise = letter, noise

    def fit(self, texts, labels):
        self.noise *= random.random()
        has = [self.letter in text for text in texts]
        counts = np.ones((2, max(labels) + 1))
        np.add.at(counts, (np.array(has, int), labels), 1)
        self.table = np.log(counts / counts.sum(1, keepdims=True))

    def log_probabilities(self, texts):
        return self.table[[int(self.letter in text) for text in texts]]
'''


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "their_model.py").write_text(THEIRS, encoding="utf-8")
    (tmp_path / "conf" / "task").mkdir(parents=True)
    task = "_target_: their_model.Letter\nnoise: 0.5\nparam_grid: {letter: [q, z, w]}\n"
    (tmp_path / "conf" / "task" / "letter.yaml").write_text(task, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    sys.modules.pop("their_model", None)


def test_somebody_else_s_model_runs_like_ours(theirs, messages, tmp_path):
    given = overrides(messages, tmp_path / "runs", theirs, "task=letter")
    run = train(compose("train", given))
    assert isinstance(run.model, TextClassifier)
    assert run.result["task"] == {"name": "Letter", "constants": {"letter": "w"}}  # win, now
    assert evaluate(str(run.folder))[0] == run.result["metrics"]
    assert main(compose("train", [*given, "optimized_metric=test/loss"])) == run.result["metrics"]["test"]["loss"]
