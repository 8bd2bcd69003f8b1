"""Wait for Prometheus only as long as nothing else comes up.

A Prometheus that hangs keeps a pass for many seconds, in which somebody may pull the kill switch.
Such a pass is given up; the next one finds out what was asked for, and asks Prometheus nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from datetime import datetime
from typing import TypeVar

from kvquant.core.evidence import CacheConfig
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed
from kvquant.core.ticking import TickNeed, Timeline
from kvquant.ports import Metrics

PROMPT = 0.5
"""Seconds within which a Prometheus that is well answers. No answer is given up before: where pods
come and go all the time, something always comes up."""

LOOK = 0.05
"""Seconds between looks whether something has come up."""

MOST_ASKED = 32
"""Questions to Prometheus at a time, those included that nobody waits for any more."""

T = TypeVar("T")


class SomethingCameUp(Exception):  # noqa: N818 - no error
    """The pass is to be given up for another one."""


class Questions:
    """Asks in threads of its own, so that whoever waits for an answer need not wait to the end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(MOST_ASKED, thread_name_prefix="metrics")

    def until(self, came_up: Callable[[], bool]) -> Patience:
        """Return the metrics for one pass, whose wait ends when something has come up."""
        return Patience(self._metrics, self._threads, came_up)


class Patience:
    """The `Metrics` port for one pass; every call may raise `SomethingCameUp`."""

    def __init__(
        self, metrics: Metrics, threads: ThreadPoolExecutor, came_up: Callable[[], bool]
    ) -> None:
        self._metrics = metrics
        self._threads = threads
        self._came_up = came_up

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        """Return the ticks, as `Metrics` does."""
        return self._wait(self._threads.submit(self._metrics.ticks, needs, now))

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        """Return the cache configs, as `Metrics` does."""
        return self._wait(self._threads.submit(self._metrics.cache_configs, namespace, pods, now))

    def shadows(self, needs: Sequence[ShadowNeed], now: datetime) -> Mapping[str, ShadowEvidence]:
        """Return what the shadow services have counted, as `Metrics` does."""
        return self._wait(self._threads.submit(self._metrics.shadows, needs, now))

    def _wait(self, answer: Future[T]) -> T:
        patience = PROMPT
        while True:
            try:
                return answer.result(patience)
            except NotYet:
                if answer.done():  # the answer is an error of this kind
                    raise
                if self._came_up():
                    answer.cancel()
                    raise SomethingCameUp from None
                patience = LOOK
