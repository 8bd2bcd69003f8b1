"""Each rollout's analysis is fed what it has not seen, and forgets nothing by a restart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from numpy.random import default_rng

from kvquant.analysing import LOOK_BACK, Analyses, spans
from kvquant.api.v1alpha1 import KVQuantRollout, Phase, Pool, Status, TrafficSpan, Verdict, Weights
from kvquant.core.analysis import Analysis, Report
from kvquant.core.analysis.samples import Arm, RouterSample, Tick
from kvquant.core.custom_signals import LatencyQuery, Selector
from kvquant.core.evidence import Evidence
from kvquant.core.judgement import settings_of
from kvquant.core.plan import Plan
from kvquant.core.ticking import GRID, Span, TickNeed, Timeline, in_effect
from kvquant.errors import MetricsError
from kvquant.world import World
from tests.fakes.arms import EPOCH, Stage, Traffic, arrivals, split, work
from tests.fakes.metrics import FakeMetrics

FIRST, SECOND = 900.0, 1500.0
"""When the canary got traffic, and when it got more, in seconds since the arms began."""


def instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(EPOCH + seconds, UTC)


STATUS = Status(
    phase=Phase.PROGRESSING,
    phase_started_at=instant(FIRST),
    attempt=1,
    router="llama-router",
    baseline=Pool(deployment="llama", slot="blue", dtype="auto", replicas=4),
    canary=Pool(deployment="llama-fp8-pool", slot="green", dtype="fp8", replicas=1),
    step=2,
    step_started_at=instant(SECOND),
    weights=Weights(baseline=75, canary=25),
    traffic=(
        TrafficSpan(since=instant(FIRST), step=1, weight=10),
        TrafficSpan(since=instant(SECOND), step=2, weight=25),
    ),
)


def world(*, uid: str = "u1", status: Status = STATUS, **analysis: Any) -> World:
    rollout = KVQuantRollout.model_validate(
        {
            "apiVersion": "kvquant.dev/v1alpha1",
            "kind": "KVQuantRollout",
            "metadata": {"name": "llama-fp8", "namespace": "inference", "uid": uid},
            "spec": {
                "targetRef": {"name": "llama"},
                "kvCache": {"dtype": "fp8"},
                "traffic": {"router": {}},
                "steps": [{"weight": w, "soak": "5m"} for w in (10, 25, 50, 100)],
                "analysis": analysis,
            },
        }
    )
    return World(rollout.model_copy(update={"status": status}), raw={})


def past() -> tuple[Tick, ...]:
    rng = default_rng(1)
    stages = (Stage(0, 0, 0), Stage(FIRST, 1, 10), Stage(SECOND, 2, 25))
    base, ours = split(rng, arrivals(rng, 0, 2400, 3), stages)
    return tuple(Traffic(work(rng, base, pods=4), work(rng, ours), stages, 2400).ticks())


PAST = past()


@dataclass
class Prometheus:
    """A past of which as much is told as is asked for, up to the present instant."""

    ticks: Iterable[Tick] = PAST
    longest: int = 10_000
    problems: tuple[str, ...] = ()
    metrics: FakeMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = FakeMetrics()
        self.metrics.timeline = self._told

    def _told(self, need: TickNeed, now: datetime) -> Timeline:
        begin, end = need.since.timestamp(), now.timestamp()
        due = [in_effect(tick, need.spans) for tick in self.ticks if begin <= tick.at <= end]
        return Timeline(
            tuple(due[: self.longest]),
            complete=len(due) <= self.longest,
            healthy={"blue": 4.0, "green": 1.0},
            problems=self.problems,
        )


def look(
    analyses: Analyses, metrics: FakeMetrics, seconds: float, **other: Any
) -> tuple[Evidence, Report | None]:
    there = world(**other)
    return analyses.look(there, Plan.of(there.rollout.spec), metrics, instant(seconds))


def by_hand(seconds: float) -> Report:
    """Return what the analysis says that was fed the same ticks without any detour."""
    there = world()
    plan = Plan.of(there.rollout.spec)
    analysis = Analysis(settings_of(plan.analysis, budget=plan.live_budget))
    for tick in PAST:
        if tick.at <= EPOCH + seconds:
            analysis.take(in_effect(tick, spans(STATUS, plan)))
    return analysis.report()


# --- What is asked, and what comes of it ------------------------------------------------------


def test_the_whole_attempt_is_read_once_and_then_only_what_is_new() -> None:
    prometheus, analyses = Prometheus(), Analyses(GRID)

    for seconds in (1600, 1615, 2007, 2400):
        _, report = look(analyses, prometheus.metrics, seconds)
        assert report == by_hand(seconds)

    since = [need.since for need in prometheus.metrics.asked]
    assert since == [instant(FIRST) - LOOK_BACK, instant(1590), instant(1605), instant(1995)]


def test_the_traffic_that_is_analysed_is_that_of_this_rollout() -> None:
    prometheus = Prometheus()
    look(Analyses(GRID), prometheus.metrics, 1600)

    (need,) = prometheus.metrics.asked
    assert (need.key, need.namespace, need.router) == (
        "inference/llama-fp8",
        "inference",
        "llama-router",
    )
    assert (need.baseline.slot, need.baseline.deployment) == ("blue", "llama")
    assert (need.canary.slot, need.canary.deployment) == ("green", "llama-fp8-pool")


def test_signals_of_the_users_are_asked_for_with_the_rest() -> None:
    prometheus = Prometheus()
    own = {"name": "rerank", "latency": {"histogram": "rerank_seconds"}, "tolerancePercent": 20}
    _, report = look(Analyses(GRID), prometheus.metrics, 1600, custom=[own])

    (need,) = prometheus.metrics.asked
    assert need.signals == (LatencyQuery("rerank", Selector.parse("rerank_seconds")),)
    assert report is not None
    assert "rerank: not measured yet" in report.message, "no pod of this past exports it"


@pytest.mark.parametrize("seconds", [1200, 1600, 2400])
def test_an_operator_that_begins_anew_comes_to_the_same_report(seconds: float) -> None:
    old = Analyses(GRID)
    for at in (950, 1100, 1190, seconds):
        before = look(old, Prometheus().metrics, at)

    assert look(Analyses(GRID), Prometheus().metrics, seconds) == before


def test_what_it_finds_is_a_verdict_and_not_only_equal() -> None:
    _, report = look(Analyses(GRID), Prometheus().metrics, 2400)

    assert report is not None
    assert report.step == 2
    assert report.verdict is Verdict.PASS
    assert (report.canary_requests or 0) > 200


# --- When there is less than everything -------------------------------------------------------


def test_a_rollout_that_the_answer_leaves_out_is_not_analysed() -> None:
    metrics = FakeMetrics()
    metrics.timeline = lambda need, now: None

    with pytest.raises(MetricsError, match="leaves this rollout out"):
        look(Analyses(GRID), metrics, 1600)


def test_a_past_that_is_read_in_parts_gives_no_report_before_it_is_whole() -> None:
    prometheus, analyses = Prometheus(longest=50), Analyses(GRID)
    for _ in range(3):
        with pytest.raises(MetricsError, match="read from Prometheus again"):
            look(analyses, prometheus.metrics, 2400)

    assert look(analyses, prometheus.metrics, 2400)[1] == by_hand(2400)


def test_a_problem_is_told_and_no_verdict_but_what_was_read_is_kept() -> None:
    prometheus, analyses = Prometheus(problems=("Prometheus has not scraped it",)), Analyses(GRID)

    with pytest.raises(MetricsError, match="has not scraped it"):
        look(analyses, prometheus.metrics, 2000)

    prometheus.problems = ()
    _, report = look(analyses, prometheus.metrics, 2400)
    assert report == by_hand(2400)
    assert prometheus.metrics.asked[-1].since == instant(1995)


def test_an_outage_costs_nothing_but_the_time_that_it_lasts() -> None:
    prometheus, analyses = Prometheus(), Analyses(GRID)
    look(analyses, prometheus.metrics, 1800)
    prometheus.metrics.outage = "connection refused"
    with pytest.raises(MetricsError, match="connection refused"):
        look(analyses, prometheus.metrics, 2000)
    prometheus.metrics.outage = None

    assert look(analyses, prometheus.metrics, 2400)[1] == by_hand(2400)


def test_without_any_tick_there_is_no_report_and_nothing_is_known_of_the_arms() -> None:
    metrics = FakeMetrics()
    evidence, report = look(Analyses(GRID), metrics, 1600)

    assert report is None
    assert evidence.at == instant(1600)
    for arm in (evidence.baseline, evidence.canary):
        assert (arm.active, arm.healthy) == (None, None)


# --- When it begins anew ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"uid": "u2"},
        {"status": STATUS.model_copy(update={"attempt": 2})},
        {"minRequests": 7},
    ],
    ids=["another object", "another attempt", "other tolerances"],
)
def test_what_is_another_rollout_begins_without_the_old_ones_evidence(
    changed: dict[str, Any],
) -> None:
    prometheus, analyses = Prometheus(), Analyses(GRID)
    look(analyses, prometheus.metrics, 2000)
    look(analyses, prometheus.metrics, 2400, **changed)

    assert prometheus.metrics.asked[-1].since == instant(FIRST) - LOOK_BACK


def test_a_rollout_that_is_forgotten_is_read_again_and_no_other() -> None:
    prometheus, analyses = Prometheus(), Analyses(GRID)
    look(analyses, prometheus.metrics, 2000)

    analyses.forget("inference", "another")
    look(analyses, prometheus.metrics, 2100)
    assert prometheus.metrics.asked[-1].since == instant(1995)

    analyses.forget("inference", "llama-fp8")
    analyses.forget("inference", "llama-fp8")
    look(analyses, prometheus.metrics, 2400)
    assert prometheus.metrics.asked[-1].since == instant(FIRST) - LOOK_BACK


def test_on_a_shorter_grid_less_of_the_past_is_read() -> None:
    metrics = FakeMetrics()
    look(Analyses(timedelta(seconds=1)), metrics, 1600)

    assert metrics.asked[0].since == instant(FIRST) - LOOK_BACK / 15


# --- What was in effect when ------------------------------------------------------------------


def test_every_split_is_told_with_what_it_knew_of_the_next() -> None:
    plan = Plan.of(world().rollout.spec)
    begun = TrafficSpan(since=instant(0), step=0, weight=0)
    splits = (
        begun,
        *STATUS.traffic,
        TrafficSpan(since=instant(2000), step=3, weight=50),
        TrafficSpan(since=instant(2300), step=4, weight=95),
    )
    found = spans(STATUS.model_copy(update={"traffic": splits}), plan)

    assert found == (
        Span(instant(0), 0, 0, None, None),
        Span(instant(FIRST), 1, 10, 25, 1),
        Span(instant(SECOND), 2, 25, 50, 4),
        Span(instant(2000), 3, 50, 95, 4),
        # What comes after the last step is the promotion, with the pods that are there.
        Span(instant(2300), 4, 95, 100, 1),
    )


@pytest.mark.parametrize(("weight", "step"), [(25, 2), (0, 0)])
def test_a_status_of_an_older_operator_knows_the_present_split_only(weight: int, step: int) -> None:
    old = STATUS.model_copy(
        update={"traffic": (), "weights": Weights(baseline=100 - weight, canary=weight)}
    )
    (found,) = spans(old, Plan.of(world().rollout.spec))

    assert (found.since, found.step, found.weight) == (instant(SECOND), step, weight)


# --- What the routers say of the arms now -----------------------------------------------------


def active(*values: float | None) -> Arm:
    return Arm(routers={str(i): RouterSample(active=one) for i, one in enumerate(values)})


@pytest.mark.parametrize(
    ("arm", "known"),
    [
        (active(3.0, 4.0), 7.0),
        (active(0.0), 0.0),
        # One router that does not tell may have all the requests that are left.
        (active(3.0, None), None),
        (active(None), None),
        (active(), None),
    ],
)
def test_requests_in_flight_are_known_when_every_router_tells(
    arm: Arm, known: float | None
) -> None:
    prometheus = Prometheus(ticks=[replace(PAST[-1], canary=arm)])
    evidence, _ = look(Analyses(GRID), prometheus.metrics, 2400)

    assert evidence.canary.active == known
    assert evidence.baseline.active == PAST[-1].baseline.routers["router-0"].active
    assert (evidence.baseline.healthy, evidence.canary.healthy) == (4, 1)
    assert evidence.at == instant(2400)
