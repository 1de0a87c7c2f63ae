"""How sure an accuracy is.

An accuracy of one run has Wilson's interval (Wilson 1927), which is over other test messages. Over several seeds it is
Wilson's too, over other messages and other seeds: with the variance of a crossed design, the degrees of freedom of
Satterthwaite (1946), and as many messages as would give that variance, which is how surveys treat proportions near 0
and 1 (Dean and Pagano 2015, Evaluating confidence interval methods for binomial proportions in clustered surveys).
Near-duplicates among the messages are drawn together. `right` is (S, N) booleans: seeds, messages; `groups` (N,) are
the numbers of groups of near-duplicates.
"""

from statistics import NormalDist
from typing import Any, NamedTuple

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
    low, high = score_interval(right / n, n, NormalDist().inv_cdf(0.975))
    return Interval(float(low), float(high))


def score_interval(p: Numbers | float, n: Numbers | float, z: Numbers | float) -> tuple[Numbers, Numbers]:
    """Both ends of Wilson's interval at z, for shares p of n that need not be whole."""
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return np.where(p == 0, 0.0, (centre - half) / scale), np.where(p == 1, 1.0, (centre + half) / scale)


def design_effect(residuals: Numbers, groups: Numbers) -> float:
    """How many times as much the mean of (..., N) varies where messages are drawn by groups (Kish 1965); where nothing
    varies, as if each group were always answered alike."""
    n, drawn = residuals.shape[-1], len(np.unique(groups))
    if drawn == n:
        return 1.0
    rows = residuals.reshape(-1, n) if residuals.any() else np.ones((1, n))
    squares = sum(float((np.bincount(groups, row) ** 2).sum()) for row in rows)
    return squares / float((rows**2).sum()) * (1 - 1 / n) / (1 - 1 / max(2, drawn))


def accuracy_interval(right: Right, groups: Numbers | None = None) -> Interval:
    """The 95% interval of a mean accuracy over seeds."""
    seeds, n = right.shape
    effect = 1.0 if groups is None else max(1.0, design_effect(right.mean(0) - right.mean(), groups))
    if seeds == 1 or right.all() or not right.any():
        return wilson(int(right[0].sum()) / effect, n / effect)
    low, high = crossed_interval(right, effect)
    return Interval(float(low), float(high))


def crossed_interval(right: Right, effect: float = 1.0) -> tuple[Numbers, Numbers]:
    """Both ends of the 95% interval of mean accuracies over other messages and other seeds; `right` is (..., S, N), S
    above 1. effect: the `design_effect` of the messages.

    Simulated coverage with 3 and 10 seeds, 250 and 1,000 messages of different difficulty that the seeds share, from
    80% to 99.5% accuracy: 93.5% and more, also where seeds differ by 0.4 in log-odds.
    """
    from scipy.stats import t

    p = right.mean((-2, -1))
    n, freedom = messages_worth(right, effect)
    return score_interval(p, n, t.ppf(0.975, freedom))


def messages_worth(right: Right, effect: float = 1.0) -> tuple[Numbers, Numbers]:
    """With how many messages and one seed a mean accuracy would vary as much, and the degrees of freedom of that.

    Variance of the mean: (mean square of seeds + mean square of messages) / (S N), from which that of the rest is not
    taken off, so that it is none too small. How far the seeds share their errors cannot be seen in a few of them: these
    count as shared by all seeds, by the weight of `SHARED` errors, so that without any error N messages are worth N.
    The spread of three seeds, known from two numbers, is often much too small by chance, and the degrees of freedom
    would then be those of the many messages: with its weight alone, coverage falls to 91%, with `DOUBT` times it not.
    """
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
