"""From cumulative samples to increases: resets, restarts, gaps and pods that come and go.

One `Counting` follows one arm. `advance` takes the arm as it is at an instant and returns what was
added since the instant before, summed over the arm's pods. Flat arrays, because this runs for every
pod of every rollout at every tick.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Share
from kvquant.core.analysis.sequential import Array

ROUTER_COUNTS = ("started", "failed", "unanswered")
ROUTER_BINS = ("latency",)
ENGINE_COUNTS = ("finished", "preemptions", "prompt_tokens", "generated_tokens")
ENGINE_BINS = ("e2e", "queue", "prefill", "ttft", "itl")

UNCOUNTABLE = 2.0**53
"""From here on a float cannot count: it skips numbers."""

FORGOTTEN = 40
"""Instants after which a pod that is not seen any more is forgotten, with its counts."""


@dataclass(slots=True)
class Increase:
    """What an arm has added in a span of time.

    Attributes:
        counts: Increase of each count by its name; NaN when one of the pods did not tell.
        bins: Increase of each histogram by its name: the cumulative counts, then the sum.
        deaths: Engine processes that ended, by process starts, resets or Kubernetes' word.
        running: Requests being served, in the mean of the instants; NaN when not told.
        waiting: Requests in the engines' queues, in the mean of the instants.
        active: Requests in flight at the last instant; NaN when not told.
        replicas: Pods, in the mean of the instants.
        instants: Instants that were added up.
        whole: Whether every pod that is known was seen at every instant, without a restart.
    """

    counts: dict[str, float] = field(default_factory=dict)
    bins: dict[str, Array] = field(default_factory=dict)
    deaths: int = 0
    running: float = math.nan
    waiting: float = math.nan
    active: float = math.nan
    replicas: float = 0.0
    instants: int = 0
    whole: bool = True

    def add(self, other: Increase) -> None:
        """Take in the span that follows."""
        for name, value in other.counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + value
        for name, bins in other.bins.items():
            _add(self.bins, name, bins)
        n, m = self.instants, other.instants
        if n == 0:
            self.running, self.waiting = other.running, other.waiting
            self.replicas = other.replicas
        else:
            self.running = (n * self.running + m * other.running) / (n + m)
            self.waiting = (n * self.waiting + m * other.waiting) / (n + m)
            self.replicas = (n * self.replicas + m * other.replicas) / (n + m)
        self.active = other.active
        self.instants = n + m
        self.deaths += other.deaths
        self.whole = self.whole and other.whole


@dataclass(slots=True)
class _Source:
    """A pod as it was seen last."""

    counts: tuple[float, ...]
    bins: dict[str, Array]
    process: float | None
    seen: int


class Counting:
    """Follows the counts of one arm."""

    def __init__(self, bounds: dict[str, tuple[float, ...]]) -> None:
        """Begin with nothing seen.

        Args:
            bounds: Bucket bounds by histogram, shared by both arms: the first seen are kept, and
                histograms with other bounds are read off at these.
        """
        self._bounds = bounds
        self._sources: dict[tuple[str, str], _Source] = {}
        self._deaths: int | None = None
        self._instant = 0
        self._begun = False

    def advance(self, arm: Arm, since: float | None) -> Increase:
        """Return the increase since the instant before.

        Args:
            arm: The arm now.
            since: The instant before, in seconds since the epoch; None at the first one.
        """
        self._instant += 1
        found = Increase(replicas=float(arm.replicas), instants=1)
        seen: set[tuple[str, str]] = set()
        for name, router in arm.routers.items():
            seen.add(("router", name))
            self._follow(found, ("router", name), router, ROUTER_COUNTS, ROUTER_BINS, since)
        for name, engine in arm.engines.items():
            seen.add(("engine", name))
            self._follow(found, ("engine", name), engine, ENGINE_COUNTS, ENGINE_BINS, since)
            for label, signal in engine.custom.items():
                self._custom(found, label, signal, name)
        for label, signal in arm.custom.items():
            self._custom(found, label, signal)
        found.whole = found.whole and self._all_seen(seen)
        self._gauges(found, arm)
        if arm.deaths is not None:
            if self._deaths is not None:
                found.deaths = max(found.deaths, arm.deaths - self._deaths)
            self._deaths = max(arm.deaths, self._deaths or 0)
        if found.deaths:
            found.whole = False
        self._begun = True
        return found

    def _follow(
        self,
        found: Increase,
        key: tuple[str, str],
        sample: RouterSample | EngineSample,
        counts: tuple[str, ...],
        histograms: tuple[str, ...],
        since: float | None,
    ) -> None:
        now = tuple([_number(getattr(sample, name)) for name in counts])
        bins = {
            name: self._read_off(f"{key[0]}.{name}", histogram)
            for name in histograms
            if (histogram := getattr(sample, name)) is not None
        }
        process = getattr(sample, "process_started", None)
        before = self._sources.get(key)
        self._sources[key] = _Source(now, bins, process, self._instant)
        if before is None:
            # A pod that was not known adds what it has counted only when it is known to be new.
            young = process is not None and since is not None and process > since
            for name, value in zip(counts, now, strict=True):
                grown = value if young or math.isnan(value) else 0.0
                found.counts[name] = found.counts.get(name, 0.0) + grown
            for name, values in bins.items():
                _add(found.bins, name, values if young else np.zeros_like(values))
            return
        restarted = _restarted(before, now, bins, process)
        if restarted and key[0] == "engine":
            found.deaths += 1
        if restarted or before.seen < self._instant - 1:
            found.whole = False
        for name, value, earlier in zip(counts, now, before.counts, strict=True):
            grown = value if restarted else value - earlier
            found.counts[name] = found.counts.get(name, 0.0) + grown
        for name, values in bins.items():
            known = None if restarted else before.bins.get(name)
            # A histogram that was not shown before had counted nothing: exporters show it with the
            # first observation.
            _add(found.bins, name, values if known is None else _less(values, known))
        if not restarted:
            for name in before.bins.keys() - bins.keys():
                _add(found.bins, name, np.full_like(before.bins[name], np.nan))

    def _custom(self, found: Increase, name: str, signal: Share | Bins, pod: str = "") -> None:
        key = ("custom", f"{name} of {pod}")
        now: tuple[float, ...] = ()
        bins: dict[str, Array] = {}
        if isinstance(signal, Bins):
            bins[f"custom.{name}"] = self._read_off(f"custom.{name}", signal)
        else:
            now = _number(signal.events), _number(signal.total)
        before = self._sources.get(key)
        self._sources[key] = _Source(now, bins, None, self._instant)
        if before is None or len(now) != len(before.counts):
            # Of a signal that was another kind before, nothing can be said yet.
            return
        if _restarted(before, now, bins, None):
            return
        for part, value, earlier in zip(("events", "total"), now, before.counts, strict=False):
            label = f"custom.{name}.{part}"
            found.counts[label] = found.counts.get(label, 0.0) + (value - earlier)
        for label, values in bins.items():
            if label in before.bins:
                _add(found.bins, label, np.maximum(_less(values, before.bins[label]), 0.0))

    def _read_off(self, name: str, histogram: Bins) -> Array:
        """Return cumulative counts at the kept bounds, then the sum; NaN for no sound histogram."""
        kept = self._bounds.get(name)
        if kept is None:
            if not _is_sound(histogram):
                return np.full(2, np.nan)
            kept = self._bounds[name] = histogram.bounds
        if histogram.bounds is kept or histogram.bounds == kept:
            if not _are_counts(histogram.counts, len(kept)):
                return np.full(len(kept) + 1, np.nan)
            return np.array((*histogram.counts, _number(histogram.sum)))
        if not _is_sound(histogram):
            return np.full(len(kept) + 1, np.nan)
        read = np.interp(kept[:-1], (0.0, *histogram.bounds[:-1]), (0.0, *histogram.counts[:-1]))
        return np.array((*read, histogram.counts[-1], _number(histogram.sum)))

    def _all_seen(self, seen: set[tuple[str, str]]) -> bool:
        """Tell whether no pod that was seen an instant ago is missing; forget the long gone."""
        missing = [key for key in self._sources if key not in seen and key[0] != "custom"]
        for key in missing:
            if self._sources[key].seen < self._instant - FORGOTTEN:
                del self._sources[key]
        return not any(
            key in self._sources and self._sources[key].seen == self._instant - 1 for key in missing
        )

    @staticmethod
    def _gauges(found: Increase, arm: Arm) -> None:
        found.running = _total(e.running for e in arm.engines.values())
        found.waiting = _total(e.waiting for e in arm.engines.values())
        if arm.routers:
            found.active = _total(r.active for r in arm.routers.values())
        else:
            found.active = found.running + found.waiting


def _restarted(
    before: _Source, now: tuple[float, ...], bins: Mapping[str, Array], process: float | None
) -> bool:
    if process is not None and before.process is not None:
        # Exporters round the start of a process; a second start within a second is none.
        return process > before.process + 1
    if any(map(operator.lt, now, before.counts)):
        return True
    return any(
        name in before.bins
        and len(values) == len(before.bins[name])
        and values[-2] < before.bins[name][-2]
        for name, values in bins.items()
    )


def _add(bins: dict[str, Array], name: str, values: Array) -> None:
    known = bins.get(name)
    if known is None:
        bins[name] = values
    elif len(known) == len(values):
        bins[name] = known + values
    else:
        # One of them is from before the bounds were known.
        bins[name] = np.full(max(len(known), len(values)), np.nan)


def _less(values: Array, earlier: Array) -> Array:
    if len(values) == len(earlier):
        return values - earlier
    return np.full(max(len(values), len(earlier)), np.nan)


def _total(values: Iterable[float | None]) -> float:
    numbers = [_number(value) for value in values]
    return sum(numbers) if numbers else math.nan


def _number(value: float | None) -> float:
    if value is None or not 0 <= value < UNCOUNTABLE:
        return math.nan
    return value


def _is_sound(histogram: Bins) -> bool:
    bounds = histogram.bounds
    return (
        len(bounds) >= 2
        and math.isinf(bounds[-1])
        and all(one < other for one, other in pairwise(bounds))
        and _are_counts(histogram.counts, len(bounds))
    )


def _are_counts(counts: tuple[float, ...], length: int) -> bool:
    """Tell whether cumulative counts of so many buckets begin at zero or above and never fall."""
    # Not a number compares as false with everything, so that none of these lets one pass.
    return (
        len(counts) == length
        and counts[0] >= 0
        and counts[-1] < UNCOUNTABLE
        and all(map(operator.le, counts, counts[1:]))
    )
