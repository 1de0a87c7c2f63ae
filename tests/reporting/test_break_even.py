"""Where two lines of accuracy against training messages cross."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.reporting import rows
from src.reporting.break_even import break_even, break_even_note, crossing
from src.reporting.comparisons import references
from tests.reporting.test_report import answers, finished_rows


@pytest.mark.parametrize(
    ("differences", "at"),
    [
        ([0.1, 0.2, 0.1], 0.0),  # ahead with the fewest
        ([0.1, 0.2, 0.0], math.inf),  # not ahead with all
        ([-0.2, 0.1, 0.2], 100 * 2 ** (2 / 3)),
        ([0.1, -0.1, 0.1], math.sqrt(200 * 400)),  # what was before it fell behind does not count
    ],
)
def test_a_crossing_is_where_it_stays_ahead(differences, at):
    assert crossing([100, 200, 400], differences) == pytest.approx(at)


@pytest.fixture
def lines(tmp_path: Path) -> list[rows.Row]:
    """One block against all, on a tenth to two fifths of 1,000 messages, three seeds, 200 test messages."""

    def outcome(trainable: str, part: float, seed: int) -> dict[str, Any]:
        n = {"last_block": (160, 160, 160), "all": (120, 180, 190)}[trainable][[0.1, 0.2, 0.4].index(part)]
        return {"right": answers(200, n, seed)}

    parameters = {"task.trainable": ["last_block", "all"], "data.fraction": [0.1, 0.2, 0.4], "seed": [1, 2, 3]}
    return finished_rows(tmp_path, parameters, outcome)


def test_break_even_lies_between_the_parts_on_which_the_order_changes(lines):
    against = references(lines)
    pairs = [(row, one) for row, one in zip(lines, against, strict=True) if one is not None and one is not row]
    ahead, at, low, high = break_even(*map(list, zip(*pairs, strict=True)))
    assert ahead
    assert at == pytest.approx(100 * 2 ** (2 / 3))
    assert 100 < low < at < high < 200
    (said,) = break_even_note(lines, against)
    assert "all passes last_block at 159 (" in said


def test_a_bound_stands_where_the_lines_do_not_cross(lines):
    rest = [row for row in lines if row.values["data.fraction"] != 0.1]
    assert "passes last_block at fewer than 200 (" in break_even_note(rest, references(rest))[0]
    turned = [*rest[2:], *rest[:2]]
    assert "all passes last_block at fewer than 200 (" in break_even_note(turned, references(turned))[0]


def test_a_study_that_is_under_way_has_a_break_even_of_the_seeds_that_are_there(tmp_path):
    def outcome(trainable: str, part: float, seed: int) -> dict[str, Any] | None:
        n = 150 if trainable == "last_block" else round(1000 * part)
        return None if (trainable, part, seed) == ("all", 0.2, 2) else {"right": answers(200, n, seed)}

    parameters = {"task.trainable": ["last_block", "all"], "data.fraction": [0.1, 0.2], "seed": [1, 2]}
    found = finished_rows(tmp_path, parameters, outcome)
    assert "all passes last_block at 141 (" in break_even_note(found, references(found))[0]


def test_an_interval_covers_the_break_even_of_other_seeds_and_messages():
    """Differences that rise by a straight line over the logarithm, with spread over seeds and messages."""
    from src.reporting.break_even import drawn_differences

    rng, counts, true, covered = np.random.default_rng(1), [100.0, 200.0, 400.0, 800.0], (-0.15, -0.05, 0.05, 0.15), 0
    for _ in range(40):
        seeds, messages = rng.normal(0, 0.03, (5, 1)), rng.normal(0, 0.3, (1, 150))
        parts = [mean + seeds + messages + rng.normal(0, 0.4, (5, 150)) for mean in true]
        crossings = [crossing(counts, each) for each in drawn_differences(parts, None)]
        low, high = np.quantile(crossings, [0.025, 0.975], method="nearest")
        covered += low <= math.sqrt(200 * 400) <= high
    assert covered >= 36
