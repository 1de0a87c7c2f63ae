"""Differences over seeds and messages: against scipy where one of the two does not vary, and by simulation."""

from math import sqrt

import numpy as np
import pytest
from scipy import optimize, special, stats

from src.evaluation.differences import Spread, crossed_test, paired_p, power, seeds_needed, smallest_difference, spread
from src.evaluation.intervals import accuracy_interval

TWINS = np.repeat(np.arange(120), np.random.default_rng(0).choice([1, 1, 1, 2, 4, 8], 120))


def answers_of_two(
    rng: np.random.Generator, shape: tuple[int, int, int], accuracies: tuple[float, float], own: float, seeds: float
) -> list[np.ndarray]:
    """Answers (studies, S, N) of two models of these accuracies: in log-odds messages differ for both alike, and each
    model's own messages and seeds by normal spreads."""
    studies, s, n = shape
    spread = sqrt(9 + own**2 + seeds**2) * stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    hard = 3 * rng.standard_normal((studies, 1, n))

    def answers(accuracy: float) -> np.ndarray:
        centre = optimize.brentq(lambda x: special.expit(x + spread).mean() - accuracy, -300, 300)
        theirs = own * rng.standard_normal((studies, 1, n)) + seeds * rng.standard_normal((studies, s, 1))
        return rng.random(shape) < special.expit(centre + hard + theirs)

    return [answers(accuracy) for accuracy in accuracies]


def noise(share: float, studies: int) -> float:
    """Three standard errors of a share that is counted in simulated studies."""
    return 3 * sqrt(share * (1 - share) / studies)


def test_seeds_that_agree_are_tested_by_scipys_t_over_messages():
    one = np.random.default_rng(1).choice([-1.0, 0.0, 0.0, 1.0, 1.0], 60)
    expected = stats.ttest_1samp([*one, 1, -1], 0)
    found = crossed_test(np.repeat(one[None], 5, 0))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(expected.confidence_interval())


def test_messages_that_agree_are_tested_by_scipys_t_over_seeds():
    seeds = np.array([0.03, 0.01, -0.005, 0.04, 0.02])
    expected = stats.ttest_1samp(seeds, 0)
    found = crossed_test(np.repeat(seeds[:, None], 100_000, 1))
    assert found.p == pytest.approx(expected.pvalue, rel=0.01)
    assert found.interval == pytest.approx(expected.confidence_interval(), abs=1e-4)


def test_the_spread_of_sums_is_that_of_their_parts():
    rng = np.random.default_rng(2)
    seeds, messages = rng.standard_normal(4), rng.standard_normal(50)
    found = spread(seeds[:, None] + messages, np.arange(50))
    assert found == pytest.approx((seeds.var(ddof=1), messages.var(ddof=1), 0.0))


def test_twins_count_as_one():
    rng = np.random.default_rng(3)
    differences, groups = rng.standard_normal((4, 50)) + rng.standard_normal(50), np.repeat(np.arange(50), 3)
    alone, thrice = spread(differences, np.arange(50)), spread(np.repeat(differences, 3, 1), groups)
    assert thrice.variance(4, 150) == pytest.approx(alone.variance(4, 50))
    right = rng.random((4, 50)) < 0.8
    for seeds in (1, 4):
        expected = accuracy_interval(right[:seeds])
        assert accuracy_interval(np.repeat(right[:seeds], 3, 1), groups) == pytest.approx(expected, abs=0.01)
    sure = np.ones((1, 150), dtype=bool)
    assert accuracy_interval(sure, groups).low == pytest.approx(accuracy_interval(sure[:, :50]).low, abs=0.01)


def test_twins_are_exchanged_together():
    rng = np.random.default_rng(4)
    a, b, groups = rng.random((2, 40)) < 0.8, rng.random((2, 40)) < 0.6, np.arange(40) // 4
    sums = (a.mean(0) - b.mean(0)).reshape(10, 4).sum(1)
    expected = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=2**10, vectorized=True)
    assert paired_p(a, b, groups) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(("accuracies", "own", "seeds"), [((0.9, 0.9), 2, 0.3), ((0.95, 0.9), 1, 0.8)])
def test_the_interval_covers_and_the_test_keeps_its_size(accuracies, own, seeds):
    first, second = answers_of_two(np.random.default_rng(5), (300, 5, 250), accuracies, own, seeds)
    found = [crossed_test(a.astype(float) - b) for a, b in zip(first, second, strict=True)]
    truth = accuracies[0] - accuracies[1]
    missed = np.mean([not one.interval.low <= truth <= one.interval.high for one in found])
    assert missed < 0.06 + noise(0.06, 300)
    assert all((one.p < 0.05) == (one.interval.low > 0 or one.interval.high < 0) for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1000, 5, 300), (1000, 10, 300), (500, 5, 1000)])
@pytest.mark.parametrize("own", [0, 1, 4])
@pytest.mark.parametrize("seeds", [0, 0.3, 0.8])
@pytest.mark.parametrize("accuracies", [(0.85, 0.85), (0.95, 0.95), (0.99, 0.99), (0.99, 0.95)])
def test_the_interval_covers_whatever_varies(shape, own, seeds, accuracies):
    first, second = answers_of_two(np.random.default_rng(6), shape, accuracies, own, seeds)
    found = [crossed_test(a.astype(float) - b).interval for a, b in zip(first, second, strict=True)]
    truth = accuracies[0] - accuracies[1]
    missed = np.mean([not one.low <= truth <= one.high for one in found])
    assert missed < 0.06 + noise(0.06, shape[0])


def test_both_tests_keep_their_size_among_near_twins():
    """Without their groups the exact test finds a difference in one of six studies where there is none."""
    pairs = answers_of_two(np.random.default_rng(7), (200, 5, 120), (0.9, 0.9), 2, 0.0)
    first, second = (one[:, :, TWINS] for one in pairs)
    p = [
        (paired_p(a, b), paired_p(a, b, TWINS), crossed_test(a.astype(float) - b, TWINS).p)
        for a, b in zip(first, second, strict=True)
    ]
    single, exact, crossed = (np.array(p) < 0.05).mean(0)
    assert single > 0.05 + noise(0.05, 200)
    assert max(exact, crossed) < 0.05 + noise(0.05, 200)


@pytest.mark.parametrize(("seeds", "difference"), [(5, 0.02), (10, 0.01), (3, 0.05)])
def test_power_is_scipys_where_seeds_alone_vary(seeds, difference):
    deviation, limit = 0.01, stats.t.isf(0.025, seeds - 1)
    shift = difference / deviation * sqrt(seeds)
    expected = stats.nct.sf(limit, seeds - 1, shift) + stats.nct.cdf(-limit, seeds - 1, shift)
    assert power(Spread(deviation**2), difference, seeds, 300) == pytest.approx(expected, abs=1e-3)


def test_power_is_the_share_of_simulated_studies_that_find_the_difference():
    first, second = answers_of_two(np.random.default_rng(8), (300, 6, 300), (0.92, 0.87), 1, 0.4)
    found = [crossed_test(a.astype(float) - b) for a, b in zip(first, second, strict=True)]
    mean = Spread(*np.mean([one.spread for one in found], 0))
    share = float(np.mean([one.p < 0.05 for one in found]))
    assert share == pytest.approx(power(mean, 0.05, 6, 302), abs=0.05 + noise(share, 300))


def test_the_smallest_difference_and_the_seeds_it_takes_agree():
    pilot = Spread(seeds=0.01**2, messages=0.02, residual=0.05)
    least = smallest_difference(pilot, 8, 1000)
    assert power(pilot, least, 8, 1000) == pytest.approx(0.8)
    assert seeds_needed(pilot, least * 1.0001, 1000) == 8
    assert seeds_needed(pilot, 0.005, 1000) is None  # whose messages alone vary by that much
    assert smallest_difference(pilot, 8, 1000, alpha=0.01) > least
