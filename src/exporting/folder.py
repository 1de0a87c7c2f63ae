"""A folder that appears whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from src.errors import InputError


def check(to: Path) -> None:
    """Raises InputError for what is in use already."""
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise InputError(f"to={to} is no folder: choose a new one")
    if to.is_dir() and any(to.iterdir()):
        raise InputError(f"to={to} is not empty: choose a new folder, or remove what is in it")


@contextmanager
def appearing(to: Path) -> Iterator[Path]:
    """A new folder beside `to`, to be filled, that takes its name at the end. Raises InputError where it cannot be
    written; whatever ends it early, nothing is left."""
    check(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as beside:
            unfinished = Path(beside) / to.name
            unfinished.mkdir()
            yield unfinished
            os.replace(unfinished, to)
    except (OSError, SafetensorError) as error:
        raise InputError(f"to={to} cannot be written: {error}") from None
