"""What a real Prometheus tells of the alerts of real rules: pending, firing and over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.alerting.board import AlertBoard
from kvquant.alerting.polling import AlertPoller
from kvquant.api.v1alpha1 import AlertSource
from kvquant.core.alerts import PolledAlert, Watch, services
from tests.prometheus_server import Exporter, prometheus
from tests.waiting import wait_until

RULES = """
groups:
- name: slo
  interval: 200ms
  rules:
  - alert: Burn
    expr: slo_burns > 0
    for: 2s
    labels: {severity: critical}
  - alert: Quiet
    expr: slo_burns > 100
"""
BURNS = 'slo_burns{namespace="inference",service="llama-router"} 1'
WATCH = Watch("inference", "llama-fp8", services("llama", "llama-router", "llama-fp8-pool"))


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    exporter = Exporter()
    yield exporter
    exporter.close()


def until(
    metrics: PrometheusMetrics, holds: Callable[[list[PolledAlert]], bool], what: str
) -> list[PolledAlert]:
    found: list[list[PolledAlert]] = [[]]

    def look() -> bool:
        found[0] = list(metrics.alerts(now()))
        return holds(found[0])

    wait_until(look, 20, what)
    return found[0]


def test_an_alert_is_told_when_it_is_pending_when_it_fires_and_no_more_when_it_is_over(
    exporter: Exporter, tmp_path: Path
) -> None:
    (tmp_path / "rules.yml").write_text(RULES)
    with prometheus(exporter, tmp_path) as url:
        metrics = PrometheusMetrics(url)
        assert list(metrics.alerts(now())) == []
        before = now()
        exporter.show(BURNS)
        (pending,) = until(metrics, bool, "the alert should be told")
        assert not pending.fires
        (firing,) = until(metrics, lambda a: a[0].fires, "it should fire")
        assert firing.labels == {
            "alertname": "Burn",
            "namespace": "inference",
            "service": "llama-router",
            "severity": "critical",
            "instance": firing.labels["instance"],
            "job": firing.labels["job"],
        }
        assert abs(firing.since - pending.since) < timedelta(seconds=2), "it counts whole seconds"
        assert before <= firing.since <= now()
        assert now() - firing.told_at < timedelta(seconds=5)
        exporter.show("")
        until(metrics, lambda a: a == [], "it should be over")
        metrics.close()


def test_the_poller_tells_the_board_and_an_outage_ends_no_alert(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules.yml").write_text(RULES)
    board = AlertBoard(now, polls=True)
    missed: list[bool] = []
    told = board.polled

    def polled(alerts: Sequence[PolledAlert] | None) -> None:
        told(alerts)
        if alerts is None:
            missed.append(True)

    monkeypatch.setattr(board, "polled", polled)
    woken: list[str] = []
    board.wake = lambda _, name: woken.append(name)
    board.heard(WATCH)
    with prometheus(exporter, tmp_path) as url:
        metrics = PrometheusMetrics(url, timeout=2)
        poller = AlertPoller(board, metrics, 0.1, now)
        poller.start()
        exporter.show(BURNS)
        wait_until(lambda: board.heard(WATCH).firing, 20, "the board should know that it fires")
        (alert,) = board.heard(WATCH).firing
        assert (alert.source, alert.labels["alertname"]) == (AlertSource.POLLING, "Burn")
        assert board.heard(WATCH).polled
        assert woken[-1] == "llama-fp8"
    missed.clear()
    wait_until(lambda: missed, 20, "the poller should miss Prometheus")
    heard = board.heard(WATCH)
    assert [a.fingerprint for a in heard.firing] == [alert.fingerprint]
    assert not heard.steady
    poller.stop()
    metrics.close()
