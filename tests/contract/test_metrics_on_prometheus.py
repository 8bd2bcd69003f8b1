"""The metrics adapter against a real Prometheus that scrapes a little exporter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.core.evidence import ArmNeed, Evidence, EvidenceNeed
from tests.prometheus_server import Exporter, prometheus
from tests.waiting import wait_until

ROUTER = "llama-v1.5-router"
ROUTER_POD = f"{ROUTER}-7d9f8b6c5-abcde"
BASE_POD = "llama-v1.5-7d9f8b6c5-abcde"
POOL_POD = "llama-v1.5-pool-7d9f8b6c5-abcde"


@dataclass
class Pods:
    """What the pods of one namespace show, in the exposition format."""

    namespace: str
    started: float = field(default_factory=lambda: time.time() - 3600)
    completed: float = 1000
    errors: float | None = None
    latency: tuple[float, float, float] | None = (900, 990, 1000)
    preemptions: float | str = 40
    finished: float = 1000
    dtype: str = "fp8"

    def page(self) -> str:
        pod = f'namespace="{self.namespace}",pod="{ROUTER_POD}"'
        blue = f'{pod},envoy_cluster_name="blue"'
        lines = [f"envoy_server_uptime{{{pod}}} {time.time() - self.started:.0f}"]
        for name, value in (
            ("rq_completed", self.completed),
            ("rq_timeout", 0),
            ("rq_active", 7),
            ("cx_destroy_remote_with_active_rq", 0),
        ):
            lines.append(f"envoy_cluster_upstream_{name}{{{blue}}} {value}")
        lines.append(f"envoy_cluster_membership_healthy{{{blue}}} 2")
        if self.errors is not None:
            label = 'envoy_response_code_class="5"'
            lines.append(f"envoy_cluster_upstream_rq_xx{{{blue},{label}}} {self.errors}")
        for le, count in zip(("500", "1000", "+Inf"), self.latency or (), strict=False):
            lines.append(f'envoy_cluster_upstream_rq_time_bucket{{{blue},le="{le}"}} {count}')
        engine = f'namespace="{self.namespace}",pod="{BASE_POD}"'
        lines.append(f"process_start_time_seconds{{{engine}}} {self.started}")
        lines.append(f'vllm:num_preemptions_total{{{engine},engine="0"}} {self.preemptions}')
        lines.append(
            f'vllm:request_success_total{{{engine},finished_reason="stop"}} {self.finished}'
        )
        config = f'cache_dtype="{self.dtype}",kv_cache_size_tokens="98304",engine="0"'
        lines.append(f"vllm:cache_config_info{{{engine},{config}}} 1")
        return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    exporter = Exporter()
    yield exporter
    exporter.close()


@pytest.fixture(scope="module")
def metrics(
    exporter: Exporter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusMetrics]:
    folder: Path = tmp_path_factory.mktemp("prometheus")
    with prometheus(exporter, folder) as url:
        metrics = PrometheusMetrics(url, timeout=5)
        yield metrics
        metrics.close()


@pytest.fixture
def pods(request: pytest.FixtureRequest) -> Pods:
    # A namespace of its own: Prometheus remembers what other tests showed.
    return Pods(request.node.name.replace("_", "-"))


def need(pods: Pods, since: datetime) -> EvidenceNeed:
    return EvidenceNeed(
        key="k",
        namespace=pods.namespace,
        router=ROUTER,
        baseline=ArmNeed("blue", "llama-v1.5"),
        canary=ArmNeed("green", "llama-v1.5-pool"),
        since=since,
    )


def now() -> datetime:
    return datetime.now(UTC)


def await_instant(instant: datetime) -> None:
    wait_until(lambda: now() >= instant, 20, f"it should become {instant}")


def evidence(metrics: PrometheusMetrics, one: EvidenceNeed) -> Evidence:
    return metrics.evidence([one], now())["k"]


def test_exactly_what_happened_since_the_step_began_is_counted(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    since = now()
    after = replace(pods, completed=1100, latency=(980, 1085, 1099), preemptions=42, finished=1098)
    exporter.show(after.page())
    base = evidence(metrics, need(pods, since)).baseline
    assert (base.completed, base.errors_5xx, base.timeouts, base.resets) == (100, 0, 0, 0)
    assert (base.active, base.preemptions, base.finished) == (7, 2, 98)
    assert base.latency is not None
    assert base.latency.bounds[:2] == (0.5, 1.0)
    assert base.latency.counts == (80, 95, 99)


@pytest.mark.parametrize("step", [1001, 1003, 1017])
def test_a_window_of_any_length_ends_now(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods, step: int
) -> None:
    exporter.show(pods.page())
    at = now()
    # Milliseconds whose number of seconds is a little less in binary.
    since = at - timedelta(milliseconds=20 * step)
    found = metrics.evidence([need(pods, since)], at)["k"]
    assert (found.baseline.active, found.baseline.healthy) == (7, 2)
    assert found.problems == ()


def test_the_same_evidence_is_found_again_later(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    since = now()
    exporter.show(replace(pods, completed=1100).page())
    until = now()
    first = metrics.evidence([need(pods, since)], until)
    exporter.show(replace(pods, completed=5000).page())
    assert metrics.evidence([need(pods, since)], until) == first
    assert first["k"].baseline.completed == 100


def test_a_counter_that_appears_counts_from_zero(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(replace(pods, latency=None).page())
    since = now()
    exporter.show(replace(pods, completed=1020, errors=5, latency=(12, 18, 20)).page())
    base = evidence(metrics, need(pods, since)).baseline
    assert base.errors_5xx == 5
    assert base.latency is not None
    assert base.latency.counts == (12, 18, 20)


def test_a_restart_counts_what_the_new_process_counted(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    since = now()
    restarted = replace(pods, started=time.time(), completed=30, preemptions=3, finished=30)
    exporter.show(replace(restarted, latency=(10, 20, 30)).page())
    base = evidence(metrics, need(pods, since)).baseline
    assert (base.completed, base.preemptions, base.finished) == (30, 3, 30)


def test_pods_that_were_there_before_anyone_looked_do_not_count_their_past(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    exporter.show(replace(pods, completed=1010).page())
    base = evidence(metrics, need(pods, now() - timedelta(minutes=30))).baseline
    assert base.completed is not None
    assert base.completed <= 10


def test_an_arm_without_pods_is_no_data(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    canary = evidence(metrics, need(pods, now())).canary
    assert (canary.completed, canary.latency, canary.preemptions, canary.finished) == (None,) * 4


def test_nan_is_no_data(exporter: Exporter, metrics: PrometheusMetrics, pods: Pods) -> None:
    spoiled = replace(pods, completed=float("nan"), preemptions="+Inf")
    since = now()
    exporter.show(spoiled.page())
    base = evidence(metrics, need(pods, since)).baseline
    assert base.completed is None
    assert base.preemptions is None or base.preemptions != base.preemptions


def test_a_target_that_is_not_scraped_any_more_is_a_problem(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    since = now() - timedelta(seconds=5)
    wait_until(
        lambda: evidence(metrics, need(pods, since)).baseline.completed is not None,
        10,
        "the pods should be seen",
    )
    # The grid of a longer window holds an instant at which the target was well.
    await_instant(now() + timedelta(seconds=1.2))
    exporter.show(None)
    found = evidence(metrics, need(pods, since))
    assert found.baseline.completed is None
    assert found.baseline.preemptions is None
    assert f"has not scraped router {ROUTER}" in found.problems[0]


def test_the_cache_config_is_as_old_as_its_sample(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    before = now()
    exporter.show(pods.page())
    config = metrics.cache_configs(pods.namespace, [BASE_POD, POOL_POD], now())
    assert list(config) == [BASE_POD]
    assert before < config[BASE_POD].sampled_at <= now()
    assert (config[BASE_POD].dtype, config[BASE_POD].capacity_tokens) == ("fp8", 98304)
    exporter.show(replace(pods, dtype="auto").page())
    assert metrics.cache_configs(pods.namespace, [BASE_POD], now())[BASE_POD].dtype == "auto"


def test_the_step_before_is_read_for_a_baseline_that_gets_nothing_now(
    exporter: Exporter, metrics: PrometheusMetrics, pods: Pods
) -> None:
    exporter.show(pods.page())
    begin = now()
    exporter.show(replace(pods, completed=1400).page())
    # The read's grid has an instant between each change and the switch of the weights.
    await_instant(now() + timedelta(seconds=1.2))
    switch = now()
    await_instant(switch + timedelta(seconds=1.2))
    exporter.show(replace(pods, completed=1401).page())
    found = evidence(
        metrics, replace(need(pods, switch), baseline_since=begin, baseline_until=switch)
    )
    assert found.baseline.completed == 400
    assert found.baseline.active == 7
    assert found.baseline_now is not None
    assert found.baseline_now.completed == 1
