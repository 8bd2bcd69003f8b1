"""What the router's metrics say of each fate that a request can meet; the analysis rests on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from kvquant.core import queries
from kvquant.core.counters import Series
from kvquant.core.envoy_bootstrap import LATENCY_BOUNDS_MS
from kvquant.core.evidence import ArmNeed
from kvquant.core.tick_queries import ROUTER_COUNTERS
from kvquant.core.ticking import GRID, Scrapes, TickNeed, instants
from tests.router.conftest import Stage
from tests.router.harness import Engine, Envoy, eventually

pytestmark = pytest.mark.usefixtures("driven")

TIMEOUT = timedelta(seconds=1)

Fate = Callable[[Envoy, Engine], Awaitable[None]]


async def whole(envoy: Envoy, engine: Engine) -> None:
    assert (await envoy.ask())[0] == 200


async def engine_error(envoy: Envoy, engine: Engine) -> None:
    assert (await envoy.ask("/status/500"))[0] == 500


async def client_error(envoy: Envoy, engine: Engine) -> None:
    assert (await envoy.ask("/status/400"))[0] == 400


async def timeout_before_headers(envoy: Envoy, engine: Engine) -> None:
    assert (await envoy.ask("/hold"))[0] == 504


async def timeout_within_answer(envoy: Envoy, engine: Engine) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await envoy.ask("/stream")


async def death_before_headers(envoy: Envoy, engine: Engine) -> None:
    assert (await envoy.ask("/die"))[0] == 503


async def death_within_answer(envoy: Envoy, engine: Engine) -> None:
    async with envoy.session.post(envoy.url + "/die-midway") as answer:
        await answer.content.readline()
        engine.release.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def client_leaves_before_headers(envoy: Envoy, engine: Engine) -> None:
    request = asyncio.create_task(envoy.ask("/hold"))
    await eventually(lambda: engine.served["/hold"], 5, "the engine should see the request")
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request


async def client_leaves_within_answer(envoy: Envoy, engine: Engine) -> None:
    answer = await envoy.session.post(envoy.url + "/stream")
    await answer.content.readline()
    answer.close()


async def refused(envoy: Envoy, engine: Engine) -> None:
    await engine.stop()
    assert (await envoy.ask())[0] == 503


async def nobody_healthy(envoy: Envoy, engine: Engine) -> None:
    engine.healthy = False
    healthy = 'envoy_cluster_membership_healthy{envoy_cluster_name="blue"}'
    await eventually(lambda: _is_zero(envoy, healthy), 20, "the router should find nobody healthy")
    assert (await envoy.ask())[0] == 503


FATES: list[tuple[Fate, dict[str, float]]] = [
    (whole, {"total": 1, "completed": 1, "2xx": 1, "time": 1}),
    (engine_error, {"total": 1, "completed": 1, "5xx": 1, "time": 1}),
    (client_error, {"total": 1, "completed": 1, "4xx": 1, "time": 1}),
    (
        timeout_before_headers,
        {"total": 1, "completed": 1, "5xx": 1, "504": 1, "timeout": 1, "cut_by_router": 1},
    ),
    (
        timeout_within_answer,
        {"total": 1, "completed": 1, "2xx": 1, "timeout": 1, "cut_by_router": 1},
    ),
    (
        death_before_headers,
        {"total": 1, "completed": 1, "5xx": 1, "503": 1, "cut_by_engine": 1},
    ),
    (death_within_answer, {"total": 1, "completed": 1, "2xx": 1, "cut_by_engine": 1}),
    (client_leaves_before_headers, {"total": 1, "cut_by_router": 1}),
    (client_leaves_within_answer, {"total": 1, "completed": 1, "2xx": 1, "cut_by_router": 1}),
    (
        refused,
        {
            "completed": 1,
            "5xx": 1,
            "503": 1,
            "connect_fail": 3,
            "eject": 3,
            "retry": 2,
            "only_refused": 1,
        },
    ),
    (nobody_healthy, {"completed": 1, "5xx": 1, "503": 1, "none_healthy": 1}),
]

_LABEL = re.compile(r'(\w+)="([^"]*)"')
ARM = 'envoy_cluster_name="blue"'
SERIES = {
    "total": f"envoy_cluster_upstream_rq_total{{{ARM}}}",
    "eject": f"envoy_cluster_upstream_rq_pending_failure_eject{{{ARM}}}",
    "only_refused": f"envoy_cluster_upstream_rq_retry_limit_exceeded{{{ARM}}}",
    "none_healthy": f"envoy_cluster_upstream_cx_none_healthy{{{ARM}}}",
    **{
        code: f'envoy_cluster_upstream_rq{{envoy_response_code="{code}",{ARM}}}'
        for code in ("503", "504")
    },
    "completed": f"envoy_cluster_upstream_rq_completed{{{ARM}}}",
    **{
        f"{c}xx": f'envoy_cluster_upstream_rq_xx{{envoy_response_code_class="{c}",{ARM}}}'
        for c in (2, 4, 5)
    },
    "timeout": f"envoy_cluster_upstream_rq_timeout{{{ARM}}}",
    "time": f"envoy_cluster_upstream_rq_time_count{{{ARM}}}",
    "cut_by_engine": f"envoy_cluster_upstream_cx_destroy_remote_with_active_rq{{{ARM}}}",
    "cut_by_router": f"envoy_cluster_upstream_cx_destroy_local_with_active_rq{{{ARM}}}",
    "connect_fail": f"envoy_cluster_upstream_cx_connect_fail{{{ARM}}}",
    "retry": f"envoy_cluster_upstream_rq_retry{{{ARM}}}",
    # HTTP/1.1 engines cannot reset a stream without their connection: these two stay at zero.
    "rx_reset": f"envoy_cluster_upstream_rq_rx_reset{{{ARM}}}",
    "tx_reset": f"envoy_cluster_upstream_rq_tx_reset{{{ARM}}}",
}


async def counted(envoy: Envoy) -> dict[str, float]:
    metrics = await envoy.metrics()
    return {name: metrics.get(series, 0) for name, series in SERIES.items()}


@pytest.mark.parametrize(("fate", "moved"), FATES, ids=lambda v: getattr(v, "__name__", ""))
async def test_each_fate_moves_its_own_counters(
    stage: Stage, fate: Fate, moved: dict[str, float]
) -> None:
    envoy = await stage.start(request_timeout=TIMEOUT)
    before = await counted(envoy)
    await fate(envoy, stage.engines["blue-0"])
    expected = {name: before[name] + moved.get(name, 0) for name in before}

    async def as_expected() -> bool:
        assert await counted(envoy) == expected
        return True

    await eventually(as_expected, 5, f"counters should move by {moved}")


@pytest.mark.parametrize(
    ("fate", "failed", "unanswered"),
    [
        (whole, 0, 0),
        (engine_error, 1, 0),
        (timeout_before_headers, 1, 1),
        (timeout_within_answer, 1, 1),
        (death_before_headers, 1, 1),
        (death_within_answer, 1, 1),
        (client_leaves_before_headers, 0, 0),
        (refused, 1, 1),
        (nobody_healthy, 1, 1),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
async def test_each_fate_is_one_request_started_and_failed_as_the_client_saw_it(
    stage: Stage, fate: Fate, failed: int, unanswered: int
) -> None:
    envoy = await stage.start(request_timeout=TIMEOUT)
    assert await sample(envoy) == (0, 0, 0, 0)
    await fate(envoy, stage.engines["blue-0"])
    answered = 0 if unanswered or fate is client_leaves_before_headers else 1

    async def as_expected() -> bool:
        assert await sample(envoy) == (1, failed, unanswered, answered)
        return True

    await eventually(as_expected, 5, "the sample should tell it")


async def sample(envoy: Envoy) -> tuple[float | None, ...]:
    """Return started, failed, unanswered and answered, as the ticks have them."""
    window = instants(0, 0, GRID)
    assert window is not None
    pod = {"namespace": "ns", "pod": "r-7d9f8b6c5-aaaaa"}
    series = []
    for key, value in (await envoy.metrics()).items():
        name, _, labels = key.partition("{")
        told = {"__name__": name} | dict(_LABEL.findall(labels)) | pod
        series.append(Series(told, [(0, value)]))
    wanted = {
        "": [s for s in series if s.name in ROUTER_COUNTERS],
        "latency": [s for s in series if s.name == queries.LATENCY],
    }
    scrapes = Scrapes(window)
    scrapes.add_seen(routers=[Series(pod, [(0, 0)])])
    # As the query has it: of the classes and codes only those that are failures.
    scrapes.add_router_counters(
        s
        for s in wanted[""]
        if s.labels.get(queries.CLASS_LABEL, queries.SERVER_ERRORS) == queries.SERVER_ERRORS
    )
    scrapes.add_router_latency(wanted["latency"])
    since = datetime.fromtimestamp(0, UTC)
    need = TickNeed("k", "ns", "r", ArmNeed("blue", "a"), ArmNeed("green", "b"), since)
    found = scrapes.timelines([need])["k"].ticks[0].baseline.routers[pod["pod"]]
    assert found.latency is not None
    return found.started, found.failed, found.unanswered, found.latency.counts[-1]


async def test_requests_in_flight_are_counted(stage: Stage) -> None:
    envoy = await stage.start()
    active = f"envoy_cluster_upstream_rq_active{{{ARM}}}"
    requests = [asyncio.create_task(envoy.ask("/hold")) for _ in range(3)]

    async def three() -> bool:
        return (await envoy.metrics())[active] == 3

    await eventually(three, 5, "three requests should be in flight")
    stage.engines["blue-0"].release.set()
    assert [status for status, _ in await asyncio.gather(*requests)] == [200, 200, 200]
    await eventually(lambda: _is_zero(envoy, active), 5, "none should be in flight")


async def _is_zero(envoy: Envoy, series: str) -> bool:
    return (await envoy.metrics())[series] == 0


async def test_the_latency_histogram_has_the_specified_buckets(stage: Stage) -> None:
    envoy = await stage.start()
    await envoy.ask()
    prefix = f"envoy_cluster_upstream_rq_time_bucket{{{ARM},le="

    async def bounds() -> list[float]:
        return [
            float(name.removeprefix(prefix).strip('"}'))
            for name in await envoy.metrics()
            if name.startswith(prefix)
        ]

    assert await eventually(bounds, 5, "the histogram") == [*LATENCY_BOUNDS_MS, float("inf")]
    assert LATENCY_BOUNDS_MS[0] == 5
    assert LATENCY_BOUNDS_MS[-1] == 600_000
    steps = itertools.pairwise(LATENCY_BOUNDS_MS)
    assert all(upper / lower <= 1.5 for lower, upper in steps)


async def test_a_request_that_another_pod_answers_counts_as_answered(stage: Stage) -> None:
    await stage.add_engine("blue", 1)
    envoy = await stage.start()
    await eventually(lambda: _both_answer(envoy), 5, "both pods should serve")
    before = await eventually(lambda: _settled(envoy), 5, "the histogram should be complete")
    await stage.engines["blue-0"].stop()
    assert await envoy.split(40) == {"blue-1": 40}

    async def whole_and_good() -> bool:
        after = await counted(envoy)
        moved = {name: after[name] - before[name] for name in after}
        # One connection that fails takes every request that waits for it along.
        assert moved["retry"] >= moved["connect_fail"] > 0
        assert (moved["completed"], moved["2xx"], moved["time"], moved["5xx"]) == (40, 40, 40, 0)
        assert moved["eject"] == moved["retry"]
        assert (moved["total"], moved["only_refused"]) == (40, 0)
        return True

    await eventually(whole_and_good, 5, "retried requests should count once, as answered")


async def _settled(envoy: Envoy) -> dict[str, float] | None:
    """Return the counters once the histogram, which lags a second behind, holds every request."""
    counts = await counted(envoy)
    return counts if counts["time"] == counts["completed"] else None


async def _both_answer(envoy: Envoy) -> bool:
    return len(await envoy.split(20)) == 2
