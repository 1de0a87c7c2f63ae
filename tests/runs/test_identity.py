"""A run is known by its settings and by the content of what it reads; reports find it by what it recorded."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from src.errors import InputError
from src.gpt.pinned_weights import SHIPPED
from src.reporting import render, rows
from src.reporting.comparisons import references
from src.reporting.table import table
from src.runs import identity, run_dir
from src.sweeps import study
from tests.reporting.test_report import answers, write_run, write_study

ROOT = Path(__file__).parents[2]


def composed(*overrides: str) -> Any:
    return study.config(study.Trial({}, overrides))


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


# ---- the hash


@pytest.mark.parametrize(
    ("key", "more"),
    [
        *(("data.path", "data=table"), ("data.test_path", "data=table data.path=x.csv data.validation_path=y.csv")),
        *(("data.sources.sentiment.path", "data=mix task=instruct"), ("held_out.path", ""), ("gpt.weights", "")),
    ],
)
def test_what_is_read_counts_by_its_content(tmp_path, key, more):
    def hash_of(path: Path) -> str:
        return identity.config_hash(composed(*more.split(), f"{key}={path}"))

    here, moved, other = (
        text(tmp_path / name / "x.safetensors", content) for name, content in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    before = hash_of(here)
    assert hash_of(moved) == before != hash_of(other)
    text(here, "another")  # replaced in place
    assert hash_of(here) != before
    shutil.copy(moved, here)
    assert hash_of(here) == before
    assert hash_of(tmp_path / "nothing") != before


def test_weights_are_the_same_as_a_file_and_in_a_folder(tmp_path):
    file = text(tmp_path / "model.safetensors", "weights")
    text(tmp_path / "README.md", "notes")
    assert len({identity.config_hash(composed(f"gpt.weights={path}")) for path in (file, tmp_path)}) == 1
    assert identity.contents({"gpt": {"weights": str(file)}}) == identity.contents({"gpt": {"weights": str(tmp_path)}})


def test_the_trained_weights_of_a_run_count_and_not_where_it_lies(tmp_path: Path) -> None:
    def hash_on(run: str, checkpoint: str) -> str:
        text(tmp_path / run / "config.yaml", "seed: 1")
        text(tmp_path / run / "checkpoints" / "best.ckpt", checkpoint)
        return identity.config_hash(composed(f"gpt.weights={tmp_path / run}"))

    assert hash_on("a", "weights") == hash_on("moved", "weights") != hash_on("b", "others")


def test_a_dataset_of_ones_own_is_not_taken_for_a_pinned_one_by_its_name(tmp_path: Path) -> None:
    section = {"_target_": "mine.SmsSpam", "path": str(text(tmp_path / "mine.txt", "messages"))}
    assert identity.pinned_data(section) is None
    assert identity.contents({"data": section}) == {"data.path": identity.sha256_of(tmp_path / "mine.txt")}


def test_the_shards_that_an_index_names_count(tmp_path: Path) -> None:
    index = text(tmp_path / "model.safetensors.index.json", "{}")

    def hash_on(shard: str) -> str:
        text(tmp_path / "model-00001-of-00001.safetensors", shard)
        return identity.config_hash(composed(f"gpt.weights={index}"))

    assert hash_on("weights") != hash_on("others")


def test_caches_and_places_of_pretraining_do_not_count(tmp_path: Path) -> None:
    corpora = [text(tmp_path / name / "one.txt", "text").parent for name in ("a", "b")]
    made = [{"corpus": {"path": str(path), "cache": str(path)}, "gpt": {"weights": "random"}} for path in corpora]
    assert identity.settings(made[0]) == identity.settings(made[1])
    assert identity.contents(made[0]) == identity.contents(made[1])


def test_a_run_keeps_its_identity_and_goes_on_with_the_same_data_alone(tmp_path):
    data = text(tmp_path / "data.csv", "text,label\n")
    cfg = composed("data=table", f"data.path={data}", f"runs={tmp_path / 'runs'}")
    folder = run_dir.create(cfg)
    assert json.loads((folder / "identity.json").read_text())["sha256"]["data.path"] == identity.sha256_of(data)
    run_dir.check_unfinished(folder)
    text(data, "text,label\nhi,ham\n")
    with pytest.raises(InputError, match=rf"data\.path .* changed since run {folder.name}"):
        run_dir.check_unfinished(folder)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"{}", b"", b"a: 1", b"{seed: 1, data: {}, task: {}, gpt: {}}", b"\xff"]
)
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml"):
        run_dir.load_config(tmp_path)


@pytest.mark.parametrize(
    "given", ["task.head_epochs=1", "task.layer_decay=0.5", "task.lora.target=mlp", "task.lora.dora=true"]
)
def test_a_setting_that_came_later_makes_another_run_where_it_is_not_as_before(given):
    key, usual = given.partition("=")[0], identity.config_hash(composed())
    assert identity.config_hash(composed(f"{key}={json.dumps(identity.AS_BEFORE[key])}")) == usual
    assert identity.config_hash(composed(given)) != usual


def test_what_json_cannot_hold_becomes_null():
    nan, infinite = float("nan"), float("inf")
    found = run_dir.without_nan({"a": [1.0, nan, {"b": (infinite, -infinite)}]})
    assert found == {"a": [1.0, None, {"b": [None, None]}]}


# ---- which runs a report takes


def archive(folder: Path) -> None:
    """Move the run folders into the archive beside the studies."""
    with tarfile.open(folder / "experiments" / "runs.tar.xz", "w:xz") as tar:
        tar.add(folder / "runs", "runs")
    shutil.rmtree(folder / "runs")


def written(folder: Path, name: str, *shared: str, runs: int = 2, **more: Any) -> tuple[Path, list[study.Trial]]:
    """A study, of whose trials the first `runs` have finished."""
    path = write_study(folder, name, {"seed": [1, 2], **more})
    if shared:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"command": ["python", "-m", "src.train", *shared, "${args_no_hyphens}"]}))
    points = study.trials(study.read(path))
    for point in points[:runs]:
        write_run(folder, point, answers(20, 10))
    return path, points


def read(path: Path, folder: Path) -> list[rows.Row]:
    return rows.read(study.read(path), folder / "runs", path.parent / "runs.tar.xz")


def accuracies(path: Path, folder: Path) -> list[float]:
    (row,) = read(path, folder)
    return [sum(run.right) / len(run.right) for run in row.runs]


def test_reports_read_the_archive_and_own_runs_win_over_it_the_newest_first(tmp_path):
    path, points = written(tmp_path, "seeds")
    archive(tmp_path)
    assert accuracies(path, tmp_path) == [0.5, 0.5]
    assert not (tmp_path / "runs").exists()
    assert study.finished(tmp_path / "runs") == {}  # a sweep has none of them
    for number, right in (("2", 16), ("1", 12)):
        run = write_run(tmp_path, points[0], answers(20, right))
        run.rename(run.with_name(number))
    assert accuracies(path, tmp_path) == [0.8, 0.5]
    assert [run.name for run in study.finished(tmp_path / "runs").values()] == ["2"]


@pytest.mark.parametrize("damage", ["text", "cut", "flipped"])
def test_a_damaged_archive_is_named(tmp_path, monkeypatch, damage):
    path, _ = written(tmp_path, "seeds", runs=1)
    archive(tmp_path)
    file = tmp_path / "experiments" / "runs.tar.xz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes({"text": b"cut", "cut": file.read_bytes()[:-100], "flipped": bytes(content)}[damage])
    with pytest.raises(InputError, match=r"runs\.tar\.xz cannot be read"):
        read(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is no run"):
        run_dir.find("runs", "nothing")


def test_a_report_needs_no_data_and_takes_no_runs_on_other_data(tmp_path):
    data = text(tmp_path / "data.csv", "one")
    path, _ = written(tmp_path, "table", "data=table", f"data.path={data}")
    assert accuracies(path, tmp_path) == [0.5, 0.5]
    text(data, "two")
    assert accuracies(path, tmp_path) == []
    data.unlink()
    assert accuracies(path, tmp_path) == [0.5, 0.5]
    elsewhere = text(tmp_path / "elsewhere" / "other.csv", "one")
    moved, _ = written(tmp_path, "moved", "data=table", f"data.path={elsewhere}", runs=0)
    assert accuracies(moved, tmp_path) == [0.5, 0.5]


def test_rows_that_differ_in_their_file_alone_keep_their_own_runs(tmp_path):
    files = [text(tmp_path / name, name) for name in ("a.csv", "b.csv")]
    path, _ = written(tmp_path, "files", "data=table", runs=3, **{"data.path": [str(file) for file in files]})
    for file in files:
        assert [len(row.runs) for row in read(path, tmp_path)] == [2, 1]
        file.unlink()


def test_runs_of_weights_that_were_shipped_before_stay_until_there_are_newer_ones(tmp_path, monkeypatch):
    path, points = written(tmp_path, "seeds")
    archive(tmp_path)
    path_of_weights, before = SHIPPED["mini"]
    monkeypatch.setitem(SHIPPED, "mini", (path_of_weights, "f" * 64))
    found = read(path, tmp_path)
    notes = table("seeds", "", found, references(found)).notes
    assert [len(row.runs) for row in found] == [2]
    assert f"gpt.weights: sha256 {before[:8]}…, not today's ffffffff…." in notes
    write_run(tmp_path, points[1], answers(20, 16))
    assert accuracies(path, tmp_path) == [0.8]  # of the present weights alone, and not a mean over both


def test_rows_that_are_compared_have_runs_of_the_weights_that_most_of_them_have(tmp_path, monkeypatch):
    path, points = written(tmp_path, "ways", runs=3, **{"seed": [1], "task.trainable": ["all", "lora", "last_block"]})
    archive(tmp_path)
    monkeypatch.setitem(SHIPPED, "mini", (SHIPPED["mini"][0], "f" * 64))
    write_run(tmp_path, points[0], answers(20, 16))
    assert [row.runs[0].result["metrics"]["test"]["accuracy"] for row in read(path, tmp_path)] == [0.5, 0.5, 0.5]
    write_run(tmp_path, points[1], answers(20, 16))
    assert [row.runs[0].result["metrics"]["test"]["accuracy"] for row in read(path, tmp_path)] == [0.8, 0.8, 0.5]


def test_an_archived_run_cannot_predict(tmp_path, monkeypatch):
    written(tmp_path, "seeds", runs=1)
    (run,) = (tmp_path / "runs").iterdir()
    archive(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"{run.name} is in experiments/runs\.tar\.xz alone.* no checkpoints"):
        run_dir.find("runs", run.name)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "tables").glob("*.csv")), ids=lambda path: path.stem)
def test_a_clean_clone_makes_the_committed_tables_again(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without data
    monkeypatch.setitem(SHIPPED, "mini", (SHIPPED["mini"][0], "f" * 64))
    asked = study.read(ROOT / "experiments" / f"{path.stem}.yaml")
    found = rows.read(asked, tmp_path / "runs", ROOT / "experiments" / "runs.tar.xz")
    made = render.as_csv(table(path.stem, asked.description, found, references(found)))
    assert made == path.read_text(encoding="utf-8")
