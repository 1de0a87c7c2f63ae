"""A table -> Markdown, LaTeX, CSV, a terminal."""

import csv
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from src.files import spreadsheet_cell
from src.reporting.columns import MISSING
from src.reporting.rows import shown
from src.reporting.table import Table

if TYPE_CHECKING:
    import rich.table

MARKDOWN = {"\\": "\\\\", "|": "\\|", "*": "\\*", "<": "&lt;", "\n": " "}
LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"${sign}$" for sign in "<>"},
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "|": r"\textbar{}",
    **{sign: f"{{{sign}}}" for sign in "[*"},  # which mean something after the end of a row
}

# what a page and a terminal have no room for; the other forms have it
NOT_ON_PAPER = ("runs", "validation_accuracy", "validation_loss", "peak_memory_bytes")
NOT_IN_TERMINAL = ("validation_loss", "peak_memory_bytes", "p_holm", "p_crossed_holm")


def markdown(table: Table) -> str:
    """A GitHub table with its notes."""
    columns = [column for column in table.columns if column.heading]
    rule = ["---" if column.is_text else "---:" for column in columns]
    lines = [[column.heading for column in columns], rule, *zip(*(column.texts for column in columns), strict=True)]
    body = ["| " + " | ".join(cell if line is rule else plain(cell) for cell in line) + " |" for line in lines]
    question = [plain(table.question), ""] if table.question else []
    notes = [f"- {plain(note)}" for note in table.notes]
    return "\n".join([f"<!-- {origin(table)} -->", f"## {plain(table.name)}", "", *question, *body, "", *notes]) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    for sign, instead in MARKDOWN.items():
        text = text.replace(sign, instead)
    return text


def latex(table: Table) -> str:
    """A booktabs table, to be read with \\input by a document that uses booktabs and graphicx; the columns that a
    reader misses least are left out."""
    columns = [column for column in table.columns if column.heading and column.name not in NOT_ON_PAPER]
    rows = zip(*(column.texts for column in columns), strict=True)
    name = "".join(sign if sign.isalnum() else "-" for sign in table.name)
    return "\n".join(
        [
            f"% {origin(table)}",
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{tex(table.question or table.name)}}}",
            rf"\label{{tab:{name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%  no wider than the text",
            rf"\begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in columns)}}}",
            r"\toprule",
            tex_line([column.heading for column in columns]),
            r"\midrule",
            *map(tex_line, rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\smallskip\raggedright\scriptsize",
            *map(tex, table.notes),
            r"\end{table}",
            "",
        ]
    )


def tex_line(cells: Sequence[str]) -> str:
    return " & ".join("--" if cell == MISSING else tex(cell) for cell in cells) + r" \\"


def tex(text: str) -> str:
    """Text that LaTeX prints as it stands; what its fonts do not have is given by code point."""
    signs = [LATEX.get(sign, sign if ord(sign) < 0x180 else f"{{[}}U+{ord(sign):04X}]") for sign in text]
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", "".join(signs))  # a minus is longer than a hyphen


def origin(table: Table) -> str:
    """How a table is made again."""
    return f"made by python -m src.report experiments/{table.name}.yaml"


def terminal(table: Table) -> "rich.table.Table":
    """The table for a terminal."""
    from rich.table import Table as Rich
    from rich.text import Text

    columns = [column for column in table.columns if column.heading and column.name not in NOT_IN_TERMINAL]
    made = Rich(title=Text(table.name), caption=Text("\n".join(table.notes)), caption_justify="left")
    for column in columns:
        made.add_column(Text(column.heading), justify="left" if column.is_text else "right")
    for texts in zip(*(column.texts for column in columns), strict=True):
        made.add_row(*map(Text, texts))
    return made


def as_csv(table: Table) -> str:
    """The numbers of all columns, shares between 0 and 1, to 12 digits, beyond which machines differ; empty for what is
    missing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    for values in zip(*(column.values for column in table.columns), strict=True):
        writer.writerow(["" if value is None else spreadsheet_cell(shown(rounded(value))) for value in values])
    return out.getvalue()


def rounded(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value
