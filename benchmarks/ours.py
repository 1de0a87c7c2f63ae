"""One run of src.train as a process of its own -> what it took and how well it did."""

import json
from pathlib import Path
from typing import Any

from benchmarks.process import measured


def run(settings: list[str], folder: Path, cache: Path) -> dict[str, Any]:
    """Run with `settings` in the new `folder`; the frozen blocks' features are kept in, and read from, `cache`."""
    folder.mkdir(parents=True)
    where = [f"runs={folder}", "cache=disk", f"cache.folder={cache}"]
    used = measured("src.train", [*settings, *where], folder / "out.log")
    [path] = folder.glob("*/result.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    return {
        **used._asdict(),
        "accuracy": {part: metrics["accuracy"] for part, metrics in result["metrics"].items()},
        "sizes": result["data"]["sizes"],
        "trainable_parameters": result["task"]["trainable_parameters"],
        **{name: seconds for name, seconds in result["cost"].items() if name.endswith("_seconds")},
        "features_reused": result["cost"]["features_reused"],
    }
