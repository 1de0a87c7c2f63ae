"""How sure a difference between two accuracies on the same test messages is, and how small a one a study can find.

`paired_p` is the exact test that exchanges the answers of two rows to a message (Fisher 1935), which with one seed is
McNemar's (1947): it asks what other test messages would do, and not other seeds. `crossed_test` asks what both would.
`holm` (1979) corrects for the number of comparisons. Near-duplicates are drawn, and exchanged, together. `right` is
(S, N) booleans: seeds, messages; `groups` (N,) are the numbers of groups of near-duplicates.

Seeds and messages are crossed: the variance of a mean difference over S seeds and N messages is

    seeds / S + messages / N + residual / (S N)

from the mean squares of a two-way layout, with the degrees of freedom of Satterthwaite (1946). A group of messages that
are near-duplicates counts as one draw (two-way clustering: Cameron, Gelbach and Miller 2011). So that a few errors do
not look like none, two messages are added, of which each row is right on one alone (Bonett and Price 2012, for paired
proportions).

Simulated size at 5% and accuracies of 85% to 99%: up to 6% with 5 and with 10 seeds, up to 7.5% with 3. The bootstrap
that resamples both seeds and messages (pigeonhole: Owen 2007) was tried: it counts the residual three times.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.evaluation.intervals import ALPHA, Interval, Numbers, Right, design_effect

POWER = 0.8
FEWEST_SEEDS = 5  # with which a difference may be called decided
MOST_SEEDS = 200  # that are thought of


class Spread(NamedTuple):
    """Variances of a difference (in shares of 1): from seed to seed, from message to message, and of what is left from
    one answer to the next. Where only the standard deviation of a difference over seeds is known, seeds is its square.
    """

    seeds: float
    messages: float = 0.0
    residual: float = 0.0

    def variance(self, seeds: int, messages: int) -> float:
        """Of the mean difference over so many."""
        return self.seeds / seeds + self.messages / messages + self.residual / (seeds * messages)

    def freedom(self, seeds: int, messages: int, groups: int | None = None) -> float:
        """Degrees of freedom of an estimate of `variance`; groups: of messages, where these are fewer."""
        left, drawn = self.residual / (seeds * messages), (groups or messages) - 1
        of_seeds, of_messages = self.seeds / seeds + left, self.messages / messages + left
        each = of_seeds**2 / (seeds - 1) + of_messages**2 / drawn + left**2 / ((seeds - 1) * drawn)
        return self.variance(seeds, messages) ** 2 / each


class Crossed(NamedTuple):
    """What seeds and messages say together of a difference: its 95% interval, two-sided p that there is none."""

    interval: Interval
    p: float
    spread: Spread


def paired_p(right: Right, reference: Right, groups: Numbers | None = None) -> float:
    """Two-sided p that both are right equally often, from their answers to the same messages.

    If they were, then the difference on each message, or group of them, over all seeds, could as well have the other
    sign. p is the share of all 2^N choices of signs that give a sum at least as far from zero; counted exactly, where
    resampled differences would give too small a p when few messages differ.
    """
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


def crossed_test(differences: NDArray[np.floating], groups: NDArray[np.integer] | None = None) -> Crossed:
    """The test of `differences` (S, N) in -1, 0 and 1 with S above 1; `groups` (N,) numbers near-duplicates."""
    from scipy.stats import t

    S, N = differences.shape
    numbers = np.unique(np.arange(N) if groups is None else groups, return_inverse=True)[1]
    drawn = int(numbers.max()) + 1
    padded = np.hstack([differences, np.ones((S, 1)), -np.ones((S, 1))])
    found = spread(padded, np.concatenate([numbers, [drawn, drawn + 1]]))
    mean, error = float(padded.mean()), found.variance(S, N + 2) ** 0.5
    freedom = found.freedom(S, N + 2, drawn + 2)
    reach = float(t.ppf(1 - ALPHA / 2, freedom)) * error
    interval = Interval(max(-1.0, mean - reach), min(1.0, mean + reach))
    return Crossed(interval, float(2 * t.sf(abs(mean) / error, freedom)), found)


def spread(differences: NDArray[np.floating], groups: NDArray[np.integer]) -> Spread:
    """The variances behind `differences` (S, N); one that comes out below 0 is 0."""
    S, N = differences.shape
    of_seed, of_message, mean = differences.mean(1), differences.mean(0), differences.mean()
    rest = differences - of_seed[:, None] - of_message + mean
    residual = float((rest**2).sum() / ((S - 1) * (N - 1))) * design_effect(rest, groups)
    messages = float(of_message.var(ddof=1)) * design_effect(of_message - mean, groups)
    return Spread(max(0.0, float(of_seed.var(ddof=1)) - residual / N), max(0.0, messages - residual / S), residual)


def power(spread: Spread, difference: float, seeds: int, messages: int, alpha: float = ALPHA) -> float:
    """In which share of studies so large a true difference is found: by the noncentral t, as the mean over how large
    the standard error is estimated, since scipy's own is nan far out."""
    from scipy.stats import chi2, norm, t

    freedom = spread.freedom(seeds, messages)
    limit, shift = t.isf(alpha / 2, freedom), difference / spread.variance(seeds, messages) ** 0.5
    limits = limit * np.sqrt(chi2.ppf((np.arange(1000) + 0.5) / 1000, freedom) / freedom)
    return float((norm.sf(limits - shift) + norm.cdf(-limits - shift)).mean())


def smallest_difference(spread: Spread, seeds: int, messages: int, alpha: float = ALPHA) -> float:
    """The difference that is found in 80% of studies."""
    from scipy.optimize import brentq
    from scipy.stats import t

    error, freedom = spread.variance(seeds, messages) ** 0.5, spread.freedom(seeds, messages)
    most = 2 * error * float(t.isf(alpha / 2, freedom) + t.isf(1 - POWER, freedom) + 1)
    return float(brentq(lambda x: power(spread, x, seeds, messages, alpha) - POWER, 0.0, most))


def seeds_needed(spread: Spread, difference: float, messages: int, alpha: float = ALPHA) -> int | None:
    """With how many seeds a difference is found in 80% of studies; None where more messages would be needed."""
    counts = range(FEWEST_SEEDS, MOST_SEEDS + 1)
    place = bisect_left(counts, POWER, key=lambda n: power(spread, difference, n, messages, alpha))
    return counts[place] if place < len(counts) else None
