"""From series to ticks: the grid, what is zero and what is unknown, pods that come and go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.core import queries
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Tick
from kvquant.core.counters import Series
from kvquant.core.evidence import ArmNeed
from kvquant.core.scope import EVERYWHERE, Scope
from kvquant.core.tick_queries import MOST_NAMED, TickQueries
from kvquant.core.ticking import (
    GRID,
    Scrapes,
    Span,
    TickNeed,
    Timeline,
    first_instant,
    instants,
    last_instant,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
T = NOW.timestamp()
ROUTER, OTHER_ROUTER = "r-7d9f8b6c5-aaaaa", "r-7d9f8b6c5-bbbbb"
BASE, POOL = "llama-7d9f8b6c5-aaaaa", "pool-7d9f8b6c5-aaaaa"
E2E = "vllm:e2e_request_latency_seconds"

Points = dict[int, float]


def need(since: int = -30, key: str = "ns/k", **changes: object) -> TickNeed:
    fields = {
        "namespace": "ns",
        "router": "r",
        "baseline": ArmNeed("blue", "llama"),
        "canary": ArmNeed("green", "pool"),
        "since": NOW + timedelta(seconds=since),
    }
    return TickNeed(key, **(fields | changes))  # type: ignore[arg-type]


def line(name: str, pod: str, points: Points, slot: str = "", **labels: str) -> Series:
    if slot:
        labels[queries.CLUSTER_LABEL] = slot
    return Series(
        {"__name__": name, "namespace": "ns", "pod": pod, **labels},
        [(T + t, v) for t, v in points.items()],
    )


def seen(pod: str, *times: int, age: float = 5) -> Series:
    return line("", pod, {t: T + t - age for t in times})


def scrapes(first: int = -30) -> Scrapes:
    window = instants(T + first, T, GRID)
    assert window is not None
    return Scrapes(window)


def timeline(found: Scrapes, one: TickNeed | None = None) -> Timeline:
    one = one or need()
    return found.timelines([one])[one.key]


def router_at_last_tick(*series: Series) -> RouterSample:
    found = scrapes(0)
    found.add_seen(routers=[seen(ROUTER, 0)])
    found.add_router_counters([counter(queries.TRIES, 0), *series])
    return timeline(found).ticks[-1].canary.routers[ROUTER]


@given(st.integers(0, 10**6), st.floats(0, 100))
def test_the_grid_does_not_depend_on_when_one_looks(offset: int, delay: float) -> None:
    at = NOW + timedelta(milliseconds=offset)
    step = GRID.total_seconds()
    first, last = first_instant(at, GRID), last_instant(at, timedelta(seconds=delay), GRID)
    assert first % step == last % step == 0
    assert at.timestamp() <= first < at.timestamp() + step
    # Time-outs of less than a millisecond are no matter of the grid.
    assert -0.002 < at.timestamp() - delay - last < step + 0.002


def test_an_instant_of_the_grid_is_its_own_first_and_last() -> None:
    assert first_instant(NOW, GRID) == T
    assert last_instant(NOW, timedelta(0), GRID) == T
    assert last_instant(NOW, timedelta(seconds=1), GRID) == T - 15
    assert instants(T + 15, T, GRID) is None


def test_every_instant_has_a_tick_and_holds_what_was_scraped_then() -> None:
    found = scrapes()
    found.add_seen(routers=[seen(ROUTER, -30, 0)], engines=[seen(BASE, -15, 0)])
    found.add_router_counters([line(queries.TRIES, ROUTER, {-30: 7, -15: 8, 0: 9}, "blue")])
    ticks = timeline(found).ticks
    assert [tick.at for tick in ticks] == [T - 30, T - 15, T]
    assert [list(tick.baseline.routers) for tick in ticks] == [[ROUTER], [], [ROUTER]]
    assert [list(tick.baseline.engines) for tick in ticks] == [[], [BASE], [BASE]]
    assert [t.baseline.routers[ROUTER].started for t in (ticks[0], ticks[2])] == [7, 9]
    assert ticks[1].canary == Arm(), "a gap is a tick without pods"


def test_a_need_gets_no_tick_from_before_its_begin() -> None:
    found = scrapes()
    found.add_seen(routers=[seen(ROUTER, -30, -15, 0)])
    both = [need(-30, "early"), need(-14, "late")]
    answer = found.timelines(both)
    assert [len(answer[n.key].ticks) for n in both] == [3, 1]


def test_what_envoy_has_not_shown_yet_is_zero_once_the_router_is_seen() -> None:
    sample = router_at_last_tick()
    assert (sample.started, sample.failed, sample.unanswered, sample.active) == (0, 0, 0, 0)
    assert sample.latency is not None
    assert sample.latency.bounds[0] == 0.005
    assert sample.latency.bounds[-1] == math.inf
    assert set(sample.latency.counts) == {0.0}


def test_a_router_that_does_not_show_what_it_always_shows_is_unknown() -> None:
    found = scrapes(0)
    found.add_seen(routers=[seen(ROUTER, 0)])
    found.add_router_counters([counter(queries.ACTIVE, 3)])
    assert timeline(found).ticks[-1].canary.routers == {ROUTER: RouterSample(active=3)}


def code(code: str, value: float) -> Series:
    return line(queries.BY_CODE, ROUTER, {0: value}, "green", **{queries.CODE_LABEL: code})


def server_errors(value: float) -> Series:
    label = {queries.CLASS_LABEL: queries.SERVER_ERRORS}
    return line(queries.BY_CLASS, ROUTER, {0: value}, "green", **label)


def counter(name: str, value: float) -> Series:
    return line(name, ROUTER, {0: value}, "green")


def test_started_counts_each_request_once_whatever_its_tries() -> None:
    # 100 reached a pod, 4 of them after a refusal; 2 met only refusals, 3 found nobody.
    sample = router_at_last_tick(
        counter(queries.TRIES, 100),
        counter(queries.RETRIES, 4 + 2 * 2),
        counter(queries.REFUSED_TRIES, 4 + 2 * 3),
        counter(queries.ONLY_REFUSED, 2),
        counter(queries.NOBODY_THERE, 3),
        server_errors(5),
        code("503", 5),
    )
    assert sample.started == 105
    assert sample.failed == sample.unanswered == 5


def test_failures_are_counted_once_and_those_without_an_answer_are_told_apart() -> None:
    # 6 answered with 500; 3 timed out, 2 of them before their headers; 4 were cut, 1 before.
    sample = router_at_last_tick(
        counter(queries.TIMEOUTS, 3),
        counter(queries.RESETS, 4),
        server_errors(6 + 2 + 1),
        code("504", 2),
        code("503", 1),
    )
    assert (sample.failed, sample.unanswered) == (13, 7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spoilt", [queries.TIMEOUTS, queries.RESETS, "5xx", "503"])
def test_a_count_that_is_no_number_makes_failures_unknown(bad: float, spoilt: str) -> None:
    series = {"5xx": server_errors(bad), "503": code("503", bad)}.get(spoilt)
    sample = router_at_last_tick(series or counter(spoilt, bad), counter(queries.TRIES, 5))
    assert sample.failed is None
    assert sample.started == 5
    assert router_at_last_tick(counter(queries.TRIES, bad)).started is None


def test_latencies_are_seconds_in_rising_order() -> None:
    found = scrapes(0)
    found.add_seen(routers=[seen(ROUTER, 0)])
    found.add_router_counters([counter(queries.TRIES, 0)])
    found.add_router_latency(
        line(queries.LATENCY, ROUTER, {0: n}, "green", le=le)
        for le, n in (("+Inf", 9.0), ("1000.0", 8.0), ("500", 5.0))
    )
    arm = timeline(found).ticks[-1].canary
    assert arm.routers[ROUTER].latency == Bins((0.5, 1.0, math.inf), (5.0, 8.0, 9.0))


@pytest.mark.parametrize("les", [("500", "1000"), ("500", "+Inf")])
def test_a_histogram_without_its_total_is_unknown(les: tuple[str, str]) -> None:
    found = scrapes(0)
    found.add_seen(routers=[seen(ROUTER, 0)])
    found.add_router_counters([counter(queries.TRIES, 0)])
    found.add_router_latency(
        line(queries.LATENCY, ROUTER, {0: n}, "green", le=le)
        for le, n in zip(les, (5.0, math.nan), strict=True)
    )
    assert timeline(found).ticks[-1].canary.routers[ROUTER].latency is None


def test_an_engine_that_shows_nothing_of_a_kind_does_not_count_it() -> None:
    found = scrapes(0)
    found.add_seen(engines=[seen(POOL, 0)])
    found.add_engine_scalars([line("vllm:request_success_total", POOL, {0: 12})])
    found.add_engines_started([line("", POOL, {0: T - 500})])
    found.add_engine_histogram(
        E2E,
        [
            *(
                line(f"{E2E}_bucket", POOL, {0: n}, le=le)
                for le, n in (("+Inf", 4.0), ("1.0", 3.0))
            ),
            line(f"{E2E}_sum", POOL, {0: 4.5}),
        ],
    )
    assert timeline(found).ticks[-1].canary.engines[POOL] == EngineSample(
        process_started=T - 500, finished=12, e2e=Bins((1.0, math.inf), (3.0, 4.0), 4.5)
    )


def test_what_was_scraped_too_long_ago_is_not_seen() -> None:
    found = scrapes()
    # Prometheus was away since the first instant, and repeats what it knew.
    found.add_seen(routers=[line("", ROUTER, {-30: T - 95, -15: T - 95, 0: T - 95})])
    found.add_router_counters([line(queries.TRIES, ROUTER, {-30: 7, -15: 7, 0: 7}, "blue")])
    told = timeline(found)
    assert [bool(tick.baseline.routers) for tick in told.ticks] == [True, False, False]
    assert told.problems == (
        "Prometheus has not scraped router r since 11:59:30 UTC: look at its targets",
    )


def test_a_router_that_was_never_scraped_is_no_problem_yet() -> None:
    assert timeline(scrapes()).problems == ()


def test_other_deployments_and_namespaces_do_not_count() -> None:
    found = scrapes(0)
    strangers = [
        seen("other-7d9f8b6c5-aaaaa", 0),
        seen("pool-b-7d9f8b6c5-aaaaa", 0),
        seen("pool-0", 0),
        Series({"namespace": "elsewhere", "pod": POOL}, [(T, T)]),
    ]
    found.add_seen(routers=strangers, engines=strangers)
    tick = timeline(found).ticks[-1]
    assert tick.canary == tick.baseline == Arm()


def test_pods_with_names_that_kubernetes_cuts_are_found() -> None:
    long = "l" * 60
    pod = f"{long}-7d9f8b6c5-"[:58] + "x2x4z"
    found = scrapes(0)
    found.add_seen(engines=[seen(pod, 0)])
    one = need(canary=ArmNeed("green", long))
    assert list(timeline(found, one).ticks[-1].canary.engines) == [pod]


def test_two_rollouts_share_a_router_and_a_baseline() -> None:
    found = scrapes(0)
    found.add_seen(routers=[seen(ROUTER, 0)], engines=[seen(BASE, 0), seen(POOL, 0)])
    other = need(key="ns/other", canary=ArmNeed("blue", "llama"), baseline=ArmNeed("green", "pool"))
    answer = found.timelines([need(), other])
    one, two = (answer[key].ticks[-1] for key in ("ns/k", "ns/other"))
    assert (one.baseline, one.canary) == (two.canary, two.baseline)


def test_each_tick_has_what_was_in_effect_at_its_instant() -> None:
    at = [NOW + timedelta(seconds=s) for s in (-29, -15, 40)]
    spans = (
        Span(at[0], 1, 10.0, next_weight=25.0, next_replicas=2, canary_replicas=1),
        Span(at[1], 2, 25.0, baseline_replicas=8),
        Span(at[2], 3, 50.0),
    )
    found = scrapes(-45)
    found.add_seen(engines=[seen(POOL, -30, -15, 0), seen(POOL[:-1] + "b", 0)])
    ticks = timeline(found, need(-45, spans=spans)).ticks
    assert [(t.step, t.weight, t.next_weight) for t in ticks] == [
        (0, 0.0, None),
        (0, 0.0, None),
        (2, 25.0, None),
        (2, 25.0, None),
    ]
    assert [t.baseline.replicas for t in ticks] == [1, 1, 8, 8]
    assert [t.canary.replicas for t in ticks] == [1, 1, 1, 2], "as many as were scraped"


def test_healthy_is_what_every_router_finds_now() -> None:
    found = scrapes()
    found.add_seen(routers=[seen(ROUTER, -15, 0), seen(OTHER_ROUTER, 0)])
    found.add_router_counters(
        [
            line(queries.HEALTHY, ROUTER, {-15: 1, 0: 3}, "green"),
            line(queries.HEALTHY, OTHER_ROUTER, {0: 2}, "green"),
            line(queries.HEALTHY, ROUTER, {-15: 5}, "blue"),
        ]
    )
    assert timeline(found).healthy == {"green": 2}


WHOLE = "httproute/ns/llama/rule/0"
CLUSTERS = ((WHOLE, "blue"), (f"{WHOLE}/backend/1", "blue"), (f"{WHOLE}/backend/0", "green"))
PROXY = "envoy-edge-5f6d7c8b9-abcde"


def through_proxies(*series: Series, buckets: Sequence[Series] = ()) -> Tick:
    found = scrapes(0)
    found.add_seen(proxies=[seen(PROXY, 0)])
    found.add_router_counters(series, proxies=True)
    found.add_router_latency(buckets, proxies=True)
    return timeline(found, need(clusters=CLUSTERS)).ticks[-1]


def test_a_gateways_pods_are_known_by_their_clusters_wherever_they_are() -> None:
    tick = through_proxies(
        line(queries.TRIES, PROXY, {0: 90}, f"{WHOLE}/backend/1"),
        line(queries.TRIES, PROXY, {0: 10}, f"{WHOLE}/backend/0"),
        line(queries.TRIES, PROXY, {0: 77}, "httproute/ns/another/rule/0"),
    )
    ((name, blue),) = tick.baseline.routers.items()
    assert name.endswith(PROXY)
    assert (blue.started, tick.canary.routers[name].started) == (90, 10)


def test_a_cluster_that_was_renamed_counts_on() -> None:
    """While a canary joins the rule, its baseline may be found under both of its names."""
    tick = through_proxies(
        line(queries.TRIES, PROXY, {0: 90}, WHOLE),
        line(queries.TRIES, PROXY, {0: 3}, f"{WHOLE}/backend/1"),
    )
    (blue,) = tick.baseline.routers.values()
    assert blue.started == 93


def test_a_gateway_that_counts_for_others_alone_is_none_of_ours() -> None:
    tick = through_proxies(line(queries.TRIES, PROXY, {0: 77}, "httproute/ns/another/rule/0"))
    assert tick.baseline.routers == {}


def test_what_a_gateway_has_not_counted_yet_is_zero_where_it_knows_the_cluster() -> None:
    """Envoy Gateway has its proxies show a counter with the first that is counted."""
    green = f"{WHOLE}/backend/0"
    told = through_proxies(
        line(queries.HEALTHY, PROXY, {0: 2}, green),
        line(queries.TRIES, PROXY, {0: 5}, WHOLE),
        buckets=[
            line(queries.LATENCY, PROXY, {0: 4}, WHOLE, le="1000"),
            line(queries.LATENCY, PROXY, {0: 5}, WHOLE, le="+Inf"),
        ],
    ).canary.routers
    (canary,) = told.values()
    assert canary.started == 0
    assert canary.latency == Bins((1.0, math.inf), (0.0, 0.0)), "the bounds are the Gateway's own"
    told = through_proxies(line(queries.TRIES, PROXY, {0: 5}, WHOLE)).canary.routers
    assert [router.started for router in told.values()] == [None], "it does not know the cluster"


def test_routers_and_gateways_are_asked_for_only_where_there_are_any() -> None:
    assert TickQueries.of([need()], EVERYWHERE).proxies is None
    texts = TickQueries.of([need(clusters=CLUSTERS)], EVERYWHERE)
    assert texts.routers is None
    assert texts.proxies is not None
    assert "httproute\\\\/ns\\\\/llama\\\\/rule\\\\/0" in texts.proxies.counters


def test_the_texts_do_not_name_pods_of_many_rollouts() -> None:
    few = [need(key=str(i), router=f"r{i}") for i in range(MOST_NAMED)]
    told = TickQueries.of(few, EVERYWHERE).routers
    assert told is not None
    assert "r7-[a-z0-9]{1,10}-[a-z0-9]{5}" in told.latency
    many = TickQueries.of([*few, need(key="one more")], EVERYWHERE)
    assert many.routers is not None
    assert "pod=~" not in many.routers.latency + many.engine_scalars
    assert 'namespace=~"ns"' in many.routers.latency


def test_every_text_is_within_the_scope() -> None:
    scope = Scope("kubernetes_namespace", "kubernetes_pod_name", 'cluster="prod-1", ')
    texts = TickQueries.of([need(), need(clusters=(("httproute/ns/llama/rule/0", "blue"),))], scope)
    assert texts.routers is not None
    assert texts.proxies is not None
    every = [
        *(texts.routers.seen, texts.routers.counters, texts.routers.latency),
        *(texts.proxies.seen, texts.proxies.counters, texts.proxies.latency),
        texts.engines_seen,
        texts.engines_started,
        texts.engine_scalars,
        *texts.engine_histograms.values(),
    ]
    for text in every:
        assert 'cluster="prod-1"}' in text
        assert 'pod="' not in text.replace("kubernetes_pod", "")
        if "httproute" not in text:  # A Gateway's proxies may be in any namespace.
            assert 'kubernetes_namespace=~"ns"' in text
            assert "kubernetes_pod_name=~" in text


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"pod": "pod-name"}, "'pod-name' is no name of a label"),
        ({"namespace": ""}, "'' is no name of a label"),
        ({"matchers": "cluster=prod"}, "are no matchers"),
        ({"matchers": 'cluster="prod"} or up{'}, "are no matchers"),
        ({"matchers": 'a="b" c="d"'}, "are no matchers"),
    ],
)
def test_a_scope_that_is_not_promql_is_refused(fields: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Scope(**fields)


@pytest.mark.parametrize("text", ['a="b"', ' a =~ "b|\\"c" , d!="e",', 'a!~"}"'])
def test_matchers_are_taken_as_promql_has_them(text: str) -> None:
    assert Scope(matchers=text).select('x="y"').startswith('{x="y",')
