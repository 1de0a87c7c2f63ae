"""One run -> runs/<id>/ and back: config.yaml, identity.json, result.json, predictions.csv, checkpoints/.

The folder is the source of truth. Files are written under a temporary name and renamed: no reader sees half of one.
"""

import csv
import hashlib
import io
import json
import lzma
import math
import shlex
import shutil
import tarfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from src.errors import InputError
from src.files import spreadsheet_cell, whole_file
from src.runs import identity
from src.runs.identity import config_hash as config_hash
from src.runs.identity import plain as plain

if TYPE_CHECKING:
    from src.evaluation.metrics import Predictions

ARCHIVE = Path("experiments") / "runs.tar.xz"  # finished runs without their checkpoints, for reports
UNREADABLE = (OSError, EOFError, lzma.LZMAError, tarfile.TarError)  # what a damaged archive is met with


def create(cfg: DictConfig, longer_than: Sequence[str] = ()) -> Path:
    """Make the folder of a new run, with config.yaml and identity.json, which names the runs that it goes on from; two
    launches in one second get two folders."""
    if "/" in cfg.name or not cfg.name:
        raise InputError(f"name={cfg.name} becomes part of a folder's name: it must not be empty or contain /")
    made_from = identity.record(cfg) | ({"longer_than": [*longer_than]} if longer_than else {})
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{cfg.name}-{made_from['config_hash'][:8]}"
    runs = Path(cfg.runs).expanduser()
    runs.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        run = runs / f"{stem}{suffix}"
        try:
            run.mkdir()
        except FileExistsError:
            continue
        try:
            write_text(run / "identity.json", json.dumps(made_from, indent=2) + "\n")
            write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        except OSError:
            shutil.rmtree(run, ignore_errors=True)
            raise
        return run
    raise InputError(f"{cfg.runs} holds a thousand runs named {stem}: clean it up")


def find(runs: str | Path, run: str) -> Path:
    """The folder of run `run`, an id below `runs` or a path. Raises InputError if it is no run."""
    runs = Path(runs).expanduser()
    for folder in (runs / run, Path(run).expanduser()):
        if (folder / "config.yaml").is_file():
            return folder
    if is_archived(run):
        raise InputError(
            f"run {run} is in {ARCHIVE} alone, which keeps results and predictions for reports, and no checkpoints: to "
            "use its model, train it again with the settings in its config.yaml"
        )
    newest = sorted(path.parent.name for path in runs.glob("*/config.yaml"))[-3:]
    raise InputError(
        f"{run} is no run: {runs}/{run}/config.yaml does not exist; the newest runs are {', '.join(newest) or 'none'}"
    )


def is_archived(run: str) -> bool:
    """Whether the archive beside the studies has a run of this id."""
    try:
        with tarfile.open(ARCHIVE) as archive:
            return any(name.split("/")[-2:] == [run, "config.yaml"] for name in archive.getnames())
    except UNREADABLE:
        return False


def check_unfinished(run: Path) -> None:
    """Raises InputError where there is nothing left to do for a run, and where what it reads is another than when it
    began."""
    if has_finished(run):
        raise InputError(f"run {run.name} has finished: there is nothing to go on with")
    then, now = recorded(run)["sha256"], identity.contents(read_config(run))
    if changed := [key for key in then if now.get(key) != then[key]]:
        raise InputError(
            f"what {changed[0]} names has changed since run {run.name} began (sha256 {then[changed[0]]}, now "
            f"{now.get(changed[0]) or 'nothing is there'}): bring it back, or begin a new run"
        )


def recorded(run: Path) -> dict[str, Any]:
    """The identity that a run began with: its config_hash, and the sha256 of each thing that it reads."""
    if (run / "identity.json").is_file():
        return read_json(run / "identity.json", "config_hash", "sha256")
    return identity.record(load_config(run))


def checkpoint_owners(run: Path) -> list[str]:
    """The config_hash of a run, and of each whose checkpoints it went on from, which had fewer epochs; none where it
    was not recorded."""
    if not (run / "identity.json").is_file():
        return []
    known = recorded(run)
    return [known["config_hash"], *known.get("longer_than", [])]


def command(entry: str, key: str, run: Path) -> str:
    """A command about a run, as it may be pasted into a shell."""
    place = [] if run.parent == Path("runs") else [f"runs={run.parent}"]
    return shlex.join(["python", "-m", f"src.{entry}", f"{key}={run.name}", *place])


def load_config(run: Path) -> DictConfig:
    """The resolved config of a run."""
    return OmegaConf.create(read_config(run), flags={"struct": True})


def read_config(run: Path) -> dict[str, Any]:
    """The settings of a run as a plain dict, with those that came later as they were before. Raises InputError if its
    config.yaml is damaged, or of version 0.1."""
    path = run / "config.yaml"
    try:
        content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content.keys() >= needed(content):
        if isinstance(content, dict) and content.keys() >= {"seed", "gpt"} and "scheduler" not in content:
            raise InputError(f"{path} is of version 0.1, which is read by commit 67ddf1a alone")
        raise InputError(f"{path} is damaged: it holds no settings of a run; bring it back, or leave {run.name} alone")
    absent = {key: value for key, value in identity.AS_BEFORE.items() if "." not in key and "task" in content}
    return absent | content


def needed(config: dict[str, Any]) -> set[str]:
    """Sections without which a config is none of a run."""
    if "corpus" in config:
        return {"seed", "scheduler"}
    return {"seed", "data", "task", *(["gpt", "scheduler"] if identity.has_gpt(config) else [])}


def load_result(run: Path) -> dict[str, Any]:
    """The result.json of a run. Raises InputError if the run did not end, or the file is damaged."""
    if not has_finished(run):
        entry = "pretrain" if "corpus" in load_config(run) else "train"
        raise InputError(f"run {run.name} has not finished: go on with {command(entry, 'resume', run)}")
    return read_json(run / "result.json", "config_hash")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a file that a run wrote. Raises InputError if it cannot be read or lacks one of `keys`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # of JSON or of UTF-8
        raise InputError(f"{path} is damaged ({error}): bring it back, or run {path.parent.name} again") from None
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise InputError(f"{path} is damaged (it lacks {keys[0]}): bring it back, or run {path.parent.name} again")
    return content


def has_finished(run: Path) -> bool:
    """Whether a run has a result."""
    return (run / "result.json").is_file()


def trained_on(run: Path) -> dict[str, Any]:
    """What the result of a fine-tuned run says of its data. Raises InputError for a run of pretraining."""
    result = load_result(run)
    if "data" not in result:
        raise InputError(
            f"run {run.name} is a pretrained GPT, which knows no labels: fine-tune it with python -m src.train "
            f"gpt.weights={run / 'model'}"
        )
    found: dict[str, Any] = result["data"]
    return found


def last_checkpoint(run: Path) -> Path | None:
    """What an interrupted run goes on from, if there is anything."""
    path = run / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write(run: Path, result: dict[str, Any], texts: list[str], test: "Predictions") -> None:
    """Write predictions.csv (row, sha256 of the text, number of its group of near-duplicates, label, predicted, p of
    each class), then result.json."""
    from src.data.near_duplicates import near_duplicates
    from src.data.splits import normalise

    labels = result["data"]["labels"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "text_sha256", "group", "label", "predicted", *(f"p_{label}" for label in labels)])
    groups = near_duplicates([normalise(text) for text in texts]).tolist()
    for row, (text, true, predicted, p) in enumerate(prediction_rows(texts, labels, test)):
        sha256, names = hashlib.sha256(text.encode()).hexdigest(), map(spreadsheet_cell, (true, predicted))
        writer.writerow([row, sha256, groups[row], *names, *(f"{x:.6g}" for x in p)])
    write_text(run / "predictions.csv", out.getvalue())
    write_text(run / "result.json", json.dumps(without_nan(result), indent=2, allow_nan=False) + "\n")


def prediction_rows(
    texts: list[str], labels: list[str], test: "Predictions"
) -> list[tuple[str, str, str, list[float]]]:
    """(text, true label, predicted label, probabilities) of each message."""
    true, predicted = test.labels.tolist(), test.predicted.tolist()
    return [
        (t, labels[y], labels[z], p)
        for t, y, z, p in zip(texts, true, predicted, test.probabilities.tolist(), strict=True)
    ]


def without_nan(value: Any) -> Any:
    """JSON knows neither nan nor infinity: a metric that could not be had becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
