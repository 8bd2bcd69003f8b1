"""The test of engine deaths against the probabilities that it promises."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from numpy.random import default_rng

from kvquant.core.analysis.deaths import SAME_INCIDENT, Deaths, e_value

INNOCENT = 0.1
"""Deaths per pod and hour that are nobody's fault."""

LIMIT = 80.0
"""What it takes to fail: a quarter of an error budget of 5 %."""


def died(incidents: int, hours: float) -> Deaths:
    return Deaths(incidents=incidents, deaths=incidents, hours=hours)


@pytest.mark.parametrize("hours", [0.1, 1.0, 10.0])
def test_innocent_deaths_are_no_evidence_in_the_mean(hours: float) -> None:
    counts = np.arange(120)
    chances = scipy.stats.poisson.pmf(counts, INNOCENT * hours)
    evidence = [e_value(died(int(k), hours), Deaths(), INNOCENT) for k in counts]

    assert float(chances @ np.array(evidence)) == pytest.approx(1, rel=1e-6)


def test_innocent_deaths_reach_the_limit_as_seldom_as_promised() -> None:
    rng = default_rng(1)
    runs, reached = 4000, 0
    for _ in range(runs):
        # The evidence only grows when an engine dies, so that it is looked at then.
        at = rng.exponential(1 / INNOCENT, 12).cumsum()
        reached += any(
            e_value(died(k, float(hours)), Deaths(), INNOCENT) >= LIMIT
            for k, hours in enumerate(at, start=1)
        )

    assert reached / runs <= 1 / LIMIT + 3 * np.sqrt(1 / LIMIT / runs)
    assert reached > 0


@pytest.mark.parametrize("hours", [0.0, 1e-6, 0.01, 0.5, 3.0, 1000.0])
def test_one_death_never_fails(hours: float) -> None:
    assert e_value(died(1, hours), Deaths(), INNOCENT) < LIMIT


@pytest.mark.parametrize("hours", [0.0, 0.5, 3.0, 1e6])
def test_no_death_is_never_evidence(hours: float) -> None:
    assert e_value(died(0, hours), died(0, hours), INNOCENT) <= 1


def test_a_death_every_ten_minutes_of_one_pod_fails_by_the_third() -> None:
    first, second, third = (e_value(died(k, k / 6), died(0, k / 6), INNOCENT) for k in (1, 2, 3))

    assert first < LIMIT
    assert first < second < third
    assert third >= LIMIT


def test_three_deaths_in_a_thousand_pod_hours_are_nothing() -> None:
    assert e_value(died(3, 1000), Deaths(), INNOCENT) < 1


def test_what_kills_the_baseline_as_often_is_not_held_against_the_canary() -> None:
    for k in range(1, 30):
        assert e_value(died(k, k / 6), died(k, k / 6), INNOCENT) < LIMIT
        assert e_value(died(k, k / 6), died(7 * k, 7 * k / 6), INNOCENT) < LIMIT


def test_very_many_deaths_are_still_a_number() -> None:
    assert LIMIT < e_value(died(100_000, 1), Deaths(), INNOCENT) < float("inf")


def test_deaths_of_one_incident_count_once() -> None:
    deaths = Deaths()
    for at, count in ((0.0, 3), (SAME_INCIDENT / 2, 1), (SAME_INCIDENT + 1, 1), (600.0, 0)):
        deaths.add(count, pods=4, seconds=900, at=at, apart=SAME_INCIDENT)

    assert (deaths.deaths, deaths.incidents) == (5, 2)
    assert deaths.hours == 4.0


def test_a_crash_loop_is_not_one_long_incident() -> None:
    # A death each minute must not count once for all, because every one follows the last closely.
    deaths = Deaths()
    for minute in range(10):
        deaths.add(1, pods=1, seconds=60, at=60.0 * minute, apart=SAME_INCIDENT)

    assert deaths.incidents >= 3
    assert e_value(deaths, Deaths(), INNOCENT) >= LIMIT
