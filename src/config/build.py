"""Config -> objects, for every entry point: configuration stops here, the classes behind it take plain arguments."""

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import Tensor

from src.config import ddp
from src.data.datamodule import TextData
from src.data.mixture import MixData
from src.data.prompts import Prompt, Task, make_task, parse
from src.data.tokenizer import END_OF_TEXT, decode
from src.errors import InputError
from src.finetune.base import FineTuner
from src.finetune.checkpointing import (
    AtomicCheckpointIO,
    EpochCheckpoint,
    ResumableEarlyStopping,
    StepCheckpoint,
    read_checkpoint,
)
from src.finetune.classifier import Classifier
from src.finetune.feature_cache import KINDS, FeatureCache
from src.finetune.feature_store import FeatureStore
from src.finetune.instruction import Instruct
from src.finetune.optim import Optimizer
from src.gpt import lora, weights
from src.gpt.lora import LoRA
from src.gpt.model import GPT, GPTConfig
from src.pretraining.causal_lm import Language
from src.pretraining.throughput import Throughput
from src.pretraining.token_stream import in_order, pack
from src.runs import devices, progress, run_dir

T = TypeVar("T")
KINDS_OF_VALUES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}
SHARED_BY_A_MIX = ("fraction", "padding", "max_length", "batch_size", "num_workers")
PARTIAL = (
    "fast_dev_run",
    "max_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
)
ROOT_KEYS = {
    "name",
    "seed",
    "runs",
    "resume",
    "patience",
    "held_out",
    "gpt",
    "data",
    "task",
    "trainer",
    "logger",
    "cache",
}


def construct(make: Callable[..., T], section: str, values: Mapping[str, Any], **given: Any) -> T:
    """`make(**values, **given)`. Raises InputError naming a key that `make` does not take, and those that it does, or a
    value of another kind than `make` wants."""
    parameters = inspect.signature(make).parameters
    known = [name for name in parameters if name not in given]
    if unknown := [str(key) for key in values if key not in known]:
        raise InputError(f"there is no setting {section}.{unknown[0]}: {section} takes {', '.join(known)}")
    for key, value in values.items():
        check_kind(f"{section}.{key}", value, parameters[key].annotation)
    return make(**values, **given)


def check_kind(key: str, value: Any, wanted: Any) -> None:
    """Raises InputError for a value that is none of the plain kinds which are wanted; what is no plain kind is left to
    those who take it."""
    kinds = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    if not set(kinds) <= KINDS_OF_VALUES.keys():
        return
    fits: dict[Any, Any] = {bool: bool, int: int, float: (int, float), str: str, NoneType: NoneType}
    if any(isinstance(value, fits[kind]) and (kind is bool or not isinstance(value, bool)) for kind in kinds):
        return
    raise InputError(f"{key}={value} must be {' or '.join(KINDS_OF_VALUES[kind] for kind in kinds)}")


def check_root(cfg: DictConfig) -> None:
    """Raises InputError for a top-level key that nothing reads, which `+key=` would add silently, and for a value that
    cannot be."""
    if unknown := sorted(set(map(str, cfg)) - ROOT_KEYS):
        raise InputError(f"there is no setting {unknown[0]}: the top level has {', '.join(sorted(ROOT_KEYS))}")
    for key, wanted in {"name": str, "runs": str, "seed": int, "patience": int | None}.items():
        check_kind(key, cfg[key], wanted)
    if cfg.patience is not None and cfg.patience < 1:
        raise InputError(f"patience={cfg.patience} must be at least 1, or null")
    if not 0 <= cfg.seed < 2**32:
        raise InputError(f"seed={cfg.seed} must lie between 0 and {2**32 - 1}")


def gpt(cfg: DictConfig) -> GPT:
    """The GPT that a run starts from."""
    section = run_dir.plain(cfg.gpt)
    name, source = section.pop("name"), section.pop("weights")
    section.pop("finetune")
    config = construct(GPTConfig, "gpt", section)
    if config.vocab_size <= END_OF_TEXT:
        raise InputError(f"gpt.vocab_size={config.vocab_size} must hold GPT-2's {END_OF_TEXT + 1} tokens")
    if (Path(source) / "config.yaml").is_file():
        return fine_tuned_gpt(Path(source), config)
    return weights.build(name, source, config, cfg.seed)


def fine_tuned_gpt(run: Path, config: GPTConfig) -> GPT:
    """The GPT of a finished run, its adapters merged, for another run to start from; without the run's head.

    Raises InputError for a run on a GPT of another `config`, but for its dropout, and for one that trained a copy of
    the output layer, which in a GPT is tied to the embedding.
    """
    with torch.random.fork_rng():  # the new run's head depends on its own seed alone
        trained = restore(run)
    if isinstance(trained, Instruct) and trained.head is not None:
        raise InputError(
            f"gpt.weights={run}: that run trained a copy of the output layer (task.trainable=last_layer), and its GPT "
            "is the one that it started from: give that one's weights"
        )
    ours, theirs = asdict(config), asdict(trained.gpt.config)
    if other := [key for key, value in ours.items() if value != theirs[key] and key != "dropout"]:
        raise InputError(
            f"gpt.{other[0]}={ours[other[0]]}: run {run.name} has {theirs[other[0]]}; choose the gpt= size of that run"
        )
    lora.merge(trained.gpt)
    gpt = GPT(config, blank=True)
    gpt.load_state_dict(trained.gpt.state_dict())
    return gpt


def data(cfg: DictConfig, whole: bool = False) -> TextData:
    """The labelled messages, tokenized: split, or all of them as one part."""
    section = run_dir.plain(cfg.data)
    given: dict[str, Any] = {"context_length": cfg.gpt.context_length, "seed": cfg.seed, "whole": whole}
    given |= {"writes": cfg.task.kind == "instruct", "template": template(cfg)}
    given |= {"padding_is_read": padding_is_read(cfg)}
    if section["name"] != "mix":
        return construct(TextData, "data", section, **given)
    if cfg.task.kind != "instruct" or whole:
        raise InputError("data=mix asks several questions: it needs task=instruct, and is measured on its own splits")
    sources, shared = section.pop("sources"), {key: section.pop(key) for key in SHARED_BY_A_MIX}
    defaults = inspect.signature(TextData).parameters
    for name, source in sources.items():
        for key in shared:
            if source.pop(key, defaults[key].default) != defaults[key].default:
                raise InputError(f"data.sources.{name}.{key} has no effect: all tasks of a mix share data.{key}")
    parts = {
        name: construct(TextData, f"data.sources.{name}", {**source, **shared}, **given)
        for name, source in sources.items()
    }
    section.pop("name")
    return construct(MixData, "data", section, parts=parts)


def padding_is_read(cfg: DictConfig) -> bool:
    """Whether what a model says of a message can depend on the padding behind it."""
    if not cfg.gpt.causal:
        return True
    return cfg.task.kind != "instruct" and cfg.task.position not in ("first", "last_real")


def cache(cfg: DictConfig) -> FeatureCache:
    """Where the features of frozen blocks are kept."""
    if cfg.cache.kind not in KINDS:
        raise InputError(f"cache.kind={cfg.cache.kind} is unknown: use cache={', cache='.join(KINDS)}")
    if cfg.cache.max_gb < 0:
        raise InputError(f"cache.max_gb={cfg.cache.max_gb} must not be negative")
    if cfg.cache.kind == "disk" and not cfg.cache.folder:
        raise InputError("cache.folder is missing: cache=disk needs a folder")
    folder, most = Path(cfg.cache.folder or "").expanduser(), cfg.cache.max_gb * 1e9
    return FeatureCache(cfg.cache.kind, FeatureStore(folder, most), most)


def template(cfg: DictConfig) -> str | None:
    """The prompt's template, for a task that has one around the text."""
    if cfg.task.kind == "instruct":
        return str(cfg.task.template)
    if cfg.task.get("prompt", "none") not in ("none", "instruction"):
        raise InputError(f"task.prompt={cfg.task.prompt} is unknown: use none or instruction")
    return str(cfg.task.template) if cfg.task.get("prompt", "none") == "instruction" else None


def tasks(cfg: DictConfig, labels: Sequence[str]) -> list[Task]:
    """What is asked of the messages, whose classes are `labels`: one question, or one of each source of a mix."""
    if cfg.data.name != "mix":
        return [make_task(cfg.data.name, labels, cfg.task.template, cfg.data.instruction, cfg.data.answers)]
    found, first = [], 0
    for name, source in cfg.data.sources.items():
        own = [label.removeprefix(f"{name}/") for label in labels if label.startswith(f"{name}/")]
        found.append(make_task(str(name), own, cfg.task.template, source.instruction, source.answers, first))
        first += len(own)
    return found


def questions(cfg: DictConfig, labels: Sequence[str]) -> dict[str, list[int]]:
    """The class numbers of each question of a mix; empty for a single corpus."""
    return {task.name: task.classes for task in tasks(cfg, labels)} if cfg.data.name == "mix" else {}


def question(cfg: DictConfig, labels: Sequence[str], name: str | None = None) -> tuple[Prompt, list[int]]:
    """The prompt around a message of a trained run, and the class numbers among which it is to choose."""
    if template(cfg) is None:
        return Prompt(), list(range(len(labels)))
    asked = {task.name: task for task in tasks(cfg, labels)}
    if (name is None and len(asked) > 1) or (name is not None and name not in asked):
        raise InputError(f"which question should be asked? Give task=<one of {', '.join(asked)}>")
    task = asked[name] if name else next(iter(asked.values()))
    return task.prompt if cfg.task.kind == "instruct" else replace(task.prompt, reserve=0), task.classes


def model(cfg: DictConfig, labels: Sequence[str]) -> FineTuner:
    """The GPT with what its task puts around it."""
    section = run_dir.plain(cfg.task)
    kind, _ = section.pop("kind"), section.pop("template")
    given: dict[str, Any] = {"lora": construct(LoRA, "task.lora", section.pop("lora"))}
    given["optimizer"] = construct(Optimizer, "task.optimizer", section.pop("optimizer"))
    L.seed_everything(cfg.seed, verbose=False)  # the head's and the adapters' first values
    if kind == "classify":
        section.pop("prompt")
        answers = tasks(cfg, labels)[0].answers if section["head"] == "answers" else ()
        return construct(Classifier, "task", section, gpt=gpt(cfg), n_classes=len(labels), answers=answers, **given)
    if kind == "instruct":
        return construct(Instruct, "task", section, gpt=gpt(cfg), tasks=tasks(cfg, labels), say=say, **given)
    raise InputError(f"task.kind={kind} is unknown: use classify or instruct")


def say(ids: list[int], task: Task) -> int:
    """Place of the answer that tokens spell, -1 for none."""
    return parse(decode(ids), task.words)


def held_out(cfg: DictConfig) -> list[Tensor]:
    """Windows of the text on which to measure what the language model forgot; none where it is not asked for."""
    given = run_dir.plain(cfg.held_out)
    if given["path"] is None:
        return []
    if given["tokens"] < 2:
        raise InputError(f"held_out.tokens={given['tokens']} must be at least 2")
    window = min(256, cfg.gpt.context_length)
    return in_order(pack(given["path"], given["cache"]).ids[: given["tokens"]], window, batch_size=32)


def trainer(cfg: DictConfig, callbacks: list[Callback] | None = None, **given: Any) -> L.Trainer:
    """Lightning's Trainer from the config's arguments and ours. Raises InputError for what Lightning refuses."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the messages are in memory already
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen blocks
    warnings.filterwarnings("ignore", ".*on_before_batch_transfer.*")  # where features come in
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated.*")  # by torch 2.13, but not before
    warnings.filterwarnings("ignore", ".*(treespec, LeafSpec).*")  # Lightning's own, with torch 2.13
    given |= {"callbacks": [*(callbacks or []), *progress.shown()], "enable_model_summary": False}
    given |= {"enable_progress_bar": sys.stderr.isatty(), "plugins": [AtomicCheckpointIO()]}
    try:
        made = construct(L.Trainer, "trainer", run_dir.plain(cfg.trainer), **given)
        return ddp.checked(made, run_dir.plain(cfg.trainer) | given)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"trainer: {' '.join(str(error).split())}") from None


def check_trainer(cfg: DictConfig) -> L.Trainer:
    """A Trainer that shows which devices there are. Raises InputError for trainer arguments that Lightning refuses, and
    for those that would leave out examples of a split, or the validation after an epoch: a result is of all."""
    if given := [key for key in PARTIAL if cfg.trainer.get(key) is not None]:
        raise InputError(
            f"trainer.{given[0]}: every epoch is trained and validated whole, and every split measured whole; leave it "
            "out, and take data.fraction or trainer.max_epochs for a shorter run"
        )
    for key in ("max_epochs", "accumulate_grad_batches"):
        if isinstance(cfg.trainer[key], int) and cfg.trainer[key] < 1:
            raise InputError(f"trainer.{key}={cfg.trainer[key]} must be at least 1")
    return trainer(cfg, logger=False, enable_checkpointing=False)


def check_pretraining(cfg: DictConfig) -> None:
    """Raises InputError for settings of pretraining that cannot be, before any text is tokenized."""
    for key in ("batch_size", "validate_every", "validation_batches", "checkpoint_every"):
        if cfg[key] < 1:
            raise InputError(f"{key}={cfg[key]} must be at least 1")
    if not 1 <= cfg.window <= cfg.gpt.context_length:
        raise InputError(
            f"window={cfg.window} must lie between 1 and the GPT's context length, {cfg.gpt.context_length}"
        )
    if not 0 <= cfg.padded <= 1:
        raise InputError(f"padded={cfg.padded} must lie between 0 and 1")
    if not cfg.gpt.causal:
        raise InputError("gpt.causal=false would read the tokens that it is to predict")
    length = {"max_steps": cfg.max_steps, "budget_minutes": cfg.budget_minutes}
    given = {key: value for key, value in length.items() if value is not None}
    if len(given) > 1 or any(value <= 0 for value in given.values()):
        found = " and ".join(f"{key}={value}" for key, value in given.items())
        raise InputError(f"{found}: give one of max_steps and budget_minutes, above 0, or neither for one pass")


def language(cfg: DictConfig, clock: Throughput) -> Language:
    """The GPT as a language model, whose learning rate follows the steps, or the clock where there is a budget."""
    optimizer = construct(Optimizer, "optimizer", run_dir.plain(cfg.optimizer))
    module = Language(gpt(cfg), optimizer, cfg.candidates, cfg.chunk, cfg.seed, padded=padded_windows(cfg))
    if clock.budget_seconds:
        module.progress = clock.share
    if cfg.compile:
        module.compile_parts()
    return module


def padded_windows(cfg: DictConfig) -> int:
    """Windows of a batch of all devices that are padded as messages are."""
    return round(cfg.padded * devices.global_batch_of(cfg))


def pretrainer(cfg: DictConfig, epoch_batches: int, callbacks: list[Callback] | None = None, **given: Any) -> L.Trainer:
    """Lightning's Trainer for max_steps, or for as many as an epoch has, or without end where the clock stops it.

    It sees one endless epoch, whose borders are the text's own affair: no step of it is cut short.
    """
    accumulate = cfg.trainer.accumulate_grad_batches
    steps = -1 if cfg.budget_minutes else cfg.max_steps or max(1, epoch_batches // accumulate)
    given |= {"max_steps": steps, "max_epochs": -1, "num_sanity_val_steps": 0}
    given |= {"val_check_interval": cfg.validate_every * accumulate, "check_val_every_n_epoch": None}
    return trainer(cfg, callbacks, **given)


def pretraining_callbacks(cfg: DictConfig, run: Path) -> list[Callback]:
    """The checkpoint that a killed run goes on from."""
    return [StepCheckpoint(run / "checkpoints" / "last.ckpt", cfg.checkpoint_every)]


def callbacks(cfg: DictConfig, run: Path) -> list[Callback]:
    """Best checkpoint on validation loss, last one for resuming, and early stopping where it is asked for."""
    stop = [ResumableEarlyStopping("validation/loss", patience=cfg.patience)] if cfg.patience else []
    return [*stop, EpochCheckpoint(run / "checkpoints")]


def load_best(model: FineTuner, run: Path) -> None:
    """Copy the run's best checkpoint into a model built from its config."""
    path = run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        why = "its training was stopped before the first epoch ended"
        if run_dir.has_finished(run):
            why = "runs in archives come without them; to use its model, train it again"
        raise InputError(f"{run} has no checkpoint: {why}")
    checkpoint = read_checkpoint(
        path,
        ("state_dict", "frozen_norms"),
        "put back a copy of it, or train the run anew with the settings of its config.yaml; what else is in its folder "
        "stays valid",
    )
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=False)


def restore(run: Path) -> FineTuner:
    """The trained model of a finished run, ready to predict."""
    restored = model(run_dir.load_config(run), run_dir.trained_on(run)["labels"])
    load_best(restored, run)
    return restored.eval()
