"""Run folders of earlier versions, read as if today's had written them.

Settings that were renamed stand here once, old -> new, and so does what their runs did not record.
"""

from typing import Any

# dotted setting then -> now; a part given as * is kept, so that data.sources.*.name covers the sources of a mix
RENAMED: dict[str, str] = {}
# (dotted setting now, value then) -> value now
REVALUED: dict[tuple[str, Any], Any] = {}
# dotted setting that was added since -> the value that stands for what was done before
ADDED: dict[str, Any] = {"task.lora.init": "in_features"}

# Weights of gpt=mini that runs without a record began from; their config hashes hold it.
WEIGHTS_BEFORE_RECORDS = "7755868c4c31646cf59baabd3225315311845f93eb59645d3a991b6728fb52f0"


def todays(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of an old run in today's words."""
    made: dict[str, Any] = {}
    for place, value in leaves(config, ()):
        now = renamed(place)
        put(made, now, REVALUED.get((".".join(now), value), value) if isinstance(value, str) else value)
    for key, value in ADDED.items():
        *sections, last = key.split(".")
        section = made
        for name in sections:
            section = section.get(name, {})
        if section:
            section.setdefault(last, value)
    return made


def leaves(node: dict[str, Any], place: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Places and values, depth first; a list and an empty dict are values."""
    return [
        leaf
        for key, value in node.items()
        for leaf in (
            leaves(value, (*place, str(key))) if isinstance(value, dict) and value else [((*place, str(key)), value)]
        )
    ]


def renamed(place: tuple[str, ...]) -> tuple[str, ...]:
    """Where a setting stands today."""
    for then, now in RENAMED.items():
        parts = then.split(".")
        if len(parts) == len(place) and all(part in ("*", key) for part, key in zip(parts, place, strict=True)):
            kept = iter([key for part, key in zip(parts, place, strict=True) if part == "*"])
            return tuple(next(kept) if part == "*" else part for part in now.split("."))
    return place


def put(node: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for key in place[:-1]:
        node = node.setdefault(key, {})
    node[place[-1]] = value


def sha256(config: dict[str, Any], result: dict[str, Any]) -> dict[str, str | None]:
    """What is known of what a run read that did not record it: its data, unless they are a mix, and its weights."""
    found: dict[str, str | None] = {}
    if "sources" not in config.get("data", {}):
        found["data.path"] = result.get("data", {}).get("sha256")
    gpt = config.get("gpt", {})
    if (gpt.get("name"), gpt.get("weights")) == ("mini", "pretrained"):
        found["gpt.weights"] = WEIGHTS_BEFORE_RECORDS
    return found
