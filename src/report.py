"""python -m src.report [experiments/<study>.yaml ...] [format=md,tex,csv,figures] [reference=<row>] [runs=runs]

Makes a study's table and figures from its finished runs: experiments/tables/<study>.md, .tex and .csv, and
experiments/figures/<study>-<what>.png and .pdf. Without a study, of every study in experiments/.
  format=html                              one page of all studies named, experiments/report.html, for a browser
  reference=pooling=last,trainable=all    the row that others are compared with, by values or label. If it names
                                           several, a row is compared with the one that has its other settings. Else
                                           it is the first that was trained on the same part of the messages
  difference=1.0                           in points: a note says how many seeds it takes to find it
"""

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.command_line import one_sentence
from src.config.options import Place, options
from src.errors import InputError

if TYPE_CHECKING:
    from src.reporting.chart import Chart
    from src.reporting.table import Table

FORMATS = ("md", "tex", "csv", "figures", "html")
PANELS = 16  # of a figure


@dataclass
class Options:
    """What the command line takes besides studies."""

    format: str = "md,tex,csv,figures"
    reference: str | None = None
    difference: float | None = None
    runs: Place = "runs"


def report(path: Path, formats: list[str], given: Options) -> "tuple[Table, list[Chart]] | None":
    """Write what is asked for of a study and print its table; None, and nothing written, where no run has finished."""
    from rich.console import Console

    from src.reporting import render, rows
    from src.reporting.charts import charts
    from src.reporting.comparisons import references
    from src.reporting.finished import finished
    from src.reporting.table import table
    from src.runs.run_dir import ARCHIVE
    from src.sweeps import study

    asked = study.read(path)
    archive = path.parent / ARCHIVE.name
    found = rows.read(asked, given.runs, archive)
    if not any(row.runs for row in found):
        print(
            f"{path.stem}: none of its {sum(row.wanted for row in found)} runs has finished in {given.runs}, what "
            f"stands in {path.parent} is left as it is; run them with python -m src.sweep {path}"
        )
        return None
    made = table(
        path.stem,
        asked.description,
        found,
        references(found, given.reference),
        given.difference,
        metric=asked.metric.name,
        finished=chain.from_iterable(finished(given.runs, archive).values()),
    )
    drawn = charts(found, made.caption)
    written = [*write_tables(made, path.parent / "tables", formats)]
    if "figures" in formats:
        written += write_figures(path.stem, drawn, path.parent / "figures")
    Console(width=None if sys.stdout.isatty() else 200).print(render.terminal(made))
    print(*(f"written: {file}" for file in written), sep="\n", flush=True)
    return made, drawn


def write_tables(made: "Table", folder: Path, formats: list[str]) -> list[Path]:
    """The table in those of the formats that are a table's."""
    from src.reporting import render
    from src.runs.run_dir import write_text

    as_text = {"md": render.markdown, "tex": render.latex, "csv": render.as_csv}
    folder.mkdir(parents=True, exist_ok=True)
    written = [(folder / f"{made.name}.{kind}", as_text[kind](made)) for kind in formats if kind in as_text]
    for file, text in written:
        write_text(file, text)
    return [file for file, _ in written]


def write_figures(name: str, drawn: "list[Chart]", folder: Path) -> list[Path]:
    """The charts that a printed page has room for, as PNG and PDF; the page for a browser has all."""
    from src.reporting import figures

    folder.mkdir(parents=True, exist_ok=True)
    fitting = [chart for chart in drawn if len(chart.panels) <= PANELS]
    return [file for chart in fitting for file in figures.save(chart, folder / f"{name}-{chart.kind}")]


def main() -> None:
    """Report on the studies that are named, or on all."""
    named = [argument for argument in sys.argv[1:] if "=" not in argument and argument not in ("-h", "--help")]
    given = options(Options, [argument for argument in sys.argv[1:] if argument not in named], __doc__ or "")
    formats = given.format.split(",")
    if unknown := [one for one in formats if one not in FORMATS]:
        raise InputError(f"format={unknown[0]} is unknown: use some of {','.join(FORMATS)}")
    studies = [Path(one) for one in named] or sorted(Path("experiments").glob("*.yaml"))
    if not studies:
        raise InputError("experiments/ holds no study: give one, as experiments/<study>.yaml")
    if given.reference is not None and len(studies) > 1:
        raise InputError("reference= names a row of one study: name that study too")
    if given.difference is not None and not 0 < given.difference < 100:
        raise InputError(
            f"difference={given.difference:g} must lie between 0 and 100: the points that a study is to see"
        )
    made = [one for path in studies if (one := report(path, formats, given))]
    if "html" in formats and made:
        from src.reporting.html import page
        from src.runs.run_dir import write_text

        write_text(file := studies[0].parent / "report.html", page(made))
        print(f"written: {file}")


if __name__ == "__main__":
    with one_sentence():
        main()
