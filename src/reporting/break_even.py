"""From how many training messages on one of two ways is ahead: where a row's line of accuracy crosses its reference's.

Between the parts of the messages that were trained on, a difference is read off straight lines over the logarithm of
their number. The interval has the percentiles of a bootstrap that draws both seeds and test messages, near-duplicates
together (Owen 2007, The pigeonhole bootstrap), which is none too narrow.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.reporting.charts import DATA
from src.reporting.comparisons import differences_by_seed
from src.reporting.rows import PART, Row, brief, namer

DRAWS = 2000


def crossing(counts: Sequence[float], differences: Sequence[float]) -> float:
    """The number of messages from which on every difference is above 0; 0 where all are, infinity where the last is
    not. `counts` rise."""
    ahead = len(counts)
    while ahead and differences[ahead - 1] > 0:
        ahead -= 1
    if ahead in (0, len(counts)):
        return 0.0 if ahead == 0 else math.inf
    below, above = differences[ahead - 1], differences[ahead]
    share = -below / (above - below)
    return math.exp((1 - share) * math.log(counts[ahead - 1]) + share * math.log(counts[ahead]))


def drawn_differences(
    differences: Sequence[NDArray[np.floating]], groups: NDArray[np.integer] | None
) -> NDArray[np.floating]:
    """Mean differences (DRAWS, parts) with seeds and messages drawn anew, the same for each part (S, N) of as many
    seeds."""
    numbers = np.arange(differences[0].shape[1]) if groups is None else groups
    rng, drawn = np.random.default_rng(0), int(numbers.max()) + 1
    of_seeds = {n: rng.multinomial(n, np.full(n, 1 / n), DRAWS) for n in sorted({len(each) for each in differences})}
    of_messages = rng.multinomial(drawn, np.full(drawn, 1 / drawn), DRAWS)[:, numbers]
    whole = of_messages.sum(1)
    sums = [((of_seeds[len(each)] @ each) * of_messages).sum(1) / len(each) for each in differences]
    return np.stack([each / whole for each in sums], axis=1)


def break_even(rows: Sequence[Row], against: Sequence[Row]) -> tuple[bool, float, float, float]:
    """Rows of one way by rising numbers of training messages, each with its reference -> whether it is ahead with the
    most; of the one that is, the `crossing`, and both ends of its 95% interval."""
    counts = [messages_of(row) for row in rows]
    pairs = list(zip(rows, against, strict=True))
    differences = [differences_by_seed(row, one, one.correct_on(row)) for row, one in pairs]
    ahead = bool(differences[-1].mean() > 0)
    differences = differences if ahead else [-each for each in differences]
    drawn = [crossing(counts, each) for each in drawn_differences(differences, rows[0].groups)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return ahead, crossing(counts, [float(each.mean()) for each in differences]), float(low), float(high)


def break_even_note(rows: Sequence[Row], references: Sequence[Row | None]) -> list[str]:
    """A sentence for each way and data that were trained on several parts of the messages; none of a study without."""
    name = namer([way(row) for row in rows], "")
    ways: dict[tuple[str, str, str], list[tuple[Row, Row]]] = {}
    for row, one in zip(rows, references, strict=True):
        if one is None or one is row or PART not in row.values or one.values[PART] != row.values[PART]:
            continue
        data = brief(row.values[DATA]) if DATA in row.values else ""
        ways.setdefault((data, name(way(row)), name(way(one))), []).append((row, one))
    said = []
    for (data, mine, theirs), pairs in ways.items():
        pairs.sort(key=lambda pair: messages_of(pair[0]))
        if len(pairs) < 2 or any(row.places.keys() != pairs[0][0].places.keys() for row, _ in pairs):
            continue
        least, most = (messages_of(pairs[i][0]) for i in (0, -1))
        ahead, *found = break_even(*map(list, zip(*pairs, strict=True)))
        at, low, high = (number(each, least, most) for each in found)
        first, second = (mine, theirs) if ahead else (theirs, mine)
        said.append(f"{data + ': ' if data else ''}{first} passes {second} at {at} ({low} to {high})")
    return [f"Break-even in training messages, with its 95% interval: {'; '.join(said)}."] if said else []


def messages_of(row: Row) -> float:
    """How many messages a row was trained on."""
    return row.mean("data", "sizes", "train") or 0.0


def way(row: Row) -> dict[str, Any]:
    """What a row varies besides its data and how much of them it was trained on."""
    return {key: value for key, value in row.values.items() if key not in (DATA, PART)}


def number(messages: float, least: float, most: float) -> str:
    """A crossing in words, beyond what was trained on by its bound."""
    if messages == 0:
        return f"fewer than {least:,.0f}"
    return f"more than {most:,.0f}" if math.isinf(messages) else f"{messages:,.0f}"
