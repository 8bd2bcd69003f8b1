"""From series to evidence: pods that come and go, counters that appear, windows that are over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kvquant.core import queries
from kvquant.core.counters import Series
from kvquant.core.evidence import ArmNeed, Evidence, EvidenceNeed, Histogram
from kvquant.core.reading import Readings

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
T = NOW.timestamp()
NEED = EvidenceNeed(
    key="ns/r",
    namespace="ns",
    router="r",
    baseline=ArmNeed("blue", "llama"),
    canary=ArmNeed("green", "pool"),
    since=NOW - timedelta(seconds=100),
)
OLD, NEW = "r-7d9f8b6c5-aaaaa", "r-7d9f8b6c5-bbbbb"
SLOTS = ("blue", "green")
LONG_UP = {-100: 5000.0, -50: 5050.0, 0: 5100.0}


def line(name: str, pod: str, points: dict[int, float], slot: str = "", **labels: str) -> Series:
    if slot:
        labels[queries.CLUSTER_LABEL] = slot
    return Series(
        {"__name__": name, "namespace": "ns", "pod": pod, **labels},
        [(T + t, v) for t, v in points.items()],
    )


def router(pod: str, times: tuple[int, ...], uptime: dict[int, float]) -> list[Series]:
    """A router that has counted nothing: what it shows from its start."""
    zeros = dict.fromkeys(times, 0.0)
    return [
        line(queries.ROUTER_UPTIME, pod, uptime),
        *(line(n, pod, zeros, s) for n in (queries.TIMEOUTS, queries.RESETS) for s in SLOTS),
    ]


def read(series: list[Series], need: EvidenceNeed = NEED) -> Evidence:
    return Readings.of(queries.window([need], NOW), series, []).evidence(need, NOW)


def test_an_idle_slot_has_had_no_request_which_is_not_the_same_as_no_data() -> None:
    buckets = [
        line(queries.LATENCY, OLD, {-100: 0, 0: n}, "blue", le=le)
        for le, n in (("500", 8.0), ("+Inf", 9.0))
    ]
    found = read(
        [
            *router(OLD, (-100, 0), LONG_UP),
            *buckets,
            line(queries.COMPLETED, OLD, {-100: 0, 0: 9}, "blue"),
        ]
    )
    assert found.canary.completed == 0
    assert found.canary.latency == Histogram((0.5, float("inf")), (0.0, 0.0))
    assert found.baseline.completed == 9


def test_a_router_pod_that_is_gone_still_counts_what_it_did_but_has_nothing_in_flight() -> None:
    found = read(
        [
            *router(OLD, (-100, -50), {-100: 5000.0, -50: 5050.0}),
            *router(NEW, (-50, 0), {-50: 5.0, 0: 55.0}),
            line(queries.COMPLETED, OLD, {-100: 10, -50: 15}, "green"),
            line(queries.COMPLETED, NEW, {-50: 2, 0: 7}, "green"),
            line(queries.ACTIVE, OLD, {-100: 4, -50: 4}, "green"),
            line(queries.ACTIVE, NEW, {-50: 1, 0: 0}, "green"),
        ]
    )
    assert found.canary.completed == 5 + 7
    assert found.canary.active == 0
    assert found.problems == ()


def test_a_pod_is_healthy_when_every_router_that_is_seen_finds_it_so() -> None:
    found = read(
        [
            *router(OLD, (-100, 0), {-100: 5000.0, 0: 5100.0}),
            *router(NEW, (-50, 0), {-50: 5.0, 0: 55.0}),
            line(queries.HEALTHY, OLD, {-100: 0, 0: 2}, "green"),
            line(queries.HEALTHY, NEW, {-50: 2, 0: 1}, "green"),
            line(queries.HEALTHY, OLD, {-100: 5}, "blue"),
        ]
    )
    assert found.canary.healthy == 1
    assert found.baseline.healthy is None, "what was found earlier says nothing of now"


def test_errors_of_a_kind_that_never_happened_are_none() -> None:
    found = read(
        [
            *router(OLD, (-100, 0), LONG_UP),
            line(queries.COMPLETED, OLD, {-100: 10, 0: 30}, "green"),
        ]
    )
    assert (found.canary.completed, found.canary.errors_5xx) == (20, 0)


def test_the_first_error_of_a_router_counts() -> None:
    found = read(
        [
            *router(OLD, (-100, -50, 0), LONG_UP),
            line(queries.COMPLETED, OLD, {-100: 10, 0: 30}, "green"),
            line(queries.BY_CLASS, OLD, {0: 3}, "green", envoy_response_code_class="5"),
        ]
    )
    assert found.canary.errors_5xx == 3


def test_a_part_that_is_no_number_spoils_the_whole() -> None:
    found = read(
        [
            *router(OLD, (-100, 0), LONG_UP),
            line(queries.COMPLETED, OLD, {-100: 10, 0: 30}, "green"),
            line(queries.BY_CLASS, OLD, {0: float("nan")}, "green", envoy_response_code_class="5"),
        ]
    )
    assert found.canary.completed is None


def test_routers_with_different_buckets_are_added_where_they_agree() -> None:
    series = [
        line(queries.LATENCY, pod, {-100: 0, 0: n}, "green", le=le)
        for pod, buckets in (
            (OLD, {"500": 1.0, "1000": 2.0, "+Inf": 3.0}),
            (NEW, {"1000": 10.0, "2000": 20.0, "+Inf": 30.0}),
        )
        for le, n in buckets.items()
    ]
    routers = [*router(OLD, (-100, 0), LONG_UP), *router(NEW, (-100, 0), LONG_UP)]
    found = read([*routers, *series])
    assert found.canary.latency == Histogram((1.0, float("inf")), (12.0, 33.0))


@pytest.mark.parametrize("earlier", [True, False])
def test_a_window_that_is_over_needs_no_router_that_still_runs(earlier: bool) -> None:
    begin, end = NOW - timedelta(seconds=100), NOW - timedelta(seconds=50)
    need = EvidenceNeed(
        "ns/r", "ns", "r", NEED.baseline, NEED.canary, end, begin if earlier else None, end
    )
    found = read(
        [
            *router(OLD, (-100, -60), {-100: 5000.0, -60: 5040.0}),
            line(queries.COMPLETED, OLD, {-100: 100, -60: 400}, "blue"),
        ],
        need,
    )
    assert found.baseline.completed == (300 if earlier else None)
    assert (found.baseline_now is not None) is earlier
    assert found.baseline.active is None


def test_a_sidecars_age_is_not_taken_for_the_engines() -> None:
    pod = "pool-7d9f8b6c5-aaaaa"
    engine = [
        line(queries.PREEMPTIONS, pod, {-10: 3000, 0: 3001}),
        line(queries.FINISHED, pod, {-10: 9000, 0: 9010}),
        line(queries.ENGINE_STARTED, pod, {-10: T - 20, 0: T - 20}, container="sidecar"),
        line(queries.ENGINE_STARTED, pod, {-10: T - 9e5, 0: T - 9e5}, container="engine"),
    ]
    found = Readings.of(queries.window([NEED], NOW), [], engine).evidence(NEED, NOW)
    assert (found.canary.preemptions, found.canary.finished) == (1, 10)
