"""A run on several devices: the numbers of one with the same global batch, and one run folder; on CPU, by gloo."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src import ranks
from src.config.command_line import compose
from src.data.batching import Messages
from src.data.sharding import Shard
from src.errors import InputError
from src.finetune.feature_store import FeatureStore
from src.gpt.model import GPT
from src.pretrain import pretrain
from src.pretraining import held_out
from src.runs import devices, run_dir
from src.sweeps import study
from src.sweeps.do_trial import do
from src.sweeps.study import Trial
from src.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ROOT = Path(__file__).parents[1]
TINY = (
    "gpt.weights=random gpt.n_layer=2 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=64 trainer.max_epochs=2 "
    "trainer.accelerator=cpu trainer.precision=64-true optimizer.lr=1e-2 logger=none"
)
PRETRAINING = (
    "gpt.n_layer=2 gpt.n_head=2 gpt.n_embd=16 gpt.context_length=32 trainer.accelerator=cpu trainer.precision=64-true "
    "window=8 max_steps=10 validate_every=4 validation_batches=2 checkpoint_every=3 optimizer.lr=1e-2 logger=none "
    "prompts=[]"
)
WORDS = {"ham": "lunch home later tea see you soon ok", "spam": "free prize win cash urgent call now claim"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with messages.tsv, of which 41 are trained on: batches of 8 leave one alone, and a rank without any."""
    folder, rng = tmp_path_factory.mktemp("devices"), random.Random(0)
    rows = [
        (label, f"{' '.join(rng.choices(WORDS[label].split(), k=rng.randint(3, 12)))} {i}")
        for i in range(30)
        for label in WORDS
    ]
    text = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows[:-1])
    (folder / "messages.tsv").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("src.pretraining.throughput.measured_peak", lambda *_: 1e12)  # which takes seconds
        yield folder


def overrides(home: Path, name: str, *more: str) -> list[str]:
    data = [] if "data=mix" in more else ["data=table", f"data.path={home / 'messages.tsv'}"]
    return [*TINY.split(), *data, f"runs={home}", f"cache.folder={home / name}", f"name={name}", *more]


def run_one(home: Path, name: str, *more: str) -> None:
    cfg = compose("train", overrides(home, name, *more))
    train(cfg)


def pretraining(home: Path, name: str, *more: str) -> list[str]:
    texts = (home / "messages.tsv").read_text().splitlines()
    for part, some in (("train", texts[:44]), ("held_out", texts[44:])):
        lines = (json.dumps({"source": "ab"[i % 2], "text": text}) + "\n" for i, text in enumerate(some))
        (home / f"{part}.jsonl").write_text("".join(lines))
    places = [f"corpus.path={home}/train.jsonl", f"corpus.validation_path={home}/held_out.jsonl"]
    return [*PRETRAINING.split(), *places, f"corpus.cache={home}", f"runs={home}", f"name={name}", *more]


def pretrain_one(home: Path, name: str, *more: str) -> None:
    pretrain(compose("pretrain", pretraining(home, name, *more)))


def on_two(do: Callable[[], Any]) -> None:
    """Call `do` in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def begin(rank: int) -> None:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        do()

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=begin, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def folder_of(home: Path, name: str) -> Path:
    (found,) = home.glob(f"????????-??????-{name}-*")
    return found


def trained(folder: Path, which: str = "last") -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "checkpoints" / f"{which}.ckpt")["state_dict"]
    return found


def assert_same_run(one: Path, two: Path, atol: float = 1e-9) -> None:
    for which in ("best", "last"):
        ours, theirs = trained(one, which), trained(two, which)
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(theirs[name], weight, rtol=0, atol=atol)
    assert (two / "predictions.csv").read_text() == (one / "predictions.csv").read_text()
    ours, theirs = (run_dir.read_json(folder / "result.json") for folder in (one, two))
    assert theirs["config_hash"] == ours["config_hash"]
    for part, metrics in ours["metrics"].items():
        assert theirs["metrics"][part] == pytest.approx(metrics, abs=1e-6)
    for cost in ("train_flops", "train_tokens", "features_flops"):  # a share whose padding nobody reads is narrower
        assert 0.95 * ours["cost"][cost] <= theirs["cost"][cost] <= ours["cost"][cost]


MIX = ["task=instruct", "data=mix", *(f"~data.sources.{name}" for name in ("spam", "sentiment", "news"))]
for source, question in (("mail", "Is it spam?"), ("kind", "Ham or spam?")):
    MIX += [f"+data@data.sources.{source}=table", f"data.sources.{source}.instruction='{question}'"]
    MIX += [f"data.sources.{source}.path={{home}}/messages.tsv"]

CASES = {
    "block": [],
    "off": ["cache=off"],
    "memory": ["cache=memory"],
    "head": ["task.trainable=last_layer"],
    "all": ["task.trainable=all", "trainer.accumulate_grad_batches=2"],
    "lora": ["task.trainable=lora", "trainer.gradient_clip_val=0.1"],
    "batch": ["data.padding=batch"],
    "real": ["task.pooling=last_nonpad", "data.padding=batch"],
    "stages": ["task.trainable=all", "task.head_epochs=1", "task.layer_decay=0.5", "trainer.max_epochs=3"],
    "instruct": ["task=instruct"],
    "instruct-off": ["task=instruct", "cache=off", "data.padding=batch"],
    "instruct-head": ["task=instruct", "task.trainable=last_layer"],
    "weights": ["task.class_weights=[1,3]", "monitor=validation/average_precision", "threshold=f1"],
    "mix": MIX,
}


FAST = ("block",)


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_two_devices_are_one_with_the_same_global_batch(case, home):
    extra = [part.format(home=home) for part in CASES[case]]
    run_one(home, f"{case}1", "data.batch_size=8", *extra)
    on_two(lambda: run_one(home, f"{case}2", "data.batch_size=4", "trainer.devices=2", *extra))
    assert_same_run(folder_of(home, f"{case}1"), folder_of(home, f"{case}2"))


@pytest.mark.slow
@pytest.mark.parametrize("padded", [0.0, 0.4])
def test_pretraining_on_two_devices_is_that_on_one(padded, home):
    given = f"padded={padded}"
    pretrain_one(home, f"text1{padded}", "batch_size=8", given)
    on_two(lambda: pretrain_one(home, f"text2{padded}", "batch_size=4", "trainer.devices=2", given))
    assert_same_pretraining(folder_of(home, f"text1{padded}"), folder_of(home, f"text2{padded}"))


def assert_same_pretraining(one: Path, two: Path) -> None:
    for name, weight in trained(one).items():
        torch.testing.assert_close(trained(two)[name], weight, rtol=0, atol=1e-6)  # this loss is in fp32
    ours, theirs = (run_dir.read_json(folder / "result.json") for folder in (one, two))
    assert theirs["config_hash"] == ours["config_hash"]
    for cost in ("train_tokens", "train_flops"):
        assert theirs["cost"][cost] == ours["cost"][cost]
    for key in ("train_loss", "validation_loss", "step", "tokens", "lr"):
        assert [row[key] for row in theirs["curve"]] == pytest.approx([row[key] for row in ours["curve"]], rel=1e-6)
    for part in ("validation", "bigram"):
        for source, measured in ours["metrics"][part].items():
            assert theirs["metrics"][part][source] == pytest.approx(measured, rel=1e-6)


def begin(entry: str, *given: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", f"src.{entry}", *given]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment)


def wait_for(process: "subprocess.Popen[str]", sign: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if sign in line:
            return
    raise AssertionError(process.communicate()[1])


def other_of(process: "subprocess.Popen[str]") -> psutil.Process:
    (other,) = (one for one in psutil.Process(process.pid).children() if "src." in " ".join(one.cmdline()))
    return other


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "devices"), [("first", 1), ("other", 2)])
def test_a_kill_of_one_process_ends_all_and_the_run_goes_on_to_the_same_weights(victim, devices, home):
    given = ["trainer.max_epochs=6", "task.trainable=all"]
    run_one(home, f"straight-{victim}", "data.batch_size=8", *given)
    name = f"killed-{victim}"
    process = begin("train", *overrides(home, name, "data.batch_size=4", "trainer.devices=2", *given))
    wait_for(process, "epoch 2/6")
    other = other_of(process)
    os.kill(process.pid if victim == "first" else other.pid, signal.SIGKILL)
    error = process.communicate(timeout=15)[1]
    assert process.returncode != 0
    psutil.wait_procs([other], timeout=15)
    assert not other.is_running()
    folder = folder_of(home, name)
    if victim == "other":
        assert "killed by signal 9" in error
        assert f"resume={folder.name}" in error
    assert not (folder / "result.json").exists()
    resumed = begin("train", f"resume={folder.name}", f"runs={home}", f"trainer.devices={devices}")
    out, error = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, error
    assert f"run folder: {folder}" in out
    assert_same_run(
        folder_of(home, f"straight-{victim}"), folder, atol=1e-7
    )  # the loss is in fp32, six epochs are many


@pytest.mark.slow
def test_pretraining_that_was_killed_on_two_devices_goes_on_on_one(home):
    pretrain_one(home, "text-straight", "batch_size=8", "max_steps=60")
    given = pretraining(home, "text-killed", "batch_size=4", "max_steps=60", "trainer.devices=2")
    process = begin("pretrain", *given)
    wait_for(process, "step 12:")
    other_of(process).kill()
    process.communicate(timeout=15)
    assert process.returncode != 0
    folder = folder_of(home, "text-killed")
    resumed = begin("pretrain", f"resume={folder.name}", f"runs={home}", "trainer.devices=1")
    error = resumed.communicate(timeout=120)[1]
    assert resumed.returncode == 0, error
    assert run_dir.read_json(folder / "result.json")["curve"][0]["step"] == 4
    assert_same_pretraining(folder_of(home, "text-straight"), folder)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["budget_minutes=0.05", "num_sampled=50", "gpt.dropout=0.2"])
def test_what_two_devices_do_on_their_own_leaves_them_with_one_model(given, home, tmp_path):
    """A clock, words of the vocabulary, dropout."""
    more = ["max_steps=null"] if "minutes" in given else []

    def train_and_compare() -> None:
        measure = held_out.losses_by_source

        def compared(gpt: GPT, *rest: Any) -> Any:
            first, second = ranks.gathered(torch.cat([weight.detach().flatten() for weight in gpt.parameters()]))
            assert torch.equal(first, second)
            return measure(gpt, *rest)

        held_out.losses_by_source = compared
        pretrain_one(tmp_path, "own", "batch_size=4", "trainer.devices=2", given, *more)

    (tmp_path / "messages.tsv").write_bytes((home / "messages.tsv").read_bytes())
    on_two(train_and_compare)
    assert run_dir.has_finished(folder_of(tmp_path, "own"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_ends_them_with_one_sentence(number, status, home):
    name = f"signal{status}"
    process = begin("train", *overrides(home, name, "trainer.devices=2", "trainer.max_epochs=100"))
    wait_for(process, "epoch 2/100")
    other = other_of(process)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=15)[1]
    assert (process.returncode, error.count("interrupted: ")) == (status, 1)
    assert f"resume={folder_of(home, name).name}" in error
    psutil.wait_procs([other], timeout=15)
    assert not other.is_running()


@pytest.mark.slow
def test_a_wrong_number_in_training_is_told_once_with_status_2(home):
    given = ("trainer.devices=2", "optimizer.lr=1e30", "task.trainable=all", "trainer.precision=32-true")
    process = begin("train", *overrides(home, "diverges", *given))
    error = process.communicate(timeout=120)[1]
    assert (process.returncode, error.count("infinite or NaN")) == (2, 1)


@pytest.mark.slow
def test_a_multirun_refuses_several_devices_and_a_sweep_runs_them(home):
    process = begin("train", "-m", *overrides(home, "many", "trainer.devices=2", "seed=1,2"))
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "multirun" in error
    assert not list(home.glob("*-many-*"))
    trial = Trial({}, tuple(overrides(home, "swept", "trainer.devices=2", "data.batch_size=4")))
    cfg = study.config(trial)
    assert "test accuracy" in do(key := run_dir.config_hash(cfg), trial, str(home / "swept"))
    (folder,) = (home / "swept").glob("*-swept-*")
    result = run_dir.read_json(folder / "result.json")
    assert result["config_hash"] == key
    assert result["environment"]["device"].startswith("2 x cpu")


def test_identity_holds_the_global_batch_and_not_the_devices(home):
    def key(*more: str) -> str:
        return run_dir.config_hash(compose("train", overrides(home, "any", *more)))

    one = key("data.batch_size=8")
    assert key("data.batch_size=4", "trainer.devices=2") == one
    assert key("data.batch_size=2", "trainer.devices=2", "trainer.num_nodes=2") == one
    assert key("data.batch_size=1", "trainer.devices='0,1,2,3,4,5,6,7'") == one
    assert key("data.batch_size=4", "trainer.devices=[0,1]", "+trainer.strategy=ddp") == one
    assert key("data.batch_size=8", "trainer.devices=auto") == one
    assert key("data.batch_size=8", "trainer.devices=[1]") == one
    assert key("data.batch_size=8", "trainer.devices=2") != one
    assert key("data.batch_size=4") != one


@pytest.mark.parametrize(("given", "batch_size"), [((2, 1), 4), ((4, 2), 1), ((1, 1), 8), ((3, 1), None)])
def test_a_run_goes_on_with_its_global_batch_or_not_at_all(given, batch_size):
    before = {"data": {"batch_size": 2, "padding": "batch"}, "trainer": {"devices": 4, "num_nodes": 1}}
    cfg: Any = OmegaConf.create(before)
    trainer: Any = SimpleNamespace(num_devices=given[0], num_nodes=given[1], world_size=given[0] * given[1])
    devices.move(cfg, {"devices": given[0], "num_nodes": given[1]})
    if batch_size is None:
        with pytest.raises(InputError, match="batches of 8"):
            devices.settle(cfg, trainer, before)
        return
    devices.settle(cfg, trainer, before)
    assert (cfg.data.batch_size, devices.global_batch_of(cfg)) == (batch_size, 8)


@pytest.mark.parametrize(("given", "kept"), [("auto", 1), (-1, 1), ([1], [1]), ("1,", "1,"), (1, 1)])
def test_a_run_that_asks_for_all_devices_keeps_how_many_and_another_which(given: Any, kept: Any) -> None:
    cfg: Any = OmegaConf.create({"data": {"batch_size": 2}, "trainer": {"devices": given, "num_nodes": 1}})
    trainer: Any = SimpleNamespace(num_devices=1, num_nodes=1, world_size=1)
    devices.settle(cfg, trainer)
    assert cfg.trainer.devices == kept


def test_features_that_several_ranks_wrote_are_read_by_any_number(tmp_path: Path) -> None:
    store, key = FeatureStore(tmp_path, 1e9), "ab" * 32
    rows = {number: torch.full((2, 3), float(number)) for number in range(7)}
    for rank in range(3):
        assert store.open(key) is None
        own = list(rows)[rank::3]
        store.write(key, {"flops": 5}, lambda add, own=own: add(own, [rows[n] for n in own]), rank, 3)
    found = store.open(key)
    assert found
    assert found[0].keys() == rows.keys()
    assert all(torch.equal(found[0][number], row) for number, row in rows.items())
    store.path(key, 1, 3).unlink()
    assert store.open(key) is None


@pytest.mark.parametrize("padding", ["fixed", "batch", "free", "none"])
def test_shards_are_the_rows_of_a_batch_once_and_as_wide_as_all_of_them(padding):
    messages = Messages(
        [[1] * n for n in (3, 9, 4, 5, 2)], [0, 1, 0, 1, 1], 12 if padding == "fixed" else None, padding
    )
    shards = [Shard(messages, rank, 4)[[4, 1, 3]] for rank in range(4)]
    assert [shard.row.tolist()[: shard.counted] for shard in shards] == [[4], [1], [3], []]
    assert all(shard.whole is not None and shard.whole.tolist() == [1, 1, 1] for shard in shards)
    width = {"fixed": [12] * 4, "batch": [9] * 4}.get(padding, [2, 9, 5, 2])
    assert [shard.ids.shape for shard in shards] == [(1, n) for n in width]
