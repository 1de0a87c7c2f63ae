"""Numbers -> pictures, with matplotlib; readable in print and by the colour-blind."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from src.files import whole_file
from src.reporting.chart import COLOURS, Chart, Matrix, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^DvPX*"
LINES = ("-", "--", "-.", ":")
# 42: text stays text; no mathematics: names may hold a $
STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "pdf.fonttype": 42, "text.parse_math": False}
ACROSS = 4  # small panels beside each other
# without these, the date and the library's version would change the bytes of an unchanged figure
NO_DATE: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's colours, which all eyes tell apart


def loss_curve(curve: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Training and validation loss against tokens seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    tokens = [row["tokens"] / 1e6 for row in curve]
    # with a point for each row: a line through one would not be seen
    axes.plot(tokens, [row["train_loss"] for row in curve], color=ORANGE, linestyle="--", marker=".", label="training")
    axes.plot(tokens, [row["validation_loss"] for row in curve], color=BLUE, marker=".", label="validation")
    axes.set(xlabel="million tokens", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:], dpi=150)


def save(chart: Chart, stem: Path) -> list[Path]:
    """Draw a chart into <stem>.png and <stem>.pdf, the same bytes for the same chart."""
    from matplotlib import rc_context

    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in NO_DATE]
    with rc_context(STYLE):
        figure = draw(chart)
        for path in paths:
            with whole_file(path) as unfinished:
                figure.savefig(unfinished, format=(kind := path.suffix[1:]), dpi=200, metadata=NO_DATE[kind])
    return paths


def svg(chart: Chart) -> bytes:
    """A chart as SVG, the same bytes for the same chart."""
    from io import BytesIO

    from matplotlib import rc_context

    with rc_context({**STYLE, "svg.hashsalt": chart.kind}):
        draw(chart).savefig(drawn := BytesIO(), format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


def draw(chart: Chart) -> "Figure":
    """A chart's panels, with a title and one legend for all."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    n, matrix = len(chart.panels), chart.panels[0].matrix is not None
    across = min(ACROSS, n)
    down = -(-n // across)
    names = dict.fromkeys(one.name for panel in chart.panels for one in panel.series if one.name)
    alone = n == 1 and not matrix
    side = 2.8 if n == 2 and not matrix else 2.0
    beside = max(1, min(len(names), int(side * across / 1.6)))  # names in a line of the legend
    below = 0.17 * -(-len(names) // beside)
    inches = (6.0, max(3.6, 0.5 + 0.16 * len(names))) if alone else (0.4 + side * across, 0.5 + side * down + below)
    figure = Figure(figsize=inches)
    heading = f"{chart.title}\n{chart.note}".strip()
    shared = not (matrix or chart.own_scales)
    grid = figure.subplots(down, across, squeeze=False)
    for i, (axes, panel) in enumerate(zip(grid.flat, chart.panels, strict=False)):
        draw_matrix(axes, panel.matrix) if panel.matrix else draw_series(axes, chart, panel)
        title = wrapped(f"{heading}\n{panel.title}".strip(), 60) if alone else wrapped(panel.title, 28)
        axes.set_title(title, y=1.0)  # where it would be put too, after a look at each tick
        if lowest := i + across >= n:  # of its column; a label for the whole figure would lie on the legend
            axes.set_xlabel(chart.x_label)
        axes.tick_params(labelbottom=not shared or lowest, labelleft=not shared or i % across == 0)
    for axes in grid.flat[n:]:
        axes.remove()
    if shared:
        same_scales(figure.axes)
    if alone:
        grid[0, 0].set_ylabel(chart.y_label)
    else:
        figure.suptitle(heading)
        figure.supylabel(chart.y_label, fontsize="medium")
    if names:
        place: dict[str, Any] = {"loc": "outside right upper"}
        if not alone:
            place = {"loc": "outside lower center", "ncols": beside, "frameon": False}
        drawn = [axes.get_legend_handles_labels() for axes in figure.axes]
        handles = {label: handle for one in drawn for handle, label in zip(*one, strict=True)}
        figure.legend(handles.values(), handles.keys(), fontsize=7, **place)
    ConstrainedLayoutEngine().execute(figure)  # once; as the figure's own it would go before each format, drawn twice
    return figure


def same_scales(panels: "Sequence[Axes]") -> None:
    """Give all panels the scales that hold what any of them shows; shared axes would cost their square."""
    (left, right), (bottom, top) = (
        zip(*limits, strict=True)
        for limits in ([axes.get_xlim() for axes in panels], [axes.get_ylim() for axes in panels])
    )
    for axes in panels:
        axes.set(xlim=(min(left), max(right)), ylim=(min(bottom), max(top)))


def wrapped(text: str, width: int) -> str:
    """Text broken into lines that fit beside what else is drawn."""
    return "\n".join(fill(line, width) for line in text.splitlines())


def draw_series(axes: "Axes", chart: Chart, panel: Panel) -> None:
    """Points, lines, bars and bands of a panel."""
    from matplotlib.ticker import LogLocator

    if chart.diagonal:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    if chart.log_x:
        axes.set_xscale("log")
        drawn = [panel] if chart.own_scales else chart.panels
        places = [x for other in drawn for one in other.series for x in one.x]
        if min(places) == max(places):  # an axis of no width
            axes.set_xlim(min(places) / 2, 2 * max(places))
        wide = max(places) > 20 * min(places)  # then 1, 2, 5 would run into each other in a small panel
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide and len(chart.panels) > 1 else (1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
    if chart.ticks:
        axes.set_xticks([place for place, _ in chart.ticks], [label for _, label in chart.ticks])
    for one in panel.series:
        draw_one(axes, one, [x * (1 + one.shift) if chart.log_x else x + one.shift for x in one.x])
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def draw_one(axes: "Axes", one: Series, x: list[float]) -> None:
    """One series at its places x: its line, its points, and its interval as bars or band."""
    colour, line = COLOURS[one.style % len(COLOURS)], LINES[one.style % len(LINES)]
    marker, name = MARKERS[one.style % len(MARKERS)], wrapped(one.name, 34) or None
    if one.band:
        axes.plot(x, one.y, color=colour, linestyle=line, label=name)
        axes.fill_between(x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
        return
    axes.plot(x[: one.joined], one.y[: one.joined], color=colour, linestyle=line, linewidth=1)
    if one.sizes:
        axes.scatter(x, one.y, s=[4 + 60 * size for size in one.sizes], color=colour, marker=marker, label=name)
        return
    bars = [
        [y - low for y, low in zip(one.y, one.low, strict=True)],
        [h - y for y, h in zip(one.y, one.high, strict=True)],
    ]
    axes.errorbar(
        x,
        one.y,
        bars,
        color=colour,
        marker=marker,
        linestyle="",
        markersize=4,
        capsize=2,
        elinewidth=0.8,
        label=name,
    )


def draw_matrix(axes: "Axes", matrix: Matrix) -> None:
    """Shares of each true label, with the counts where there is room."""
    places, many = range(len(matrix.labels)), len(matrix.labels) > 3
    shares = [[count / max(1, sum(counts)) for count in counts] for counts in matrix.counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [label if len(label) <= 10 else f"{label[:4]}…{label[-5:]}" for label in matrix.labels]
    axes.set_xticks(places, names, rotation=90 if many else 0)
    axes.set_yticks(places, names)
    for i in places:
        for j in places:
            text = f"{100 * shares[i][j]:.0f}" + ("" if many else f"%\n{matrix.counts[i][j]:,}")
            axes.text(
                j, i, text, ha="center", va="center", fontsize=6, color="white" if shares[i][j] > 0.7 else "black"
            )
