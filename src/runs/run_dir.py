"""One run -> runs/<id>/ and back: config.yaml, result.json, predictions.csv, checkpoints/.

The folder is the source of truth. Files are written under a temporary name and renamed: no reader sees half of one.
"""

import csv
import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from src.errors import InputError
from src.files import spreadsheet_cell, whole_file
from src.gpt.pinned import SHIPPED

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from src.evaluation.metrics import Predictions

# where a run is kept and reported and what it reads back, not what it computes
NOT_IN_HASH = ("name", "runs", "resume", "logger", "cache")
NOT_THE_DATA = ("cache", "num_workers")  # where data are kept and how they are loaded, not what they are
SHARES = ("accuracy", "generated_accuracy", "valid_rate")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config section as a plain dict. Raises InputError for a value that must be given and is not."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise InputError(f"{missing[0]} is missing: give {missing[0]}=<value>")
    section = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}


def config_hash(cfg: DictConfig) -> str:
    """A hash of all settings that can change a run's numbers."""
    relevant = {key: value for key, value in plain(cfg).items() if key not in NOT_IN_HASH}
    relevant.get("gpt", {}).pop("finetune", None)  # where other settings have their defaults from
    relevant.get("held_out", {}).pop("cache", None)
    if (lora := relevant.get("task", {}).get("lora", {})).get("init") == "in_features":
        lora.pop("init")  # what every run had before there was a choice
    gpt = relevant.get("gpt", {})
    if gpt.get("weights") == "pretrained" and gpt.get("name") in SHIPPED:  # these may be trained anew
        gpt["sha256"] = SHIPPED[gpt["name"]][1]
    if "data" in relevant:
        relevant["data"] = identity(relevant["data"])
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a data section that says what the data are; the bytes of sms_spam are pinned, wherever they lie."""
    left_out = {*NOT_THE_DATA, *(["path"] if data.get("name") == "sms_spam" else [])}
    kept = {key: value for key, value in data.items() if key not in left_out}
    if "sources" in kept:
        kept["sources"] = {name: identity(source) for name, source in kept["sources"].items()}
    return kept


def create(cfg: DictConfig) -> Path:
    """Make the folder of a new run, with its config.yaml; two launches in one second get two folders."""
    if "/" in cfg.name or not cfg.name:
        raise InputError(f"name={cfg.name} becomes part of a folder's name: it must not be empty or contain /")
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{cfg.name}-{config_hash(cfg)[:8]}"
    Path(cfg.runs).mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        run = Path(cfg.runs) / f"{stem}{suffix}"
        try:
            run.mkdir()
        except FileExistsError:
            continue
        try:
            write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        except OSError:
            shutil.rmtree(run, ignore_errors=True)
            raise
        return run
    raise InputError(f"{cfg.runs} holds a thousand runs named {stem}: clean it up")


def find(runs: str | Path, run: str) -> Path:
    """The folder of run `run`, an id below `runs` or a path. Raises InputError if it is no run."""
    for folder in (Path(runs) / run, Path(run)):
        if (folder / "config.yaml").is_file():
            return folder
    newest = sorted(path.parent.name for path in Path(runs).glob("*/config.yaml"))[-3:]
    raise InputError(
        f"{run} is no run: {runs}/{run}/config.yaml does not exist; the newest runs are {', '.join(newest) or 'none'}"
    )


def check_unfinished(run: Path) -> None:
    """Raises InputError where there is nothing left to do for a run."""
    if has_finished(run):
        raise InputError(f"run {run.name} has finished: there is nothing to go on with")


def load_config(run: Path) -> DictConfig:
    """The resolved config of a run."""
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True)
    return cfg


def load_result(run: Path) -> dict[str, Any]:
    """The result.json of a run. Raises InputError if the run did not end."""
    if not has_finished(run):
        entry = "pretrain" if "corpus" in load_config(run) else "train"
        raise InputError(f"run {run.name} has not finished: go on with python -m src.{entry} resume={run.name}")
    result: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return result


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
    """Write predictions.csv (row, sha256 of the text, label, predicted, p of each class), then result.json."""
    labels = result["data"]["labels"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "text_sha256", "label", "predicted", *(f"p_{label}" for label in labels)])
    for row, (text, true, predicted, p) in enumerate(prediction_rows(texts, labels, test)):
        names = [hashlib.sha256(text.encode()).hexdigest(), spreadsheet_cell(true), spreadsheet_cell(predicted)]
        writer.writerow([row, *names, *(f"{x:.6g}" for x in p)])
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
    """JSON does not know nan: a metric that could not be had becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value


def commit() -> str | None:
    """The commit that the code runs from, with a + for uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty.strip() else "")


def environment(device: "torch.device", precision: Any) -> dict[str, str]:
    """Where a run's numbers come from; `precision` is the Trainer's own, which is bf16-mixed for 16-mixed on a CPU."""
    import platform
    from importlib.metadata import version

    import torch

    cpu = f"cpu, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "precision": str(precision),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "python": platform.python_version(),
    }


def metrics_table(title: str, metrics: dict[str, dict[str, float]], sizes: dict[str, int]) -> "Table":
    """Splits x metrics, for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # fits 80 characters
    table.add_column("split")
    for name in ("messages", *next(iter(metrics.values()))):
        table.add_column({"generated_accuracy": "written", "valid_rate": "valid"}.get(name, name), justify="right")
    for split, values in metrics.items():
        cells = [f"{value:.2%}" if name in SHARES else f"{value:.3f}" for name, value in values.items()]
        table.add_row(split, str(sizes[split]), *cells)
    return table


def show(result: dict[str, Any], run: Path) -> None:
    """Print a finished run for a person: split x metrics, what was trained, how long it took, where it is."""
    from rich.console import Console

    task, cost = result["task"], result["cost"]
    console = Console()
    title = f"{result['name']}: gpt={result['gpt']['name']} ({result['gpt']['weights']}), data={result['data']['name']}"
    console.print(metrics_table(title, result["metrics"], result["data"]["sizes"]))
    if tasks := result.get("tasks"):
        console.print(metrics_table("test, by task", tasks["test"], result["data"]["test_sizes"]))
    if language := result.get("language"):
        before, after = (language[when]["perplexity"] for when in ("before", "after"))
        console.print(f"perplexity of the language model on held-out text: {before:.1f} before, {after:.1f} after")
    share = task["trainable_parameters"] / result["gpt"]["parameters"]
    console.print(
        f"trained {task['trainable_parameters']:,} parameters ({task['trainable']}, {share:.1%} of the GPT) in "
        f"{cost['train_seconds']:.1f} s, {cost['train_flops'] / 1e12:.1f} TFLOP; "
        f"set-up {cost['setup_seconds']:.1f} s, frozen blocks {cost['features_seconds']:.1f} s"
        f"{' (read back)' if cost['features_reused'] else ''}, first step after {cost['first_step_seconds']:.1f} s, "
        f"evaluation {cost['evaluate_seconds']:.1f} s"
    )
    console.print(f"run folder: {run} (result.json, predictions.csv, checkpoints)", soft_wrap=True, highlight=False)
    console.print(f'use it:     python -m src.predict run={run.name} text="..."', soft_wrap=True, highlight=False)
