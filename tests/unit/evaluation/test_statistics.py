"""The intervals, against their definitions, other software, and what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kvquant.evaluation.statistics import (
    Interval,
    Verdict,
    fraction_difference,
    judge,
    mcnemar,
    mean_difference,
    share_difference,
)


def statistic(more: int, less: int, pairs: int, delta: float) -> float:
    """Tango's statistic by its definition, the nuisance found by a search for the likeliest."""
    same = pairs - more - less

    def unlikelihood(q: float) -> float:
        probabilities = (q + delta, q, 1 - 2 * q - delta)
        if min(probabilities) <= 0:
            return 1e9
        counts = (more, less, same)
        return -sum(n * math.log(p) for n, p in zip(counts, probabilities, strict=True) if n)

    low, high = max(0.0, -delta), (1 - delta) / 2
    found = scipy.optimize.minimize_scalar(
        unlikelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    q = found.x
    return float((more - less - pairs * delta) / math.sqrt(pairs * (2 * q + delta - delta * delta)))


@pytest.mark.parametrize(
    ("more", "less", "pairs"), [(12, 2, 50), (2, 12, 50), (30, 25, 1000), (1, 0, 20), (90, 3, 100)]
)
def test_at_its_ends_the_score_is_just_not_refused(more: int, less: int, pairs: int) -> None:
    found = share_difference(more, less, pairs)
    assert found.mean == pytest.approx((more - less) / pairs)
    assert statistic(more, less, pairs, found.lower) == pytest.approx(1.96, abs=2e-3)
    assert statistic(more, less, pairs, found.upper) == pytest.approx(-1.96, abs=2e-3)


def test_pairs_that_all_agree_leave_the_harm_possible_that_wilson_leaves() -> None:
    found = share_difference(0, 0, 100)
    wilson = scipy.stats.binomtest(0, 100).proportion_ci(0.95, method="wilson")
    assert found.upper == pytest.approx(wilson.high, rel=1e-6)
    assert found.lower == pytest.approx(-wilson.high, rel=1e-6)


def test_swapping_the_arms_swaps_the_bounds() -> None:
    one, other = share_difference(7, 3, 80), share_difference(3, 7, 80)
    assert one.lower == pytest.approx(-other.upper)
    assert one.upper == pytest.approx(-other.lower)


@given(more=st.integers(0, 60), less=st.integers(0, 60), same=st.integers(0, 2000))
def test_every_count_has_an_interval_around_its_mean(more: int, less: int, same: int) -> None:
    found = share_difference(more, less, more + less + same)
    assert -1 <= found.lower <= found.mean <= found.upper <= 1


def test_the_interval_of_shares_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    for p_more, p_less, pairs in ((0.02, 0.02, 200), (0.06, 0.01, 100), (0.15, 0.1, 60)):
        drawn = generator.multinomial(pairs, [p_more, p_less, 1 - p_more - p_less], size=1500)
        bounds = {tuple(one): share_difference(one[0], one[1], pairs) for one in drawn.tolist()}
        covered = np.mean(
            [bounds[tuple(one)].lower <= p_more - p_less <= bounds[tuple(one)].upper
             for one in drawn.tolist()]
        )  # fmt: skip
        assert 0.93 <= covered <= 0.985


@pytest.mark.parametrize(("more", "less"), [(0, 0), (1, 0), (9, 1), (15, 15), (3, 20), (60, 41)])
def test_mcnemar_is_the_binomial_test_of_the_flips(more: int, less: int) -> None:
    exact = scipy.stats.binomtest(more, more + less, 0.5).pvalue if more + less else 1.0
    assert mcnemar(more, less) == pytest.approx(exact)


def test_the_bootstrap_is_that_of_other_software() -> None:
    values = np.random.default_rng(3).gamma(0.5, 0.1, size=120) - 0.02
    found = mean_difference(values.tolist())
    other = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = other.high - other.low
    assert found.lower == pytest.approx(other.low, abs=0.04 * width)
    assert found.upper == pytest.approx(other.high, abs=0.06 * width)
    assert mean_difference(values.tolist()) == found, "the same answers say the same"


def test_the_bootstrap_covers_a_skewed_drift() -> None:
    generator = np.random.default_rng(11)
    hits = 0
    for number in range(200):
        values = generator.gamma(0.5, 0.1, size=150)
        found = mean_difference(values.tolist(), seed=number)
        hits += found.lower <= 0.05 <= found.upper
    assert 180 <= hits <= 199


def test_few_pairs_without_a_difference_prove_little() -> None:
    assert mean_difference([0.0] * 10) == Interval(0.0, 0.0, 0.0)
    assert fraction_difference([0.0] * 10).upper == pytest.approx(0.2775, abs=1e-3)
    assert fraction_difference([0.0] * 1000).upper == pytest.approx(0.0038, abs=1e-4)
    assert fraction_difference([1.0] * 3).upper == 1.0


def test_no_pair_proves_nothing() -> None:
    assert judge(share_difference(0, 0, 0), 0.5) is Verdict.INCONCLUSIVE
    assert judge(mean_difference([]), 0.5) is Verdict.INCONCLUSIVE
    assert judge(mean_difference([0.1]), 0.5) is Verdict.INCONCLUSIVE
    assert judge(fraction_difference([]), 0.5) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [
        (-0.02, 0.03, Verdict.PASS),
        (0.01, 0.04, Verdict.PASS),
        (-0.02, 0.06, Verdict.INCONCLUSIVE),
        (0.01, 0.05, Verdict.INCONCLUSIVE),
        (0.06, 0.2, Verdict.FAIL),
    ],
)
def test_a_margin_is_passed_by_the_upper_bound_alone(
    lower: float, upper: float, verdict: Verdict
) -> None:
    assert judge(Interval((lower + upper) / 2, lower, upper), 0.05) is verdict
