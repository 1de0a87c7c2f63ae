"""What a benchmark found -> a table in the terminal, <out>/<name>.json and <out>/<name>.md."""

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT
from benchmarks.setting import SEED
from src.runs.provenance import commit
from src.runs.run_dir import write_text

RESULTS = ROOT / "benchmarks" / "results"
BUSY = 0.5  # processes that want to run, on average over a minute
Table = tuple[str, list[str], list[list[str]]]  # title, names of the columns, rows


def folder(tiny: bool) -> Path:
    """Where results go: those of a smoke run into a temporary folder, so that they never replace measured ones."""
    return Path(tempfile.mkdtemp(prefix="two-ways-tiny-")) if tiny else RESULTS


def warn(machine: dict[str, Any]) -> None:
    """Say what will make numbers worthless, or take very long: a busy machine, bf16 on a processor without it."""
    if machine["load_at_start"] > BUSY:
        print(
            f"load {machine['load_at_start']}: others use this machine, so that times will say little", file=sys.stderr
        )
    peaks = machine["peak_flops_per_second"]
    for name, rate in peaks.items():
        if name != "32-true" and rate < max(peaks.values()) / 4:
            print(f"{name} reaches {rate / 1e9:.0f} GFLOP/s here: leave it out with precision=", file=sys.stderr)


def write(
    name: str, where: Path, machine: dict[str, Any], found: dict[str, Any], tables: list[Table], notes: str
) -> None:
    """Show the tables, and write them with everything that was found."""
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    context = {"command": command, "commit": commit(), "seed": SEED, "machine": machine}
    setting = facts(context)
    where.mkdir(parents=True, exist_ok=True)
    write_text(where / f"{name}.json", json.dumps(context | found, indent=2) + "\n")
    lines = [f"`{command}`", "", setting, ""]
    for title, names, rows in tables:
        show(title, names, rows)
        lines += [f"**{title}**", "", *markdown(names, rows), ""]
    print(setting, "", notes, sep="\n")
    print(f"written: {where / name}.json, {where / name}.md")
    write_text(where / f"{name}.md", "\n".join([*lines, notes.rstrip()]) + "\n")


def facts(context: dict[str, Any]) -> str:
    """When, from what and on which machine, in a few lines."""
    machine = context["machine"]
    peaks = [f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in machine["peak_flops_per_second"].items()]
    return "\n".join(
        [
            f"{machine['date']}, commit {(context['commit'] or 'unknown')[:12]}, seed {context['seed']}. "
            f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, {machine['instructions']}; "
            f"load {machine['load_at_start']} at the start.",
            f"torch {machine['torch']}, lightning {machine['lightning']}, transformers {machine['transformers']}, "
            f"Python {machine['python']}. Peak of a matrix product: {', '.join(peaks)}.",
        ]
    )


def show(title: str, names: list[str], rows: list[list[str]]) -> None:
    """A table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(names):
        grid.add_column(name, justify="right" if i and is_number(rows, i) else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    Console(width=160 if not sys.stdout.isatty() else None).print(grid)


def markdown(names: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    ruler = ["---:" if i and is_number(rows, i) else "---" for i in range(len(names))]
    return ["| " + " | ".join(cells) + " |" for cells in (names, ruler, *rows)]


def is_number(rows: list[list[str]], column: int) -> bool:
    """Whether a column holds numbers, which stand on the right."""
    return all(row[column][:1].isdigit() or row[column] == "" for row in rows)
