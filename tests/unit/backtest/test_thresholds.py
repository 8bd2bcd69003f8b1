"""What static thresholds would have done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample
from kvquant.core.backtest.thresholds import Ruled, Thresholds

BOUNDS = (1.0, 1.9, 4.0, math.inf)


class Engine:
    """An engine whose requests take as long as the test says, and that counts them."""

    def __init__(self) -> None:
        self.counts = [0.0] * len(BOUNDS)

    def serve(self, seconds: float, times: int = 100) -> Arm:
        for index, bound in enumerate(BOUNDS):
            self.counts[index] += times * (seconds <= bound)
        return self.arm()

    def arm(self) -> Arm:
        return Arm(engines={"e": EngineSample(e2e=Bins(BOUNDS, tuple(self.counts)))})


def ruled(
    canary: Sequence[float | None], *, before: int = 10, steps: Sequence[int] | None = None
) -> tuple[Ruled, ...]:
    """Return what was ruled when the canary's requests of each minute took that many seconds."""
    baseline, other = Engine(), Engine()
    rules = Thresholds()
    at = 0.0
    for _ in range(before):
        rules.take(at, 0, baseline.serve(0.5), other.arm())
        at += 60
    for index, seconds in enumerate(canary):
        step = 1 if steps is None else steps[index]
        arm = other.arm() if seconds is None else other.serve(seconds)
        rules.take(at, step, baseline.serve(0.5), arm)
        at += 60
    return rules.ruled()


def test_without_any_request_nothing_is_ruled() -> None:
    found = ruled([], before=0)
    assert len(found) == 4
    assert {(rule.limit, rule.rolled_back_at, rule.checks) for rule in found} == {(None, None, 0)}


def test_an_equal_canary_is_let_through() -> None:
    found = ruled([0.5] * 20)
    assert [rule.rolled_back_at for rule in found] == [None] * 4
    assert {rule.checks for rule in found} == {19}
    # Half of the first bucket, read as Prometheus reads it.
    assert [rule.limit for rule in found] == pytest.approx([1.2375, 1.2375, 1.98, 1.98])


def test_a_slow_canary_is_rolled_back_by_the_fifth_and_the_fourth_failed_check() -> None:
    flagger, argo, *_ = ruled([0.5, *[3.0] * 20])
    # The first minute sets the counts, each later one is a check.
    assert (flagger.rolled_back_at, flagger.failed) == (600 + 5 * 60, 5)
    assert (argo.rolled_back_at, argo.failed) == (600 + 4 * 60, 4)


def test_minutes_without_a_request_fail_a_check_of_flaggers_and_are_errors_of_argos() -> None:
    flagger, argo, *_ = ruled([0.5, None, 0.5, None, 0.5, None, 0.5, None, 0.5, None, 0.5])
    assert flagger.failed == 5
    assert flagger.rolled_back_at is not None
    assert (argo.rolled_back_at, argo.failed) == (None, 0)
    _, argo, *_ = ruled([0.5, *[None] * 5])
    assert argo.rolled_back_at == 600 + 5 * 60


def test_flagger_counts_over_the_whole_rollout_and_argo_anew_in_each_step() -> None:
    slow = [0.5, *[3.0] * 3, *[0.5] * 3, *[3.0] * 3]
    flagger, argo, *_ = ruled(slow, steps=[1] * 6 + [2] * 4)
    assert flagger.rolled_back_at is not None
    assert argo.rolled_back_at is None
    assert argo.failed == 6


def test_what_lies_between_the_two_factors_divides_them() -> None:
    found = ruled([0.5, *[1.5] * 20])
    assert [rule.rolled_back_at is None for rule in found] == [False, False, True, True]


def test_without_a_past_the_limit_is_what_could_be_known_only_afterwards() -> None:
    found = ruled([0.5] * 10, before=0)
    assert all("known only afterwards" in rule.rule for rule in found)
    assert all(rule.limit is not None for rule in found)


def test_a_restart_counts_from_zero() -> None:
    baseline, engine, rules = Engine(), Engine(), Thresholds()
    for minute in range(3):
        rules.take(60.0 * minute, 0, baseline.serve(0.5), engine.arm())
    rules.take(180, 1, baseline.serve(0.5), engine.serve(0.5, 1000))
    rules.take(240, 1, baseline.serve(0.5), Engine().serve(3.0))
    # Taken as a difference, a thousand requests would be missing, and none slow.
    assert [(rule.failed, rule.checks) for rule in rules.ruled()] == [(1, 1)] * 4


def test_what_routers_saw_comes_before_what_engines_saw() -> None:
    def arm(router: Engine, engine: Engine) -> Arm:
        sample = RouterSample(latency=Bins(BOUNDS, tuple(router.counts)))
        return Arm(routers={"r": sample}, engines=engine.arm().engines)

    baseline, slow, fast, rules = Engine(), Engine(), Engine(), Thresholds()
    for minute in range(20):
        for side in (baseline, fast):
            side.serve(0.5)
        slow.serve(3.0)
        rules.take(60.0 * minute, min(1, minute // 3), arm(baseline, baseline), arm(slow, fast))
    assert rules.ruled()[0].rolled_back_at is not None
