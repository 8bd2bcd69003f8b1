"""Many rollouts, one set of queries: who asks, who waits, who is read along."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bench.fleet import Fleet
from kvquant.adapters import shared_metrics
from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.adapters.shared_metrics import FORGOTTEN_AFTER, NEAR_STEPS, SharedMetrics
from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Analysis, Report, Settings
from kvquant.core.evidence import CacheConfig
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed
from kvquant.core.ticking import GRID, Span, TickNeed, Timeline, last_instant
from kvquant.errors import MetricsError
from kvquant.patience import Questions, SomethingCameUp
from tests.component.test_metrics_adapter import Answer, Stub, reply

STEP = GRID.total_seconds()
BEGAN = datetime.fromtimestamp(Fleet(1).began, UTC)
"""An instant of the grid."""
DELAY = timedelta(seconds=1)


def at(steps: float) -> datetime:
    """Return an instant at which the tick of so many steps after the begin can be read."""
    return BEGAN + steps * GRID + DELAY


class Counting:
    """Who is asked: answers from a fleet, and keeps the begin and the size of each set."""

    grid, delay = GRID, DELAY

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.sets: list[tuple[float, int]] = []
        self.asked, self.let_go = threading.Event(), threading.Event()
        self.let_go.set()
        self.error: Exception | None = None
        self.most = 10**6
        self.shadow_sets: list[list[str]] = []
        self.config_sets: list[frozenset[str]] = []

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        first = min(need.since for need in needs)
        self.sets.append(((first - BEGAN) / GRID, len(needs)))
        self.asked.set()
        assert self.let_go.wait(10)
        if self.error is not None:
            raise self.error
        end = last_instant(now, self.delay, self.grid)
        last = min(end, first.timestamp() + (self.most - 1) * STEP)
        return self.fleet.timelines(needs, first.timestamp(), last)

    def all_cache_configs(
        self, namespaces: Iterable[str], now: datetime
    ) -> Mapping[tuple[str, str], CacheConfig]:
        self.config_sets.append(frozenset(namespaces))
        if self.error is not None:
            raise self.error
        return {
            (namespace, pod): CacheConfig(pod, now, "fp8")
            for namespace in self.config_sets[-1]
            for pod in ("a", "b")
        }

    def shadows(self, needs: Sequence[ShadowNeed], now: datetime) -> Mapping[str, ShadowEvidence]:
        self.shadow_sets.append([need.key for need in needs])
        return {need.key: ShadowEvidence(runs=len(self.shadow_sets)) for need in needs}


@pytest.fixture
def asking() -> Counting:
    return Counting(Fleet(3, pods=1, routers=1))


@pytest.fixture
def shared(asking: Counting) -> SharedMetrics:
    return SharedMetrics(asking, patience=5)


def needs(asking: Counting, steps: float = 0) -> list[TickNeed]:
    """Return what each rollout asks for from so many steps after the begin on."""
    return [replace(n, spans=()) for n in asking.fleet.needs((BEGAN + steps * GRID).timestamp())]


def steps_of(timeline: Timeline) -> list[float]:
    return [(tick.at - BEGAN.timestamp()) / STEP for tick in timeline.ticks]


def ask(shared: SharedMetrics, need: TickNeed, now: datetime) -> Timeline:
    return shared.ticks([need], now)[need.key]


def test_the_first_that_needs_a_new_instant_reads_it_for_all(
    asking: Counting, shared: SharedMetrics
) -> None:
    for need in needs(asking):
        assert steps_of(ask(shared, need, at(2))) == [0, 1, 2]
    begun = len(asking.sets)
    for now in (3.0, 3.4, 4.0):
        told = [ask(shared, need, at(now)) for need in needs(asking, 2)]
        assert [steps_of(t)[-1] for t in told] == [int(now)] * 3
        assert all(t.complete for t in told)
    assert asking.sets[begun:] == [(3, 3), (4, 3)], "one set an instant, with all three in it"


def test_what_is_told_is_what_was_asked_directly(asking: Counting, shared: SharedMetrics) -> None:
    spans = (Span(at(0), 1, 10.0, canary_replicas=1), Span(at(3) - DELAY, 2, 50.0))
    need = replace(needs(asking)[0], spans=spans)
    ask(shared, need, at(2))
    end = (BEGAN + 4 * GRID).timestamp()
    direct = asking.fleet.timelines([need], BEGAN.timestamp(), end)[need.key]
    told = ask(shared, need, at(4))
    assert [t.step for t in told.ticks] == [0, 1, 1, 2, 2]
    assert told == direct


def test_spans_are_those_of_the_asker_and_not_of_who_was_read_along(
    asking: Counting, shared: SharedMetrics
) -> None:
    one, other, _ = needs(asking)
    ask(shared, one, at(0))
    ask(shared, other, at(1))
    spans = (Span(BEGAN, 1, 25.0),)
    assert {t.weight for t in ask(shared, replace(one, spans=spans), at(1)).ticks} == {25.0}


def test_a_long_past_is_read_apart_and_does_not_widen_what_all_read(
    asking: Counting, shared: SharedMetrics
) -> None:
    steady, late, _ = needs(asking, 200)
    ask(shared, steady, at(200))
    late = replace(late, since=BEGAN)
    asking.sets.clear()
    told = ask(shared, late, at(200))
    assert steps_of(told) == list(range(201))
    assert asking.sets == [(0, 1)]
    ask(shared, replace(steady, since=at(200) - DELAY), at(201))
    assert asking.sets[1:] == [(201, 2)], "from now on both are read together"


def test_a_past_in_parts_is_complete_when_all_parts_are_read(
    asking: Counting, shared: SharedMetrics
) -> None:
    asking.most = 50
    need = needs(asking)[0]
    told = [ask(shared, need, at(120)) for _ in range(3)]
    assert [t.complete for t in told] == [False, False, True]
    assert steps_of(told[1]) == list(range(100))
    assert steps_of(told[2]) == list(range(121))


def test_the_past_of_many_is_read_by_and_by(
    asking: Counting, shared: SharedMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_metrics, "MOST_FAR", 2)
    asking.fleet, asking.most = Fleet(5, pods=1, routers=1), 30
    for _ in range(10):
        told = [ask(shared, need, at(60)).complete for need in needs(asking)]
        if all(told):
            break
    assert all(told)
    assert {size for begin, size in asking.sets if begin < 40} == {1, 2}
    assert all(steps_of(ask(shared, n, at(60))) == list(range(61)) for n in needs(asking))


def test_what_is_older_than_asked_for_is_dropped(asking: Counting, shared: SharedMetrics) -> None:
    need = needs(asking)[0]
    ask(shared, need, at(5))
    later = replace(need, since=at(4) - DELAY)
    assert steps_of(ask(shared, later, at(5))) == [4, 5]
    asking.sets.clear()
    assert steps_of(ask(shared, need, at(5))) == [0, 1, 2, 3, 4, 5], "and read again when wanted"
    assert len(asking.sets) == 1


def test_a_rollout_that_begins_anew_is_not_read_from_where_it_left_off(
    asking: Counting, shared: SharedMetrics
) -> None:
    need = needs(asking)[0]
    ask(shared, need, at(0))
    asking.sets.clear()
    assert steps_of(ask(shared, replace(need, since=at(500) - DELAY), at(501))) == [500, 501]
    assert asking.sets == [(500, 1)]


def test_other_pools_are_another_history(asking: Counting, shared: SharedMetrics) -> None:
    need = needs(asking)[0]
    ask(shared, need, at(3))
    swapped = replace(need, baseline=need.canary, canary=need.baseline)
    before, after = ask(shared, need, at(3)).ticks[0], ask(shared, swapped, at(3)).ticks[0]
    assert before.baseline == after.canary
    assert before.baseline != after.baseline


def test_a_need_of_the_future_has_no_ticks_and_asks_nothing(
    asking: Counting, shared: SharedMetrics
) -> None:
    told = ask(shared, needs(asking, 9)[0], at(3))
    assert (told.ticks, told.complete, asking.sets) == ((), True, [])


def test_who_has_not_asked_for_long_is_not_read_along(
    asking: Counting, shared: SharedMetrics
) -> None:
    for need in needs(asking):
        ask(shared, need, at(0))
    for steps in range(1, FORGOTTEN_AFTER // GRID + 3):
        ask(shared, needs(asking, steps)[0], at(steps))
    assert asking.sets[-1][1] == 1


def test_a_router_that_is_scraped_no_longer_is_told_later_too(
    asking: Counting, shared: SharedMetrics
) -> None:
    need = needs(asking)[0]
    ask(shared, need, at(0))
    asking.fleet = replace(asking.fleet, routers=0)
    told = ask(shared, replace(need, since=at(1) - DELAY), at(1))
    assert "has not scraped router model0-router since" in told.problems[0]
    # What was told with the last read is told again without one.
    assert ask(shared, replace(need, since=at(1) - DELAY), at(1)).problems == told.problems


def together(shared: SharedMetrics, wanted: Sequence[TickNeed], now: datetime) -> list[Any]:
    """Ask for each in a thread of its own; return the answers and errors."""

    def attempt(need: TickNeed) -> Any:
        try:
            return ask(shared, need, now)
        except MetricsError as error:
            return error

    with ThreadPoolExecutor(len(wanted)) as threads:
        return list(threads.map(attempt, wanted))


def test_those_who_come_meanwhile_wait_for_the_one_set(
    asking: Counting, shared: SharedMetrics
) -> None:
    for need in needs(asking):
        ask(shared, need, at(0))
    asking.sets.clear()
    asking.asked.clear()
    asking.let_go.clear()
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(ask, shared, needs(asking)[0], at(1))
        assert asking.asked.wait(10)
        others = [threads.submit(ask, shared, need, at(1)) for need in needs(asking)[1:]]
        asking.let_go.set()
        assert all(steps_of(told.result(10)) == [0, 1] for told in (first, *others))
    assert asking.sets == [(1, 3)]


def test_a_wait_is_bounded(asking: Counting) -> None:
    shared = SharedMetrics(asking, patience=0.05)
    asking.let_go.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, shared, needs(asking)[0], at(1))
        assert asking.asked.wait(10)
        with pytest.raises(MetricsError, match=r"within 0\.05 s: .*KVQUANT_PROMETHEUS_TIMEOUT"):
            ask(shared, needs(asking)[1], at(1))
        asking.let_go.set()
        assert first.result(10).complete


def test_a_pass_that_waits_for_somebody_elses_queries_is_given_up_for_a_kill_switch(
    asking: Counting, shared: SharedMetrics
) -> None:
    asking.let_go.clear()
    questions = Questions(shared)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, shared, needs(asking)[0], at(1))
        assert asking.asked.wait(10)
        began = time.monotonic()
        with pytest.raises(SomethingCameUp):
            questions.until(lambda: True).ticks([needs(asking)[1]], at(1))
        assert time.monotonic() - began < 3
        asking.let_go.set()
        assert first.result(10).complete


def test_a_failure_is_everybodys_and_is_not_repeated_at_once(
    asking: Counting, shared: SharedMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking.error = MetricsError("Prometheus is away")
    told = together(shared, needs(asking), at(1))
    assert [str(error) for error in told] == ["Prometheus is away"] * 3
    asked = len(asking.sets)
    assert asked == 1
    asking.error = None
    assert [str(e) for e in together(shared, needs(asking), at(1))] == ["Prometheus is away"] * 3
    assert len(asking.sets) == asked
    monkeypatch.setattr(shared_metrics, "FAILED_FOR", 0.0)
    shared._failed.clear()
    assert all(told.complete for told in together(shared, needs(asking), at(1)))


def test_an_error_nobody_expects_does_not_leave_others_waiting(
    asking: Counting, shared: SharedMetrics
) -> None:
    asking.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        ask(shared, needs(asking)[0], at(1))
    with pytest.raises(MetricsError, match="RuntimeError: a bug"):
        ask(shared, needs(asking)[1], at(1))


def test_a_failing_past_does_not_keep_the_present_from_being_read(
    asking: Counting, shared: SharedMetrics
) -> None:
    steady, late, _ = needs(asking, 200)
    ask(shared, steady, at(200))
    asking.error = MetricsError("too long a range")
    with pytest.raises(MetricsError):
        ask(shared, replace(late, since=BEGAN), at(200))
    asking.error = None
    assert steps_of(ask(shared, steady, at(201))) == [200, 201]


def test_after_a_gap_of_the_asker_nothing_is_missing(
    asking: Counting, shared: SharedMetrics
) -> None:
    need = needs(asking)[0]
    for now in (0, NEAR_STEPS, 3 * NEAR_STEPS + 1):
        told = ask(shared, need, at(now))
    assert steps_of(told) == list(range(3 * NEAR_STEPS + 2))


def test_cache_configs_of_all_namespaces_are_asked_together(
    asking: Counting, shared: SharedMetrics
) -> None:
    assert set(shared.cache_configs("one", ["a", "z"], at(0))) == {"a"}
    assert set(shared.cache_configs("two", ["b"], at(0))) == {"b"}
    assert asking.config_sets == [{"one"}, {"one", "two"}]
    for namespace in ("one", "two"):
        assert shared.cache_configs(namespace, ["a"], at(0) + timedelta(seconds=1))
        assert shared.cache_configs(namespace, [], at(9)) == {}
    assert len(asking.config_sets) == 2
    shared.cache_configs("two", ["a"], at(1))
    shared.cache_configs("one", ["a"], at(1))
    assert asking.config_sets[2:] == [{"one", "two"}]
    shared.cache_configs("two", ["a"], at(100))
    assert asking.config_sets[3:] == [{"two"}], "who no longer asks is forgotten"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.mark.parametrize("rollouts", [1, 20, 1000])
def test_the_number_of_queries_does_not_depend_on_the_number_of_rollouts(
    stub: Stub, rollouts: int
) -> None:
    fleet = Fleet(rollouts, pods=1, routers=1)

    def answer(path: str, query: dict[str, str]) -> Answer:
        start, end = float(query["start"]), float(query["end"])
        found = fleet.matrix(query["query"], start, end, STEP) if rollouts < 100 else []
        return reply({"resultType": "matrix", "result": found})

    stub.answer = answer
    metrics = PrometheusMetrics(stub.url, timeout=20)
    shared = SharedMetrics(metrics, patience=60)
    every = fleet.needs((BEGAN + 40 * GRID).timestamp())
    shared.ticks(every, at(40))
    for steps in (41, 42, 43):
        stub.asked.clear()
        with ThreadPoolExecutor(16) as threads:
            told = list(threads.map(lambda need: ask(shared, need, at(steps)), every))  # noqa: B023
        assert all(steps_of(t)[-1] == steps for t in told)
        assert len(stub.asked) == 9
        assert max(len(query["query"]) for _, query in stub.asked) < 20_000
    if rollouts < 100:
        assert told[-1].ticks[-1].canary.engines
    metrics.close()


def test_the_answers_of_a_fleet_are_well_formed() -> None:
    fleet = Fleet(2, pods=1)
    told = fleet.timelines(fleet.needs(0), BEGAN.timestamp() + 600, BEGAN.timestamp() + 615)
    assert json.dumps(fleet.matrix("envoy_cluster_upstream_rq_time_bucket", 0, 0, STEP))
    for timeline in told.values():
        one, two = (tick.canary for tick in timeline.ticks)
        grown = [sum(s.started or 0 for s in arm.routers.values()) for arm in (one, two)]
        assert grown[1] - grown[0] == pytest.approx(fleet.rate * STEP)
        assert all(engine.itl and engine.ttft and engine.e2e for engine in two.engines.values())


def test_the_analysis_can_read_all_that_a_tick_holds() -> None:
    fleet = Fleet(1)
    begin = BEGAN.timestamp() + 600
    (need,) = fleet.needs(begin)
    (timeline,) = fleet.timelines([need], begin, begin + 1800).values()
    analysis = Analysis(Settings())
    for tick in timeline.ticks:
        report = analysis.observe(tick)
    # What a canary delivers while it queues can only be told of one that queues.
    unmeasured = {s.name for s in report.signals if "not measured" in s.message}
    assert unmeasured == {"delivered"}
    assert report.verdict is Verdict.PASS, report.message


def test_an_operator_that_was_restarted_comes_to_the_same_verdict(asking: Counting) -> None:
    def follow(analysis: Analysis, shared: SharedMetrics, since: datetime, now: datetime) -> float:
        """Feed the analysis as a pass does; return the last instant that it has seen."""
        told = Timeline((), complete=False)
        last = since
        while not told.complete:
            told = ask(shared, replace(need, since=last), now)
            for tick in told.ticks:
                reports[analysis] = analysis.observe(tick)
                last = datetime.fromtimestamp(tick.at, UTC)
        return last.timestamp()

    asking.most = 30
    (need, *_) = asking.fleet.needs(BEGAN.timestamp())
    reports: dict[Analysis, Report] = {}
    live, restarted = Analysis(Settings()), Analysis(Settings())
    before = SharedMetrics(asking, patience=5)
    last = BEGAN.timestamp()
    for steps in range(1, 100):
        last = follow(live, before, datetime.fromtimestamp(last, UTC), at(steps))
    follow(restarted, SharedMetrics(asking, patience=5), BEGAN, at(99))
    assert reports[live] == reports[restarted]
    assert reports[live].verdict is Verdict.PASS


def test_one_pair_of_queries_serves_every_shadowed_rollout(
    asking: Counting, shared: SharedMetrics
) -> None:
    one, other = (
        ShadowNeed(f"inference/{name}", "inference", f"{name}-router", f"uid-{name}", 1, at(0))
        for name in ("llama", "qwen")
    )
    shared.shadows([one], at(1))
    shared.shadows([other], at(1))
    assert asking.shadow_sets == [["inference/llama"], ["inference/llama", "inference/qwen"]]
    told = [shared.shadows([need], at(1) + timedelta(seconds=1)) for need in (one, other)]
    assert len(asking.shadow_sets) == 2, "what is fresh is not asked for again"
    assert [[*answer] for answer in told] == [["inference/llama"], ["inference/qwen"]]
    shared.shadows([one], at(1) + FORGOTTEN_AFTER + timedelta(seconds=3))
    assert asking.shadow_sets[2:] == [["inference/llama"]], "who asks no more is read no more"
