"""What shadow services have counted, read from a real Prometheus that scrapes little exporters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.core.envoy_bootstrap import BODY_BOUNDS
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed, Sums
from kvquant.core.shadow_settings import CANARY_PAIR, CITATIONS, NOISE_PAIR
from tests.prometheus_server import Exporter, prometheus
from tests.waiting import wait_until

ROUTER = "llama-router"
POD = f"{ROUTER}-shadow-7d9f8b6c5-abcde"
ROUTER_POD = f"{ROUTER}-7d9f8b6c5-abcde"


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    one = Exporter()
    yield one
    one.close()


@pytest.fixture(scope="module")
def metrics(exporter: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    with prometheus(exporter, tmp_path_factory.mktemp("prometheus")) as url:
        client = PrometheusMetrics(url)
        yield client
        client.close()


def counted(
    run: str, count: float, *, uid: str = "u1", attempt: int = 1, namespace: str = "inference"
) -> str:
    """Return what one process of a shadow service shows."""
    own = f'namespace="{namespace}",pod="{POD}",rollout="{uid}",attempt="{attempt}",run="{run}"'
    pair = f'{own},pair="canary",signal="citations",bucket="64-256KiB"'
    lines = [
        f'kvquant_shadow_received_total{{{own},bucket="64-256KiB"}} {2 * count}',
        f'kvquant_shadow_dropped_total{{{own},reason="queue"}} {count}',
        f'kvquant_shadow_personal_data_total{{{own},kind="EMAIL"}} {count / 10}',
        f'kvquant_shadow_personal_data_total{{{own},kind="CARD"}} {count / 20}',
        f"kvquant_shadow_scored_total{{{pair}}} {count}",
        f"kvquant_shadow_harm_total{{{pair}}} {count / 2}",
        f"kvquant_shadow_relief_total{{{pair}}} {count / 4}",
        f"kvquant_shadow_squares_total{{{pair}}} {3 * count / 4}",
        f'kvquant_shadow_answer_seconds_count{{{own},arm="canary"}} 5',
    ]
    return "\n".join(lines) + "\n"


def bodies(counts: dict[float, float], pod: str = ROUTER_POD, namespace: str = "inference") -> str:
    lines = []
    for bound in (*BODY_BOUNDS, float("inf")):
        le = "+Inf" if bound == float("inf") else str(bound)
        below = sum(count for limit, count in counts.items() if limit <= bound)
        lines += [
            "envoy_cluster_upstream_rq_body_size_bucket"
            f'{{namespace="{namespace}",pod="{pod}",envoy_cluster_name="{slot}",le="{le}"}} {below}'
            for slot in ("blue", "green")
        ]
    return "\n".join(lines) + "\n"


def need(uid: str = "u1", attempt: int = 1, ago: float = 600.0) -> ShadowNeed:
    since = datetime.now(UTC) - timedelta(seconds=ago)
    return ShadowNeed(f"inference/{uid}", "inference", ROUTER, uid, attempt, since)


def ask(metrics: PrometheusMetrics, *needs: ShadowNeed) -> list[ShadowEvidence]:
    found = metrics.shadows(needs, datetime.now(UTC))
    return [found[one.key] for one in needs]


def test_what_ended_and_living_processes_counted_adds_up_exactly(
    exporter: Exporter, metrics: PrometheusMetrics
) -> None:
    exporter.show(counted("first", 100, uid="sum"))
    exporter.show(counted("second", 20, uid="sum"))

    def both() -> bool:
        (found,) = ask(metrics, need("sum"))
        return found.runs == 2

    wait_until(both, 10, "both processes should be found")
    (found,) = ask(metrics, need("sum"))
    assert found.received == {"64-256KiB": 240.0}
    assert found.dropped == {"queue": 120.0}
    assert found.replaced == pytest.approx(18)
    assert found.sums == {(CANARY_PAIR, CITATIONS, "64-256KiB"): Sums(120, 60, 30, 90)}
    assert found.pooled(NOISE_PAIR, CITATIONS) == Sums()


def test_other_attempts_rollouts_and_namespaces_are_nobody_elses(
    exporter: Exporter, metrics: PrometheusMetrics
) -> None:
    exporter.show(
        counted("a", 8, uid="own")
        + counted("b", 80, uid="own", attempt=2)
        + counted("c", 800, uid="other")
        + counted("d", 8000, uid="own", namespace="elsewhere")
    )
    one, again, none = ask(metrics, need("own"), need("own2"), need("absent"))
    assert one.sums[CANARY_PAIR, CITATIONS, "64-256KiB"].count == 8
    assert again == none == ShadowEvidence()


def test_requests_of_clients_are_counted_by_length_from_the_begin_on(
    exporter: Exporter, metrics: PrometheusMetrics
) -> None:
    exporter.show(bodies({100: 50}))
    begun = time.time()
    exporter.show(bodies({100: 60, 5000: 7, 10**7: 3}))

    def live() -> ShadowEvidence:
        (found,) = ask(metrics, need("live", ago=time.time() - begun))
        return found

    wait_until(lambda: sum(live().live.values()) >= 20, 15, "the requests should be counted")
    # Two slots count alike here, and one second's step may hide what came right at the begin.
    assert live().live == {
        "0-4KiB": 20.0,
        "4-16KiB": 14.0,
        "16-64KiB": 0.0,
        "64-256KiB": 0.0,
        "256KiB-1MiB": 0.0,
        "1MiB+": 6.0,
    }


def test_routers_that_do_not_tell_lengths_leave_them_open(
    exporter: Exporter, metrics: PrometheusMetrics
) -> None:
    exporter.show(bodies({100: 5}, pod="another-router-7d9f8b6c5-abcde"))
    (found,) = ask(metrics, ShadowNeed("k", "inference", "silent", "u", 1, datetime.now(UTC)))
    assert found.live == {}
