"""What a run is: its settings, and the content of what it reads. Not where that lies, on which machine, in which cache.

    config -> settings (without places) + sha256 of data, weights and held-out text -> config_hash

A setting of `data`, `held_out` or `corpus` that is called `path` or ends in `_path` names a file or a folder, and so
does `gpt.weights` unless it says random or pretrained. A file that is replaced in place makes another run; one that is
moved does not.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.errors import InputError
from src.files import file_sha256
from src.gpt.pinned_weights import PUBLISHED, SHIPPED
from src.runs.devices import on_one_device

# where a run is kept and reported and what it reads back, not what it computes
NOT_IN_HASH = ("name", "runs", "resume", "logger", "cache", "optimized_metric")
NOT_THE_DATA = ("cache", "num_workers")  # where data are kept and how they are loaded, not what they are
# settings that earlier runs did not have, with the values that leave a run what it was
AS_BEFORE: dict[str, Any] = {
    "monitor": "validation/loss",
    "positive": None,
    "threshold": None,
    "task.class_weights": "none",
    "task.head_epochs": 0,
    "task.gradual_unfreezing": 0,
    "task.layer_decay": 1.0,
    "task.lora.target": "all",
    "task.lora.dora": False,
}

# what a model without a GPT is made from, and of `data` what it does not read
WITHOUT_GPT = ("name", "seed", "runs", "resume", "data", "task", "logger", "optimized_metric", "positive", "threshold")
OF_BATCHES = ("padding", "max_length", "batch_size", "num_workers", "instruction", "answers")

Settings = Mapping[str, Any]
Place = tuple[str, ...]  # keys from the top of a config


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config section as a plain dict. Raises InputError for a value that must be given and is not."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise InputError(f"{missing[0]} is missing: give {missing[0]}=<value>")
    section = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}


def has_gpt(cfg: Settings | DictConfig) -> bool:
    """Whether a config is that of a GPT: of another model, the task has a grid of constants."""
    return "param_grid" not in (cfg.get("task") or {})


def as_read(cfg: DictConfig) -> DictConfig:
    """The config without what its run does not read: all of it with a GPT."""
    if has_gpt(cfg):
        return cfg
    read = {key: value for key, value in plain(cfg).items() if key in WITHOUT_GPT}
    read["data"] = {key: value for key, value in read["data"].items() if key not in OF_BATCHES}
    return OmegaConf.create(read, flags={"struct": True})


def config_hash(cfg: DictConfig) -> str:
    """A hash of all that can change a run's numbers."""
    whole = plain(cfg)
    return hash_of({"settings": settings(whole), "sha256": contents(whole)})


def record(cfg: DictConfig) -> dict[str, Any]:
    """What a run keeps of its identity: the hash, and the sha256 of each thing that it reads."""
    return {"config_hash": config_hash(cfg), "sha256": contents(plain(cfg))}


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def settings(cfg: Settings) -> dict[str, Any]:
    """All settings that can change numbers; of what is read from a place, that it is given; of devices, how large they
    make the global batch."""
    kept = {key: value for key, value in on_one_device(cfg).items() if key not in NOT_IN_HASH}
    if "gpt" in kept:
        kept["gpt"] = kept["gpt"] | ({"weights": "a file"} if is_path(kept["gpt"].get("weights")) else {})
    for name in ("data", "held_out", "corpus"):
        if name in kept:
            kept[name] = without_places(kept[name])
    return without_defaults(kept)


def without_defaults(settings: Settings, above: str = "") -> dict[str, Any]:
    """Settings but for those of AS_BEFORE with these values: a run that names them is the same as one without."""
    return {
        key: without_defaults(value, f"{above}{key}.") if isinstance(value, dict) else value
        for key, value in settings.items()
        if (name := f"{above}{key}") not in AS_BEFORE or value != AS_BEFORE[name]
    }


def without_places(section: Settings) -> dict[str, Any]:
    """A section of data without where they lie and how they are loaded."""
    known = "path" if pinned_data(section) else None
    kept = {key: value for key, value in section.items() if key not in (*NOT_THE_DATA, known)}
    if kept.get("fold") is None:  # as of runs that had no folds to choose from
        kept.pop("fold", None)
    kept |= {key: "a file" for key, value in kept.items() if names_a_path(key) and value is not None}
    if isinstance(sources := kept.get("sources"), dict):
        kept["sources"] = {name: without_places(source) for name, source in sources.items()}
    return kept


def contents(cfg: Settings) -> dict[str, str | None]:
    """Dotted setting -> sha256 of what a run reads there; None where nothing is."""
    files = {"gpt.weights": "*.safetensors"}
    return {
        key: source if isinstance(source, str) else sha256_of(source, files.get(key, "**/*"))
        for key, source in sources(cfg).items()
    }


def sources(cfg: Settings) -> dict[str, Path | str]:
    """Dotted setting -> the place that it names, or the sha256 of what does not depend on a place: weights and data
    that are pinned or shipped with this project."""
    found: dict[str, Path | str] = {}
    gpt = cfg.get("gpt", {})
    if is_path(weights := gpt.get("weights")):
        found["gpt.weights"] = weights_source(Path(weights).expanduser())
    elif weights == "pretrained" and (pinned := pinned_weights(gpt.get("name"))):
        found["gpt.weights"] = pinned
    for place, section in sections(cfg):
        if pinned := pinned_data(section):
            found[f"{place}.path"] = pinned
            continue
        found |= {
            f"{place}.{key}": Path(value) for key, value in section.items() if names_a_path(key) and value is not None
        }
    return found


def sections(cfg: Settings) -> Iterator[tuple[str, Settings]]:
    """The sections that say what is read, by their dotted names; of a mix those of its sources too."""
    for name in ("data", "held_out", "corpus"):
        if section := cfg.get(name):
            yield name, section
            for source, part in (section.get("sources") or {}).items():
                yield f"{name}.sources.{source}", part


def names_a_path(key: str) -> bool:
    return key == "path" or key.endswith("_path")


def is_path(weights: Any) -> bool:
    """Whether gpt.weights names a place."""
    return weights not in (None, "random", "pretrained")


def weights_source(path: Path) -> Path:
    """What holds the weights that a path names: of a run its best checkpoint, of an index of shards their folder."""
    if (path / "config.yaml").is_file():
        return path / "checkpoints" / "best.ckpt"
    return path.parent if path.name.endswith(".index.json") else path


def pinned_weights(name: Any) -> str | None:
    """What `gpt.weights=pretrained` are of a size: a sha256, or the revision on the hub that has one; None of a size
    without any."""
    if name in SHIPPED:
        return SHIPPED[name][1]
    return (PUBLISHED[name].sha256 or PUBLISHED[name].revision) if name in PUBLISHED else None


def pinned_data(section: Settings) -> str | None:
    """The sha256 of data that are the same wherever they lie; None of others."""
    from src.data.datasets import BUNDLED
    from src.data.sms_spam import UCI_TEXT_SHA256

    match section.get("_target_"):
        case "src.data.datasets.SmsSpam":
            return UCI_TEXT_SHA256
        case "src.data.datasets.Bundled":
            return sha256_of(BUNDLED)
    return None


def sha256_of(path: Path, pattern: str = "**/*") -> str | None:
    """The sha256 of a file, or of the names and contents of those of a folder; of a single one there, its own. None
    where nothing is. Raises InputError for what cannot be read."""
    path = path.expanduser()
    try:
        if not path.is_dir():
            return _file_sha256(path) if path.is_file() else None
        files = sorted(file for file in path.glob(pattern) if file.is_file())
        if len(files) == 1:
            return _file_sha256(files[0])
        return hash_of([[str(file.relative_to(path)), _file_sha256(file)] for file in files]) if files else None
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from None


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    return _unchanged_file_sha256(path.resolve(), stat.st_mtime_ns, stat.st_size, stat.st_ino)


@cache  # a study asks of each of its runs
def _unchanged_file_sha256(path: Path, *_: int) -> str:
    return file_sha256(path)
