"""The typed top level of a config: Hydra checks names and types of what stands here before any part is built.
What a setting is where nobody says it stands in conf/ alone.

Sections whose keys belong to a `_target_` are plain mappings; instantiate.py checks them by its signature.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from src.errors import InputError


@dataclass
class GPTSection:
    """A size of GPT by name, its architecture (see GPTConfig), and its weights."""

    name: str = MISSING
    n_layer: int = MISSING
    n_head: int = MISSING
    n_embd: int = MISSING
    context_length: int = MISSING
    vocab_size: int = MISSING
    dropout: float = MISSING
    causal: bool = MISSING
    weights: str = MISSING


@dataclass
class HeldOutSection:
    """Text on which to measure what the language model forgot."""

    path: str | None = MISSING
    tokens: int = MISSING
    cache: str = MISSING


@dataclass
class CorpusSection:
    """Text to pretrain on."""

    path: str = MISSING
    validation_path: str = MISSING
    cache: str = MISSING


@dataclass
class Common:
    """What fine-tuning and pretraining share."""

    name: str = MISSING
    seed: int = MISSING
    runs: str = MISSING
    resume: str | None = MISSING
    gpt: GPTSection = field(default_factory=GPTSection)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainSchema(Common):
    """Top level of conf/train.yaml."""

    data: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    held_out: HeldOutSection = field(default_factory=HeldOutSection)
    monitor: str = MISSING
    positive: str | None = MISSING
    threshold: str | None = MISSING
    patience: int | None = MISSING
    optimized_metric: str = MISSING


@dataclass
class PretrainSchema(Common):
    """Top level of conf/pretrain.yaml."""

    corpus: CorpusSection = field(default_factory=CorpusSection)
    window: int = MISSING
    batch_size: int = MISSING
    padded: float = MISSING
    max_steps: int | None = MISSING
    budget_minutes: float | None = MISSING
    validate_every: int = MISSING
    validation_batches: int = MISSING
    checkpoint_every: int = MISSING
    compile: bool = MISSING
    num_sampled: int | None = MISSING
    chunk: int = MISSING
    prompts: list[str] = field(default_factory=list)


def register() -> None:
    """Make the schemas known to Hydra, under the names that the defaults lists of conf/ use."""
    store = ConfigStore.instance()
    store.store("train_schema", TrainSchema)
    store.store("pretrain_schema", PretrainSchema)


def check_keys(cfg: DictConfig, section: str = "") -> None:
    """Raises InputError for a key that its section's schema does not have, or that it lacks: `+key=` adds any without
    a word, and `~key` takes it away."""
    kind = OmegaConf.get_type(cfg)
    if not is_dataclass(kind):
        return
    known = [one.name for one in fields(kind)]
    if lacking := [key for key in known if key not in cfg.keys()]:  # noqa: SIM118 - `in cfg` is false for ??? too
        raise InputError(f"{section}{lacking[0]} is missing: give {section}{lacking[0]}=<value>")
    for key in map(str, cfg):
        if key not in known:
            raise InputError(f"there is no setting {section}{key}: {section or 'the top level '}has {', '.join(known)}")
        if isinstance(below := cfg._get_node(key), DictConfig):
            check_keys(below, f"{section}{key}.")
