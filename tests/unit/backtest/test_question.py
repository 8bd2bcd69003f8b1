"""What a backtest is asked: selectors, steps, and how often it looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kvquant.core.backtest.question import (
    LADDER,
    HistoricStep,
    grid_of,
    interval_of,
    matchers,
    spans,
    steps,
    total,
)

START = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "{}", "llama", 'up{pod="a"}', 'pod="a" or pod="b"', "pod=a"])
def test_what_is_no_selector_of_pods_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no selector of pods"):
        matchers(text)


@pytest.mark.parametrize(
    "text", ['pod=~"a|b",x!="y"', '{pod=~"a|b",x!="y"}', ' pod=~"a|b",x!="y", ']
)
def test_braces_around_a_selector_may_be_left_out(text: str) -> None:
    assert matchers(text) == 'pod=~"a|b",x!="y"'


def test_the_steps_of_a_ladder_follow_one_another() -> None:
    found = spans(steps("10:15m,25:1m30s,50"), START)
    assert [(s.step, s.weight, s.next_weight) for s in found] == [
        (1, 10, 25),
        (2, 25, 50),
        (3, 50, None),
    ]
    assert [s.since - START for s in found] == [
        timedelta(0),
        timedelta(minutes=15),
        timedelta(minutes=16, seconds=30),
    ]


def test_the_usual_ladder_lasts_an_hour() -> None:
    assert total(steps(LADDER)) == timedelta(hours=1)
    assert steps("50") == (HistoricStep(50),)


@pytest.mark.parametrize(
    ("scale", "interval", "seconds"),
    [(1, 15, 15), (1, 2, 15), (1, 60, 15), (12, 2, 2), (12, 1, 1.2), (30, 2, 2), (1000, 0.01, 0.1)],
)
def test_it_looks_as_often_as_the_operator_and_no_oftener_than_scrapes_come(
    scale: float, interval: float, seconds: float
) -> None:
    assert grid_of(scale, interval).total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("length", "samples", "interval"),
    [
        (56.1, 29, 2.0),
        (57.9, 28, 2.0),
        (3600, 240, 15.0),
        (3600, 241, 15.0),
        (60, 240, 0.25),
        (10, 0, 10),
    ],
)
def test_the_interval_of_scrapes_is_whole_where_that_explains_their_number(
    length: float, samples: float, interval: float
) -> None:
    assert interval_of(length, samples) == pytest.approx(interval)
