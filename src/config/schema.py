"""The typed top level of a config: Hydra checks names and types of what stands here before any part is built.

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
    context_length: int = 1024
    vocab_size: int = 50257
    dropout: float = 0.0
    causal: bool = True
    weights: str = "pretrained"


@dataclass
class HeldOutSection:
    """Text on which to measure what the language model forgot."""

    path: str | None = None
    tokens: int = 65536
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
    seed: int = 123
    runs: str = "runs"
    resume: str | None = None
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
    patience: int | None = None
    optimized_metric: str = "validation/accuracy"


@dataclass
class PretrainSchema(Common):
    """Top level of conf/pretrain.yaml."""

    corpus: CorpusSection = field(default_factory=CorpusSection)
    window: int = 256
    batch_size: int = 32
    padded: float = 0.0
    max_steps: int | None = None
    budget_minutes: float | None = None
    validate_every: int = 500
    validation_batches: int = 16
    checkpoint_every: int = 100
    compile: bool = False
    num_sampled: int | None = None
    chunk: int = 2048
    prompts: list[str] = field(default_factory=list)


def register() -> None:
    """Make the schemas known to Hydra, under the names that the defaults lists of conf/ use."""
    store = ConfigStore.instance()
    store.store("train_schema", TrainSchema)
    store.store("pretrain_schema", PretrainSchema)


def check_keys(cfg: DictConfig, section: str = "") -> None:
    """Raises InputError for a key that its section's schema does not have: `+key=` adds any without a word."""
    kind = OmegaConf.get_type(cfg)
    if not is_dataclass(kind):
        return
    known = [one.name for one in fields(kind)]
    for key in map(str, cfg):
        if key not in known:
            raise InputError(f"there is no setting {section}{key}: {section or 'the top level '}has {', '.join(known)}")
        if isinstance(below := cfg._get_node(key), DictConfig):
            check_keys(below, f"{section}{key}.")
