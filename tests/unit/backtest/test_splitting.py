"""A/A: how splits are drawn, what becomes of them, and how sure the rate is."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Settings
from kvquant.core.backtest.question import HistoricStep, Moment
from kvquant.core.backtest.splitting import Share, Splits, counted, draw, room
from tests.recordings import pair

PODS = [f"pod-{i}" for i in range(7)]
SETTINGS = Settings(time_scale=12, min_seconds=240)


def test_splits_leave_the_larger_part_to_the_baseline_and_room_for_the_ladder() -> None:
    drawn = draw(PODS, 1000.0, 2000.0, 300, seed=3)
    assert {len(split.canary) for split in drawn} == {1, 2, 3}
    assert {pod for split in drawn for pod in split.canary} == set(PODS)
    assert all(1000 <= split.start <= 2000 for split in drawn)
    assert len({split.start for split in drawn}) > 100


def test_the_same_seed_draws_the_same_whatever_the_order_of_the_pods() -> None:
    assert draw(PODS, 0, 9, 20, seed=1) == draw(PODS[::-1], 0, 9, 20, seed=1)
    assert draw(PODS, 0, 9, 20, seed=1) != draw(PODS, 0, 9, 20, seed=2)


def test_of_two_pods_either_plays_the_canary() -> None:
    drawn = draw(["a", "b"], 0, 0, 30, seed=1)
    assert sorted(tuple(split.canary) for split in drawn) == [("a",), ("b",)], "each once"


def test_a_past_no_longer_than_the_ladder_leaves_one_start() -> None:
    assert room(100, 200, timedelta(seconds=100)) == 100
    assert room(100, 200, timedelta(seconds=30)) == 170
    assert room(100, 200, timedelta(seconds=300)) == 100


def splits(name: str, count: int) -> Splits:
    recorded = pair(name)
    begin = recorded.steps[0][0]
    length = recorded.end - begin
    pods = ["baseline", "canary"]
    ladder = [HistoricStep(50, timedelta(seconds=length))]
    found = Splits(draw(pods, begin, begin, count, 1), ladder, length, 75.0, 2, SETTINGS)
    for tick in recorded.ticks():
        engines = {"baseline": tick.baseline.engines, "canary": tick.canary.engines}
        named = {name: next(iter(e.values())) for name, e in engines.items() if e}
        found.take(Moment(tick.at, named))
    return found


def test_equal_pods_are_never_told_apart() -> None:
    tried = splits("auto-auto-ladder", 4).tried()
    assert counted(tried, Verdict.FAIL) == Share(0, 2)
    assert all(one.outcome.report is not None for one in tried)


def test_pods_that_differ_are_told_apart_one_way_round() -> None:
    tried = splits("auto-int8-calm", 6).tried()
    failed = {one.split.canary for one in tried if one.outcome.verdict is Verdict.FAIL}
    assert failed == {frozenset({"canary"})}
    assert counted(tried, Verdict.FAIL) == Share(1, 2)


def test_moments_outside_of_a_split_are_none_of_its_business() -> None:
    recorded = pair("auto-auto-ladder")
    late = recorded.end + 1000
    ladder = [HistoricStep(50, timedelta(seconds=60))]
    found = Splits(draw(["a", "b"], late, late, 1, 1), ladder, 60, 0, 2, SETTINGS)
    for tick in recorded.ticks():
        found.take(Moment(tick.at, {"a": tick.baseline.engines["engine-0"]}))
    assert found.tried()[0].outcome.verdict is Verdict.ERROR


@pytest.mark.parametrize(
    ("hits", "of", "lower", "upper"),
    # As R's binom.test gives them.
    [
        (0, 6, 0.0, 0.4593),
        (0, 200, 0.0, 0.0183),
        (1, 200, 0.0001266, 0.0275),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
    ],
)
def test_intervals_are_exact(hits: int, of: int, lower: float, upper: float) -> None:
    share = Share(hits, of)
    assert (share.lower, share.upper) == pytest.approx((lower, upper), rel=2e-3, abs=2e-5)
    assert share.rate == hits / of
