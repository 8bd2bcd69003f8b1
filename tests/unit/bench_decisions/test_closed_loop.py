"""Rules, kinds and counts of the decision benchmark, on as little as shows them."""

from __future__ import annotations

import math

import pytest

from bench.decisions.books import Counted
from bench.decisions.histogram import ROUTER, quantile
from bench.decisions.kayenta import is_high
from bench.decisions.kinds import KINDS
from bench.decisions.rollout import (
    PROMOTED,
    ROLLED_BACK,
    Outcome,
    canary_pods,
    rollout,
)
from bench.decisions.world import BASELINE, CANARY, World
from kvquant.core.envoy_bootstrap import LATENCY_BOUNDS_MS
from kvquant.core.plan import replicas_for
from kvquant.core.proportion import interval, upper

PEERS = ("flagger-tight", "argo-loose", "kayenta-loose")


def _by_rule(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.rule: outcome for outcome in outcomes}


def test_buckets_and_pods_are_the_products_own() -> None:
    assert ROUTER[:-1] == tuple(bound / 1000 for bound in LATENCY_BOUNDS_MS)
    for weight in (1, 10, 12, 25, 50, 75, 95, 99):
        for pods in (1, 2, 7, 8, 20):
            assert canary_pods(weight, pods) == replicas_for(weight, pods)


def test_a_quantile_is_the_one_that_prometheus_computes() -> None:
    assert quantile(0.5, (1.0, 2.0, math.inf), (0.0, 4.0, 4.0)) == 1.5
    assert quantile(0.99, (1.0, 2.0, math.inf), (1.0, 1.0, 4.0)) == 2.0
    assert math.isnan(quantile(0.5, (1.0, math.inf), (0.0, 0.0)))


def test_intervals_are_the_textbooks() -> None:
    # Nought of n: 1 - 0.05 ** (1 / n); five of ten: a table's 0.187 to 0.813.
    assert upper(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)


def test_mann_whitney_calls_high_what_is_high() -> None:
    baseline = [10.0, 11.0, 9.0, 10.5, 9.5, 10.2, 9.9, 10.1, 9.7, 10.4]
    assert is_high([2 * value for value in baseline], baseline) is True
    assert is_high([value + 0.1 for value in baseline], baseline) is False
    assert is_high([], baseline) is None


def test_increments_of_a_window_are_what_the_routers_counted_in_it() -> None:
    later, earlier = Counted(10, 1, (0.0, 9.0)), Counted(4, 1, (0.0, 3.0))
    assert later.minus(earlier) == Counted(6, 0, (0.0, 6.0))


def test_what_is_sent_ends_or_is_in_flight() -> None:
    world = World(KINDS["crash-often"], 8.0, "recorded", "books")
    world.scale(CANARY, 2)
    world.weight = 30.0
    world.begin()
    world.run(1800.0)
    assert world.sides[CANARY].deaths
    for arm in (BASELINE, CANARY):
        for counts in world.sides[arm].counts:
            sample = counts.sample()
            assert sample.latency is not None
            answered = sample.latency.counts[-1]
            assert sample.started == answered + (sample.unanswered or 0) + (sample.active or 0)
        held = sum(sum(pod.active) for pod in world.sides[arm].pods)
        assert held == sum(counts.active for counts in world.sides[arm].counts)


def test_a_copied_world_goes_on_as_the_first_would_have() -> None:
    world = World(KINDS["identical"], 6.0, "log-normal", "fork")
    world.run(300.0)
    (other,) = world.fork()
    world.run(900.0)
    other.run(900.0)
    assert world.router_view(BASELINE) == other.router_view(BASELINE)


def test_peers_promote_what_is_like_and_stop_what_hangs() -> None:
    good = _by_rule(rollout("identical", "low", 0, PEERS))
    assert {outcome.end for outcome in good.values()} == {PROMOTED}
    assert all(outcome.minutes >= 40 for outcome in good.values())
    bad = _by_rule(rollout("slower-2", "low", 0, PEERS))
    assert {outcome.end for outcome in bad.values()} == {ROLLED_BACK}


def test_a_run_is_fixed_by_its_number() -> None:
    first = rollout("errors", "low", 3, ("flagger-tight",))
    assert first == rollout("errors", "low", 3, ("flagger-tight",))
    assert first != rollout("errors", "low", 5, ("flagger-tight",))


def test_without_prometheus_peers_see_nothing_and_the_analysis_is_told_so() -> None:
    world = World(KINDS["gap"], 6.0, "recorded", "gap")
    world.scale(CANARY, 1)
    world.run(600.0)
    world.weight = 10.0
    world.begin()
    seen = set()
    for minute in range(11, 60):
        world.run(60.0 * minute)
        tick = world.tick(1, 25, 3)
        routers = world.router_view(CANARY)
        seen.add(routers is None)
        if routers is None:
            assert tick is None or not any(
                sample.latency for sample in tick.canary.routers.values()
            )
    assert seen == {True, False}
