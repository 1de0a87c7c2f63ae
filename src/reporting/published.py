"""The book's table (Raschka, "Build a Large Language Model (From Scratch)", chapter 6): 19 figures, each of one seed on
300 test messages, and which of them a config repeats. They are facts about another's runs, kept in published.csv."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.sms_spam import UCI_TEXT_SHA256
from src.evaluation.intervals import Interval, wilson
from src.runs import identity, run_dir
from src.sweeps import study

TABLE = Path(__file__).parents[2] / "experiments" / "published.csv"
TEST_MESSAGES = 300


@dataclass(frozen=True)
class Published:
    """A row of that table: its number, the experiment that repeats it, and its test accuracy."""

    row: int
    gpt: str
    weights: str
    accuracy: float
    note: str

    @property
    def interval(self) -> Interval:
        return wilson(round(self.accuracy * TEST_MESSAGES), TEST_MESSAGES)


def published_rows() -> dict[str, Published]:
    """Experiment -> its row of the book's table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {
            line["experiment"]: Published(
                int(line["row"]), line["gpt"], line["weights"], float(line["test_accuracy"]) / 100, line["note"]
            )
            for line in csv.DictReader(file)
        }


def repeated_by(cfg: Any, known: dict[str, Published]) -> Published | None:
    """The published row that a config repeats: the same experiment, GPT, weights, data, task and length of training."""
    row = known.get(cfg.name)
    if row is None or not identity.has_gpt(cfg):
        return None
    given = (cfg.gpt.name, cfg.gpt.weights, identity.pinned_data(cfg.data))
    if given != (row.gpt, row.weights, UCI_TEXT_SHA256):
        return None
    book = study.config(study.Trial({}, (f"+experiment={cfg.name}", f"gpt={row.gpt}", "data=sms_spam")))
    return row if decisive(cfg) == decisive(book) else None


def decisive(cfg: Any) -> list[Any]:
    """The settings that a published figure depends on; precision and seed are left free."""
    trainer = [cfg.trainer[key] for key in ("max_epochs", "accumulate_grad_batches", "gradient_clip_val")]
    parts = [run_dir.plain(section) for section in (cfg.gpt, cfg.task, cfg.optimizer, cfg.scheduler)]
    return [*parts, identity.without_places(run_dir.plain(cfg.data)), trainer, cfg.patience]
