"""Tables and figures of studies -> one HTML page that needs nothing else: tables sort, figures are the printed ones."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.reporting import figures
from src.reporting.chart import Chart
from src.reporting.columns import Column
from src.reporting.table import Table

if TYPE_CHECKING:
    from jinja2 import Environment


CLAIMS = (  # what the project's claims rest on comes first, in their order
    "instruction_vs_classification",
    "few_messages",
    "specialist_vs_generalist",
    "zero_shot",
    "bridge",
    "forgetting",
    "mini_table",
)


def importance(study: str) -> int:
    """The place of a study on the page; studies of equal importance keep their order."""
    return CLAIMS.index(study) if study in CLAIMS else len(CLAIMS)


def page(studies: Sequence[tuple[Table, list[Chart]]]) -> str:
    """The page, from page.html beside this file, the most important study first."""
    shown = [
        {
            "name": table.name,
            "question": table.question,
            "notes": table.notes,
            "columns": [column for column in table.columns if column.heading],
            "rows": cells([column for column in table.columns if column.heading]),
            "charts": [
                {"kind": chart.kind, "title": chart.title, "svg": b64encode(figures.svg(chart)).decode()}
                for chart in charts
            ],
        }
        for table, charts in sorted(studies, key=lambda study: importance(study[0].name))
    ]
    return environment().get_template("page.html").render(studies=shown)


def environment() -> "Environment":
    """Templates of this folder, in which every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def cells(columns: Sequence[Column]) -> list[list[tuple[str, Any]]]:
    """Rows of (text, what it is sorted by)."""
    return [
        list(zip(texts, values, strict=True))
        for texts, values in zip(
            zip(*(column.texts for column in columns), strict=True),
            zip(*(column.order or column.values for column in columns), strict=True),
            strict=True,
        )
    ]
