"""Config -> objects, for every entry point: configuration stops here, the classes behind it take plain arguments."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import lightning as L
import torch
from annotated_types import Ge
from omegaconf import DictConfig
from torch import Tensor

from src.config.instantiate import build, build_optimizer, build_scheduler, call, check, check_finite
from src.config.schema import check_keys
from src.data.datamodule import TextData
from src.data.prompts import questions_of
from src.data.tokenizer import END_OF_TEXT
from src.errors import InputError
from src.evaluation import decisions
from src.finetune.base import FineTuner
from src.finetune.checkpointing import read_checkpoint
from src.finetune.feature_cache import FeatureCache
from src.finetune.feature_store import FeatureStore
from src.finetune.freezing import IN_STAGES
from src.finetune.instruction import InstructionTuner
from src.finetune.monitoring import AVERAGE_PRECISION, MONITORS
from src.gpt import lora, weights
from src.gpt.model import GPT, GPTConfig
from src.pretraining.token_stream import in_order, pack
from src.runs import identity, run_dir


def check_config(cfg: DictConfig) -> None:
    """Raises InputError for what no part of a config would notice: an unknown key at its top, an impossible number."""
    check_keys(cfg)
    check_finite(run_dir.plain(cfg))
    if not 0 <= cfg.seed < 2**32:
        raise InputError(f"seed={cfg.seed} must lie between 0 and {2**32 - 1}")
    if not re.fullmatch(r"(train|validation|test)/\w+", cfg.get("optimized_metric", "validation/accuracy")):
        raise InputError(f"optimized_metric={cfg.optimized_metric} must be a split and a metric: validation/accuracy")
    if "monitor" in cfg and cfg.monitor not in MONITORS:
        raise InputError(f"monitor={cfg.monitor} is unknown: use {', '.join(MONITORS)}")
    if cfg.get("patience") is not None and cfg.patience < 1:
        raise InputError(f"patience={cfg.patience} must be at least 1, or null")


def build_gpt(cfg: DictConfig) -> GPT:
    """The GPT that a run starts from."""
    config, source = gpt_config(cfg), os.path.expanduser(cfg.gpt.weights)
    if (Path(source) / "config.yaml").is_file():
        return fine_tuned_gpt(Path(source), config)
    return call("gpt", partial(weights.build, cfg.gpt.name, source, config, cfg.seed))


def gpt_config(cfg: DictConfig) -> GPTConfig:
    """The sizes of the GPT."""
    sizes = {key: value for key, value in run_dir.plain(cfg.gpt).items() if key not in ("name", "weights")}
    check("gpt", GPTConfig, sizes)
    config: GPTConfig = call("gpt", partial(GPTConfig, **sizes))
    if config.vocab_size <= END_OF_TEXT:
        raise InputError(f"gpt.vocab_size={config.vocab_size} must hold GPT-2's {END_OF_TEXT + 1} tokens")
    return config


def fine_tuned_gpt(run: Path, config: GPTConfig) -> GPT:
    """The GPT of a finished run, its adapters merged, for another run to start from; without the run's head.

    Raises InputError for a run on a GPT of another `config`, but for its dropout, and for one that trained a copy of
    the output layer, which in a GPT is tied to the embedding.
    """
    with torch.random.fork_rng():  # the new run's head depends on its own seed alone
        trained = restore(run)
    if isinstance(trained, InstructionTuner) and trained.head is not None:
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


def build_data(cfg: DictConfig, whole: bool = False) -> TextData:
    """The labelled texts, split, or all of them as one part; `encode_for` makes them a task's."""
    data = build("data", run_dir.plain(cfg.data), seed=cfg.seed, whole=whole)
    if not isinstance(data, TextData):
        raise InputError(f"data._target_={cfg.data._target_} is no subclass of src.data.datamodule.TextData")
    return data


def build_cache(cfg: DictConfig) -> FeatureCache:
    """Where the features of frozen blocks are kept."""
    check("cache", feature_cache, run_dir.plain(cfg.cache))
    return feature_cache(**run_dir.plain(cfg.cache))


def feature_cache(
    kind: Literal["disk", "memory", "off"], folder: str | None, max_gb: Annotated[float, Ge(0)]
) -> FeatureCache:
    """The cache of a `cache` section. Raises InputError for a disk without a folder."""
    if kind == "disk" and not folder:
        raise InputError("cache.folder is missing: cache=disk needs a folder")
    most = max_gb * 1e9
    return FeatureCache(kind, FeatureStore(Path(folder or "").expanduser(), most), most)


def build_task(cfg: DictConfig, labels: Sequence[str]) -> FineTuner:
    """The GPT with what its task puts around it, to tell `labels` apart."""
    questions = questions_of(run_dir.plain(cfg.data), labels)
    factories = {
        "optimizer": build_optimizer(run_dir.plain(cfg.optimizer), cfg.trainer.get("precision")),
        "scheduler": build_scheduler(run_dir.plain(cfg.scheduler)),
    }
    L.seed_everything(cfg.seed, verbose=False)  # the head's and the adapters' first values
    task = build("task", run_dir.plain(cfg.task), gpt=build_gpt(cfg), questions=questions, **factories)
    if not isinstance(task, FineTuner):
        raise InputError(
            f"task._target_={cfg.task._target_} is no subclass of src.finetune.base.FineTuner; a model without a GPT "
            "has a task.param_grid, {} for none"
        )
    call("optimizer", task.optimizer, task.optimizer_parameters())  # some optimizers take no groups
    check_epochs(cfg, task)
    return task


def check_epochs(cfg: DictConfig, task: FineTuner) -> None:
    """Raises InputError for a training that ends before all that it is to train has been unfrozen."""
    last, epochs = task.stages[-1].first_epoch, cfg.trainer.get("max_epochs")
    if epochs is not None and 0 <= epochs <= last:
        given = [f"task.{key}={cfg.task[key]}" for key in IN_STAGES if cfg.task.get(key)]
        raise InputError(
            f"{' '.join(given)}: the last parameters are unfrozen after epoch {last}, and trainer.max_epochs={epochs}"
        )


def data_and_task(cfg: DictConfig) -> tuple[TextData, FineTuner]:
    """The texts and the model, made for each other: its prompts around them, its GPT's context length."""
    data = build_data(cfg)
    task = build_task(cfg, data.labels)
    check_decisions(cfg, data, len(task.questions))
    data.encode_for(task.prompts, task.reads_padding, task.gpt.config.context_length)
    task.weigh(data.splits["train"].labels)
    return data, task


def check_decisions(cfg: DictConfig, data: TextData, questions: int = 1) -> None:
    """Raises InputError for a threshold, a positive class, or something to monitor that these data do not allow."""
    decisions.check(cfg.threshold, cfg.positive, data.labels, questions)
    ranks = cfg.get("monitor") == AVERAGE_PRECISION
    if ranks and questions > 1:
        raise InputError(f"monitor={cfg.monitor} is for one question, and a mixture asks several: use another")
    if not ranks and not cfg.threshold:
        return
    present = {example.label for example in data.all_examples["validation"]}
    if lacking := [label for label in data.labels if label not in present]:
        asked = f"monitor={cfg.monitor}" if ranks else f"threshold={cfg.threshold}"
        raise InputError(f"{asked}: validation has no message of class {lacking[0]}, as it would need; leave it out")


def held_out_windows(cfg: DictConfig) -> list[Tensor]:
    """Windows of the text on which to measure what the language model forgot; none where it is not asked for."""
    given = run_dir.plain(cfg.held_out)
    if given["path"] is None:
        return []
    if given["tokens"] < 2:
        raise InputError(f"held_out.tokens={given['tokens']} must be at least 2")
    window = min(256, cfg.gpt.context_length)
    return in_order(pack(given["path"], given["cache"]).ids[: given["tokens"]], window, batch_size=32)


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
        run_dir.checkpoint_owners(run),
    )
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=False)


def restore(run: Path) -> FineTuner:
    """The trained model of a finished run, ready to predict."""
    cfg = run_dir.load_config(run)
    if not identity.has_gpt(cfg):
        raise InputError(
            f"run {run.name} is a {cfg.task._target_.rpartition('.')[2]}, no GPT: src.predict and src.eval use it, and "
            "there is nothing to export, to serve or to start from"
        )
    restored = build_task(cfg, run_dir.trained_on(run)["labels"])
    load_best(restored, run)
    return restored.eval()
