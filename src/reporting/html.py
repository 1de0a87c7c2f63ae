"""Tables and charts of studies -> one HTML page that needs nothing else: tables sort, charts show their values."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.reporting.charts import COLOURS, Chart
from src.reporting.table import Column, Table

if TYPE_CHECKING:
    from jinja2 import Environment


def page(studies: Sequence[tuple[Table, list[Chart]]]) -> str:
    """The page, from page.html beside this file."""
    shown = [
        {
            "name": table.name,
            "question": table.question,
            "notes": table.notes,
            "columns": [column for column in table.columns if column.heading],
            "rows": cells([column for column in table.columns if column.heading]),
            "charts": [asdict(chart) for chart in charts],
        }
        for table, charts in studies
    ]
    return environment().get_template("page.html").render(studies=shown, colours=COLOURS)


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
            zip(*(column.values for column in columns), strict=True),
            strict=True,
        )
    ]
