"""Ticks read from a real Prometheus that scrapes little exporters."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.adapters.shared_metrics import SharedMetrics
from kvquant.api.v1alpha1 import AnalysisSettings
from kvquant.core.analysis.samples import Bins, EngineSample, RouterSample, Share, Tick
from kvquant.core.custom_signals import SignalQuery, queries_of
from kvquant.core.evidence import ArmNeed, EvidenceNeed
from kvquant.core.scope import Scope
from kvquant.core.ticking import STALE_STEPS, TickNeed, Timeline
from tests.prometheus_server import Exporter, prometheus
from tests.waiting import wait_until

ROUTER = "llama-router"
ROUTER_POD = f"{ROUTER}-7d9f8b6c5-abcde"
BASE_POD = "llama-7d9f8b6c5-abcde"
BASELINE, CANARY = ArmNeed("blue", "llama"), ArmNeed("green", "llama-pool")
STEP = timedelta(seconds=1)
DELAY = timedelta(seconds=0.5)

HISTOGRAMS = {
    "e2e_request_latency": ("0.5", "1.0"),
    "request_queue_time": ("0.5",),
    "request_prefill_time": ("0.5",),
    "time_to_first_token": ("0.1",),
    "inter_token_latency": ("0.01", "0.025"),
}


@dataclass
class Pods:
    """A router and an engine of one namespace, in the exposition format.

    Attributes:
        count: What every counter shows: requests started, finished, in each bucket.
    """

    namespace: str
    count: float = 100
    started: float = field(default_factory=lambda: round(time.time()) - 3600.0)
    errors: float | None = None
    router: bool = True
    engine: bool = True
    prefill: bool = True

    def page(self) -> str:
        return "\n".join([*self._router(), *self._engine()]) + "\n"

    def _router(self) -> Iterator[str]:
        if not self.router:
            return
        pod = f'namespace="{self.namespace}",pod="{ROUTER_POD}"'
        yield f"envoy_server_uptime{{{pod}}} 3600"
        for slot in ("blue", "green"):
            own = f'{pod},envoy_cluster_name="{slot}"'
            upstream = "envoy_cluster_upstream"
            yield f"{upstream}_rq_total{{{own}}} {self.count}"
            yield f"{upstream}_rq_timeout{{{own}}} 0"
            yield f"{upstream}_rq_active{{{own}}} 7"
            yield f"envoy_cluster_membership_healthy{{{own}}} 2"
            if self.errors is not None:
                yield f'{upstream}_rq_xx{{{own},envoy_response_code_class="5"}} {self.errors}'
                yield f'{upstream}_rq_xx{{{own},envoy_response_code_class="2"}} 99'
                yield f'{upstream}_rq{{{own},envoy_response_code="500"}} {self.errors}'
            for le in ("500", "1000", "+Inf"):
                yield f'{upstream}_rq_time_bucket{{{own},le="{le}"}} {self.count}'

    def _engine(self) -> Iterator[str]:
        if not self.engine:
            return
        pod = f'namespace="{self.namespace}",pod="{BASE_POD}"'
        own = f'{pod},model_name="m",engine="0"'
        yield f"process_start_time_seconds{{{pod}}} {self.started}"
        for name in ("num_preemptions", "prompt_tokens", "generation_tokens"):
            yield f"vllm:{name}_total{{{own}}} {self.count}"
        for reason, count in (("stop", self.count), ("length", 1)):
            yield f'vllm:request_success_total{{{own},finished_reason="{reason}"}} {count}'
        yield f"vllm:num_requests_running{{{own}}} 3"
        yield f"vllm:num_requests_waiting{{{own}}} 4"
        for name, bounds in HISTOGRAMS.items():
            if name == "request_prefill_time" and not self.prefill:
                continue
            for le in (*bounds, "+Inf"):
                yield f'vllm:{name}_seconds_bucket{{{own},le="{le}"}} {self.count}'
            yield f"vllm:{name}_seconds_sum{{{own}}} 12.5"
            yield f"vllm:{name}_seconds_count{{{own}}} {self.count}"


@pytest.fixture(scope="module")
def exporters() -> Iterator[tuple[Exporter, Exporter]]:
    both = Exporter(), Exporter()
    yield both
    for one in both:
        one.close()


@pytest.fixture
def exporter(exporters: tuple[Exporter, Exporter]) -> Iterator[Exporter]:
    yield exporters[0]
    exporters[0].pause = 0


@pytest.fixture
def second(exporters: tuple[Exporter, Exporter]) -> Iterator[Exporter]:
    yield exporters[1]
    exporters[1].page = ""


@pytest.fixture(scope="module")
def url(
    exporters: tuple[Exporter, Exporter], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("prometheus")
    with prometheus(exporters, folder) as url:
        yield url


def client(url: str) -> PrometheusMetrics:
    return PrometheusMetrics(url, timeout=5, grid=STEP, delay=DELAY)


@pytest.fixture
def metrics(url: str) -> Iterator[PrometheusMetrics]:
    metrics = client(url)
    yield metrics
    metrics.close()


@pytest.fixture
def pods(request: pytest.FixtureRequest) -> Pods:
    # A namespace of its own: Prometheus remembers what other tests showed.
    name: str = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")
    return Pods(name)


def need(pods: Pods, since: datetime) -> TickNeed:
    return TickNeed(
        key="k",
        namespace=pods.namespace,
        router=ROUTER,
        baseline=BASELINE,
        canary=CANARY,
        since=since,
    )


def asked(*signals: dict[str, Any]) -> tuple[SignalQuery, ...]:
    """Return what signals need, as the spec has them."""
    custom = [{"tolerancePercent": 2, **signal} for signal in signals]
    return queries_of(AnalysisSettings.model_validate({"custom": custom}).custom)


def now() -> datetime:
    return datetime.now(UTC)


def read(metrics: PrometheusMetrics, pods: Pods, since: datetime, until: datetime) -> Timeline:
    wait_until(lambda: now() >= until, 60, f"it should become {until}")
    return metrics.ticks([need(pods, since)], until)["k"]


def settle(metrics: PrometheusMetrics, pods: Pods, since: datetime) -> Tick:
    """Return a tick that holds what is shown now."""
    return read(metrics, pods, since, now() + STEP + DELAY).ticks[-1]


def test_everything_that_pods_show_is_in_their_samples(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    since = now()
    exporter.show(replace(pods, errors=5).page())
    found = read(metrics, pods, since, now() + STEP + DELAY)
    tick = found.ticks[-1]
    latency = Bins((0.5, 1.0, math.inf), (100, 100, 100))
    assert found.complete
    assert found.healthy == {"blue": 2, "green": 2}
    sample = RouterSample(started=100, failed=5, unanswered=0, active=7, latency=latency)
    assert tick.baseline.routers == tick.canary.routers == {ROUTER_POD: sample}
    assert tick.canary.engines == {}
    assert tick.baseline.engines == {
        BASE_POD: EngineSample(
            process_started=pods.started,
            finished=101,
            preemptions=100,
            prompt_tokens=100,
            generated_tokens=100,
            running=3,
            waiting=4,
            e2e=Bins((0.5, 1.0, math.inf), (100, 100, 100), 12.5),
            queue=Bins((0.0, math.inf), (0, 100), 12.5),
            prefill=Bins((0.5, math.inf), (100, 100), 12.5),
            ttft=Bins((0.1, math.inf), (100, 100), 12.5),
            itl=Bins((0.0, math.inf), (0, 100), 12.5),
        )
    }


@pytest.mark.parametrize("pause", [0.0, 0.15], ids=["prompt", "late"])
def test_the_same_ticks_are_read_live_and_after_a_restart(
    exporter: Exporter, url: str, metrics: PrometheusMetrics, pods: Pods, pause: float
) -> None:
    exporter.pause = pause
    exporter.show(pods.page())
    since = now()
    live: list[Tick] = []
    for turn in range(40):
        # Each scrape shows something else, and at some nothing is there.
        exporter.page = None if turn in (12, 13, 14) else replace(pods, count=100 + turn).page()
        time.sleep(0.15)
        last = datetime.fromtimestamp(live[-1].at, UTC) if live else since
        found = metrics.ticks([need(pods, last)], now())["k"].ticks
        live += found[1 if live else 0 :]
    restarted = client(url)
    again = restarted.ticks([need(pods, since)], now())["k"].ticks
    restarted.close()
    assert len(live) >= 4
    assert again[: len(live)] == tuple(live)
    counts = [s.started for tick in live for s in tick.baseline.routers.values()]
    assert len(set(counts)) > 3


def test_rollouts_that_share_their_queries_see_what_each_would_see_alone(
    exporter: Exporter, metrics: PrometheusMetrics, url: str, pods: Pods
) -> None:
    exporter.show(pods.page())
    since = now()
    shared = SharedMetrics(metrics, patience=10)
    three = [replace(need(pods, since), key=f"k{i}") for i in range(3)]

    def live(one: TickNeed) -> list[Tick]:
        ticks: list[Tick] = []
        for _ in range(12):
            time.sleep(0.3)
            last = datetime.fromtimestamp(ticks[-1].at, UTC) if ticks else since
            found = shared.ticks([replace(one, since=last)], now())[one.key].ticks
            ticks += found[1 if ticks else 0 :]
        return ticks

    with ThreadPoolExecutor(4) as threads:
        told = [threads.submit(live, one) for one in three]
        for count in range(8):
            exporter.page = replace(pods, count=200 + count).page()
            time.sleep(0.3)
        answers = [one.result(20) for one in told]
    alone = metrics.ticks([need(pods, since)], now())["k"].ticks
    for ticks in answers:
        assert len(ticks) >= 2
        assert tuple(ticks) == alone[: len(ticks)]


def test_a_restart_shows_as_lower_counts_and_a_younger_process(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    since = now()
    exporter.show(pods.page())
    before = settle(metrics, pods, since).baseline.engines[BASE_POD]
    exporter.show(replace(pods, count=3, started=pods.started + 3600).page())
    after = settle(metrics, pods, since).baseline.engines[BASE_POD]
    assert (before.process_started, before.finished) == (pods.started, 101)
    assert (after.process_started, after.finished) == (pods.started + 3600, 4)


def test_a_pod_that_cannot_be_scraped_is_in_no_tick(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    since = now()
    exporter.show(pods.page())
    assert settle(metrics, pods, since).baseline.engines
    exporter.show(None)
    found = read(metrics, pods, since, now() + STEP + DELAY)
    assert found.ticks[-1].baseline.engines == {}
    assert found.ticks[-1].baseline.routers == {}
    assert f"has not scraped router {ROUTER}" in found.problems[0]
    exporter.show(pods.page())
    assert settle(metrics, pods, since).baseline.engines


@pytest.mark.parametrize("bad", ["NaN", "+Inf", "-1"])
def test_what_is_no_count_is_unknown(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods, bad: str
) -> None:
    since = now()
    exporter.show(replace(pods, count=float(bad)).page())
    tick = settle(metrics, pods, since)
    router, engine = tick.baseline.routers[ROUTER_POD], tick.baseline.engines[BASE_POD]
    assert router.started is None
    assert engine.preemptions is None
    assert (router.active, engine.running) == (7, 3)
    if bad != "-1":
        assert router.latency is engine.e2e is None


def test_a_series_that_ended_is_zero_at_the_router_and_unknown_at_the_engine(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    since = now()
    exporter.show(replace(pods, errors=4).page())
    before = settle(metrics, pods, since)
    assert before.baseline.routers[ROUTER_POD].failed == 4
    assert before.baseline.engines[BASE_POD].prefill is not None
    exporter.show(replace(pods, prefill=False).page())
    after = settle(metrics, pods, since)
    assert after.baseline.routers[ROUTER_POD].failed == 0
    assert after.baseline.engines[BASE_POD].prefill is None


def test_a_pod_that_two_jobs_scrape_counts_once(
    exporter: Exporter, second: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    since = now()
    exporter.show(pods.page())
    once = settle(metrics, pods, since)
    second.show(pods.page())
    assert settle(metrics, pods, since).baseline == once.baseline


def test_a_sidecars_start_is_not_taken_for_the_engines(
    exporter: Exporter, second: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    since = now()
    exporter.show(pods.page())
    pod = f'namespace="{pods.namespace}",pod="{BASE_POD}"'
    second.show(f"process_start_time_seconds{{{pod}}} {time.time():.0f}\n")
    engine = settle(metrics, pods, since).baseline.engines[BASE_POD]
    assert engine.process_started == pods.started


def test_other_labels_and_another_cluster_are_told_apart(
    exporter: Exporter, second: Exporter, url: str, pods: Pods
) -> None:
    def labelled(pods: Pods, cluster: str) -> str:
        text = re.sub(
            r'namespace="([^"]+)",pod=', r'kubernetes_namespace="\1",pod_name=', pods.page()
        )
        return text.replace("{", f'{{cluster="{cluster}",pod="an-exporter",')

    scope = Scope("kubernetes_namespace", "pod_name", 'cluster="prod-1"')
    metrics = PrometheusMetrics(url, timeout=5, grid=STEP, delay=DELAY, scope=scope)
    since = now()
    exporter.show(labelled(pods, "prod-1"))
    second.show(labelled(replace(pods, count=5000), "prod-2"))
    try:
        tick = settle(metrics, pods, since)
        old = EvidenceNeed("k", pods.namespace, ROUTER, BASELINE, CANARY, since)
        evidence = metrics.evidence([old], now())["k"]
    finally:
        metrics.close()
    assert tick.baseline.routers[ROUTER_POD].started == 100
    assert tick.baseline.engines[BASE_POD].finished == 101
    assert (evidence.baseline.active, evidence.baseline.healthy) == (7, 2)


def test_a_signal_of_the_users_is_read_from_the_engines_pods(
    exporter: Exporter, second: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    own = f'namespace="{pods.namespace}",pod="{BASE_POD}"'
    stranger = own.replace(pods.namespace, "elsewhere")
    page = pods.page() + "".join(
        f'tool_calls_total{{{pod},outcome="{outcome}"}} {count}\n'
        for pod, outcome, count in ((own, "ok", 90), (own, "error", 10), (stranger, "error", 500))
    )
    page += "".join(f'rerank_seconds_bucket{{{own},le="{le}"}} 4\n' for le in ("1", "+Inf"))
    since = now()
    exporter.show(page + f"rerank_seconds_sum{{{own}}} 2.5\n")
    tools = {"events": 'tool_calls_total{outcome="error"}', "total": "tool_calls_total"}
    signals = asked(
        {"name": "tools", "ratio": tools},
        {"name": "rerank", "latency": {"histogram": "rerank_seconds"}},
    )
    until = now() + STEP + DELAY
    wait_until(lambda: now() >= until, 60, "the tick should be there")
    found = metrics.ticks([replace(need(pods, since), signals=signals)], until)["k"]
    assert found.ticks[-1].baseline.engines[BASE_POD].custom == {
        "tools": Share(10, 100),
        "rerank": Bins((1.0, math.inf), (4, 4), 2.5),
    }


@pytest.mark.parametrize(
    "matchers",
    [
        "",
        "{}",
        "{ }",
        '{outcome="error"}',
        '{ outcome = "error" , tool!="none", }',
        '{outcome=~"err.*|}",l="",_x!~"a{2}"}',
        r'{outcome!="\"\\\n\t{ü"}',
    ],
)
def test_every_selector_that_the_spec_takes_is_one_to_prometheus(
    metrics: PrometheusMetrics, pods: Pods, matchers: str
) -> None:
    selector = f"tool_calls_total{matchers}"
    signals = asked(
        {"name": "tools", "ratio": {"events": selector, "total": selector}},
        {"name": "rerank", "latency": {"histogram": f"rerank_seconds{matchers}"}},
    )
    found = metrics.ticks([replace(need(pods, now()), signals=signals)], now() + STEP + DELAY)
    assert found["k"].problems == ()


def test_a_selector_that_prometheus_refuses_is_the_problem_of_its_signal_alone(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    bad = {"events": 'calls_total{tool=~"("}', "total": "calls_total"}
    signals = asked({"name": "tools", "ratio": bad})
    until = now() + STEP + DELAY
    both = [
        replace(need(pods, until - 2 * STEP), signals=signals),
        replace(need(pods, until - 2 * STEP), key="plain"),
    ]
    wait_until(lambda: now() >= until, 60, "the tick should be there")
    found = metrics.ticks(both, until)
    (problem,) = found["k"].problems
    assert "signal tools:" in problem
    assert "missing closing )" in problem
    assert found["plain"].problems == ()
    assert found["plain"].ticks[-1].baseline.engines


def test_a_past_that_is_long_is_read_in_parts(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    until = now()
    begin = until - timedelta(hours=1)
    ticks: list[Tick] = []
    since = begin
    for _ in range(10):
        found = metrics.ticks([need(pods, since)], until)["k"]
        ticks += found.ticks
        if found.complete:
            break
        assert found.ticks
        since = datetime.fromtimestamp(ticks[-1].at, UTC) + STEP
    first, last = math.ceil(begin.timestamp()), math.floor((until - DELAY).timestamp())
    assert [tick.at for tick in ticks] == list(range(first, last + 1))


@pytest.fixture
def own_exporter() -> Iterator[Exporter]:
    exporter = Exporter()
    yield exporter
    exporter.close()


def test_a_prometheus_that_was_away_does_not_repeat_what_it_knew(
    own_exporter: Exporter, tmp_path: Path, pods: Pods
) -> None:
    exporter = own_exporter
    since = now()
    with prometheus(exporter, tmp_path):
        exporter.show(pods.page())
        time.sleep(1)
        away = now()
    time.sleep(STALE_STEPS + 3)
    with prometheus(exporter, tmp_path) as url:
        exporter.show(replace(pods, count=140).page())
        metrics = client(url)
        try:
            ticks = read(metrics, pods, since, now() + STEP + DELAY).ticks
        finally:
            metrics.close()
    seen = [tick.at for tick in ticks if tick.baseline.routers]
    gone = [tick.at for tick in ticks if not tick.baseline.routers and tick.at > seen[0]]
    assert ticks[-1].baseline.routers[ROUTER_POD].started == 140
    assert gone, "the outage is seen"
    assert gone[0] <= away.timestamp() + STALE_STEPS + 2
