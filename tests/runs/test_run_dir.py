"""End to end on a tiny GPT: run folders, resuming, evaluation and prediction, W&B offline, and the command line."""

import csv
import errno
import hashlib
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from src.config import build
from src.config.command_line import check_resume, prepared
from src.config.trainer import build_loggers, check_loggers
from src.data import sms_spam
from src.errors import InputError
from src.eval import evaluate
from src.files import refusal, whole_file
from src.finetune.checkpointing import AtomicCheckpointIO
from src.finetune.classifier import Classifier
from src.finetune.feature_cache import FrozenBlocks
from src.finetune.optim import ClippedGradients
from src.finetune.training_steps import TrainingSteps
from src.gpt.model import GPT
from src.gpt.pinned_weights import SHIPPED
from src.gpt.weights import export
from src.predict import predict_texts
from src.runs import loggers, printed_table, run_dir
from src.runs.lock import RunLockedError, run_lock
from src.sweeps import study
from src.train import Run, train
from tests.shared import Answer, refused

ROOT = Path(__file__).parents[2]
TINY = (
    "gpt.weights=random gpt.n_layer=2 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=64 trainer.max_epochs=2 "
    "trainer.accelerator=cpu"
)
WORDS = {
    "ham": "lunch home later tea see you soon ok",
    "spam": "free prize win cash urgent call now claim",
    "news": "vote rain bank",
}
STAGES = (
    *("task.trainable=2_blocks", "task.head_epochs=1", "task.gradual_unfreezing=1", "task.layer_decay=0.5"),
    *("optimizer.lr=1e-2", "gpt.dropout=0.1", "scheduler=cosine"),
)
LEARNS = ("task.trainable=all", "optimizer.lr=1e-2")


def message(rng: random.Random, label: str, longest: int = 12) -> str:
    return " ".join(rng.choices(WORDS[label].split(), k=rng.randint(3, longest)))


def write_messages(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with messages.tsv: 30 ham, 30 spam, all distinct, a few of more than 32 tokens."""
    folder, rng = tmp_path_factory.mktemp("runs"), random.Random(0)
    short = [(label, f"{message(rng, label)} {name}") for name in ascii_lowercase for label in ("ham", "spam")]
    long = [(label, f"{message(rng, label, 4)} {'ha ' * 40}{name}") for name in "abcd" for label in ("ham", "spam")]
    write_messages(folder / "messages.tsv", short + long)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only wait for each other in a GPT this small
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(variable, str(folder / variable.lower()))
        yield folder
    torch.set_num_threads(threads)


def arguments(home: Path, *overrides: str) -> list[str]:
    """The command line of a tiny run on the messages in `home`."""
    data = ["data=table", f"data.path={home / 'messages.tsv'}", "data.max_length=32", "logger=none"]
    return [*TINY.split(), *data, f"runs={home / 'all'}", *overrides]


def config(home: Path, *overrides: str) -> DictConfig:
    return study.config(study.Trial({}, tuple(arguments(home, *overrides))))


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    """A finished run, the same for all tests that only read it."""
    return train(config(home, "name=first", *LEARNS))


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning"),
    pytest.mark.usefixtures("uncounted"),
]


# ---- the run folder


def test_a_run_folder_holds_these_files_and_no_unfinished_one(run):
    files = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    checkpoints = {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert files == {"config.yaml", "identity.json", "result.json", "predictions.csv", *checkpoints}
    assert re.fullmatch(r"\d{8}-\d{6}-first-[0-9a-f]{8}(-\d+)?", run.folder.name)


def test_result_json_says_what_was_run(run, home):
    result, parameters = run.result, sum(p.numel() for p in run.model.parameters())
    file = (home / "messages.tsv").read_bytes()
    assert (result["id"], result["name"], result["seed"]) == (run.folder.name, "first", 123)
    assert result["data"] == {
        "name": "messages",
        "split": "grouped",
        "sha256": hashlib.sha256(file).hexdigest(),
        "sizes": {"train": 42, "validation": 6, "test": 12},
        "dropped": {"empty": 0, "repeated": 0, "contradicting": 0},
        "similarity": 0.5,
        "labels": ["ham", "spam"],
        "max_length": 32,
        "width": 32,
    }
    assert result["gpt"] == {"name": "mini", "weights": "random", "parameters": parameters}
    assert result["task"] == {
        "name": "Classifier",
        "trainable": "all",
        "pooling": "last",
        "trainable_parameters": parameters,
    }
    assert result["cost"]["train_tokens"] == 2 * 42 * 32


def test_predictions_csv_has_a_row_for_each_test_message(run):
    rows, test = predictions(run.folder), run.data.examples["test"]
    assert list(rows[0]) == ["row", "text_sha256", "group", "label", "predicted", "p_ham", "p_spam"]
    assert [row["row"] for row in rows] == [str(i) for i in range(12)]
    assert [row["text_sha256"] for row in rows] == [hashlib.sha256(e.text.encode()).hexdigest() for e in test]
    assert [row["label"] for row in rows] == [e.label for e in test]
    for row in rows:
        ham, spam = float(row["p_ham"]), float(row["p_spam"])
        assert ham + spam == pytest.approx(1, abs=2e-6)
        assert row["predicted"] == ("ham" if ham > spam else "spam")


def test_the_metrics_of_result_json_follow_from_predictions_csv(run):
    rows, metrics = predictions(run.folder), run.result["metrics"]["test"]
    right = [row["label"] == row["predicted"] for row in rows]
    losses = [-math.log(float(row[f"p_{row['label']}"])) for row in rows]
    assert metrics["accuracy"] == pytest.approx(sum(right) / 12, abs=1e-7)
    assert metrics["loss"] == pytest.approx(sum(losses) / 12, rel=1e-4)


def test_config_yaml_is_plain_and_reloads(run, home):
    text = (run.folder / "config.yaml").read_text(encoding="utf-8")
    assert "${" not in text
    assert yaml.safe_load(text) == OmegaConf.to_container(config(home, "name=first", *LEARNS), resolve=True)
    assert run_dir.config_hash(run_dir.load_config(run.folder)) == run.result["config_hash"]


def test_two_runs_of_one_second_get_two_folders(home, tmp_path, monkeypatch):
    now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    monkeypatch.setattr(run_dir, "datetime", SimpleNamespace(now=lambda zone: now))
    cfg = config(home, f"runs={tmp_path}")
    stem = f"20250102-030405-train-{run_dir.config_hash(cfg)[:8]}"
    assert [run_dir.create(cfg).name for _ in range(3)] == [stem, f"{stem}-2", f"{stem}-3"]


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("name=other", True),
        ("runs=elsewhere", True),
        ("logger=wandb", True),
        ("optimizer.lr=2e-3", False),
        ("seed=7", False),
        ("data.max_length=31", False),
    ],
)
def test_the_config_hash_changes_with_what_can_change_the_numbers(home, override, same):
    assert (run_dir.config_hash(config(home, override)) == run_dir.config_hash(config(home))) is same


def test_runs_from_shipped_weights_are_others_once_these_are_trained_anew(monkeypatch):
    def hashes(*more: str) -> str:
        return run_dir.config_hash(study.config(study.Trial({}, more)))

    settings = [(), ("gpt.weights=random",), ("gpt=small",)]
    before = [hashes(*some) for some in settings]
    path, _ = SHIPPED["mini"]
    monkeypatch.setitem(SHIPPED, "mini", (path, "0" * 64))
    assert [hashes(*some) == old for some, old in zip(settings, before, strict=True)] == [False, True, True]


@pytest.mark.parametrize("data", ["sms_spam", "mix"])
def test_where_pinned_data_are_kept_and_how_they_are_loaded_are_no_part_of_the_config_hash(data, tmp_path, monkeypatch):
    def hash_of(*more: str) -> str:
        return run_dir.config_hash(study.config(study.Trial({}, (f"data={data}", "task=instruct", *more))))

    here = hash_of()
    monkeypatch.setenv("TWO_WAYS_CACHE", str(tmp_path))
    monkeypatch.setenv("SMS_SPAM", str(tmp_path / "SMSSpamCollection"))
    assert hash_of("data.num_workers=2") == here
    assert hash_of("data.fraction=0.5") != here


def test_a_seed_gives_its_numbers_again_and_another_seed_other_ones(run, home):
    again, other = (train(config(home, "name=again", *LEARNS, f"seed={seed}")) for seed in (123, 7))
    first = (run.folder / "predictions.csv").read_bytes()
    assert (again.folder / "predictions.csv").read_bytes() == first
    assert again.result["metrics"] == run.result["metrics"]
    assert again.result["config_hash"] == run.result["config_hash"] != other.result["config_hash"]
    assert (other.folder / "predictions.csv").read_bytes() != first
    assert other.result["metrics"]["test"] != run.result["metrics"]["test"]


def test_the_best_epoch_is_the_one_of_the_lowest_validation_loss(home, capsys, monkeypatch):
    step = TrainingSteps.training_step

    def uphill_at_the_end(self: TrainingSteps, *batch_and_index: Any) -> Any:
        loss = step(self, *batch_and_index)
        return -loss if self.current_epoch > 1 else loss

    monkeypatch.setattr(TrainingSteps, "training_step", uphill_at_the_end)
    run = train(config(home, "task.trainable=all", "optimizer=sgd", "optimizer.lr=0.1", "trainer.max_epochs=4"))
    losses = [float(loss) for loss in re.findall(r"epoch .* validation/loss (\S+)", capsys.readouterr().out)]
    best = losses.index(min(losses))
    assert len(losses) == 4
    assert best < 3, "the last epoch was to be worse"
    assert torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)["epoch"] == best
    assert torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 3
    assert run.result["metrics"]["validation"]["loss"] == pytest.approx(losses[best], abs=1e-4)


# ---- resuming


def interrupt(monkeypatch: pytest.MonkeyPatch, cfg: DictConfig, epoch: int, batch: int) -> None:
    """Train until Ctrl-C comes in the middle of an epoch."""
    step = TrainingSteps.training_step

    def interrupted(self: TrainingSteps, *batch_and_index: Any) -> Any:
        if (self.current_epoch, batch_and_index[1]) == (epoch, batch):
            raise KeyboardInterrupt
        return step(self, *batch_and_index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingSteps, "training_step", interrupted)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train(cfg)


def trained_epochs(capsys: pytest.CaptureFixture[str]) -> list[int]:
    """The epochs that were reported since the last look."""
    return [int(epoch) for epoch in re.findall(r"^epoch (\d+)/", capsys.readouterr().out, re.MULTILINE)]


@pytest.mark.parametrize(
    ("epoch", "changes"),
    [
        (1, LEARNS),
        pytest.param(0, LEARNS, marks=pytest.mark.slow),
        (2, (*LEARNS, "scheduler=cosine", "scheduler.warmup_ratio=0.3", "data.padding=batch")),
        pytest.param(
            1, ("task.trainable=lora", "gpt.dropout=0.1", "trainer.accumulate_grad_batches=4"), marks=pytest.mark.slow
        ),
        pytest.param(2, (*LEARNS, "gpt.dropout=0.3"), marks=pytest.mark.slow),
        pytest.param(2, (*LEARNS, "monitor=validation/accuracy", "patience=2"), marks=pytest.mark.slow),
        (1, STAGES),
        pytest.param(2, STAGES, marks=pytest.mark.slow),
        pytest.param(
            1, ("task=instruct", "task.trainable=2_blocks", "task.gradual_unfreezing=2"), marks=pytest.mark.slow
        ),
    ],
    ids=[
        *("second_epoch", "first_epoch", "schedule_batch", "lora_dropout_accumulate", "dropout_later"),
        *("monitor", "second_stage", "third_stage", "instruct_first_stage"),
    ],
)
def test_a_resumed_run_equals_a_straight_one(home, tmp_path, monkeypatch, capsys, epoch, changes):
    changes = (*changes, "trainer.max_epochs=3")
    straight = train(config(home, *changes))
    interrupt(monkeypatch, config(home, *changes, f"runs={tmp_path}"), epoch, batch=2)
    (folder,) = tmp_path.iterdir()
    said = "".join(capsys.readouterr())
    assert "interrupted" in said
    assert f"go on with python -m src.train resume={folder.name}" in said
    assert not (folder / "result.json").exists()
    with pytest.raises(
        InputError, match=f"^run {folder.name} has not finished: go on with python -m src.train resume="
    ):
        run_dir.load_result(folder)

    resumed = train(config(home, f"runs={tmp_path}", f"resume={folder.name}"))
    assert resumed.folder == folder
    assert trained_epochs(capsys) == list(range(epoch + 1, 4))
    assert (folder / "predictions.csv").read_bytes() == (straight.folder / "predictions.csv").read_bytes()
    unchanged = ("config_hash", "data", "gpt", "task", "metrics", "curve")
    assert [resumed.result[key] for key in unchanged] == [straight.result[key] for key in unchanged]
    for cost in ("train_tokens", "train_flops"):
        assert resumed.result["cost"][cost] == straight.result["cost"][cost]


def test_patience_ends_a_run_whose_validation_loss_does_not_fall(home):
    run = train(config(home, "optimizer.lr=1e-30", "trainer.max_epochs=5", "patience=1"))
    assert run.trainer.current_epoch == 2


def test_a_finished_run_is_not_gone_on_with(home):
    first = train(config(home))
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"^run {first.folder.name} has finished"):
        train(config(home, f"resume={first.folder.name}"))
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before


def test_a_run_that_another_process_writes_is_left_alone(run, home):
    with ThreadPoolExecutor() as other, run_lock(run.folder), pytest.raises(RunLockedError, match=str(os.getpid())):
        other.submit(train, config(home, f"resume={run.folder.name}")).result()


@pytest.mark.slow
def test_a_run_that_had_stopped_early_is_resumed_to_the_same(home, monkeypatch, capsys, tmp_path):
    """Killed in its evaluation, after training had come to its end."""
    changes = ("task.trainable=all", "optimizer.lr=0.1", "trainer.max_epochs=9", "patience=1")
    straight = train(config(home, *changes))
    epochs = trained_epochs(capsys)
    assert len(epochs) < 9

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "load_best", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config(home, *changes, f"runs={tmp_path}"))
    assert trained_epochs(capsys) == epochs
    (folder,) = tmp_path.iterdir()
    resumed = train(config(home, f"runs={tmp_path}", f"resume={folder.name}"))
    assert trained_epochs(capsys) == []
    assert resumed.result["metrics"] == straight.result["metrics"]
    assert resumed.result["curve"] == straight.result["curve"]


def test_a_run_whose_folder_was_moved_keeps_its_best_epoch(home, tmp_path, monkeypatch):
    changes = ("task.trainable=all", "optimizer.lr=0.3", "trainer.max_epochs=3")
    straight = train(config(home, *changes))
    best = torch.load(straight.folder / "checkpoints/best.ckpt", weights_only=True)["epoch"]
    assert best < 2, "a later epoch was to be worse"
    interrupt(monkeypatch, config(home, *changes, f"runs={tmp_path / 'old'}"), best + 1, batch=1)
    (tmp_path / "old").rename(tmp_path / "new")
    (folder,) = (tmp_path / "new").iterdir()
    folder = folder.rename(folder.with_name("renamed"))
    assert train(config(home, f"runs={tmp_path / 'new'}", "resume=renamed")).folder == folder
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"] == best
    assert (folder / "predictions.csv").read_bytes() == (straight.folder / "predictions.csv").read_bytes()


def test_the_best_epoch_may_lie_before_the_rest_is_unfrozen(home, tmp_path):
    """The blocks are then those of the start, in the checkpoint, the result, and whatever reads them back."""
    changes = ("task.trainable=all", "task.head_epochs=2", "optimizer.lr=0.3", "trainer.max_epochs=4")
    run = train(config(home, *changes, f"runs={tmp_path}"))
    best = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] < 2, "later epochs were to be worse"
    start = build.build_gpt(config(home)).state_dict()
    assert all(torch.equal(best["state_dict"][f"gpt.{name}"], weight) for name, weight in start.items())
    assert evaluate(run.folder.name, str(tmp_path))[0] == run.result["metrics"]


MORE = [
    pytest.param(precision, marks=pytest.mark.slow) for precision in ("32-true", "64-true", "bf16-mixed", "16-mixed")
]


@pytest.mark.parametrize("precision", ["bf16-true", *MORE])
def test_a_run_in_any_precision_is_resumed_evaluated_and_predicts(home, tmp_path, monkeypatch, precision):
    changes = ("optimizer.lr=1e-2", f"trainer.precision={precision}", f"runs={tmp_path}")
    straight = train(config(home, *changes))
    interrupt(monkeypatch, config(home, *changes), epoch=1, batch=1)
    (folder,) = set(tmp_path.iterdir()) - {straight.folder}
    train(config(home, f"runs={tmp_path}", f"resume={folder.name}"))
    assert (folder / "predictions.csv").read_bytes() == (straight.folder / "predictions.csv").read_bytes()
    measured, _ = evaluate(folder.name, str(tmp_path))
    rounded = 1e-5 if precision == "64-true" else 0.0  # a GPT is built in fp32
    for part, metrics in measured.items():
        assert metrics == pytest.approx(straight.result["metrics"][part], rel=rounded, abs=0)
    texts = straight.data.texts("test")
    for row, found in zip(predictions(folder), predict_texts(folder.name, texts, str(tmp_path)), strict=True):
        for label, p in found["probabilities"].items():
            assert float(row[f"p_{label}"]) == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "number", "status", "kept"),
    [
        (GPT.__init__, signal.SIGINT, 130, None),
        pytest.param(GPT.__init__, signal.SIGTERM, 143, None, marks=pytest.mark.slow),
        pytest.param(FrozenBlocks.predict_step, signal.SIGINT, 130, "no checkpoint yet", marks=pytest.mark.slow),
        (FrozenBlocks.predict_step, signal.SIGTERM, 143, "no checkpoint yet"),
        (Classifier.on_validation_epoch_end, signal.SIGTERM, 143, "no checkpoint yet"),
        pytest.param(
            ClippedGradients.configure_gradient_clipping,
            signal.SIGINT,
            130,
            "its last checkpoint",
            marks=pytest.mark.slow,
        ),
        (ClippedGradients.configure_gradient_clipping, signal.SIGTERM, 143, "its last checkpoint"),
        (run_dir.write, signal.SIGTERM, 143, "its last checkpoint"),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_a_signal_ends_a_run_with_its_status_and_how_to_go_on(
    home, tmp_path, monkeypatch, command, stage, number, status, kept
):
    owners: dict[str, Any] = {
        one.__name__: one for one in (GPT, FrozenBlocks, Classifier, TrainingSteps, ClippedGradients)
    }
    owner, name = owners.get(stage.__qualname__.partition(".")[0], run_dir), stage.__name__
    calls: list[int] = []

    def signalled(*given: Any, **named: Any) -> Any:
        calls.append(0)
        if len(calls) == (12 if "clipping" in name else 1):  # an epoch has 6 steps
            os.kill(os.getpid(), number)
        return stage(*given, **named)

    monkeypatch.setattr(owner, name, signalled)
    answer = command("train", *arguments(home, f"runs={tmp_path}", "cache=memory"))
    assert answer.status == status
    assert "Traceback" not in answer.error
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    folders = list(tmp_path.iterdir())
    if kept is None:
        assert folders == []
        return
    assert f"{folders[0]} keeps " in answer.error
    assert kept in answer.error
    assert f"go on with python -m src.train resume={folders[0].name} runs={tmp_path}" in answer.error
    assert not any(path.name.startswith(".") for path in folders[0].rglob("*"))


def test_a_run_trained_longer_equals_one_that_was_trained_so_long(run, home, tmp_path, command):
    straight = train(config(home, "name=first", *LEARNS, "trainer.max_epochs=4", f"runs={tmp_path / 'straight'}"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    given = (f"resume={run.folder}", f"runs={tmp_path}", "trainer.max_epochs=4")
    answer = command("train", *given)
    assert (answer.status, answer.error) == (0, "")
    assert re.findall(r"^epoch (\d+)/", answer.out, re.MULTILINE) == ["3", "4"]
    (folder,) = tmp_path.glob("*-first-*")
    assert (folder / "predictions.csv").read_bytes() == (straight.folder / "predictions.csv").read_bytes()
    found = run_dir.load_result(folder)
    for key in ("config_hash", "metrics", "curve"):
        assert found[key] == straight.result[key]
    assert found["cost"]["train_flops"] == straight.result["cost"]["train_flops"]
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "epochs", "says"),
    [
        ((), 2, "has 2 already"),
        (("scheduler=cosine",), 4, "shape=cosine"),
        (("scheduler.warmup_ratio=0.1",), 4, "warmup_ratio=0.1"),
        ((), 4, "no checkpoint"),
    ],
)
def test_what_cannot_be_trained_longer_is_refused(home, tmp_path, changes, epochs, says):
    folder = run_dir.create(config(home, *changes, f"runs={tmp_path}"))
    with pytest.raises(InputError, match=says):
        train(config(home, f"resume={folder.name}", f"runs={tmp_path}"), epochs)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("strategy", ["all", "lora", "last_block"])
@pytest.mark.slow
def test_a_run_starts_from_the_trained_gpt_of_another(home, tmp_path, strategy):
    first = train(config(home, f"task.trainable={strategy}", "optimizer.lr=1e-2"))
    cfg = config(home, "seed=7", f"gpt.weights={first.folder}", "trainer.max_epochs=1", f"runs={tmp_path}")
    ids = torch.tensor([[1, 2, 3]])
    start, trained, other = build.build_gpt(cfg), build.restore(first.folder).gpt.eval(), build.build_gpt(config(home))
    assert torch.allclose(start.eval()(ids), trained(ids), atol=1e-5)
    assert not torch.allclose(other.eval()(ids), trained(ids), atol=1e-5)
    again = train(cfg)
    assert build.restore(again.folder).trained == again.model.trained
    assert evaluate(again.folder.name, str(tmp_path))[0] == again.result["metrics"]
    cfg.gpt.n_layer = 1
    with pytest.raises(InputError, match=r"gpt.n_layer=1: run .* has 2"):
        build.build_gpt(cfg)


def test_the_head_of_a_run_on_a_run_is_its_own_seed_s(run, home):
    heads = [
        build.build_task(config(home, f"gpt.weights={weights}", f"seed={seed}"), ["ham", "spam"]).head.weight
        for weights in (run.folder, "random")
        for seed in (7, 8)
    ]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "foreign", "no zip of torch", "misshaped"])
@pytest.mark.parametrize("name", ["best", "last"])
def test_a_damaged_checkpoint_is_named_with_what_can_be_done(run, home, tmp_path, name, damage):
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    path = folder / f"checkpoints/{name}.ckpt"
    content = path.read_bytes()
    if damage == "foreign":
        torch.save({"model": torch.zeros(2)}, path)
    elif damage == "misshaped":
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["state_dict"]["head.weight"] = torch.zeros(3, 16)
        torch.save(checkpoint, path)
    elif damage == "no zip of torch":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.txt", "a")
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "empty": b"", "text": b"abc", "flipped": flipped}[damage])
    says = "head.weight is" if damage == "misshaped" else f"{re.escape(str(path))} .*put back a copy"
    if name == "best":
        with pytest.raises(InputError, match=says):
            build.restore(folder)
        return
    (folder / "result.json").unlink()
    with pytest.raises(InputError, match=says):
        train(config(home, f"resume={folder}"))


@pytest.mark.parametrize("name", ["best", "last"])
def test_the_checkpoint_of_another_run_is_refused(run, home, tmp_path, name):
    other = train(config(home, "optimizer.lr=0.02")).folder
    folder = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    path = Path(shutil.copy(other / f"checkpoints/{name}.ckpt", folder / "checkpoints"))
    with pytest.raises(InputError, match=f"{re.escape(str(path))} .*other settings"):
        build.restore(folder) if name == "best" else train(config(home, f"resume={folder}", f"runs={tmp_path}"), 4)
    assert list(tmp_path.iterdir()) == [folder]
    (folder / "result.json").unlink()
    with pytest.raises(InputError, match=f"{path.name} .*other settings"):
        train(config(home, f"resume={folder}"))


def test_a_run_whose_gpt_has_changed_is_neither_used_nor_gone_on_with(home, tmp_path):
    cfg = config(home, "task.trainable=last_layer")
    export(build.build_gpt(cfg), file := tmp_path / "gpt")
    run = train(config(home, "task.trainable=last_layer", f"gpt.weights={file}"))
    assert torch.equal(build.restore(run.folder).frozen_norms, run.model.frozen_norms)
    cfg.seed = 7
    shutil.rmtree(file)
    export(build.build_gpt(cfg), file)
    with pytest.raises(InputError, match=r"gpt\.weights"):
        build.restore(run.folder)
    (run.folder / "result.json").unlink()
    with pytest.raises(InputError, match=r"gpt\.weights .* changed since run"):
        train(config(home, f"resume={run.folder}"))


# ---- eval


def strict_json(text: str) -> Any:
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_eval_measures_a_finished_run_again_exactly(run, home, command):
    answer = command("eval", f"run={run.folder.name}", f"runs={home / 'all'}", "format=json")
    assert (answer.status, strict_json(answer.out)) == (0, run.result["metrics"])


def test_eval_prints_a_table_with_the_sizes(run, home, command):
    answer = command("eval", f"run={run.folder}")
    rows = {cells[0]: cells[1:] for line in answer.out.splitlines() if len(cells := line.split()) > 1}
    splits = next(line.split() for line in answer.out.splitlines() if "validation" in line)
    assert rows["messages"] == [str(run.result["data"]["sizes"][part]) for part in splits]
    assert rows["accuracy"] == [f"{run.result['metrics'][part]['accuracy']:.2%}" for part in splits]
    assert not any(line.endswith("…") or len(line) > 80 for line in answer.out.splitlines()[1:])


def test_eval_of_another_file_measures_all_its_messages(run, home, command, tmp_path):
    """Also those that stand twice: a split, which would drop them, is of no use here."""
    rows = [("ham", "see you at home 1"), ("ham", "see you at home 2"), ("spam", "win cash"), ("spam", "claim now")]
    rows = [*rows, ("ham", "ok"), ("spam", "free prize call"), ("spam", "win cash"), ("ham", "ok later tea")]
    other = write_messages(tmp_path / "other.tsv", rows)
    changes = ("data=table", f"data.path={other}")
    answer = command("eval", f"run={run.folder}", "format=json", *changes)
    lines = "".join(f"{text}\n" for _, text in rows).encode()
    predicted = command("predict", f"run={run.folder}", "format=jsonl", stdin=lines).out.splitlines()
    right = [json.loads(line)["label"] == label for line, (label, _) in zip(predicted, rows, strict=True)]
    metrics = strict_json(answer.out)
    assert list(metrics) == ["all"]
    assert metrics["all"]["accuracy"] == pytest.approx(sum(right) / len(rows), abs=1e-7)
    assert re.search(r"messages\W+8\W", command("eval", f"run={run.folder}", *changes).out)


def test_eval_of_one_class_measures_its_recall(run, command, tmp_path):
    texts = ["win cash", "see you at home", "claim your prize"]
    trap = write_messages(tmp_path / "trap.tsv", [("spam", text) for text in texts])
    where = (f"run={run.folder}", "data=table", f"data.path={trap}")
    metrics = strict_json(command("eval", *where, "format=json").out)["all"]
    predicted = [json.loads(command("predict", f"run={run.folder}", "format=jsonl", f"text={t}").out) for t in texts]
    recall = sum(one["label"] == "spam" for one in predicted) / 3
    assert (metrics["accuracy"], metrics["auroc"]) == (pytest.approx(recall, abs=1e-7), None)
    shown = command("eval", *where)
    assert (shown.status, re.findall(r"auroc +(\S+)", shown.out)) == (0, ["-"])


def test_eval_refuses_a_class_that_the_run_does_not_know(run, command, tmp_path):
    rng = random.Random(1)
    rows = [(label, f"{message(rng, label)} {n}") for n in "abcd" for label in ("ham", "news")]
    other = write_messages(tmp_path / "other.tsv", rows)
    refused(command("eval", f"run={run.folder}", "data=table", f"data.path={other}"), "class news")


def test_a_metric_that_cannot_be_had_is_null_in_json(home, command, tmp_path):
    """AUROC needs every class of the run, and the other file has two of three."""
    rng = random.Random(2)
    rows = [(label, f"{message(rng, label)} {n}") for n in "abcdefgh" for label in WORDS]
    three = train(config(home, f"data.path={write_messages(tmp_path / 'three.tsv', rows)}"))
    other = write_messages(tmp_path / "two.tsv", [row for row in rows if row[0] != "news"])
    answer = command("eval", f"run={three.folder}", "data=table", f"data.path={other}", "format=json")
    assert strict_json(answer.out)["all"]["auroc"] is None


def test_eval_with_other_batches_measures_the_same_splits(run, command):
    answer = command("eval", f"run={run.folder}", "data.batch_size=3", "format=json")
    for part, metrics in strict_json(answer.out).items():
        assert metrics["accuracy"] == run.result["metrics"][part]["accuracy"]
    assert set(strict_json(answer.out)) == {"train", "validation", "test"}


def test_eval_refuses_data_that_have_changed(home, tmp_path, command):
    """They would be split anew, so that what was trained on could be tested."""
    path = tmp_path / "messages.tsv"
    path.write_bytes((home / "messages.tsv").read_bytes())
    folder = train(config(home, f"data.path={path}")).folder
    assert command("eval", f"run={folder}").status == 0
    path.write_text(path.read_text(encoding="utf-8") + "ham\tone more\n", encoding="utf-8")
    refused(command("eval", f"run={folder}"), "data.path=<the file>")
    assert command("eval", f"run={folder}", f"data.path={path}").status == 0


def test_eval_measures_a_pinned_collection_as_it_was_split_wherever_it_lies(home, tmp_path, command, monkeypatch):
    content = (home / "messages.tsv").read_bytes().partition(b"\n")[2]
    monkeypatch.setattr(sms_spam, "UCI_TEXT_SHA256", hashlib.sha256(content).hexdigest())
    for place in ("here", "there"):
        (tmp_path / place).write_bytes(content)
    data = ["data=sms_spam_grouped", f"data.path={tmp_path / 'here'}", "logger=none", f"runs={tmp_path / 'runs'}"]
    run = train(study.config(study.Trial({}, (*TINY.split(), *data))))
    (tmp_path / "here").unlink()
    answer = command("eval", f"run={run.folder}", f"data.path={tmp_path / 'there'}", "format=json")
    assert set(strict_json(answer.out)) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((), "run=... is missing"),
        (("run={run}", "format=xml"), "format=xml"),
        (("run={run}", "dat.path=x"), "dat.path=x"),
        (("run={run}", "data.path"), "data.path=<value>"),
        (("run={run}", "data.fraction=0.5"), "data.fraction=0.5"),
        (("run={run}", "data=bundled", "data.path=x"), "data.path"),
        (("run={run}", "trainer.precision=8-foo"), "8-foo"),
    ],
)
def test_eval_answers_wrong_input_with_a_sentence(run, command, given, named):
    refused(command("eval", *(argument.format(run=run.folder) for argument in given)), named)


# ---- predict


@pytest.mark.parametrize(
    ("changes", "one_by_one"),
    [
        (("data.padding=longest",), True),
        pytest.param(("data.padding=none", "data.batch_size=1"), True, marks=pytest.mark.slow),
        (("data.padding=batch", "task.pooling=last_nonpad", "data.batch_size=4"), True),
        (("data.padding=batch", "data.batch_size=4"), False),  # reads padding, so that it depends on its batch
    ],
    ids=["longest", "none", "batch_last_nonpad", "batch_last"],
)
def test_predict_gives_a_test_message_what_the_run_gave_it(home, command, changes, one_by_one):
    run = train(config(home, *LEARNS, *changes))
    texts, rows = [example.text for example in run.data.examples["test"]], predictions(run.folder)
    assert [row["label"] for row in rows] == [example.label for example in run.data.examples["test"]]
    call = ("predict", f"run={run.folder}", "format=jsonl")
    lines = command(*call, stdin="\n".join(texts).encode()).out.splitlines()
    if one_by_one:
        lines += [command(*call, f"text={text}").out for text in texts[:4]]
        texts, rows = [*texts, *texts[:4]], [*rows, *rows[:4]]
    for line, text, row in zip(lines, texts, rows, strict=True):
        prediction = json.loads(line)
        expected = {label: pytest.approx(float(row[f"p_{label}"]), abs=1e-5) for label in ("ham", "spam")}
        assert (prediction["text"], prediction["label"]) == (text, row["predicted"])
        assert prediction["probabilities"] == expected
        assert prediction["probability"] == prediction["probabilities"][row["predicted"]]


def test_predict_reads_a_message_with_its_outer_spaces_as_training_did(home, command, tmp_path):
    rng = random.Random(3)
    rows = [(label, f"  {message(rng, label)} {n}  ") for n in "abcdefgh" for label in ("ham", "spam")]
    run = train(config(home, f"data.path={write_messages(tmp_path / 'spaces.tsv', rows)}", *LEARNS))
    lines = "".join(f"{example.text}\n" for example in run.data.examples["test"]).encode()
    answers = command("predict", f"run={run.folder}", "format=jsonl", stdin=lines).out.splitlines()
    for line, row in zip(answers, predictions(run.folder), strict=True):
        assert json.loads(line)["probabilities"]["spam"] == pytest.approx(float(row["p_spam"]), abs=1e-5)


def test_text_file_and_stdin_give_the_same(run, command, tmp_path):
    texts = ["see you at home", "claim your prize, now"]
    (tmp_path / "messages.txt").write_text("\n".join(texts), encoding="utf-8")
    where = (f"run={run.folder.name}", f"runs={run.folder.parent}")
    by_file = command("predict", *where, f"file={tmp_path / 'messages.txt'}")
    by_stdin = command("predict", *where, "file=-", stdin="\r\n".join(texts).encode())
    by_text = "".join(command("predict", *where, f"text={text}").out for text in texts)
    assert by_file == by_stdin == (0, by_text, "")
    for line, text in zip(by_text.splitlines(), texts, strict=True):
        assert re.fullmatch(rf"(ham|spam)\t[01]\.\d{{3}}\t{text}", line)


@pytest.mark.parametrize("text", ["a, b; c", "\"quoted\" 'twice'", "a=b=c", "run=x", "{x: [1]}", "100% £5 \U0001f600"])
def test_a_message_may_hold_any_character(run, command, text):
    answer = command("predict", f"run={run.folder}", f"text={text}", "format=jsonl")
    assert json.loads(answer.out)["text"] == text
    assert command("predict", f"run={run.folder}", f"text={text}").out.endswith(f"\t{text}\n")


def test_lines_end_alike_in_files_stdin_and_pipes(run, command, tmp_path):
    """At a line feed, with or without a carriage return before it; one alone is part of its message."""
    content, pipe = b"win cash\rnow\r\nsee you\n", tmp_path / "pipe"
    (tmp_path / "messages.txt").write_bytes(content)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True)
    writer.start()
    by_stdin = command("predict", f"run={run.folder}", "format=jsonl", stdin=content)
    assert [json.loads(line)["text"] for line in by_stdin.out.splitlines()] == ["win cash\rnow", "see you"]
    for file in (tmp_path / "messages.txt", pipe):
        assert command("predict", f"run={run.folder}", "format=jsonl", f"file={file}") == by_stdin
    writer.join()


def test_a_message_stays_on_its_line(run, command):
    answer = command("predict", f"run={run.folder}", "text=a\tb\nc\x1b[31m\u2028\\d")
    assert answer.out.split("\t")[2] == "a\\tb\\nc\\x1b[31m\\u2028\\d\n"


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.jsonl", "a.parquet", "a.csv.gz"])
def test_predict_takes_no_table_for_lines(run, command, tmp_path, name):
    (tmp_path / name).write_text("label,text\nham,hi\n")
    answer = command("predict", f"run={run.folder}", f"file={tmp_path / name}")
    assert (answer.status, answer.out) == (2, "")
    assert f"{name} is a table" in answer.error
    assert "text_column=" in answer.error


def shell(line: str, **environment: str) -> Answer:
    """A line of bash, in which `python` is this one and `command` a command line that prints."""
    prints = "import sys; from src.config.command_line import one_sentence\nwith one_sentence():\n    "
    values = {"python": sys.executable, "command": prints, **environment}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=os.environ | values, capture_output=True, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


def test_a_reader_that_has_gone_is_no_fault():
    answer = shell('"$python" -c "$command[print(i) for i in range(99999)]" | head -1; exit ${PIPESTATUS[0]}')
    assert answer == (1, "0\n", "")


def test_a_terminal_that_cannot_show_a_character_shows_its_number():
    answer = shell('"$python" -c "$command print(chr(233), chr(128512))" | od -c', PYTHONIOENCODING="latin-1")
    assert answer.status == 0
    assert "351" in answer.out
    assert "".join(re.findall(r" (\S)(?= )", answer.out)).endswith("U0001f600")


def test_predict_says_how_many_messages_it_cut(run, command):
    answer = command("predict", f"run={run.folder}", stdin=b"win cash\n" + b"ha " * 33 + b"\n")
    assert (answer.status, answer.error) == (0, "1 of 2 messages are longer than 32 tokens and were cut\n")
    assert len(answer.out.splitlines()) == 2


def test_a_broken_line_is_named(run, command, tmp_path):
    file = tmp_path / "messages.txt"
    whole = command("predict", f"run={run.folder}", stdin=b"a\nb\n")
    for line in (b"", b"\xe9"):
        file.write_bytes(b"a\n" + line + b"\nb\n")
        by_file = command("predict", f"run={run.folder}", f"file={file}")
        assert (by_file.status, by_file.out) == (1, whole.out)
        assert by_file.error.startswith(f"error: {file}, line 2: ")
        refused(command("predict", f"run={run.folder}", stdin=line + b"\n"), "stdin, line 1")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("text=a", "file=b"), "text= and file="),
        (("file=nowhere.txt",), "nowhere.txt"),
        (("text=caf\udce9",), "text=, line 1"),
        (("text=",), "text=, line 1"),
        ((), "stdin"),
        (("text=a", "top=3"), "top=3"),
        (("text=a", "format=xml"), "format=xml"),
        (("prompt=a", "text=b"), "prompt= and text="),
        (("prompt=a", "new_tokens=0"), "new_tokens=0"),
    ],
)
def test_predict_answers_wrong_input_with_a_sentence(run, command, given, named):
    refused(command("predict", f"run={run.folder}", *given), named)


def test_a_mark_at_the_start_of_a_file_is_no_part_of_its_first_message(run, command, tmp_path):
    (tmp_path / "messages.txt").write_bytes(b"\xef\xbb\xbfwin cash\n")  # as Windows writes UTF-8
    by_file = command("predict", f"run={run.folder}", f"file={tmp_path / 'messages.txt'}")
    assert by_file == command("predict", f"run={run.folder}", "text=win cash")


@pytest.mark.parametrize(("module", "given"), [("predict", "text=a"), ("predict", "prompt=a"), ("eval", "")])
def test_a_pretrained_gpt_is_not_asked_for_labels(tmp_path, command, module, given):
    (tmp_path / "config.yaml").write_text("corpus: {path: x}\nseed: 1\nscheduler: {}\n")
    (tmp_path / "result.json").write_text('{"config_hash": "x"}')
    answer = command(module, f"run={tmp_path}", *filter(None, [given]))
    refused(answer, f"gpt.weights={tmp_path / 'model'}")
    (tmp_path / "result.json").unlink()
    answer = command(module, f"run={tmp_path}", *filter(None, [given]))
    go_on = f"python -m src.pretrain resume={tmp_path.name} runs={tmp_path.parent}"
    assert answer.error.endswith(f"has not finished: go on with {go_on}\n")


@pytest.mark.parametrize("module", ["predict", "eval"])
def test_a_folder_that_is_no_run_is_refused_with_the_newest_runs(command, tmp_path, module):
    for name in ("20250101", "20250102", "20250103", "20250104", "no_run"):
        (tmp_path / name).mkdir()
        if name != "no_run":
            (tmp_path / name / "config.yaml").touch()
    text = ["text=a"] if module == "predict" else []
    answer = command(module, "run=no_run", f"runs={tmp_path}", *text)
    refused(answer, "20250102, 20250103, 20250104")


# ---- W&B


def inspect(folder: Path, *options: str) -> list[Any]:
    """What the offline W&B run in a run folder holds, as W&B's own reader gives it."""
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder / "wandb")]
    done = subprocess.run(reader, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(done.stdout)] if options else [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def tracked(home: Path) -> Run:
    """A finished run with logger=wandb."""
    run = train(config(home, "logger=wandb", "name=tracked", *LEARNS))
    assert wandb.run is None
    return run


def test_an_offline_wandb_run_holds_the_numbers_of_the_folder(tracked):
    (run,) = inspect(tracked.folder, "--summary")
    result, summary = tracked.result, run["summary"]
    assert (run["run_id"], run["state"], run["exit_code"]) == (tracked.folder.name, "finished", 0)
    config = yaml.safe_load((tracked.folder / "config.yaml").read_text(encoding="utf-8"))
    assert run["config"] | {"callbacks": {}} == config  # W&B leaves out what is empty
    final = {f"final/{part}/{name}": v for part, metrics in result["metrics"].items() for name, v in metrics.items()}
    cost = {f"cost/{name}": v for name, v in result["cost"].items()}
    assert {key: v for key, v in summary.items() if key.startswith(("final/", "cost/"))} == final | cost


def test_an_offline_wandb_run_holds_the_learning_curves(tracked):
    history = [record["history"]["item"] for record in inspect(tracked.folder) if record["type"] == "history"]
    for part in ("train", "validation"):
        for name in ("loss", "accuracy"):
            curve = {item["epoch"]: item[f"{part}/{name}"] for item in history if f"{part}/{name}" in item}
            assert list(curve) == [0, 1]
            if part == "validation":
                best = torch.load(tracked.folder / "checkpoints/best.ckpt", weights_only=True)["epoch"]
                assert curve[best] == pytest.approx(tracked.result["metrics"]["validation"][name], abs=1e-6)


def test_an_offline_wandb_run_holds_the_test_predictions_and_their_confusion(tracked):
    (run,) = inspect(tracked.folder, "--summary")
    files = tracked.folder / "wandb" / "latest-run" / "files"
    tables = {
        name: json.loads((files / run["summary"][f"test/{name}"]["path"]).read_text(encoding="utf-8"))
        for name in ("predictions", "confusion_table")
    }
    rows, labels = predictions(tracked.folder), tracked.result["data"]["labels"]
    assert tables["predictions"]["columns"] == ["text", "label", "predicted", "p_ham", "p_spam"]
    for (text, label, predicted, *p), row in zip(tables["predictions"]["data"], rows, strict=True):
        assert hashlib.sha256(text.encode()).hexdigest() == row["text_sha256"]
        assert (label, predicted) == (row["label"], row["predicted"])
        assert p == pytest.approx([float(row[f"p_{label}"]) for label in labels], rel=1e-5)
    count = Counter((row["label"], row["predicted"]) for row in rows)
    confusion = {(true, guess): n for true, guess, n in tables["confusion_table"]["data"]}
    assert confusion == {(true, guess): count[true, guess] for true in labels for guess in labels}


def test_tracking_does_not_change_the_numbers(tracked, run):
    assert (tracked.folder / "predictions.csv").read_bytes() == (run.folder / "predictions.csv").read_bytes()


def test_an_error_in_training_ends_the_wandb_run(home, tmp_path, monkeypatch):
    interrupt(monkeypatch, config(home, "logger=wandb", f"runs={tmp_path}"), epoch=1, batch=0)
    (folder,) = tmp_path.iterdir()
    assert wandb.run is None
    assert inspect(folder, "--summary")[0]["state"] != "running"


def test_wandb_online_without_an_account_is_refused_in_a_sentence(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where credentials would be
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()  # settings are read from the environment once
    runs = tmp_path / "runs"
    with pytest.raises(InputError, match=r"^W&B: No API key configured.*logger\.wandb\.offline=true"):
        train(config(home, "logger=wandb", "logger.wandb.offline=false", f"runs={runs}"))
    monkeypatch.undo()
    wandb.teardown()
    assert wandb.run is None
    assert not list(runs.glob("*")), "a run that never began left a folder"


@pytest.mark.parametrize(
    ("given", "variables", "mode"),
    [
        ("", {}, "offline"),
        ("", {"WANDB_MODE": "online"}, "online"),
        ("", {"WANDB_MODE": "dryrun"}, "offline"),
        ("", {"WANDB_MODE": "disabled"}, "disabled"),
        ("", {"WANDB_DISABLED": "True"}, "disabled"),
        ("", {"WANDB_DISABLED": "false"}, "offline"),
        ("", {"WANDB_SWEEP_ID": "abc123"}, "online"),  # offline, it would stay empty, and its bayes learn nothing
        ("", {"WANDB_SWEEP_ID": "abc123", "WANDB_MODE": "offline"}, "offline"),
        ("logger.wandb.offline=true", {"WANDB_MODE": "online"}, "offline"),
        ("logger.wandb.offline=false", {"WANDB_MODE": "offline"}, "online"),
        ("logger.wandb.offline=false", {"WANDB_DISABLED": "1"}, "disabled"),
    ],
)
def test_wandb_is_used_as_its_own_variables_say(given, variables, mode, home, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert loggers.wandb_mode(config(home, "logger=wandb", *given.split()).logger.wandb.offline) == mode


@pytest.mark.parametrize("given", ["logger.wandb.offline=abc", "logger.wandb.project=7"])
def test_settings_are_checked_where_another_annotation_cannot_be_read(home, given):
    with pytest.raises(InputError, match=given):
        check_loggers(config(home, "logger=wandb", given))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WANDB_MODE", "off"),
        ("WANDB_DIR", "/nowhere"),
        pytest.param("WANDB_DISABLED", "maybe", marks=pytest.mark.slow),
        pytest.param("WANDB_INIT_TIMEOUT", "soon", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_variable_of_wandb_is_answered_with_a_sentence(variable, value, home, tmp_path, command, monkeypatch):
    wandb.teardown()  # settings are read from the environment once
    monkeypatch.setenv(variable, value)
    answer = command("train", *arguments(home, "logger=wandb", f"runs={tmp_path / 'runs'}"))
    monkeypatch.undo()
    wandb.teardown()
    assert answer.status == 2
    assert answer.error.startswith("error: ")
    assert value in answer.error
    assert list(tmp_path.glob("runs/*")) == []


def test_wandb_is_left_out_where_its_variables_say_so(home, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level("INFO"):
        assert build_loggers(config(home, "logger=wandb"), tmp_path, remove_on_failure=False) == []
    assert "W&B is left out" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_wandb_cannot_take_at_the_end_costs_nothing(home, tmp_path, command, monkeypatch):
    """W&B's name of the table has more than 128 letters here, and its files go elsewhere than those of the run."""
    wandb.teardown()  # settings are read from the environment once
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    answer = command("train", *arguments(home, "logger=wandb", f"name={'x' * 95}", f"runs={tmp_path / 'runs'}"))
    (folder,) = (tmp_path / "runs").iterdir()
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    assert answer.status == 0
    assert (folder / "result.json").is_file()
    assert "W&B could not take all of the run" in answer.out
    assert f"wandb sync {offline}\n" in answer.out
    assert not (tmp_path / "home" / ".local").exists()  # where W&B copies tables to by default
    assert "WANDB_DATA_DIR" not in os.environ
    monkeypatch.undo()
    wandb.teardown()
    (run,) = inspect(tmp_path, "--summary")
    assert run["summary"]["final/test/loss"] == run_dir.load_result(folder)["metrics"]["test"]["loss"]


def test_the_parts_of_a_resumed_run_are_sent_together_oldest_first(tmp_path, capsys):
    parts = [tmp_path / f"offline-run-2026010{day}_000000-mine" for day in (1, 2, 3)]
    for part in (parts[1], parts[0], parts[2], tmp_path / "offline-run-20260101_000000-other"):
        part.mkdir()
    settings = SimpleNamespace(mode="offline", wandb_dir=str(tmp_path))
    logger = Mock(spec=WandbLogger, experiment=SimpleNamespace(settings=settings, id="mine"))
    loggers.show([logger])
    assert capsys.readouterr().out.endswith(f": wandb sync {' '.join(map(str, parts))}\n")


# ---- where the system refuses


def save_torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"x": torch.zeros(10_000)}, file)


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_text("x" * 20_000), save_torch, lambda path: save_file({"x": torch.zeros(10_000)}, path)],
    ids=["text", "torch", "safetensors"],
)
def test_a_file_that_cannot_be_written_whole_is_named_and_not_there(write, tmp_path):
    (path := tmp_path / "file").write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught, whole_file(path) as unfinished:
            write(unfinished)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    assert refusal(caught.value) == f"{path} cannot be written: File too large"


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ("disk full", "cannot be written")),
        (errno.EDQUOT, ("disk full", "cannot be written")),
        (errno.EROFS, ("cannot be written", "Read-only")),
        (errno.EACCES, ("cannot be written", "Permission denied")),
    ],
)
def test_what_the_system_refuses_is_a_sentence_and_leaves_no_run(number, words, home, tmp_path, command, monkeypatch):
    write_text = Path.write_text

    def refuse(path: Path, *given: Any, **named: Any) -> int:
        if "config.yaml" not in path.name:
            return write_text(path, *given, **named)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", refuse)
    answer = command("train", *arguments(home, f"runs={tmp_path}"))
    assert (answer.status, answer.error.count("\n")) == (2, 1)
    assert answer.error.startswith("error: ")
    for word in (*words, str(tmp_path), "config.yaml"):
        assert word in answer.error
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_and_a_file_in_a_folder_s_place_are_sentences(home, tmp_path, command):
    (tmp_path / "file").touch()
    for given, word in (
        ((f"name={'x' * 240}", f"runs={tmp_path / 'runs'}"), "too long"),
        ((f"runs={tmp_path / 'file'}",), f"{tmp_path / 'file'} cannot be written"),
        ((f"runs={tmp_path / 'file' / 'runs'}",), f"{tmp_path / 'file' / 'runs'} cannot be"),
    ):
        answer = command("train", *arguments(home, *given))
        assert answer.status == 2
        assert answer.error.startswith("error: ")
        assert word in answer.error
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv, to be a user without rights")
def test_an_unreadable_file_is_named(run, tmp_path):
    (secret := tmp_path / "secret.txt").write_text("a message")
    secret.chmod(0)
    script = (
        f"from src.files import refusal\ntry: open({str(secret)!r})\nexcept OSError as error: print(refusal(error))"
    )
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("this user may not give up rights")
    assert done.stdout == f"{secret} cannot be read: Permission denied\n"


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_a_notebook_s_backend_of_matplotlib_does_not_matter(backend):
    """torchmetrics imports matplotlib, which refuses a backend that its Python lacks."""
    script = [sys.executable, "-c", "import src.errors, matplotlib"]
    done = subprocess.run(script, cwd=ROOT, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_log_file_holds_a_line_now_and_then(home, tmp_path, monkeypatch, capsys):
    def lines() -> list[str]:
        train(config(home, "data.batch_size=4", f"runs={tmp_path}", "cache=memory"))
        return [
            line for line in capsys.readouterr().out.splitlines() if re.match("epoch|training|valid|frozen|pred", line)
        ]

    assert len(lines()) == 2  # its epochs
    monkeypatch.setattr("src.runs.progress.SECONDS", 0)
    found = lines()
    assert "training: 1 of 11 batches" in found
    assert len(found) > 22
    assert {line.split(":")[0] for line in found if ":" in line} == {
        "training",
        "validation",
        "prediction",
        "frozen blocks",
    }


# ---- the command line


@pytest.mark.parametrize("other", ["seed=1", "~callbacks", "+gpt.dropout=0.1"])
def test_nothing_beside_resume_is_ignored(other):
    with pytest.raises(InputError, match=re.escape(other)):
        check_resume(["resume=x", "runs=y", other])
    check_resume(["resume=x", "runs=y", "trainer.devices=2"], ("trainer.devices=",))
    check_resume(["resume=null", other])


WRONG = [
    ("+experiment=lorra", "last_block"),
    ("gpt=tiny", "small"),
    ("task.trainabel=all", "trainable"),
    ("foo=1", "top level"),
    ("+foo=1", "top level"),
    ("+trainer.foo=1", "limit_train_batches"),
    ("task.trainable=lst", "last_block"),
    ("task.trainable=3_blocks", "task.trainable=3_blocks"),
    ("task.trainable=block_99", "task.trainable=block_99"),
    ("task.head_epochs=2", "task.head_epochs=2"),
    ("task.head_epochs=-1", "task.head_epochs=-1"),
    ("task.head_epochs=true", "task.head_epochs=True"),
    ("task.gradual_unfreezing=1", "task.gradual_unfreezing"),
    ("task.layer_decay=1.5", "task.layer_decay=1.5"),
    ("task.lora.target=heads", "task.lora.target=heads"),
    ("data.path=???", "data.path"),
    ("trainer.precision=8-foo", "8-foo"),
    ("seed=-1", "seed=-1"),
    ("monitor=validation/f1", "monitor=validation/f1"),
    ("threshold=0.9", "threshold=0.9"),
    ("threshold=recall", "threshold=recall"),
    ("positive=eggs", "positive=eggs"),
    ("task.class_weights=[1,2,3]", "task.class_weights"),
    ("task.class_weights=even", "task.class_weights=even"),
    ("patience=soon", "patience=soon"),
    ("patience=-1", "patience=-1"),
    ("data.batch_size=abc", "data.batch_size=abc"),
    ("data.num_workers=1000000000", "data.num_workers=1000000000"),
    ("data.max_length=12.5", "data.max_length=12.5"),
    ("data.max_length=65", "64"),
    ("data.balance=1", "data.balance=1"),
    ("task.lora.rank=x", "task.lora.rank=x"),
    ("gpt.vocab_size=1000", "gpt.vocab_size=1000"),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0"),
    ("trainer.max_epochs=null", "trainer.max_epochs"),
    ("trainer.devices=1000000000000", "trainer.devices=1000000000000"),
    ("trainer.num_nodes=1000000000000", "trainer.num_nodes=1000000000000"),
    ("+trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn"),
    ("+trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch"),
    ("task=null", "classify"),
    ("~gpt.n_layer", "gpt.n_layer"),
    ("~monitor", "monitor="),
    ("gpt.n_embd=1000000000000", "gpt"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val"),
    ("optimizer.lr=.nan", "optimizer.lr"),
    ("data.batch_size=null", "data.batch_size"),
    ("data.path=spam (1).csv", "'data.path=\"spam (1).csv\"'"),
    ("data.instruction=Yes, or no?", "'data.instruction=\"Yes, or no?\"'"),
    ("task.kind=foo", "there is no setting task.kind"),
    ("logger.kind=foo", "there is no setting logger.kind"),
    ("task._target_=foo", "task._target_=foo"),
    ("optimizer._target_=math", "optimizer._target_=math"),
    ("data._target_=torch.nn.Linear", "data"),
    ("resume=nothing", "nothing is no run"),
    ("resume=x", "resume="),  # which takes all settings from the run
]


@pytest.mark.parametrize(
    ("given", "named"), [pytest.param(*case, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, case in enumerate(WRONG)]
)
def test_a_wrong_setting_is_answered_with_a_sentence_and_leaves_no_run(home, tmp_path, command, given, named):
    others = [] if given == "resume=nothing" else arguments(home)
    refused(command("train", *others, f"runs={tmp_path / 'runs'}", given), named)
    assert not (tmp_path / "runs").exists()


def in_a_new_process(*arguments: str, cwd: Path = ROOT) -> Answer:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_the_real_commands_train_and_predict(home, tmp_path):
    trained = in_a_new_process("src.train", *arguments(home, "runs=runs"), cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (trained.status, trained.error) == (0, "")
    assert f"run folder: runs/{folder.name} (result.json, predictions.csv, checkpoints)\n" in trained.out
    assert f'use it:     python -m src.predict run={folder.name} text="..."\n' in trained.out
    predicted = in_a_new_process("src.predict", f"run={folder.name}", "text=win cash", cwd=tmp_path)
    assert (predicted.status, predicted.error) == (0, "")
    assert re.fullmatch(r"(ham|spam)\t0\.\d{3}\twin cash\n", predicted.out)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_a_job_of_a_multirun_that_fails_leaves_the_others(home, tmp_path, command):
    """Overrides may stand on both sides of -m."""
    given = arguments(home, f"runs={tmp_path / 'runs'}", "trainer.max_epochs=1")
    answer = command("train", *given, "-m", "optimizer.lr=1e-3,-1,1e-4")
    assert (answer.status, answer.error.count("optimizer")) == (2, 2)  # the fault, and the job that Hydra names
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2


def test_a_value_in_the_home_folder_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me (1)")
    assert prepared(["a=1", "data.path=~/x.csv", "-m", "b=~"]) == ["-m", "a=1", "data.path='/home/me (1)/x.csv'", "b=~"]


@pytest.mark.slow
def test_a_home_folder_is_meant_in_files_of_settings_and_options_too(home, tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(home / "messages.tsv", tmp_path)
    export(build.build_gpt(config(home)), tmp_path / "gpt")
    cfg = config(home, "trainer.max_epochs=1")
    cfg.data.path, cfg.gpt.weights, cfg.runs = "~/messages.tsv", "~/gpt", "~/runs"
    run = train(cfg)
    assert run.folder.parent == tmp_path / "runs"
    assert command("predict", f"run={run.folder.name}", "runs=~/runs", "text=~/x").out.endswith("\t~/x\n")


@pytest.mark.slow
def test_a_multirun_gives_each_of_its_runs_a_folder_and_a_wandb_run(home, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = command("train", "-m", *arguments(home, "runs=runs", "logger=wandb", "seed=1,2"))
    assert answer.status == 0
    folders = [path.parent for path in (tmp_path / "runs").glob("*/result.json")]
    assert sorted(run_dir.load_result(folder)["seed"] for folder in folders) == [1, 2]
    for folder in folders:
        (run,), result = inspect(folder, "--summary"), run_dir.load_result(folder)
        assert (run["run_id"], run["config"]["seed"], run["state"]) == (folder.name, result["seed"], "finished")
        assert run["summary"]["final/test/loss"] == result["metrics"]["test"]["loss"]
    assert wandb.run is None
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_out_of_an_archive_has_no_model_to_restore(run, tmp_path):
    for name in ("config.yaml", "result.json"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    with pytest.raises(InputError, match=r"has no checkpoint: runs in archives come without them"):
        build.restore(tmp_path)


def test_the_metrics_table_fits_80_columns_with_full_names(capsys):
    names = ["accuracy", "f1", "mcc", "auroc", "ece", "loss", "generated_accuracy", "valid_rate"]
    splits = ["train", "validation", "test", *(f"test, {task}" for task in ("spam", "sentiment", "news"))]
    metrics = {split: dict.fromkeys(names, -0.123456) for split in splits}
    printed_table.show_metrics("a title", metrics, dict.fromkeys(splits, 12345))
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    assert all(name in said for name in [*names, "messages", "sentiment", "validation", "news"])
    assert "…" not in said
