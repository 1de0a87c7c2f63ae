"""The engine: what a worker does with a trial, what becomes of those that fail, and of workers that die."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster

from src.errors import InputError
from src.runs import run_dir
from src.runs.lock import RunLockedError, run_lock
from src.sweeps import do_trial, engine, study
from src.sweeps.engine import Board, Engine
from src.sweeps.study import Trial
from tests.sweeps import tiny


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A worker in a thread of this process."""
    given: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(processes=False, silence_logs=50, **given) as cluster, Client(cluster) as client:
        yield client


def sweep(client: Client, trials: dict[str, Trial], runs: Path, retries: int = 1) -> dict[str, str]:
    return Engine(client, runs, retries, Board("tiny", len(trials), 0)).run(trials)


# ---- a trial


@pytest.mark.slow
def test_a_worker_does_what_src_train_does(undisturbed, tmp_path):
    path, expected = undisturbed
    trials = tiny.keyed(study.read(path))
    for key, trial in trials.items():
        assert do_trial.do(key, trial, str(tmp_path)).startswith("test accuracy ")
    assert tiny.outcomes(tmp_path) == expected
    do_trial.do(key, trial, str(tmp_path))
    assert tiny.outcomes(tmp_path) == expected
    assert "epoch 2/2" in (tmp_path / ".sweep" / key[:16] / "log").read_text(encoding="utf-8")


def test_a_trial_that_was_killed_is_gone_on_with(undisturbed, tmp_path):
    path, expected = undisturbed
    key, trial = next(iter(tiny.keyed(study.read(path)).items()))
    # a fork, for it has all imports already
    process = multiprocessing.get_context("fork").Process(target=do_trial.do, args=(key, trial, str(tmp_path)))
    process.start()
    last = tiny.wait_for(lambda: next(tmp_path.glob("*/checkpoints/last.ckpt"), None))
    os.kill(process.pid or 0, signal.SIGSTOP)
    with pytest.raises(RunLockedError):  # it lives: nobody else may go on with it
        do_trial.do(key, trial, str(tmp_path))
    process.kill()
    process.join()
    assert study.finished(tmp_path) == {}
    do_trial.do(key, trial, str(tmp_path))
    assert study.finished(tmp_path) == {key: last.parents[1]}
    assert tiny.outcomes(tmp_path)[key] == expected[key]


# ---- many of them


class Trained:
    """Stands in for src.train: fails as often as told, and keeps what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **failures: list[Exception]) -> None:
        self.failures, self.calls = failures, list[Any]()
        monkeypatch.setattr("src.train.train", self)
        monkeypatch.setattr(engine, "PAUSE", 0.1)

    def __call__(self, cfg: Any) -> Any:
        self.calls.append(cfg)
        folder = Path(cfg.runs) / cfg.resume if cfg.resume else run_dir.create(cfg)
        if left := self.failures.get(cfg.task.trainable, []):
            raise left.pop(0)
        metrics, cost = {"test": {"accuracy": 0.5}}, {"train_seconds": 1.0}
        result = {"config_hash": run_dir.config_hash(cfg), "metrics": metrics, "cost": cost}
        run_dir.write_text(folder / "result.json", json.dumps(result))
        return type("Run", (), {"folder": folder})


@pytest.fixture
def two(messages: Path, tmp_path: Path) -> dict[str, Trial]:
    given = tiny.content(messages, {"task.trainable": ["last_block", "all"]})
    return tiny.keyed(study.read(tiny.write(tmp_path, given)))


def test_a_failed_run_is_tried_again_where_it_stopped(client, two, tmp_path, monkeypatch):
    trained = Trained(monkeypatch, last_block=[OSError("a"), OSError("b")])
    assert sweep(client, two, tmp_path / "runs", retries=2) == {}
    assert sorted(cfg.task.trainable for cfg in trained.calls) == ["all"] + ["last_block"] * 3
    assert study.finished(tmp_path / "runs").keys() == two.keys()
    assert len(list((tmp_path / "runs").glob("*/config.yaml"))) == 2


@pytest.mark.parametrize(
    ("error", "tries", "words"),
    [(OSError("disk\nfull"), 2, "OSError: disk full; tried 2 times"), (InputError("became NaN"), 1, "became NaN")],
)
def test_a_run_that_goes_on_failing_is_given_up_alone(client, two, tmp_path, monkeypatch, capsys, error, tries, words):
    trained = Trained(monkeypatch, last_block=[error] * 9)
    failed = sweep(client, two, tmp_path / "runs")
    first, second = two
    assert list(failed) == [first]
    assert words in failed[first]
    assert [cfg.task.trainable for cfg in trained.calls].count("last_block") == tries
    assert set(study.finished(tmp_path / "runs")) == {second}
    lines = capsys.readouterr().err.splitlines()
    done = "task.trainable=all: test accuracy 50.00%, 1 s of training"
    assert any(done in line for line in lines)
    assert any(f"task.trainable=last_block: failed, {failed[first]}" in line for line in lines)


def test_a_run_that_another_sweep_is_at_waits_and_holds_up_no_other(client, two, tmp_path, monkeypatch):
    trained = Trained(monkeypatch)
    first, _ = two
    desk = tmp_path / "runs" / ".sweep" / first[:16]
    desk.mkdir(parents=True)
    with contextlib.ExitStack() as theirs:
        theirs.enter_context(run_lock(desk))
        ended = Board.ended
        monkeypatch.setattr(Board, "ended", lambda *words: (theirs.close(), ended(*words)))
        assert sweep(client, two, tmp_path / "runs") == {}
    assert [cfg.task.trainable for cfg in trained.calls] == ["all", "last_block"]


def test_workers_that_do_not_see_the_runs_are_named_before_anything_starts(client, two, tmp_path, monkeypatch, capsys):
    trained, (worker,) = Trained(monkeypatch), client.nthreads()
    monkeypatch.setattr(engine, "sees", lambda runs, token: False)
    with pytest.raises(InputError, match="none of the workers"):
        sweep(client, two, tmp_path / "runs")
    assert f"{worker} does not see {tmp_path / 'runs'}" in capsys.readouterr().err
    assert trained.calls == []
    assert list((tmp_path / "runs" / ".sweep").iterdir()) == []


@pytest.mark.slow
def test_workers_of_this_machine_have_their_share_and_those_that_die_are_replaced(tmp_path, monkeypatch, capsys):
    """A trial that kills its worker each time is given up; the others are none the worse for it."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(engine, "do", tiny.die_or_answer)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trials = {f"{i}": Trial({"n": i, "kills": i == 1}, ()) for i in range(8)}
    before = listening()
    with engine.local_workers(None, "127.0.0.1") as client:
        ours = listening() - before
        surroundings = client.run(tiny.surroundings)
        failed = sweep(client, trials, tmp_path)
        assert engine.dashboard(client).startswith("http://127.0.0.1:")
    assert list(failed) == ["1"]
    assert "worker died" in failed["1"]
    assert "tried 2 times" in failed["1"]
    assert capsys.readouterr().err.count(": answered") == 7
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert set(surroundings.values()) == {(share, "0", False), (share, "1", False)}
    assert {place.ip for place in ours} == {"127.0.0.1"}


def listening() -> set[Any]:
    """Where this process and its workers listen."""
    me = psutil.Process()
    found = (socket for one in (me, *me.children(recursive=True)) for socket in one.net_connections())
    return {socket.laddr for socket in found if socket.status == psutil.CONN_LISTEN}


def test_a_scheduler_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.setattr(engine, "ANSWER", 0.2)
    with pytest.raises(InputError, match="does not answer"):
        engine.connect("tcp://127.0.0.1:9")


def test_the_time_left_follows_from_what_was_done_since_the_start(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(engine, "monotonic", lambda: now)
    board = Board("mini", 10, 4)
    now = 160.0
    board.ended("a=1", "fine")
    now = 340.0
    board.ended("a=2", "failed, no [data]")
    told = ["[5/10] a=1: fine; about 05:00 left", "[6/10] a=2: failed, no [data]; about 08:00 left"]
    assert capsys.readouterr().err.splitlines() == told


def test_only_a_sweep_imports_dask():
    code = "import sys, src.sweep, src.report, src.train; print({'dask', 'distributed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
