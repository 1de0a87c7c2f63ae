"""How sure an accuracy is, and a difference between two on the same test messages.

An accuracy of one run has Wilson's interval (Wilson 1927), which is over other test messages. Over several seeds it is
Wilson's too, over other messages and other seeds: with the variance of a crossed design, the degrees of freedom of
Satterthwaite (1946), and as many messages as would give that variance, which is how surveys treat proportions near 0
and 1 (Dean and Pagano 2015, Evaluating confidence interval methods for binomial proportions in clustered surveys). Two
rows are compared on the same messages by the exact test that exchanges their answers to a message (Fisher 1935), which
with one seed is McNemar's (1947): it asks what other test messages would do, and not other seeds, which differences.py
asks. Holm (1979) corrects for the number of comparisons. Near-duplicates among the messages are drawn, and exchanged,
together. `right` is (S, N) booleans: seeds, messages; `groups` (N,) are the numbers of groups of near-duplicates.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Right = NDArray[np.bool_]
    Numbers = NDArray[Any]

ALPHA = 0.05
SHARED = 2.0  # errors, as a weight, and
DOUBT = 3  # as often the spread of seeds in the degrees of freedom: see `messages_worth`


class Interval(NamedTuple):
    """Both ends of a 95% interval."""

    low: float
    high: float


def wilson(right: float, n: float) -> Interval:
    """Wilson's score interval of `right` among n."""
    z, p = NormalDist().inv_cdf(0.975), right / n
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if right == 0 else (centre - half) / scale
    return Interval(low, 1.0 if right == n else (centre + half) / scale)


def score_interval(p: "Numbers", n: "Numbers", z: "Numbers") -> "tuple[Numbers, Numbers]":
    """Both ends of Wilson's interval at z, for shares p of n that need not be whole."""
    import numpy as np

    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return np.where(p == 0, 0.0, (centre - half) / scale), np.where(p == 1, 1.0, (centre + half) / scale)


def design_effect(residuals: "Numbers", groups: "Numbers") -> float:
    """How many times as much the mean of (..., N) varies where messages are drawn by groups (Kish 1965); where nothing
    varies, as if each group were always answered alike."""
    import numpy as np

    n, drawn = residuals.shape[-1], len(np.unique(groups))
    if drawn == n:
        return 1.0
    rows = residuals.reshape(-1, n) if residuals.any() else np.ones((1, n))
    squares = sum(float((np.bincount(groups, row) ** 2).sum()) for row in rows)
    return squares / float((rows**2).sum()) * (1 - 1 / n) / (1 - 1 / max(2, drawn))


def accuracy_interval(right: "Right", groups: "Numbers | None" = None) -> Interval:
    """The 95% interval of a mean accuracy over seeds."""
    seeds, n = right.shape
    effect = 1.0 if groups is None else max(1.0, design_effect(right.mean(0) - right.mean(), groups))
    if seeds == 1 or right.all() or not right.any():
        return wilson(int(right[0].sum()) / effect, n / effect)
    low, high = crossed_interval(right, effect)
    return Interval(float(low), float(high))


def crossed_interval(right: "Right", effect: float = 1.0) -> "tuple[Numbers, Numbers]":
    """Both ends of the 95% interval of mean accuracies over other messages and other seeds; `right` is (..., S, N), S
    above 1. effect: the `design_effect` of the messages.

    Simulated coverage with 3 and 10 seeds, 250 and 1,000 messages of different difficulty that the seeds share, from
    80% to 99.5% accuracy: 93.5% and more, also where seeds differ by 0.4 in log-odds.
    """
    from scipy.stats import t

    p = right.mean((-2, -1))
    n, freedom = messages_worth(right, effect)
    return score_interval(p, n, t.ppf(0.975, freedom))


def messages_worth(right: "Right", effect: float = 1.0) -> "tuple[Numbers, Numbers]":
    """With how many messages and one seed a mean accuracy would vary as much, and the degrees of freedom of that.

    Variance of the mean: (mean square of seeds + mean square of messages) / (S N), from which that of the rest is not
    taken off, so that it is none too small. How far the seeds share their errors cannot be seen in a few of them: these
    count as shared by all seeds, by the weight of `SHARED` errors, so that without any error N messages are worth N.
    The spread of three seeds, known from two numbers, is often much too small by chance, and the degrees of freedom
    would then be those of the many messages: with its weight alone, coverage falls to 91%, with `DOUBT` times it not.
    """
    import numpy as np

    seeds, n = right.shape[-2:]
    p = right.mean((-2, -1))
    of_seeds = n * right.mean(-1).var(-1, ddof=1)
    of_messages = seeds * right.mean(-2).var(-1, ddof=1) * effect
    spread = of_seeds + of_messages
    varies = spread > 0
    ratio = np.divide(spread / seeds, p * (1 - p), out=np.ones_like(p), where=varies)  # of N, to what they are worth
    doubted = DOUBT * of_seeds
    each = doubted**2 / (seeds - 1) + of_messages**2 / (n - 1)
    freedom = np.divide((doubted + of_messages) ** 2, each, out=np.full_like(p, n - 1.0), where=varies)
    errors = n * np.minimum(p, 1 - p)
    seen, all_of_it = ratio * errors, ratio * errors + SHARED  # what was not estimated adds no doubt
    return n * (errors + SHARED) / all_of_it, freedom * np.divide(
        all_of_it, seen, out=np.ones_like(p), where=seen > 0
    ) ** 2


def paired_p(right: "Right", reference: "Right", groups: "Numbers | None" = None) -> float:
    """Two-sided p that both are right equally often, from their answers to the same messages.

    If they were, then the difference on each message, or group of them, over all seeds, could as well have the other
    sign. p is the share of all 2^N choices of signs that give a sum at least as far from zero; counted exactly, where
    resampled differences would give too small a p when few messages differ.
    """
    import numpy as np

    differences = right.sum(0) * len(reference) - reference.sum(0) * len(right)
    if groups is not None:
        differences = np.bincount(groups, differences).astype(int)
    differences //= max(1, np.gcd.reduce(differences))
    share, least = np.ones(1), 0  # of the choices with which the positive differences sum to least, least + 1, ...
    for size, count in zip(*np.unique(np.abs(differences[differences != 0]), return_counts=True), strict=True):
        chosen = np.array([choices / 2 ** int(count) for choices in binomials(int(count))])
        possible = np.flatnonzero(chosen)  # as floats, which of thousands is a small part
        columns = np.pad(share, (0, -len(share) % size)).reshape(-1, size)
        share = np.apply_along_axis(np.convolve, 0, columns, chosen[possible[0] : possible[-1] + 1]).ravel()
        least += size * possible[0]
    gained, lost = differences[differences > 0].sum(), -differences[differences < 0].sum()
    return min(1.0, 2 * float(share[: max(0, min(gained, lost) - least + 1)].sum()))


def binomials(n: int) -> Iterator[int]:
    """How many choices of 0, 1, ... n among n there are."""
    return accumulate(range(n), lambda choices, k: choices * (n - k) // (k + 1), initial=1)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number, in their order: none falls below that of a smaller one."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected
