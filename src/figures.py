"""Numbers -> pictures, with matplotlib; readable in print and by the colour-blind."""

from collections.abc import Sequence
from pathlib import Path

BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's colours, which all eyes tell apart


def loss_curve(curve: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Training and validation loss against tokens seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    tokens = [row["tokens"] / 1e6 for row in curve]
    axes.plot(tokens, [row["train_loss"] for row in curve], color=ORANGE, linestyle="--", label="training")
    axes.plot(tokens, [row["validation_loss"] for row in curve], color=BLUE, label="validation")
    axes.set(xlabel="million tokens", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
