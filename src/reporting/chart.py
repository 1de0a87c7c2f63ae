"""A chart, as data: what charts.py makes of rows, and figures.py draws."""

from dataclasses import dataclass, field

# of Okabe and Ito's colours, which all eyes tell apart; their yellow is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Series:
    """Points with the name that a legend gives them; low and high are the ends of their bars or the edges of a band."""

    name: str
    style: int  # colour, marker and line by number: the same number looks the same everywhere
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    shift: float = 0.0  # how far it is drawn beside x, so that bars do not hide one another; on a log axis a share of x
    sizes: list[float] = field(default_factory=list)  # shares of all messages, shown by the size of a point
    joined: int = 0  # how many of the points, from the first, a line joins
    band: bool = False


@dataclass(frozen=True)
class Matrix:
    """Counts of messages: row the true label, column the predicted one."""

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: series, or a confusion matrix."""

    title: str
    series: list[Series] = field(default_factory=list)
    matrix: Matrix | None = None


@dataclass(frozen=True)
class Chart:
    """One figure; `note` says what is drawn. `ticks` are (place, label) on the x axis where numbers would say less."""

    kind: str
    title: str
    x_label: str
    y_label: str
    panels: list[Panel]
    note: str = ""
    log_x: bool = False
    own_scales: bool = False  # whether each panel has its own, where they show different data
    ticks: list[tuple[float, str]] = field(default_factory=list)
    diagonal: bool = False
