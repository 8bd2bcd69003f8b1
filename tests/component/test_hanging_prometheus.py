"""A Prometheus that takes a question and does not answer: passes wait, kill switches do not."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from kvquant.api.v1alpha1 import Phase
from kvquant.core.evidence import CacheConfig
from kvquant.core.ticking import TickNeed, Timeline
from kvquant.errors import MetricsError
from kvquant.ports import Metrics, RouterKey
from kvquant.reconciler import Ref
from tests.site import NAMESPACE, Site

ROUTER = RouterKey(NAMESPACE, "llama-router")
SOON = 10.0
"""Seconds in which anything must have happened; nothing takes that long."""


class Hanging:
    """Metrics that answer only once they are let go."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.asked, self.let_go = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        self._hang()
        return self._metrics.ticks(needs, now)

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        self._hang()
        return self._metrics.cache_configs(namespace, pods, now)

    def _hang(self) -> None:
        self.asked.set()
        assert self.let_go.wait(SOON), "nobody has let it go"
        if self.error is not None:
            raise self.error


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


@pytest.fixture
def moving(site: Site) -> Ref:
    ref = site.apply()
    site.until(ref, lambda s: (s.phase, s.weights.canary) == (Phase.PROGRESSING, 25))
    site.turn(ref)
    assert site.traffic.weights[ROUTER]["green"] == 25
    return ref


@pytest.fixture
def hanging(site: Site, moving: Ref) -> Iterator[Hanging]:
    hanging = Hanging(site.metrics)
    site.reconciler = site.operator(site.cluster, hanging, site.traffic)
    yield hanging
    hanging.let_go.set()


def test_a_kill_does_not_wait_for_a_pass_that_waits_for_prometheus(
    site: Site, moving: Ref, hanging: Hanging
) -> None:
    woken = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(site.reconciler.reconcile, moving, None, woken.is_set)
        assert hanging.asked.wait(SOON)
        site.annotate(moving, killed="by Ada")
        woken.set()
        result = waiting.result(SOON)
    assert (result.requeue_after, result.after) == (0.0, None), "it has decided nothing"
    assert not site.status(moving).killed

    woken.clear()
    hanging.asked.clear()
    assert site.reconciler.reconcile(moving, None, woken.is_set).requeue_after == 0.0
    assert site.status(moving).killed
    assert not hanging.asked.is_set()
    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(site.reconciler.reconcile, moving, None, woken.is_set)
        assert hanging.asked.wait(SOON)
        assert site.traffic.weights[ROUTER]["green"] == 0, "served before Prometheus is asked"
        woken.set()
        serving.result(SOON)


def test_an_answer_that_is_slow_is_waited_for_while_nothing_comes_up(
    site: Site, moving: Ref, hanging: Hanging
) -> None:
    looks = 0

    def came_up() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            hanging.let_go.set()
        return False

    result = site.reconciler.reconcile(moving, None, came_up)
    assert looks >= 3
    assert result.after is not None
    assert result.after.weights.canary == 25


@pytest.mark.parametrize("error", [MetricsError("no answer"), TimeoutError("of the client's own")])
def test_what_prometheus_raises_is_raised_to_the_pass(
    site: Site, moving: Ref, hanging: Hanging, error: Exception
) -> None:
    hanging.error = error
    hanging.let_go.set()
    if isinstance(error, MetricsError):
        result = site.reconciler.reconcile(moving, None, lambda: True)
        assert result.after is not None
        held = result.after.condition("Held")
        assert held is not None
        assert held.reason == "MetricsUnavailable"
    else:
        with pytest.raises(TimeoutError):
            site.reconciler.reconcile(moving, None, lambda: True)
