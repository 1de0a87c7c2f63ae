"""From run folders to tables, figures, page and dashboards: statistics against references, and what a reader gets."""

import csv
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from omegaconf import OmegaConf
from scipy import optimize, special, stats
from sklearn.metrics import confusion_matrix

from src import report as entry
from src.errors import InputError
from src.evaluation import differences, intervals
from src.evaluation.metrics import Predictions
from src.reporting import chart as chart_data
from src.reporting import charts, comparisons, figures, finished, probability_charts, published, render, rows, table
from src.reporting import html as page
from src.runs import identity, run_dir
from src.sweeps import study
from tests.shared import refused

pytestmark = pytest.mark.filterwarnings(
    "ignore:Pydantic V1 style:DeprecationWarning",  # wandb-workspaces' own
    "ignore:.*found in sys.modules after import:RuntimeWarning",
)

ROOT = Path(__file__).parents[2]
STRANGE = r"50% & a_b #1 $x {y} ~z ^w \v |u <t> *s [r] é 字"


# ---- run folders as src.train writes them


def write_study(folder: Path, name: str, parameters: dict[str, list[Any]], question: str = "Does it?") -> Path:
    path = folder / "experiments" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {key: {"values": values} for key, values in parameters.items()}
    path.write_text(json.dumps({"method": "grid", "description": question, "parameters": given}), encoding="utf-8")
    return path


def write_run(
    folder: Path,
    point: study.Trial,
    right: Sequence[bool],
    *,
    labels: Sequence[str] = ("ham", "spam"),
    messages: str = "a",
    first: int = 0,
    trained: bool = True,
    confidence: float = 0.9,
    **extra: Any,
) -> Path:
    """The folder of a finished run that got `right` of its test messages, numbered from `first` on; `extra` goes over
    result.json by section. A run that is not `trained` is of a model without a GPT."""
    cfg, k = study.config(point), len(labels)
    truth = [i % k for i in range(len(right))]
    said = [y if ok else (y + 1) % k for y, ok in zip(truth, right, strict=True)]
    rest = (1 - confidence) / (k - 1)
    accuracy = sum(right) / len(right)
    metrics = {"accuracy": accuracy, "f1": accuracy, "ece": 0.125, "loss": 0.5}
    result = {
        **identity.record(cfg),
        "name": cfg.name,
        "seed": cfg.seed,
        "data": {"labels": list(labels), "sizes": {"train": round(1000 * cfg.data.fraction), "test": len(right)}},
        "task": {"trainable_parameters": 450_000} if trained else {},
        "metrics": {"train": metrics, "validation": metrics | {"accuracy": 0.75}, "test": metrics},
        "cost": {"train_seconds": 40.0, "train_flops": 3e12, "peak_memory_bytes": 2_000_000_000},
        "environment": {"device": "cpu, 2 threads", "torch": "2.13.0"},
    }
    for section, values in extra.items():
        result[section] = {**result.get(section, {}), **values} if isinstance(values, dict) else values
    run = folder / "runs" / f"{cfg.name}-{result['config_hash'][:12]}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    with (run / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "text_sha256", "label", "predicted", *(f"p_{label}" for label in labels)])
        for i, (y, z) in enumerate(zip(truth, said, strict=True)):
            sha = hashlib.sha256(f"{messages} {first + i}".encode()).hexdigest()
            writer.writerow([i, sha, labels[y], labels[z], *(confidence if j == z else rest for j in range(k))])
    (run / "result.json").write_text(json.dumps({"id": run.name} | result), encoding="utf-8")
    return run


def answers(n: int, right: int, seed: int = 0) -> list[bool]:
    """`right` of n, anywhere."""
    found = [i < right for i in range(n)]
    random.Random(seed).shuffle(found)
    return found


DEPTHS = {"last_layer": 60, "last_block": 80, "all": 82, "lora": 81}  # of 100 messages


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four strategies, three seeds each: all has two of three, lora none."""
    folder = tmp_path_factory.mktemp("home")
    path = write_study(folder, "depth", {"task.trainable": [*DEPTHS], "seed": [1, 2, 3]}, f"How deep? {STRANGE}")
    for point in study.trials(study.read(path)):
        strategy, seed = point.values["task.trainable"], point.values["seed"]
        if strategy == "lora" or (strategy, seed) == ("all", 3):
            continue
        # easy messages first: what a shallow strategy gets right, a deeper one gets right too
        right = [i < DEPTHS[strategy] + seed - 2 for i in range(100)]
        curve = [
            {"epoch": e, "train_loss": 1 / e, "validation_loss": seed / e}
            | {"train_accuracy": 1 - 0.5 / e, "validation_accuracy": 0.5 + 0.1 * seed}
            for e in (1, 2)
        ]
        write_run(folder, point, right, curve=curve)
    return folder


@pytest.fixture(scope="module")
def found(home: Path) -> list[rows.Row]:
    return rows.read(study.read(home / "experiments" / "depth.yaml"), home / "runs")


def finished_rows(folder: Path, parameters: dict[str, list[Any]], run: Callable[..., dict[str, Any] | None]) -> list:
    """Rows of a study whose trials finished as `run` of their values says, which None leaves out."""
    path = write_study(folder, "study", parameters)
    for point in study.trials(study.read(path)):
        values = {key: only for key, (only, *_) in parameters.items()} | point.values  # which has those that vary
        if outcome := run(*(values[key] for key in parameters)):
            write_run(folder, point, **outcome)
    return rows.read(study.read(path), folder / "runs")


def one_seed(folder: Path, right: dict[str, Sequence[bool]], **more: Any) -> list[rows.Row]:
    """Rows of one run each, by pooling."""
    return finished_rows(folder, {"task.pooling": [*right]}, lambda pooling: {"right": right[pooling], **more})


def made(found: list[rows.Row], wanted: str | None = None) -> table.Table:
    return table.table("depth", "How deep?", found, comparisons.references(found, wanted))


def texts(made: table.Table, heading: str) -> list[str]:
    return next(column.texts for column in made.columns if column.heading == heading)


# ---- statistics


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 1), (285, 300), (150, 300), (299, 300), (40, 1115)])
def test_wilsons_interval_is_scipys(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_holms_correction_of_a_worked_example():
    # smallest first: 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04, which may not fall below 0.06
    assert differences.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert differences.holm([0.6, 0.7]) == [1.0, 1.0]
    assert differences.holm([]) == []


def shared_errors(
    rng: np.random.Generator, shape: tuple[int, int, int], accuracy: float, messages: float, seeds: float
) -> np.ndarray:
    """Answers (studies, S, N) of this accuracy: in log-odds, messages differ by a normal spread, and so do seeds."""
    studies, s, n = shape
    spread = sqrt(messages**2 + seeds**2) * stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    centre = optimize.brentq(lambda x: special.expit(x + spread).mean() - accuracy, -300, 300)
    hard, luck = rng.standard_normal((studies, 1, n)), rng.standard_normal((studies, s, 1))
    return rng.random(shape) < special.expit(centre + messages * hard + seeds * luck)


def covered(shape: tuple[int, int, int], accuracy: float, messages: float, seeds: float) -> float:
    right = shared_errors(np.random.default_rng(1), shape, accuracy, messages, seeds)
    low, high = intervals.crossed_interval(right)
    return float(((low <= accuracy) & (accuracy <= high)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [0.0, 0.4])
@pytest.mark.parametrize("messages", [1, 2, 4, 10, 50])
@pytest.mark.parametrize("shape", [(1000, 3, 250), (1000, 10, 250), (1000, 3, 1000)])
def test_the_interval_over_messages_and_seeds_covers_the_accuracy(shape, messages, seeds):
    for accuracy in (0.8, 0.9, 0.95, 0.98, 0.99, 0.995):
        assert covered(shape, accuracy, messages, seeds) > 0.92, accuracy  # 0.93, less the noise of a thousand


def test_the_interval_covers_where_resampled_messages_did_not():
    for accuracy, messages, seeds in ((0.99, 4, 0.0), (0.995, 50, 0.0), (0.8, 1, 0.4)):
        assert covered((400, 3, 300), accuracy, messages, seeds) >= 0.93


def test_one_wrong_answer_of_one_seed_does_not_make_the_interval_that_of_as_many_messages():
    right = np.ones((3, 300), dtype=bool)
    right[0, 0] = False
    low, high = intervals.accuracy_interval(right)
    assert low < intervals.wilson(899, 900).low  # as if seeds x messages were messages
    assert low == pytest.approx(0.9857, abs=0.002)
    assert intervals.wilson(899, 900).high < high < 1


def test_seeds_that_agree_leave_the_interval_that_err_at_random_narrow_it_and_that_differ_widen_it():
    alone = intervals.wilson(270, 300)
    agree, apart, differ = (
        np.array([answers(300, n, seed) for n, seed in seeds])
        for seeds in ([(270, 0)] * 3, [(270, seed) for seed in range(9)], [(240, 0), (270, 0), (298, 0)])
    )
    assert intervals.accuracy_interval(agree) == pytest.approx(alone, abs=1e-3)
    assert np.diff(intervals.accuracy_interval(apart)) < 0.6 * np.diff(alone)
    assert np.diff(intervals.accuracy_interval(differ)) > 2 * np.diff(alone)


@pytest.mark.parametrize(("right", "expected"), [(300, (300, 300)), (0, (0, 300))])
def test_an_interval_of_answers_without_spread_is_wilsons(right, expected):
    assert intervals.accuracy_interval(np.array([answers(300, right)] * 3)) == intervals.wilson(*expected)


def discordant(a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two runs, of which only the first is right on `a` messages and only the second on `b`."""
    first, second = np.ones((2, 1, a + b + 5), dtype=bool)
    first[0, a : a + b], second[0, :a] = False, False
    return first, second


def test_one_seed_each_is_compared_by_mcnemars_exact_test():
    for a in range(12):
        for b in range(12):
            expected = stats.binomtest(a, a + b).pvalue if a + b else 1.0
            assert differences.paired_p(*discordant(a, b)) == pytest.approx(expected, rel=1e-9)
    assert differences.paired_p(*discordant(700, 900)) == pytest.approx(stats.binomtest(700, 1600).pvalue, rel=1e-9)


def test_seeds_that_agree_say_no_more_than_one():
    a, b = discordant(4, 0)
    for first, second in ((1, 1), (3, 3), (3, 2)):
        assert differences.paired_p(np.repeat(a, first, 0), np.repeat(b, second, 0)) == 0.125
        assert differences.paired_p(np.repeat(a, first, 0), np.repeat(a, second, 0)) == 1.0


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (3, 2), (1, 3)])
def test_several_seeds_are_compared_by_scipys_exact_permutation_test(seeds):
    rng = np.random.default_rng(1)
    hard = rng.random(12)
    a, b = (hard + 0.5 * rng.random((n, 12)) < limit for n, limit in zip(seeds, (0.9, 0.6), strict=True))
    found = stats.permutation_test(
        (a.mean(0) - b.mean(0),), np.sum, permutation_type="samples", n_resamples=2**12, vectorized=True, axis=0
    )
    assert found.pvalue < 1
    assert differences.paired_p(a, b) == pytest.approx(found.pvalue, rel=1e-9)


def test_several_seeds_are_compared_as_the_paired_z_test_does_with_many_messages():
    rng = np.random.default_rng(3)
    hard = rng.random(2000)
    a, b = (hard + 0.3 * rng.random((3, 2000)) < limit for limit in (0.955, 0.94))
    difference = a.mean(0) - b.mean(0)
    z = difference.mean() / (difference.std() / sqrt(2000))
    expected = 2 * stats.norm.sf(abs(z))
    assert 0.001 < expected < 0.2
    assert differences.paired_p(a, b) == pytest.approx(expected, rel=0.15)  # which knows nothing of whole messages
    assert differences.paired_p(b, a) == pytest.approx(differences.paired_p(a, b), rel=1e-9)


# ---- the published table


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_published_figures_are_those_of_the_book(real_data):
    book, ours = lines_of(real_data / "book_table.csv"), lines_of(published.TABLE)
    names = {"train_acc": "train_accuracy", "validation_acc": "validation_accuracy", "test_acc": "test_accuracy"}
    for source, name in (names | {"weights": "weights", "model": "gpt"}).items():
        assert [line[source].removeprefix("gpt2-") for line in book] == [line[name] for line in ours]


def test_each_of_nineteen_published_rows_has_an_experiment_that_names_it():
    known = published.published_rows()
    assert [row.row for row in known.values()] == list(range(1, 20))
    for name, row in known.items():
        assert f"# Row {row.row}." in (ROOT / f"conf/experiment/{name}.yaml").read_text(encoding="utf-8")
    assert [round(100 * end, 1) for end in known["last_block"].interval] == [91.9, 96.9]  # Wilson's on 300


def test_of_the_published_validation_figures_only_that_of_row_8_is_impossible():
    lines = lines_of(published.TABLE)
    for name, n, impossible in (("validation_accuracy", 149, ["8"]), ("test_accuracy", 300, [])):
        shares = {f"{100 * k / n:.2f}" for k in range(n + 1)}
        assert [line["row"] for line in lines if line[name] not in shares] == impossible
    assert [line["row"] for line in lines if line["note"]] == ["8"]


ROW_1 = "+experiment=last_block gpt=small data=sms_spam"


@pytest.mark.slow
def test_a_config_repeats_a_published_row_only_as_a_whole():
    repeats = {
        ROW_1: 1,
        f"{ROW_1} data.path=x trainer.precision=bf16-mixed seed=5": 1,
        "+experiment=xl_lora data=sms_spam": 12,
        "+experiment=random_weights gpt=small data=sms_spam": 10,
    }
    changes = "data.split=deduplicated data.fraction=0.5 gpt.weights=random task.trainable=all trainer.max_epochs=1"
    others = ["+experiment=last_block data=sms_spam", "+experiment=last_block gpt=medium data=sms_spam"]
    others += ["+experiment=last_block gpt=small", "task.trainable=last_block gpt=small data=sms_spam"]
    others += [f"{ROW_1} {change}" for change in changes.split()]
    for overrides, row in (repeats | dict.fromkeys(others)).items():
        cfg = study.config(study.Trial({}, tuple(overrides.split())))
        repeated = published.repeated_by(cfg, published.published_rows())
        assert (repeated and repeated.row) == row, overrides


def test_ours_is_held_against_the_published_interval(tmp_path):
    right = {"last_block": 282, "first_token": 250}  # 94.00% against 91.9 to 96.9; 83.33% against 69.8 to 79.6
    parameters = {"+experiment": [*right], "gpt": ["small"], "data": ["sms_spam"]}
    shown = made(finished_rows(tmp_path, parameters, lambda name, *_: {"right": answers(300, right[name])}))
    assert texts(shown, "experiment") == ["last_block", "first_token"]
    assert texts(shown, "row") == ["1", "2"]
    assert texts(shown, "published (%)") == ["95.00", "75.00"]
    assert texts(shown, "its interval") == ["91.9 to 96.9", "69.8 to 79.6"]
    assert texts(shown, "test (%)") == ["94.00", "83.33"]
    assert texts(shown, "ours inside") == ["yes", "no"]


# ---- rows


def test_runs_belong_to_the_rows_whose_config_they_had(found, home):
    runs = [("last_layer", 3), ("last_block", 3), ("all", 2), ("lora", 0)]
    assert [(row.label, len(row.runs), row.wanted) for row in found] == [(*run, 3) for run in runs]
    assert [run.result["seed"] for run in found[0].runs] == [1, 2, 3]
    foreign = rows.read(study.read(write_study(home, "other", {"seed": [7]})), home / "runs")
    assert [(row.label, len(row.runs)) for row in foreign] == [("other", 0)]


def test_a_row_is_named_by_what_varies():
    values = [
        {"+experiment": "lora", "data.fraction": 0.5, "gpt.causal": True, "gpt.weights": "assets/mini/model"},
        {"+experiment": "lora", "data.fraction": 1, "gpt.causal": None, "gpt.weights": "assets/tiny/other"},
    ]
    name = rows.namer(values, "study")
    assert name(values[0]) == "lora, fraction=0.5, causal=true, model"
    assert name(values[1]) == "lora, fraction=1, causal=null, other"
    assert rows.namer([{}], "study")({}) == "study"


def test_short_names_stay_distinct():
    short = {"gpt.name": "gpt.name", "data.name": "data.name", "task.trainable": "trainable"}
    assert rows.short_names({*short}) == short
    for values, brief in (
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["a/x", "b/y/"], ["x", "y"]),
        ([0.00123456, 0.5], ["0.00123", "0.5"]),
        ([0.123456, 0.123457], ["0.123456", "0.123457"]),
    ):
        assert [*rows.short_values(values).values()] == brief


def test_runs_of_a_row_on_different_messages_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"row study of study: runs train-\w+ and train-\w+ were tested on different"):
        finished_rows(tmp_path, {"seed": [1, 2]}, lambda seed: {"right": answers(20, 15), "messages": str(seed)})


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "predictions.csv"])
@pytest.mark.parametrize("content", [b"{", b"{}", b"", b"cut", b"\xff\xfe\x00", None])
def test_a_damaged_run_is_named_and_left_out(tmp_path, capsys, name, content):
    path = write_study(tmp_path, "seeds", {"seed": [1, 2]})
    broken, whole = (write_run(tmp_path, point, answers(20, 15)) for point in study.trials(study.read(path)))
    if content is None and name != "result.json":
        (broken / name).unlink()
    else:
        text = (broken / name).read_bytes()
        (broken / name).write_bytes(text[: len(text) // 2] if content in (b"cut", None) else content)
    (row,) = rows.read(study.read(path), tmp_path / "runs")
    assert [run.result["id"] for run in row.runs] == [whole.name]
    assert str(broken / name) in capsys.readouterr().err


def test_labels_that_a_spreadsheet_would_run_are_escaped_and_read_back(tmp_path):
    labels, certain = ["=1+1", "-1", "@a", "'x"], torch.eye(4).mul(9).log_softmax(-1)
    predictions = Predictions(certain, torch.arange(4))
    run_dir.write(tmp_path, {"data": {"labels": labels}}, list("abcd"), predictions)
    assert [line["label"] for line in lines_of(tmp_path / "predictions.csv")] == ["'=1+1", "-1", "'@a", "''x"]
    run = rows.Run({}, finished.predictions(tmp_path / "predictions.csv", 4))
    assert [line["label"] for line in run.predictions] == labels
    assert run.right == [True] * 4
    assert run.confidence == pytest.approx([certain.exp().max().item()] * 4, rel=1e-4)


# ---- the table


def test_the_table_says_mean_deviation_and_interval_over_seeds_and_what_is_missing(found):
    shown = made(found)
    assert texts(shown, "runs") == ["3 of 3", "3 of 3", "2 of 3", "0 of 3"]
    assert texts(shown, "test (%)") == ["60.00 ± 1.00", "80.00 ± 1.00", "81.50 ± 0.71", "-"]
    assert found[0].deviation("metrics", "test", "accuracy") == pytest.approx(stdev([0.59, 0.6, 0.61]))
    assert texts(shown, "validation (%)")[0] == "75.00 ± 0.00"
    assert found[0].interval == intervals.accuracy_interval(found[0].right)
    alone = intervals.wilson(60, 100)  # as wide, since the seeds err on the same messages
    assert found[0].interval == pytest.approx(alone, abs=0.005)
    cells = [column.texts[3] for column in shown.columns if column.heading]
    assert (cells[:2], {*cells[2:]}) == (["lora", "0 of 3"], {"-"})
    assert shown.notes[-1] == "8 of 12 runs have finished; incomplete: all; lora."


def test_rows_are_compared_with_the_first_and_corrected_together(found):
    shown = comparisons.compared(found, comparisons.references(found))
    p = [differences.paired_p(found[i].right, found[0].right) for i in (1, 2)]
    assert [one and one.reference for one in shown] == [None, "last_layer", "last_layer", None]
    assert [one.difference for one in shown if one] == pytest.approx([0.2, 0.215])
    assert [one.corrected for one in shown if one] == pytest.approx(differences.holm(p))
    assert texts(made(found), "difference") == ["reference", "+20.00 ± 0.00", "+21.50 ± 0.00", "-"]
    assert texts(made(found), "p (messages)") == ["-", "<0.001", "<0.001", "-"]


def test_a_difference_has_its_deviation_over_the_seeds_that_both_rows_have(tmp_path):
    right = {("last", 1): 10, ("last", 2): 14, ("last", 3): 11, ("first", 1): 16, ("first", 3): 8}
    found = finished_rows(
        tmp_path,
        {"task.pooling": ["last", "first"], "seed": [1, 2, 3]},
        lambda *values: values in right and {"right": answers(20, right[values])},
    )
    (one,) = (one for one in comparisons.compared(found, comparisons.references(found)) if one)
    assert one.difference == pytest.approx(24 / 40 - 35 / 60)  # of all
    assert one.deviation == pytest.approx(stdev([6 / 20, -3 / 20]))  # of seeds 1 and 3
    assert texts(made(found), "difference")[1].endswith("+1.67 ± 31.82")


def test_rows_that_the_named_reference_does_not_cover_are_compared_with_none(tmp_path):
    found = finished_rows(
        tmp_path,
        {"data.padding": ["longest", "batch"], "task.pooling": ["last", "first"]},
        lambda *values: values != ("batch", "first") and {"right": answers(20, 15), "messages": values[0]},
    )
    assert comparisons.references(found, "pooling=first") == [found[1], found[1], None, None]


def test_a_difference_that_three_seeds_show_is_seen_and_not_decided(found):
    shown = made(found, "trainable=last_block")
    against = comparisons.compared(found, comparisons.references(found, "last_block"))
    assert texts(shown, "verdict") == ["seen", "-", "not seen", "-"]
    assert texts(shown, "difference") == ["-20.00 ± 0.00", "reference", "+1.50 ± 0.00", "-"]
    one = against[2]
    assert texts(shown, "p (messages)")[2] == f"{one.corrected:.3f}"
    assert texts(shown, "p (seeds too)")[2] == f"{one.crossed_corrected:.3f}"
    low, high = one.crossed.interval
    assert texts(shown, "difference 95%")[2] == f"{100 * low:+.1f} to {100 * high:+.1f}"
    assert shown.caption == "differences from the reference: 1 seen, 1 not seen"
    assert all(one.note.endswith(shown.caption) for one in charts.charts(found, shown.caption)[:2])


@pytest.mark.parametrize(
    ("seeds", "corrected", "crossed", "verdict"),
    [
        *((5, 0.01, 0.01, "decided"), (4, 0.01, 0.01, "seen"), (10, 0.01, 0.06, "seen")),
        *((1, 0.01, None, "seen"), (10, 0.06, 0.01, "not seen")),
    ],
)
def test_a_difference_is_decided_where_both_tests_agree_on_five_seeds(seeds, corrected, crossed, verdict):
    one = comparisons.Comparison("last", 0.02, 0.01, 0.001, corrected, seeds, 300, None, crossed)
    assert one.verdict == verdict


def test_near_twins_count_as_one_message_where_runs_recorded_them(tmp_path):
    path = write_study(tmp_path, "twins", {"task.pooling": ["last", "first"], "seed": [1, 2]})
    texts = [f"{letter * 9} {' '.join(letter * 9)} {word}" for letter in "abcdef" for word in "wxyz"]
    for point in study.trials(study.read(path)):
        right = np.repeat(answers(6, 5 if point.values["task.pooling"] == "last" else 2), 4)
        run = write_run(tmp_path, point, right.tolist())
        said = torch.tensor(np.where(right, 0, 1))
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        logits = torch.nn.functional.one_hot(said, 2).float().log_softmax(-1)
        run_dir.write(run, result, texts, Predictions(logits, torch.zeros(24, dtype=torch.long)))
    found = rows.read(study.read(path), tmp_path / "runs")
    last, first = found
    assert last.groups.tolist() == np.repeat(np.arange(6), 4).tolist()
    _, one = comparisons.compared(found, [last, last])
    assert one.p == differences.paired_p(first.right[:, ::4], last.right[:, ::4])
    assert one.p > differences.paired_p(first.right, last.right)
    assert last.interval.low < intervals.accuracy_interval(last.right).low


def test_the_power_of_a_study_stands_under_its_table(found):
    shown = table.table("depth", "How deep?", found, comparisons.references(found), wanted=30)
    (note,) = (note for note in shown.notes if note.startswith("Power:"))
    points = r"with 3 seeds \d+\.\d, with 5 seeds \d+\.\d, with 10 seeds \d+\.\d, for 30 points 5 seeds"
    assert re.search(f"on 100 messages {points}", note)


def test_one_run_a_row_gives_wilsons_interval_and_mcnemars_test(tmp_path):
    right = {"last": answers(200, 180, 1), "first": answers(200, 150, 2)}
    found = one_seed(tmp_path, right)
    low, high = stats.binomtest(180, 200).proportion_ci(0.95, method="wilson")
    last, first = (np.array(right[pooling]) for pooling in right)
    gained, lost = (first & ~last).sum(), (last & ~first).sum()
    shown = made(found)
    assert texts(shown, "test (%)") == ["90.00", "75.00"]
    assert texts(shown, "95% interval")[0] == f"{100 * low:.1f} to {100 * high:.1f}"
    values = next(column.values for column in shown.columns if column.name == "p")
    assert values == [None, pytest.approx(stats.binomtest(gained, gained + lost).pvalue)]


def test_rows_on_different_data_are_compared_within_their_data(tmp_path):
    right = {"last": answers(60, 50), "first": answers(60, 30, 1)}
    found = finished_rows(
        tmp_path,
        {"data.padding": ["longest", "batch"], "task.pooling": [*right]},
        lambda padding, pooling: {"right": right[pooling], "messages": padding},
    )
    shown = made(found)
    assert texts(shown, "difference") == ["reference", "-33.33", "reference", "-33.33"]
    assert shown.notes[-2].endswith("that was tested on the same messages, with the same padding.")
    assert texts(made(found, "pooling=first"), "difference") == ["+33.33", "reference", "+33.33", "reference"]
    one = made(found, "task.pooling=first,padding=batch")  # with which the other set cannot be compared
    assert texts(one, "difference") == ["-", "-", "+33.33", "reference"]


def test_ways_are_compared_on_the_same_part_of_the_messages_with_a_row_for_each_of_the_other_settings(tmp_path):
    settings = {"data.fraction": [0.1, 1.0], "task.pooling": ["last", "first"], "task.trainable": ["all", "lora"]}
    right = (answers(100, 50 + 5 * i) for i in range(8))
    found = finished_rows(tmp_path, settings, lambda *_: {"right": next(right)})

    def numbers(wanted: str | None = None) -> list[int]:
        return [found.index(row) for row in comparisons.references(found, wanted)]

    assert numbers() == [0] * 4 + [4] * 4
    shown = comparisons.compared(found, comparisons.references(found))
    assert [one and round(100 * one.difference) for one in shown] == [None, 5, 10, 15, None, 5, 10, 15]
    assert made(found).notes[-2].endswith("that was tested on the same messages, with the same fraction.")
    assert numbers("pooling=first") == [2, 3, 2, 3, 6, 7, 6, 7]
    assert numbers("trainable=all,fraction=1.0") == [4, 4, 6, 6] * 2
    assert numbers("fraction=1.0, first, lora") == [7] * 8
    assert made(found, "pooling=first").notes[-2].endswith("with the same fraction and trainable.")


def test_one_model_of_several_tasks_is_compared_with_that_of_one_task_on_its_messages(tmp_path):
    ham, mixed = ["ham", "spam"], answers(60, 42, 3)  # the first 40 messages of the mixture are those of the other
    outcomes = {
        "specialist_spam": {"right": answers(40, 30), "labels": ham},
        "generalist": {"right": mixed, "labels": [f"spam/{label}" for label in ham]},
    }
    parameters = {"experiment": ["generalist", "specialist_spam"], "seed": [1, 2]}
    found = finished_rows(tmp_path, parameters, lambda experiment, _: outcomes[experiment])
    general, special = found
    assert general.covers(special)
    assert not special.covers(general)
    assert comparisons.references(found) == [general, general]
    _, shown = comparisons.compared(found, [general, general])
    assert shown.difference == pytest.approx(30 / 40 - sum(mixed[:40]) / 40)
    assert shown.p == differences.paired_p(special.right, np.array([mixed[:40]] * 2))
    assert comparisons.references(found[::-1]) == [special, general]


def test_messages_that_stand_twice_are_told_apart(tmp_path):
    (row,) = one_seed(tmp_path, {"last": [True, False, True]})
    run = row.runs[0]
    twice = [*run.predictions, run.predictions[0] | {"predicted": "spam"}]
    again = rows.Row("again", {}, 1, [rows.Run(run.result, twice)])
    assert len(again.places) == 4
    assert again.correct_on(again).tolist() == [[True, False, True, False]]


def test_a_reference_that_is_no_row_or_has_not_run_is_refused(found):
    with pytest.raises(InputError, match=r"reference=trainable=none is no row: .* last_layer, last_block, all, lora"):
        comparisons.references(found, "trainable=none")
    with pytest.raises(InputError, match="reference=lora: that row has no finished run"):
        comparisons.references(found, "lora")


def test_the_costs_are_means_over_seeds_and_the_most_memory(tmp_path):
    def outcome(seed: int) -> dict[str, Any]:
        cost = {"train_seconds": 100.0 * seed, "train_flops": 2e12 * seed, "peak_memory_bytes": seed * 10**9}
        return {"right": answers(20, 15), "cost": cost, "task": {"trainable_parameters": 386}}

    shown = made(finished_rows(tmp_path, {"seed": [1, 3]}, outcome))
    assert [texts(shown, it) for it in ("trained", "seconds", "TFLOP", "GB")] == [["386"], ["200"], ["4.0"], ["3.0"]]


def test_epochs_stand_in_a_table_whose_rows_differ_in_them(found, tmp_path):
    def outcome(pooling: str, seed: int) -> dict[str, Any]:
        epochs = {"last": 4 + seed, "mean": 9}[pooling]
        return {"right": answers(20, 15), "curve": [{"epoch": i} for i in range(epochs)]}

    differing = finished_rows(tmp_path, {"task.pooling": ["last", "mean"], "seed": [1, 2]}, outcome)
    assert texts(made(differing), "epochs run") == ["5.5", "9.0"]
    assert "epochs run" not in [column.heading for column in made(found).columns]  # all had as many


def test_what_only_some_runs_measure_has_a_column_when_one_has_it(found, tmp_path):
    assert "valid (%)" not in [column.heading for column in made(found).columns]
    metrics = {"accuracy": 0.75, "ece": 0.1, "generated_accuracy": 0.7, "valid_rate": 0.985}
    spam = {"accuracy": 0.9, "generated_accuracy": 0.8, "valid_rate": 1.0}
    news = {"accuracy": 0.6, "generated_accuracy": 0.0, "valid_rate": 0.2}
    written = {
        "metrics": {part: metrics for part in ("validation", "test")},
        "tasks": {"test": {"spam": spam, "news": news}},
        "data": {"test_sizes": {"spam": 5, "news": 15}},
        "language": {"before": {"perplexity": 40.0}, "after": {"perplexity": 55.5}},
    }
    more = {"last": {}, "first": written}
    shown = made(finished_rows(tmp_path, {"task.pooling": [*more]}, lambda at: {"right": answers(20, 15)} | more[at]))
    # over all 20 messages, where the metrics of the split are those of the tasks that were taught
    assert texts(shown, "valid (%)") == ["-", "40.00"]
    assert texts(shown, "written (%)") == ["-", "20.00"]
    assert texts(shown, "news (%)") == ["-", "60.00"]
    assert (texts(shown, "perplexity before")[1], texts(shown, "after")[1]) == ("40.0", "55.5")


# ---- Markdown, LaTeX, CSV


@pytest.fixture
def strange(tmp_path: Path) -> table.Table:
    """A table whose question, row names and notes hold every character that means something to somebody."""
    values = [{"data.path": STRANGE, "gpt.causal": flag} for flag in (True, False)]
    found = [rows.Row(f"{STRANGE} {i}", value, 1) for i, value in enumerate(values)]
    found[0].runs = one_seed(tmp_path, {"last": answers(20, 15)})[0].runs
    return table.table("strange", STRANGE, found, comparisons.references(found))


def test_markdown_has_the_same_cells_in_every_line(strange):
    text = render.markdown(strange)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    columns = [column for column in strange.columns if column.heading]
    assert {len(line) for line in cells} == {len(columns)}
    assert [cell.strip() for cell in cells[0]] == [column.heading for column in columns]
    escaped = STRANGE.replace("\\", r"\\").replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")
    assert cells[2][0].strip() == escaped
    assert set(cells[1][0].strip()) == {"-"}
    assert cells[1][2].strip() == "---:"


def test_csv_gives_the_numbers_back(found):
    lines = list(csv.DictReader(render.as_csv(made(found)).splitlines()))
    assert [line["task.trainable"] for line in lines] == ["last_layer", "last_block", "all", "lora"]
    assert [float(line["test_accuracy"]) for line in lines[:3]] == [row.accuracy for row in found[:3]]
    assert (float(lines[1]["test_low"]), float(lines[1]["test_high"])) == pytest.approx(found[1].interval, rel=1e-11)
    assert (lines[1]["runs"], lines[1]["wanted"], lines[1]["verdict"]) == ("3", "3", "seen")
    assert {lines[3][name] for name in ("test_accuracy", "difference", "p_holm", "train_flops")} == {""}


def test_latex_escapes_what_it_would_obey(strange):
    expected = (
        r"50\% \& a\_b \#1 \$x \{y\} \textasciitilde{}z \textasciicircum{}w \textbackslash{}v \textbar{}u "
        r"$<$t$>$ {*}s {[}r] é {[}U+5B57]"
    )
    assert render.tex(STRANGE) == expected
    assert rf"\caption{{{expected}}}" in render.latex(strange)
    assert render.tex("-3.25 ± 1 ≈ last-block") == r"$-$3.25 $\pm$ 1 $\approx$ last-block"


def test_latex_is_a_booktabs_table_with_balanced_braces_and_full_rows(strange):
    text = render.latex(strange)
    bare = re.sub(r"\\[{}]", "", re.sub(r"(?m)(?<!\\)%.*", "", text))
    depth = np.cumsum([{"{": 1, "}": -1}.get(sign, 0) for sign in bare])
    assert depth[-1] == 0
    assert depth.min() == 0
    assert re.findall(r"\\(?:top|mid|bottom)rule", text) == [r"\toprule", r"\midrule", r"\bottomrule"]
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1] == ["table", "tabular"]
    columns = len(re.search(r"\\begin{tabular}{([lr]+)}", text)[1])
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(body) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {columns - 1}
    headings = [column.heading for column in strange.columns if column.heading]
    left_out = {"runs", "validation (%)", "its loss", "GB"}
    assert body[0] == " & ".join(render.tex(one) for one in headings if one not in left_out) + r" \\"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(strange, tmp_path):
    document = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n%s\\end{document}\n"
    (tmp_path / "t.tex").write_text(document % render.latex(strange), encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


# ---- charts


def chart(found: list[rows.Row], kind: str) -> chart_data.Chart:
    return next(one for one in charts.charts(found) if one.kind == kind)


def test_depth_puts_everything_and_lora_beyond_the_blocks(found):
    drawn = chart(found, "depth")
    assert drawn.ticks == [(0.0, "head"), (1.0, "1"), (2.0, "all")]
    (line,) = drawn.panels[0].series
    assert (line.x, line.joined) == ([0.0, 1.0, 2.0], 2)
    assert line.y == pytest.approx([60, 80, 81.5])
    assert line.low == pytest.approx([100 * row.interval.low for row in found[:3]])
    order = charts.unfrozen({"last_layer", "last_block", "4_blocks", "lora", "all"})
    assert order == {"last_layer": 0, "last_block": 1, "4_blocks": 4, "all": 5, "lora": 6}


def test_a_study_gets_the_charts_that_its_settings_give(found, tmp_path):
    always = ["cost", "curves-loss", "curves-accuracy", "reliability", "confusion"]
    assert [one.kind for one in charts.charts(found)] == ["depth", *always]
    without_curve = one_seed(tmp_path, {"last": answers(20, 15), "first": answers(20, 10)})
    assert [one.kind for one in charts.charts(without_curve)] == ["cost", "reliability", "confusion"]


def test_fraction_draws_a_line_for_each_of_the_other_settings(tmp_path):
    found = finished_rows(
        tmp_path,
        {"data.fraction": [1.0, 0.1, 0.5], "task.pooling": ["last", "first"]},
        lambda part, pooling: {"right": answers(100, round(60 + 30 * part) - 10 * (pooling == "first"))},
    )
    drawn = chart(found, "fraction")
    last, first = drawn.panels[0].series
    assert (last.name, last.y, last.joined) == ("last", [63, 75, 90], 3)
    assert (first.name, first.y, first.joined) == ("first", [53, 65, 80], 3)
    assert last.x == first.x == [100, 500, 1000]
    assert last.shift < 0 < first.shift  # no bar upon another
    spent = chart(found, "cost").panels[0].series
    assert [(one.name, one.joined) for one in spent] == [("last", 3), ("first", 3)]


def test_each_set_of_data_has_its_panel_where_a_series_looks_the_same(tmp_path):
    settings = {"data": ["bundled", "sms_spam"], "data.fraction": [0.1, 1.0], "task.pooling": ["last", "first"]}
    found = finished_rows(
        tmp_path,
        settings,
        lambda data, _, at: (data, at) != ("sms_spam", "last") and {"right": answers(100, 80), "messages": data},
    )
    for kind in ("fraction", "cost"):
        bundled, uci = chart(found, kind).panels
        assert (bundled.title, uci.title) == ("bundled", "sms_spam")
        assert [(one.name, one.style) for one in bundled.series] == [("last", 0), ("first", 1)]
        assert [(one.name, one.style) for one in uci.series] == [("first", 1)]


def test_learning_curves_are_mean_and_range_over_seeds(found):
    drawn = chart(found, "curves-loss")
    assert [panel.title for panel in drawn.panels] == ["last_layer", "last_block", "all"]
    validation, train = drawn.panels[0].series
    assert (validation.name, validation.x, validation.band) == ("validation", [1, 2], True)
    assert (validation.y, validation.low, validation.high) == ([2, 1], [1, 0.5], [3, 1.5])
    assert (train.y, train.low, train.high) == ([1, 0.5], [1, 0.5], [1, 0.5])
    assert chart(found, "curves-accuracy").panels[0].series[0].high == pytest.approx([80, 80])


def test_the_gaps_of_the_reliability_diagram_are_the_calibration_error():
    rng = np.random.default_rng(5)
    p = rng.dirichlet([1, 1, 1], 500).astype(np.float32)
    label = rng.integers(0, 3, 500)
    bins = probability_charts.bins(p.max(1).tolist(), (p.argmax(1) == label).tolist())
    gap = sum(size * abs(x - y) for size, x, y in zip(bins.sizes, bins.x, bins.y, strict=True))
    expected = tm.multiclass_calibration_error(torch.tensor(p), torch.tensor(label), 3, n_bins=15)
    assert gap == pytest.approx(expected.item(), abs=1e-6)
    assert sum(bins.sizes) == pytest.approx(1)
    assert probability_charts.bins([1.0, 1.0], [True, False]).x == [1.0]


def test_the_calibration_error_of_a_reliability_chart_is_that_of_its_bins(tmp_path):
    right = {1: answers(50, 40), 2: answers(50, 30, 1)}  # with seeds apart, errors in both directions would not cancel
    found = finished_rows(tmp_path, {"seed": [1, 2]}, lambda seed: {"right": right[seed], "confidence": 0.7})
    (panel,) = chart(found, "reliability").panels
    assert panel.title.endswith("ECE 0.000")  # 0.7 of all are right; 0.1 each way by seeds


def test_learning_curves_leave_out_epochs_whose_loss_was_infinite(tmp_path):
    curve = [{"epoch": i, "train_loss": loss, "validation_loss": loss} for i, loss in enumerate((2, None, 1))]
    found = one_seed(tmp_path, {"last": answers(20, 15)}, curve=curve)
    assert chart(found, "curves-loss").panels[0].series[0].x == [0, 2]


def test_the_confusion_matrix_is_scikit_learns(tmp_path):
    labels = ["ham", "spam", "news"]
    (row,) = one_seed(tmp_path, {"last": answers(90, 60)}, labels=labels)
    lines = row.runs[0].predictions
    expected = confusion_matrix([x["label"] for x in lines], [x["predicted"] for x in lines], labels=labels)
    drawn = chart([row], "confusion").panels[0].matrix
    assert drawn == chart_data.Matrix(labels, expected.tolist())


def test_cost_has_a_point_for_each_row_that_was_trained(found):
    drawn = chart(found, "cost").panels[0].series
    trained = ("last_layer", "last_block", "all")
    assert [(one.name, one.x, one.joined) for one in drawn] == [(name, [3.0], 1) for name in trained]


# ---- figures


def test_a_figure_has_the_same_bytes_each_time_and_no_date(found, tmp_path):
    drawn = replace(chart(found, "depth"), title=f"{STRANGE[:-1]}$")  # $ twice would be mathematics
    once, again = figures.save(drawn, tmp_path / "once"), figures.save(drawn, tmp_path / "again")
    assert [path.name for path in once] == ["once.png", "once.pdf"]
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert b"Date" not in once[0].read_bytes() + once[1].read_bytes()


def test_a_figure_shows_every_series_and_tells_them_apart():
    series = [chart_data.Series(f"row {i}", i, [1.0 + i], [50.0 + i], [40.0], [90.0]) for i in range(20)]
    panels = [chart_data.Panel("", series)]
    drawn = figures.draw(chart_data.Chart("cost", "Cost", "TFLOP", "accuracy", panels, log_x=True))
    (axes,), (legend,) = drawn.axes, drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [one.name for one in series]
    lines = [bars.lines[0] for bars in axes.containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20
    assert [tuple(line.get_xydata()[0]) for line in lines] == [(1.0 + i, 50.0 + i) for i in range(20)]


def test_small_panels_share_their_axes_and_none_is_lost(found):
    one = chart(found, "curves-loss")
    five = replace(one, panels=(one.panels * 2)[:5])
    drawn = figures.draw(five)
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [panel.title for panel in five.panels]
    assert len({axes.get_ylim() for axes in shown}) == 1


def test_titles_of_small_panels_do_not_run_into_each_other():
    labels = [f"last_real_token, padding=longest, part {i}" for i in range(9)]
    point = [chart_data.Series("", 0, [0.2, 0.9], [0.3, 0.8], sizes=[0.5, 0.5], joined=2)]
    panels = [chart_data.Panel(f"{label}\nECE 0.100", point) for label in labels]
    with rc_context(figures.STYLE):
        drawn = chart_data.Chart("reliability", "Reliability", "confidence", "accuracy", panels, diagonal=True)
        drawn = figures.draw(drawn)
        FigureCanvasAgg(drawn).draw()
    boxes = [axes.title.get_window_extent() for axes in drawn.axes if axes.get_visible()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_charts_with_more_panels_than_a_printed_page_holds_are_for_the_browser(tmp_path):
    panel = chart_data.Panel("", [chart_data.Series("", 0, [1.0], [1.0], [1.0], [1.0])])
    kinds = {"many": entry.PANELS + 1, "few": 2}
    drawn = [chart_data.Chart(kind, "", "", "", [panel] * n) for kind, n in kinds.items()]
    names = {path.name for path in entry.write_figures("study", drawn, tmp_path)}
    assert names == {"study-few.png", "study-few.pdf"}


# ---- the page


class Seen(HTMLParser):
    """What a browser would read: texts, attributes by tag, and the content of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self.tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        (self.scripts if self.tag == "script" else self.texts).append(data.strip())


@pytest.fixture
def written(found: list[rows.Row], strange: table.Table) -> str:
    return page.page([(made(found), charts.charts(found)), (strange, [])])


def test_the_page_loads_nothing_from_anywhere(written):
    assert re.findall(r"https?://[^\"'\s)]+", written) == []
    used = {(tag, name, (value or "")[:14]) for tag, name, value in Seen(written).attributes if name in ("src", "href")}
    assert {part[:2] for part in used} == {("a", "href"), ("img", "src")}
    assert {value for tag, _, value in used if tag == "img"} == {"data:image/svg"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", written)


def test_the_page_escapes_texts_and_keeps_them(written):
    assert STRANGE not in written
    assert STRANGE in Seen(written).texts
    hostile = "</script><script>alert(1)</script>"
    series = chart_data.Series(hostile, 0, [1.0], [2.0], [1.0], [3.0])
    drawn = chart_data.Chart("cost", hostile, "x", "y", [chart_data.Panel(hostile, [series])])
    text = page.page([(table.Table(hostile, hostile, [], [hostile]), [drawn])])
    assert "<script>alert" not in text
    assert hostile in {value for tag, name, value in Seen(text).attributes if (tag, name) == ("img", "alt")}


def test_the_page_holds_every_cell_with_the_number_it_sorts_by(found, written):
    values = [value for tag, name, value in Seen(written).attributes if (tag, name) == ("td", "data-value")]
    columns = [column for column in made(found).columns if column.heading]
    expected = [(column.order or column.values)[i] for i in range(4) for column in columns]
    assert [json.loads(value or "") for value in values[: len(expected)]] == expected
    drawn = [value for tag, name, value in Seen(written).attributes if (tag, name) == ("figure", "data-kind")]
    assert drawn == [one.kind for one in charts.charts(found)]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLAY = """<script>
window.onerror = message => document.body.setAttribute("data-error", message);
const seen = {}, first = document.querySelector("table.sortable");
const column = () => [...first.tBodies[0].rows].map(row => row.cells[0].textContent);
const heading = [...first.tHead.rows[0].cells].findIndex(cell => cell.textContent === "test (%)");
const press = () => first.tHead.rows[0].cells[heading].firstElementChild.click();
press(); seen.up = column();
press(); seen.down = column();
window.addEventListener("load", () => {
  seen.drawn = [...document.querySelectorAll("figure img")].map(image => image.complete && image.naturalWidth > 100);
  document.body.setAttribute("data-seen", JSON.stringify(seen));
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser_tables_sort_and_figures_are_drawn(written, tmp_path):
    (tmp_path / "page.html").write_text(written.replace("</body>", f"{PLAY}</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}", "--dump-dom"]
    command = [str(CHROMIUM), *options, (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    attributes = {name: value for tag, name, value in Seen(done.stdout).attributes if tag == "body"}
    assert "data-error" not in attributes
    seen = json.loads(attributes["data-seen"] or "")
    assert seen == {
        "up": ["last_layer", "last_block", "all", "lora"],  # what is missing comes last, both ways
        "down": ["all", "last_block", "last_layer", "lora"],
        "drawn": [True] * 6,
    }


# ---- the command


def test_the_command_writes_tables_and_figures_and_prints_the_table(home, command):
    given = (str(home / "experiments/depth.yaml"), f"runs={home / 'runs'}", "reference=last_block")
    out, tables, drawn = command("report", *given).out, home / "experiments/tables", home / "experiments/figures"
    kinds = ["depth", "cost", "curves-loss", "curves-accuracy", "reliability", "confusion"]
    assert {path.name for path in tables.iterdir()} == {"depth.md", "depth.tex", "depth.csv"}
    assert {path.name for path in drawn.iterdir()} == {f"depth-{kind}.{to}" for kind in kinds for to in ("png", "pdf")}
    assert "│ last_layer │ 3 of 3 │ 60.00 ± 1.00 │" in out
    assert out.count("written: ") == 3 + 12
    text = (tables / "depth.md").read_text(encoding="utf-8")
    assert "| all | 2 of 3 | 81.50 ± 0.71 |" in text
    assert "| not seen |" in text
    assert command("report", *given, "format=md").out.count("written: ") == 1
    assert (tables / "depth.md").read_text(encoding="utf-8") == text


def test_a_study_that_has_not_run_keeps_its_table(tmp_path, command):
    path = write_study(tmp_path, "later", {"seed": [1, 2]})
    (tmp_path / "experiments/tables").mkdir()
    (tmp_path / "experiments/tables/later.md").write_text("committed", encoding="utf-8")
    out = command("report", str(path), f"runs={tmp_path / 'runs'}").out
    assert out.startswith(f"later: none of its 2 runs has finished in {tmp_path / 'runs'}")
    assert f"python -m src.sweep {path}" in out
    assert [file.name for file in path.parent.rglob("*") if file.is_file()] == ["later.yaml", "later.md"]
    assert (tmp_path / "experiments/tables/later.md").read_text(encoding="utf-8") == "committed"


@pytest.mark.slow
def test_without_a_study_all_are_reported_and_one_page_holds_them(home, tmp_path, command, monkeypatch):
    shutil.copytree(home / "runs", tmp_path / "runs")
    for name in ("depth", "again"):
        write_study(tmp_path, name, {"task.trainable": [*DEPTHS], "seed": [1, 2, 3]})
    write_study(tmp_path, "later", {"seed": [9]})
    monkeypatch.chdir(tmp_path)
    out = command("report", "format=csv,html").out
    assert "later: none of its 1 runs has finished in runs" in out
    files = {str(path) for path in Path("experiments").rglob("*.*") if path.suffix != ".yaml"}
    assert files == {f"experiments/{name}" for name in ("tables/depth.csv", "tables/again.csv", "report.html")}
    headings = re.findall("<h2>(.*)</h2>", Path("experiments/report.html").read_text(encoding="utf-8"))
    assert headings == ["again", "depth"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(("format=doc", "format=doc"), ("a.yaml b.yaml reference=x", "reference="), ("", "no study")),
        *(("colour=red", "colour=red"), ("a.yaml difference=0", "difference=0"), ("none.yaml", "none.yaml")),
    ],
)
def test_wrong_arguments_get_a_sentence(arguments, named, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(command("report", *arguments.split()), named)


# ---- W&B dashboards


def test_the_dashboards_name_what_runs_log():
    pytest.importorskip("wandb_workspaces")
    from src.evaluation.metrics import measure
    from src.finetune.cost import Cost
    from src.reporting import wandb_dashboard as dashboard

    metrics = measure(Predictions(torch.tensor([[-0.1, -2.4], [-2.4, -0.1]]), torch.tensor([0, 1])))
    logged = {f"final/{part}/{name}" for part in ("train", "validation", "test") for name in metrics}
    logged |= {f"cost/{name}" for name in Cost().summary()}
    assert set(dashboard.MEASURED) <= logged
    cfg = run_dir.plain(study.config(study.Trial({}, ())))
    for setting in dashboard.SETTINGS:
        assert rows.reach(cfg, setting.split(".")) is not None
    for made in (dashboard.workspace, dashboard.report):  # without a network
        made("me", "mine")


def test_without_the_extra_or_an_account_the_dashboards_say_so(monkeypatch):
    import wandb

    from src.reporting import wandb_dashboard as dashboard

    monkeypatch.setattr(sys, "argv", ["dashboard", "entity=me"])
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install '\.\[dashboards\]'"):
        dashboard.main()
    monkeypatch.setattr(wandb, "Api", Mock(side_effect=wandb.errors.UsageError("No API key configured.")))
    with pytest.raises(InputError, match="No API key configured"):
        dashboard.save("me", "mine")
