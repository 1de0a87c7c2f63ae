"""Checkpoint files: no byte of one can change without being noticed, unless nothing that is read from it changes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import InputError
from src.finetune.checkpointing import AtomicCheckpointIO, read_checkpoint

CONTENT = {"state_dict": {"weight": torch.arange(6.0)}, "moments": {0: torch.ones(3)}, "step": 17, "names": ["a", "b"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "folder" / "a.ckpt")
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["a.ckpt"]
    return tmp_path / "folder" / "a.ckpt"


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_what_was_written_is_read(path):
    assert same(read_checkpoint(path, ("state_dict", "step"), "begin anew"), CONTENT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bit", [1, 128])
def test_no_flipped_bit_changes_what_is_read(path, bit):
    content, noticed = path.read_bytes(), 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        try:
            assert same(read_checkpoint(path, (), "begin anew"), CONTENT), f"byte {at}"
        except InputError:
            noticed += 1
    assert noticed > len(content) / 7 / 4


def test_a_checkpoint_that_is_not_there_or_lacks_something_is_named(path):
    with pytest.raises(InputError, match=r"a.ckpt .*\(optimizer_states is missing\): begin anew"):
        read_checkpoint(path, ("state_dict", "optimizer_states"), "begin anew")
    with pytest.raises(InputError, match=r"b.ckpt cannot be read.*begin anew"):
        read_checkpoint(path.with_name("b.ckpt"), (), "begin anew")


def test_a_checkpoint_is_read_by_the_run_that_wrote_it_and_those_that_go_on_from_it(tmp_path):
    AtomicCheckpointIO(["first"]).save_checkpoint(dict(CONTENT), path := tmp_path / "a.ckpt")
    for owners in ((), ["first"], ["longer", "first"]):
        assert read_checkpoint(path, (), "begin anew", owners)["step"] == CONTENT["step"]
    with pytest.raises(InputError, match=r"a.ckpt .*other settings.*begin anew"):
        read_checkpoint(path, (), "begin anew", ["second"])
