"""What several test files share. No network is needed; real data beside the checkout is used if present."""

import io
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.config.schema import register
from src.finetune.cost import Flops
from src.gpt.model import GPT, GPTConfig
from tests.shared import Answer, Command

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

register()  # as the commands do before they compose a config
torch.set_num_threads(1)  # tiny models lose more to waiting threads than they gain

TINY = GPTConfig(n_layer=3, n_head=2, n_embd=16, context_length=64)
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def no_cache_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept from run to run is kept in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWO_WAYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def uncounted() -> Iterator[None]:
    """Operations are taken for as many as tokens: counting them takes half of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flops, "of", lambda self, ids, *_: ids.numel())
        yield


@pytest.fixture
def tiny_gpt() -> GPT:
    """A GPT of three blocks with GPT-2's vocabulary, the same in every test."""
    return GPT(TINY, seed=0).eval()


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; a test that needs it is skipped, and says so, where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data sets are not present at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m src.<module> <arguments>` in this process, which spares the seconds of imports."""

    def call(module: str, *arguments: str, stdin: bytes = b"") -> Answer:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        status = 0
        try:
            runpy.run_module(f"src.{module}", run_name="__main__", alter_sys=True)
        except SystemExit as exit:
            status = int(exit.code or 0)
        return Answer(status, *capsys.readouterr())

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
