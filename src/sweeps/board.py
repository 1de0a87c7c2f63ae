"""What a sweep shows on standard error: in a terminal a bar with the time left over a table of what ended last, else a
line for each run that ends."""

import sys
from time import monotonic
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

MARGIN = 8  # lines of a terminal that are not rows of the table


class Board:
    """Counts the runs that end, of `total`, of which `before` had ended when the sweep began."""

    def __init__(self, name: str, total: int, before: int) -> None:
        self.total, self.ended, self.before, self.started = total, before, before, monotonic()
        self.rows: list[tuple[str, str, str]] = []
        self.console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task(name, total=total, completed=before, left="")
        self.live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.live.stop()

    def finished(self, label: str, result: dict[str, Any]) -> None:
        """A run has a result."""
        accuracy, seconds = result["metrics"]["test"]["accuracy"], result["cost"]["train_seconds"]
        self._add(label, f"test accuracy {accuracy:.2%}", f"{seconds:.0f} s of training")

    def failed(self, label: str, sentence: str) -> None:
        """A run has been given up."""
        self._add(label, "failed", sentence)

    def left(self) -> str:
        """How long the rest takes if it goes on like this."""
        done, rest = self.ended - self.before, self.total - self.ended
        return f"about {duration((monotonic() - self.started) / done * rest)} left" if done and rest else ""

    def _add(self, label: str, outcome: str, more: str) -> None:
        self.ended += 1
        self.rows.append((label, outcome, more))
        self.bar.update(self.task, completed=self.ended, left=self.left())
        if not self.console.is_terminal:
            rest = f"; {self.left()}" if self.left() else ""
            print(f"[{self.ended}/{self.total}] {label}: {outcome}, {more}{rest}", file=sys.stderr, flush=True)

    def _render(self) -> Group:
        table = Table(box=None, show_header=False)
        for row in self.rows[: -max(1, self.console.height - MARGIN) - 1 : -1]:
            table.add_row(*map(escape, row))
        return Group(self.bar, table)


def duration(seconds: float) -> str:
    """Seconds for a person."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
