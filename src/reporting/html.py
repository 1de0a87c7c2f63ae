"""Tables and figures of studies -> one HTML page that needs nothing else: tables sort, figures are the printed ones."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from src.reporting import figures
from src.reporting.chart import Chart
from src.reporting.table import Table

CLAIMS = (  # what the project's claims rest on comes first, in their order
    "two_ways",
    "break_even",
    "specialist_vs_generalist",
    "zero_shot",
    "bridge",
    "forgetting",
    "mini_table",
)


def page(studies: Sequence[tuple[Table, list[Chart]]]) -> str:
    """The page, from page.html beside this file, the most important study first; others keep their order."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = [
        {
            "name": table.name,
            "question": table.question,
            "notes": table.notes,
            "columns": (columns := [column for column in table.columns if column.heading]),
            # of each row its (text, what it is sorted by)
            "rows": list(zip(*(zip(c.texts, c.order or c.values, strict=True) for c in columns), strict=True)),
            "charts": [
                {"kind": chart.kind, "title": chart.title, "svg": b64encode(figures.svg(chart)).decode()}
                for chart in charts
            ],
        }
        for table, charts in sorted(studies, key=lambda study: (*CLAIMS, study[0].name).index(study[0].name))
    ]
    here = FileSystemLoader(Path(__file__).parent)
    templates = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("page.html").render(studies=shown)
