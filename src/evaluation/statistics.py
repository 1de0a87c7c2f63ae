"""How sure an accuracy is, and a difference between two on the same test messages.

An accuracy of one run has Wilson's interval (Wilson 1927). Over several seeds the test messages are resampled, each
with its mean over the seeds: the seeds share the messages, and seeds x messages would count these several times. Two
rows are compared on the same messages by the exact test that exchanges their answers to a message (Fisher 1935), which
with one seed is McNemar's (1947). Holm (1979) corrects for the number of comparisons. All of it asks what other test
messages would do, and not other seeds. `right` is (S, N) booleans: seeds, messages.
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Right = NDArray[np.bool_]
    Numbers = NDArray[Any]

DRAWS = 100_000
SIGNIFICANT = 0.05


class Interval(NamedTuple):
    """Both ends of a 95% interval."""

    low: float
    high: float


def wilson(right: int, n: int) -> Interval:
    """Wilson's score interval of `right` among n."""
    z, p = NormalDist().inv_cdf(0.975), right / n
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if right == 0 else (centre - half) / scale
    return Interval(low, 1.0 if right == n else (centre + half) / scale)


def accuracy_interval(right: "Right") -> Interval:
    """The 95% interval of a mean accuracy over seeds."""
    import numpy as np

    seeds, n = right.shape
    times = right.sum(0)
    if seeds == 1 or (times == times[0]).all():  # without any spread, as at 100%, resampling says nothing
        return wilson(round(times.sum() / seeds), n)
    low, high = np.percentile(resampled_means(times) / seeds, [2.5, 97.5])
    return Interval(float(low), float(high))


def resampled_means(values: "Numbers") -> "Numbers":
    """Means (DRAWS,) of N values drawn from `values` (N,) with replacement.

    Values that are equal are drawn together: how often each distinct one comes up is multinomial.
    """
    import numpy as np

    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), DRAWS)
    return drawn @ distinct / len(values)


def paired_p(right: "Right", reference: "Right") -> float:
    """Two-sided p that both are right equally often, from their answers to the same messages.

    If they were, then each message's difference, over all seeds, could as well have the other sign. p is the share of
    all 2^N choices of signs that give a sum at least as far from zero; counted exactly, where resampled differences
    would give too small a p when few messages differ.
    """
    import numpy as np

    differences = right.sum(0) * len(reference) - reference.sum(0) * len(right)
    differences //= max(1, np.gcd.reduce(differences))
    share = np.ones(1)  # of the choices with which the positive differences sum to 0, 1, 2, ...
    for size, count in zip(*np.unique(np.abs(differences[differences != 0]), return_counts=True), strict=True):
        positive = np.zeros(size * count + 1)
        positive[::size] = [comb(int(count), k) / 2 ** int(count) for k in range(count + 1)]
        share = np.convolve(share, positive)
    gained, lost = differences[differences > 0].sum(), -differences[differences < 0].sum()
    return min(1.0, 2 * float(share[: min(gained, lost) + 1].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number, in their order: none falls below that of a smaller one."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected
