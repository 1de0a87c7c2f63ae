"""What the tests of studies share."""

from pathlib import Path

import pytest

from src.sweeps import study
from src.train import train
from tests.sweeps import tiny


@pytest.fixture(scope="session")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_messages(tmp_path_factory.mktemp("data") / "messages.tsv")


@pytest.fixture(scope="session")
def undisturbed(messages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A study of four tiny runs, and what they come to when each is trained by src.train alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = tiny.write(folder, tiny.content(messages, {"task.trainable": ["last_block", "all"], "seed": [1, 2]}))
    for trial in study.trials(study.read(path)):
        cfg = study.config(trial)
        cfg.runs = str(folder / "runs")
        train(cfg)
    return path, tiny.outcomes(folder / "runs")
