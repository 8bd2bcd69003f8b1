"""Increases of counters: exact over restarts, gaps, and series that come and go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.core.counters import Point, Series, increase, process_of

ALWAYS = {t: 1e6 + t for t in range(0, 1000, 5)}
"""Ages of a process that has run for long."""


def rise(
    points: Sequence[Point],
    since: float = 0,
    until: float = 1000,
    ages: dict[int, float] | None = None,
    others: Sequence[Point] = (),
) -> float | None:
    series = Series({"__name__": "x"}, points)
    own = [series, Series({"__name__": "other"}, others)]
    told = {float(t): age for t, age in (ALWAYS if ages is None else ages).items()}
    return increase(series, process_of(own, told), since, until)


def test_the_rise_is_that_of_the_window() -> None:
    points = [(0.0, 5.0), (5.0, 7.0), (10.0, 11.0), (15.0, 20.0)]
    assert rise(points) == 15
    assert rise(points, since=5, until=10) == 4
    assert rise(points, since=15) == 0


def test_no_sample_in_the_window_is_no_data() -> None:
    assert rise([]) is None
    assert rise([(0.0, 5.0)], since=1) is None


def test_a_fall_is_a_restart_and_counts_from_zero() -> None:
    assert rise([(0.0, 100.0), (5.0, 110.0), (10.0, 4.0), (15.0, 6.0)]) == 16


def test_a_restart_that_has_overtaken_the_old_value_is_seen_by_the_age() -> None:
    ages = {0: 50.0, 5: 55.0, 10: 3.0, 15: 8.0}
    assert rise([(0.0, 1.0), (5.0, 2.0), (10.0, 30.0), (15.0, 31.0)], ages=ages) == 32


def test_a_counter_that_appears_in_a_seen_process_counts_from_zero() -> None:
    others = [(float(t), 0.0) for t in range(0, 20, 5)]
    assert rise([(10.0, 3.0), (15.0, 4.0)], others=others) == 4


def test_a_process_that_began_in_the_window_counts_from_zero() -> None:
    assert rise([(10.0, 3.0), (15.0, 4.0)], ages={10: 2.0, 15: 7.0}) == 4


def test_a_process_that_was_only_not_looked_at_counts_from_its_first_sample() -> None:
    assert rise([(10.0, 3000.0), (15.0, 3004.0)]) == 4
    assert rise([(10.0, 3000.0), (15.0, 3004.0)], ages={}) == 4


def test_a_gap_loses_nothing() -> None:
    assert rise([(0.0, 1.0), (500.0, 90.0)]) == 89


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_what_is_no_count_is_left_out(bad: float) -> None:
    assert rise([(0.0, 1.0), (5.0, bad), (10.0, 4.0)]) == 3
    only = rise([(0.0, bad)])
    assert only is not None
    assert math.isnan(only)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=2, max_size=30),
    st.integers(0, 10_000),
)
def test_every_event_is_counted_once_over_any_restarts(
    history: list[tuple[int, bool]], before: int
) -> None:
    value, age, expected = before, 10_000.0, 0
    points, ages = [(0.0, float(value))], {0: age}
    for i, (events, restarts) in enumerate(history, start=1):
        value = events if restarts else value + events
        age = 2.5 if restarts else age + 5
        expected += events
        points.append((5.0 * i, float(value)))
        ages[5 * i] = age
    assert rise(points, ages=ages) == expected
