"""What both sides of a comparison share, and its two spellings: settings of src.train, options of benchmarks.peer."""

from dataclasses import dataclass
from pathlib import Path

from src.errors import InputError

EXPERIMENTS = {"1": "last_block", "16": "last_real_token"}  # row of the published table -> its experiment
SEED = 123
BATCH_SIZE = 8
LR = 5e-5
WEIGHT_DECAY = 0.1
TINY_GPT = ["gpt.n_layer=2", "gpt.n_head=2", "gpt.n_embd=64"]
TINY_FRACTION = 0.06  # of the 1,045 training messages


@dataclass(frozen=True)
class Setting:
    """A job.

    weights       a Hugging Face folder, or random
    spam          the UCI file, or empty for src.data to find or download it
    accelerator   Lightning's name of a device
    """

    gpt: str
    weights: Path | str
    spam: str
    precision: str
    epochs: int
    tiny: bool
    accelerator: str = "cpu"

    def ours(self, experiment: str) -> list[str]:
        """The settings of src.train."""
        return [
            f"+experiment={experiment}",
            *gpt_settings(self.gpt, self.tiny),
            *data_settings(self.spam),
            f"gpt.weights={self.weights}",
            f"data.fraction={TINY_FRACTION if self.tiny else 1.0}",
            f"data.batch_size={BATCH_SIZE}",
            f"optimizer.lr={LR}",
            f"optimizer.weight_decay={WEIGHT_DECAY}",
            f"trainer.precision={self.precision}",
            f"trainer.max_epochs={self.epochs}",
            f"trainer.accelerator={self.accelerator}",
            "logger=none",
            f"seed={SEED}",
        ]

    def peer(self) -> list[str]:
        """The options of benchmarks.peer."""
        fraction = TINY_FRACTION if self.tiny else 1.0
        given = {"weights": self.weights, "spam": self.spam, "precision": self.precision, "epochs": self.epochs}
        return [f"{key}={value}" for key, value in (given | {"fraction": fraction}).items()]


def gpt_settings(gpt: str, tiny: bool) -> list[str]:
    """Which GPT, in settings of src.train."""
    return [f"gpt={gpt}", *(TINY_GPT if tiny else [])]


def data_settings(spam: str) -> list[str]:
    """The published split of the UCI collection, in settings of src.train."""
    return ["data=sms_spam", "data.split=book", *([f"data.path={Path(spam).resolve()}"] if spam else [])]


def yes(name: str, value: str) -> bool:
    """Whether an option says true. Raises InputError unless it says true or false."""
    if value not in ("true", "false"):
        raise InputError(f"{name}={value} is unknown: use true or false")
    return value == "true"
