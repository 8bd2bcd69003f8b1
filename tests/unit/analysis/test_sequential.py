"""The formulas against the textbooks' values, and their promises by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from numpy.random import default_rng

from kvquant.core.analysis import comparing, sequential
from kvquant.core.analysis.sequential import (
    Array,
    Estimate,
    Prior,
    boundary,
    estimate,
    long_run_variance,
    student,
)

NONE_KNOWN = Prior(inflation=1.0, batches=2.0, floor=0.05)
"""So little that what was measured decides."""


def autoregressive(rng: np.random.Generator, walks: int, length: int, phi: float) -> Array:
    """Series with mean 0 whose long-run variance is 1, and where each value is like the last."""
    noise = rng.normal(0, 1 - phi, (walks, length))
    series = np.empty_like(noise)
    series[:, 0] = noise[:, 0] / math.sqrt(1 - phi * phi)
    for i in range(1, length):
        series[:, i] = phi * series[:, i - 1] + noise[:, i]
    return series


def exact_student(z: float, freedom: float) -> float:
    return float(scipy.stats.t.isf(scipy.stats.norm.sf(z), freedom))


@pytest.mark.parametrize("freedom", [15, 16.5, 20, 35, 50, 200])
def test_students_quantile_is_that_of_the_textbook(freedom: float) -> None:
    for z in np.arange(0.25, 5.01, 0.25):
        assert student(float(z), freedom) == pytest.approx(exact_student(z, freedom), rel=0.005)


@pytest.mark.parametrize("freedom", [3, 4, 5, 7, 10])
def test_students_quantile_errs_on_the_wide_side_where_little_is_known(freedom: float) -> None:
    for z in np.arange(0.25, 5.01, 0.25):
        exact = exact_student(z, freedom)
        # Up to two standard errors, which a single look asks for, it is exact there, too.
        assert student(float(z), freedom) >= 0.99 * exact
        assert z > 2 or student(float(z), freedom) <= 1.01 * exact


def test_every_prior_is_worth_enough_for_the_formula() -> None:
    priors = [one for one in vars(comparing).values() if isinstance(one, Prior)]

    assert len(priors) >= 4
    assert min(one.batches for one in priors) >= 15


def test_students_quantile_is_never_infinite() -> None:
    assert all(math.isfinite(student(50.0, freedom)) for freedom in (0.0, 1.0, 3.0, 1e6))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_a_random_walk_crosses_the_boundary_as_seldom_as_promised_and_not_much_less(
    alpha: float,
) -> None:
    walks, looks = 4000, 480
    rng = default_rng(1)
    batches = np.arange(1, looks + 1)
    limit = np.array([boundary(float(n), alpha) for n in batches])

    means = rng.normal(size=(walks, looks)).cumsum(axis=1) / np.sqrt(batches)
    crossed = float((means > limit).any(axis=1).mean())

    noise = math.sqrt(alpha * (1 - alpha) / walks)
    assert crossed <= alpha + 3 * noise
    # The promise is for ever, and four hours of batches are not; much less would be wasted power.
    assert crossed >= 0.25 * alpha


def test_the_usual_bound_of_one_look_would_be_crossed_far_more_often() -> None:
    # This is what the test above would have to find of a boundary that is none.
    rng = default_rng(1)
    batches = np.arange(1, 481)
    means = rng.normal(size=(1000, 480)).cumsum(axis=1) / np.sqrt(batches)

    assert float((means > scipy.stats.norm.isf(0.05)).any(axis=1).mean()) > 0.3


def test_the_boundary_asks_for_more_the_surer_one_wants_to_be() -> None:
    for batches in (1.0, 15.0, 480.0):
        looser, stricter = boundary(batches, 0.05), boundary(batches, 0.001)

        assert scipy.stats.norm.isf(0.05) < looser < stricter
        assert stricter > scipy.stats.norm.isf(0.001)


def test_the_variance_of_independent_batches_is_their_own() -> None:
    series = default_rng(2).normal(0, 3, (400, 120))
    found = [long_run_variance(row - row.mean()) for row in series]

    variances = np.array([variance for variance, _ in found])
    assert float(variances.mean()) == pytest.approx(9, rel=0.05)
    # An estimate with so many degrees of freedom scatters by so much.
    freedom = found[0][1]
    assert float(variances.var() / variances.mean() ** 2) == pytest.approx(2 / freedom, rel=0.5)


@pytest.mark.parametrize("phi", [-0.3, 0.3, 0.6])
def test_the_variance_of_batches_that_are_like_their_neighbours_is_the_long_runs(
    phi: float,
) -> None:
    series = autoregressive(default_rng(3), 200, 480, phi)
    found = [long_run_variance(row - row.mean())[0] for row in series]

    assert float(np.mean(found)) == pytest.approx(1, rel=0.12)
    # Without the neighbours it would be this, which is far off.
    assert abs(series.var() - 1) > 0.3


def test_one_batch_tells_nothing_of_the_variance() -> None:
    assert long_run_variance(np.zeros(0)) == (0, 0)
    assert long_run_variance(np.zeros(1)) == (0, 0)


def test_a_variance_is_never_negative() -> None:
    # Batches that alternate have a long-run variance of nearly nothing.
    series = np.resize([1.0, -1.0], 40)

    assert 0 <= long_run_variance(series)[0] < 0.1


def crossings(phi: float) -> float:
    """Share of series with mean 0 that are ever found above it, at 5 %, looked at as they grow."""
    series = autoregressive(default_rng(4), 120, 160, phi)
    weights = np.full(160, 1.0)
    crossed = 0
    for row in series:
        for length in range(6, 161, 6):
            found = estimate(row[:length], weights[:length], 1.0, NONE_KNOWN)
            assert found is not None
            if found.lower(0.05) > 0:
                crossed += 1
                break
    return crossed / len(series)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_a_mean_of_nothing_is_seldom_ever_found_to_be_something(phi: float) -> None:
    assert crossings(phi) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 120)


def test_without_the_long_run_it_would_be_found_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_neighbours_nothing(residuals: Array) -> tuple[float, float]:
        return float(residuals @ residuals) / len(residuals), float(len(residuals))

    monkeypatch.setattr(sequential, "long_run_variance", of_neighbours_nothing)

    assert crossings(0.6) > 0.2


def test_a_mean_that_is_there_is_found_and_lies_within_its_bounds() -> None:
    rng = default_rng(5)
    within = seen = 0
    for _ in range(100):
        values = 0.5 + rng.normal(0, 1, 120)
        found = estimate(values, np.ones(120), 1.0, NONE_KNOWN)
        assert found is not None
        within += found.lower(0.05) <= 0.5 <= found.upper(0.05)
        seen += found.lower(0.05) > 0
        assert found.beyond() == pytest.approx(found.value / found.error)
    assert within >= 88
    assert seen >= 90


def test_the_bound_of_a_single_look_is_that_of_the_textbook() -> None:
    found = Estimate(value=1.0, error=2.0, freedom=10.0, batches=12)

    expected = 1 + 2 * scipy.stats.t.isf(0.1, 10)
    assert found.sound_upper() == pytest.approx(expected, rel=0.01)


def test_a_batch_counts_by_its_weight_and_one_without_any_not_at_all() -> None:
    found = estimate(
        np.array([1.0, 100.0, 3.0]), np.array([3.0, 0.0, 1.0]), 1.0, Prior(2.0, 1e9, 0.0)
    )

    assert found is not None
    assert found.value == 1.5
    assert found.batches == 2
    # Four requests, of which each scatters by one, and twice as much as independent ones would.
    assert found.error == pytest.approx(math.sqrt(2 / 4))


def test_no_weight_at_all_gives_no_mean() -> None:
    assert estimate(np.array([1.0]), np.array([0.0]), 1.0, NONE_KNOWN) is None
    assert estimate(np.zeros(0), np.zeros(0), 1.0, NONE_KNOWN) is None


def test_too_calm_a_series_is_not_believed() -> None:
    steady = Prior(inflation=1.0, batches=1.0, floor=0.5)
    found = estimate(np.ones(50), np.full(50, 2.0), 1.0, steady)

    assert found is not None
    assert found.error == pytest.approx(math.sqrt(0.5 / 100))


def test_a_mean_without_any_error_is_beyond_doubt_on_its_side() -> None:
    assert Estimate(1.0, 0.0, 5.0, 5).beyond() == math.inf
    assert Estimate(-1.0, 0.0, 5.0, 5).beyond() == -math.inf
