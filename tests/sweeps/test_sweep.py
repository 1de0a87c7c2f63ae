"""The command: what it refuses, what it shows, and studies whose workers, sweeps and schedulers are killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster

from src import sweep
from src.errors import InputError
from src.runs import run_dir
from src.sweeps import engine, study
from tests.sweeps import tiny
from tests.sweeps.tiny import content, outcomes, start, wait_for, write

METRIC = {"name": "final/validation/accuracy", "goal": "maximize"}


def test_shards_share_the_runs_of_a_study_out(tmp_path, messages):
    asked = study.read(write(tmp_path, content(messages, {"seed": [1, 2, 3, 4, 5]})))
    whole = [trial.label for trial in sweep.plan(asked, tmp_path, "1/1").values()]
    assert whole == [f"seed={seed}" for seed in (1, 2, 3, 4, 5)]
    parts = [[trial.label for trial in sweep.plan(asked, tmp_path, f"{i}/3").values()] for i in (1, 2, 3)]
    assert parts == [whole[0::3], whole[1::3], whole[2::3]]
    for shard in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(InputError, match=f"shard={shard}"):
            sweep.plan(asked, tmp_path, shard)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        *(("{study} workers=0", "workers=0"), ("{study} retries=x", "retries=x"), ("{study} worker=2", "'worker=2'")),
        *(("{study} scheduler=here", "scheduler=here"), ("{study} scheduler=tcp://127.0.0.1:1 workers=2", "workers=")),
        *(
            ("", "give a study"),
            ("{study} no.yaml", "there is no study"),
            ("{bayes} workers=2", "method: bayes"),
        ),
    ],
)
def test_a_wrong_command_is_answered_with_a_sentence(tmp_path, messages, monkeypatch, arguments, word):
    bayes = content(messages, {"seed": [1]}, method="bayes", run_cap=2, metric=METRIC)
    files = {"study": write(tmp_path, content(messages, {"seed": [1]})), "bayes": write(tmp_path, bayes, "bayes")}
    monkeypatch.setattr(sys, "argv", ["sweep", *(argument.format(**files) for argument in arguments.split())])
    with pytest.raises(InputError, match=f"^{re.escape(word)}"):
        sweep.main()


@contextmanager
def worker_here(n: int | None, host: str) -> Iterator[Client]:
    """Stands in for local_workers: a worker in a thread of this process, which has all imports already."""
    given: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(processes=False, silence_logs=50, **given) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`python -m src.sweep <arguments>` from this process: its status and what it prints."""
    monkeypatch.setattr(engine, "local_workers", worker_here)
    monkeypatch.setattr(engine, "dashboard", lambda client: "http://127.0.0.1:8787")

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            sweep.main()
        except SystemExit as exit:
            status = int(exit.code or 0)
        return status, *capsys.readouterr()

    return run


def test_the_command_runs_a_study_shows_what_ends_and_does_nothing_twice(messages, tmp_path, call):
    path, runs = write(tmp_path, content(messages, {"optimizer.lr": [0.01, 1e30]})), tmp_path / "all runs"
    status, out, error = call(path, f"runs={runs}")
    assert status == 1
    assert out.startswith("tiny: 2 runs, 0 have finished\nDask's dashboard: http://127.0.0.1:8787; logs in ")
    first, second, last = (line for line in error.splitlines() if line.startswith(("[", "missing")))
    accuracy = r"test accuracy \d+\.\d\d%, \d+ s of training; about .* left"
    assert re.fullmatch(rf"\[1/2\] optimizer\.lr=0\.01: {accuracy}", first)
    assert second.startswith("[2/2] optimizer.lr=1e+30: failed, the loss became infinite or NaN")
    assert last.startswith("missing: optimizer.lr=1e+30: the loss became infinite or NaN")
    before = outcomes(runs)
    assert len(before) == 1

    path = write(tmp_path, content(messages, {"optimizer.lr": [0.01]}))
    again = write(tmp_path, content(messages, {"optimizer.lr": [0.01], "seed": [123]}), "again")
    status, out, error = call(path, again, f"runs={runs}")
    assert (status, error) == (0, "")
    assert out.startswith(f"checked {path}: 1 runs\nchecked {again}: 1 runs\ntiny: 1 runs, 1 have finished\nagain: 1 ")
    assert re.search(r"^all have finished in 0:00:\d\d: python -m src\.report ", out, re.MULTILINE)
    assert out.endswith(f"{path} {again} 'runs={runs}'\n")
    assert outcomes(runs) == before


def test_studies_run_one_after_the_other_and_what_is_missing_is_said_at_the_end(messages, tmp_path, call):
    fails = write(tmp_path, content(messages, {"optimizer.lr": [1e30]}), "fails")
    works = write(tmp_path, content(messages, {"optimizer.lr": [0.01]}), "works")
    status, out, error = call(fails, works, fails, f"runs={tmp_path / 'runs'}")
    assert status == 1
    assert len(outcomes(tmp_path / "runs")) == 1
    assert re.findall(r"^(\w+): 1 runs", out, re.MULTILINE) == ["fails", "works"]
    assert error.splitlines()[-1].startswith("missing: fails: the run: the loss became infinite or NaN")


def test_bayes_runs_one_after_the_other(messages, tmp_path, call, monkeypatch):
    pytest.importorskip("optuna")

    def do(key: str, trial: study.Trial, runs: str) -> str:
        (cfg := study.config(trial)).runs = runs
        result = {"config_hash": key, "metrics": {"validation": {"accuracy": cfg.gpt.dropout}}}
        run_dir.write_text(run_dir.create(cfg) / "result.json", json.dumps(result))
        return "fine"

    monkeypatch.setattr(engine, "do", do)
    given = content(messages, {}, method="bayes", metric=METRIC, run_cap=3)
    given["parameters"] = {"gpt.dropout": {"min": 0.0, "max": 0.5}}
    path = write(tmp_path, given)
    status, _, error = call(path, f"runs={tmp_path}")
    assert (status, error.count(": fine")) == (0, 3)
    assert len(study.finished(tmp_path)) == len(study.trials(study.read(path), tmp_path)) == 3
    assert call(path, f"runs={tmp_path}")[1].startswith("tiny: 3 runs, 3 have finished\nall have finished")


# ---- processes that are killed


def sweeping(path: Path, runs: Path, *more: str) -> "subprocess.Popen[str]":
    return start("src.sweep", path, f"runs={runs}", *(more or ("workers=2",)))


def finish(process: "subprocess.Popen[str]") -> None:
    out, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, out


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The worker processes of a sweep, or of a `dask worker`."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        return [one for one in family if "spawn_main" in " ".join(one.cmdline())]
    return []


def signs(runs: Path) -> set[Path]:
    return {*runs.glob("*/*"), *runs.glob("*/checkpoints/*")}


@pytest.mark.slow
def test_sixteen_random_kills_of_workers_and_sweeps_change_nothing(undisturbed, tmp_path):
    """A worker, the sweep, or the whole group is killed at a random moment after a first sign of work: first too early
    for the study to be done, and later and later, so that it will be, on whatever machine."""
    path, expected = undisturbed
    rng, kills, studies = random.Random(0), 0, 0
    while kills < 16:
        runs, early = tmp_path / f"{studies}", 0
        studies += 1
        process = sweeping(path, runs, "workers=2", "retries=99")
        while True:
            seen = signs(runs)
            while process.poll() is None and signs(runs) == seen:
                time.sleep(0.05)
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 1 + early))
                break
            victims, kind = workers_of(process), rng.choice(["worker", "sweep", "group"])
            kills, early = kills + 1, early + 1
            if kind == "worker" and victims:
                with suppress(psutil.NoSuchProcess):
                    rng.choice(victims).kill()
                continue
            process.kill() if kind == "sweep" else os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            assert psutil.wait_procs(victims, timeout=60)[1] == [], "a killed sweep leaves no worker behind"
            process = sweeping(path, runs, "workers=2", "retries=99")
        finish(process)
        assert outcomes(runs) == expected
        assert len(list(runs.glob("*/config.yaml"))) == len(expected), "each run has one folder"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_stopped_says_what_is_missing_and_how_to_go_on(undisturbed, tmp_path, number, status):
    path, expected = undisturbed
    process = sweeping(path, tmp_path)
    wait_for(lambda: list(tmp_path.glob("*/checkpoints")))
    workers = workers_of(process)
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
    else:
        process.terminate()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == status, out
    assert "Traceback" not in out
    assert re.search(r"^stopped; \d runs are missing: .*task\.trainable=all seed=2", out, re.MULTILINE)
    assert out.endswith(f"go on with python -m src.sweep {path} runs={tmp_path} workers=2\n")
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    finish(sweeping(path, tmp_path))
    assert outcomes(tmp_path) == expected


@contextmanager
def dask(*commands: list[Any]) -> Iterator[list["subprocess.Popen[str]"]]:
    """`dask scheduler` and `dask worker`s, as one starts them by hand."""
    processes = [start("dask", *command, DASK_DISTRIBUTED__WORKER__DAEMON="False") for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def scheduler(file: Path, *more: str) -> list[Any]:
    return ["scheduler", "--no-dashboard", "--port", "0", "--scheduler-file", file, *(more or ("--host", "127.0.0.1"))]


def worker(file: Path, *more: str) -> list[Any]:
    return ["worker", "--scheduler-file", file, "--nthreads", "1", "--memory-limit", "0", "--no-dashboard", *more]


def address(file: Path) -> str:
    return f"scheduler={json.loads(wait_for(lambda: file.is_file() and file.read_text()))['address']}"


@pytest.mark.slow
def test_one_worker_two_and_two_that_were_started_by_hand_give_the_same_table(undisturbed, messages, tmp_path):
    """Two studies; a worker by hand is paused for a minute, and one is killed, which costs nothing but time."""
    first, expected = undisturbed
    given = content(messages, {"task.pooling": ["last", "last_nonpad"], "seed": [1]}, command=None)
    given["command"] = content(messages, {})["command"]
    second = write(tmp_path, given, "second")
    tables: list[dict[str, bytes]] = []
    for workers in ("workers=1", "workers=2"):
        for path in (first, second):
            finish(sweeping(path, tmp_path / workers, workers))
        tables.append(outcomes(tmp_path / workers))
    runs, file = tmp_path / "by hand", tmp_path / "scheduler.json"
    with dask(scheduler(file), worker(file), worker(file)) as (_, one, two):
        process = sweeping(first, runs, address(file))
        wait_for(lambda: list(runs.glob("*/checkpoints")))
        for each in (paused := workers_of(one)):
            each.suspend()
        time.sleep(60)
        for each in paused:
            each.resume()
        for each in workers_of(two):
            each.kill()
        finish(process)
        finish(sweeping(second, runs, address(file)))
    tables.append(outcomes(runs))
    assert tables[0] == tables[1] == tables[2]
    assert expected.items() <= tables[0].items()


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_the_sweep_which_goes_on_with_the_next(undisturbed, tmp_path):
    path, expected = undisturbed
    runs, file, other = tmp_path / "runs", tmp_path / "scheduler.json", tmp_path / "other.json"
    with dask(scheduler(file), worker(file)) as (boss, _):
        process = sweeping(path, runs, address(file))
        wait_for(lambda: list(runs.glob("*/checkpoints")))
        os.killpg(boss.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 2, out
        assert "scheduler is gone" in out
        assert "Traceback" not in out
    with dask(scheduler(other), worker(other)):
        finish(sweeping(path, runs, address(other)))
    assert outcomes(runs) == expected


@pytest.fixture
def other_network() -> Iterator[list[str]]:
    """A network namespace that reaches this one as 10.213.0.1: the words that run a command in it."""
    name = f"t{os.getpid()}"
    commands = [f"ip netns add {name}", f"ip link add {name}a type veth peer name {name}b"]
    commands += [f"ip link set {name}b netns {name}", f"ip addr add 10.213.0.1/24 dev {name}a"]
    commands += [f"ip link set {name}a up", f"ip -n {name} addr add 10.213.0.2/24 dev {name}b"]
    commands += [f"ip -n {name} link set {name}b up", f"ip -n {name} link set lo up"]
    try:
        for command in commands:
            if subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip(f"this machine does not let us: {command}")
        yield ["ip", "netns", "exec", name]
    except FileNotFoundError:
        pytest.skip("this machine has no ip command")
    finally:
        for command in (f"ip link del {name}a", f"ip netns del {name}"):
            with suppress(FileNotFoundError):
                subprocess.run(command.split(), capture_output=True)


@pytest.mark.slow
def test_workers_of_two_networks_share_a_study(undisturbed, tmp_path, other_network):
    path, expected = undisturbed
    file = tmp_path / "scheduler.json"
    with dask(scheduler(file, "--host", "10.213.0.1"), worker(file)) as _:
        address(file)
        words = [*other_network, sys.executable, "-m", "dask", *map(str, worker(file))]
        env = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
        far = subprocess.Popen(words, start_new_session=True, cwd=tiny.ROOT, env=env)
        try:
            finish(sweeping(path, tmp_path / "runs", address(file)))
        finally:
            os.killpg(far.pid, signal.SIGKILL)
            far.wait()
    assert outcomes(tmp_path / "runs") == expected
    logs = [log.read_text(encoding="utf-8") for log in tmp_path.glob("runs/.sweep/*/log")]
    assert len({log.split()[2] for log in logs}) == 2, "both workers had a part"
