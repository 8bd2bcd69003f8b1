"""The evidence so far: batches of about half a minute in which both arms are compared.

Pairing the arms within a short batch is what makes them comparable: whatever changes with the hour
(load, prompts, a noisy neighbour) changes for both. Batches never straddle a change of the weight.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

import numpy as np

from kvquant.core.analysis.counting import Counting, Increase
from kvquant.core.analysis.samples import Tick
from kvquant.core.analysis.sequential import Array
from kvquant.core.analysis.table import BASELINE, CANARY, Table

WORTHWHILE = 5.0
"""Requests that either arm should have taken or ended in a batch, which is made longer else."""

LONGEST = 20
"""A batch ends after this many times its usual length, however few requests came."""

LATE = 2.5
"""An instant that comes so many usual intervals after the one before has missed some."""

MOST_BATCHES = 480
"""Batches of one step that are kept: four hours of the usual length. A step that has waited for so
long without a verdict is judged by what is new."""

MOST_INSTANTS = 4000
"""Instants of which the requests in flight are kept."""

SHADE = 3
"""Usual intervals around an engine's death in which the arm's latencies and errors say nothing
but that an engine died, which is counted elsewhere."""

QUEUEING = 0.10
"""Share of an arm's requests in the engines' queues from which on it counts as queueing. By
Little's law it is the share of their time that requests wait: ten per cent of it is well beyond
what an engine shows that admits a prompt in pieces, and well short of a backlog."""


@dataclass(frozen=True, slots=True)
class Closed:
    """What became of a batch that was completed, as far as deaths go.

    Attributes:
        end: Seconds since the epoch.
        seconds: Length in seconds.
        step: Step of the ladder that was in effect.
        deaths: Engines that died, of the baseline and of the canary.
        replicas: Pods, likewise.
    """

    end: float
    seconds: float
    step: int
    deaths: tuple[int, int]
    replicas: tuple[float, float]


@dataclass(slots=True)
class Flow:
    """Requests started so far and in flight, at every instant of one arm."""

    # Packed, because all of it is read again with every batch.
    at: array[float] = field(default_factory=lambda: array("d"))
    started: array[float] = field(default_factory=lambda: array("d"))
    active: array[float] = field(default_factory=lambda: array("d"))
    _known: tuple[int, tuple[Array, Array, Array, Array]] | None = None

    def at_ends(self, ends: Array) -> tuple[Array, Array, Array, Array]:
        """Return what had come and what was in flight when; unknown counts as none.

        Args:
            ends: Ends of the batches.

        Returns:
            All instants, what had come by then, the same by the ends, and in flight at the ends.
        """
        if self._known is None or self._known[0] != len(ends) or self._known[1][0][-1] < ends[-1]:
            at, started = np.array(self.at), np.array(self.started)
            active = np.nan_to_num(np.array(self.active))
            found = at, started, np.interp(ends, at, started), np.interp(ends, at, active)
            self._known = len(ends), found
        return self._known[1]


class Ledger:
    """Collects ticks into batches."""

    def __init__(self, batch: float, warm_up: float) -> None:
        """Begin without evidence.

        Args:
            batch: Usual length of a batch in seconds.
            warm_up: Seconds after a change of the weight that count for nothing.
        """
        self.bounds: dict[str, tuple[float, ...]] = {}
        self.table = Table()
        self.flows = (Flow(), Flow())
        self.last: Tick | None = None
        self.interval = math.nan
        self.seen_routers = False
        self.visit = 0
        self._closing = 0
        self._closed = 0
        self._batch, self._warm_up = batch, warm_up
        self._counting = (Counting(self.bounds), Counting(self.bounds))
        self._open = (Increase(), Increase())
        self._begin = math.nan
        self._changed = -math.inf
        self._died = -math.inf
        self._active_at_begin = [math.nan, math.nan]

    def take(self, tick: Tick) -> Closed | None:
        """Take in a tick; return the batch that it completed, if it did."""
        last = self.last
        if last is not None and tick.at <= last.at:
            return None
        self.last = tick
        since = None if last is None else last.at
        grown = [
            counting.advance(arm, since)
            for counting, arm in zip(self._counting, (tick.baseline, tick.canary), strict=True)
        ]
        self.seen_routers |= bool(tick.baseline.routers or tick.canary.routers)
        for arm in (BASELINE, CANARY):
            self._front(grown[arm])
            self._note_flow(arm, tick.at, grown[arm])
        if last is None:
            self._reopen(tick.at)
            # What came before is not known; it may have been a change.
            self._changed = tick.at
            return None
        passed = tick.at - last.at
        if math.isnan(self.interval):
            self.interval = passed
        if passed > LATE * self.interval:
            grown[0].whole = grown[1].whole = False
        else:
            self.interval += 0.1 * (passed - self.interval)
        if grown[0].deaths or grown[1].deaths:
            self._died = tick.at
        for arm in (BASELINE, CANARY):
            self._open[arm].add(grown[arm])
        moved = (tick.weight, tick.step) != (last.weight, last.step)
        self._closing = self.visit
        self.visit += tick.step != last.step
        if moved or self._is_full(tick.at, last.weight):
            closed = self._close(last, tick.at)
            if moved:
                self._changed = tick.at
            return closed
        return None

    def _front(self, grown: Increase) -> None:
        """Let the engines' latencies stand in for a router's where there has never been one."""
        if self.seen_routers or "engine.e2e" in grown.bins or "e2e" not in grown.bins:
            return
        ended = float(grown.bins["e2e"][-2])
        grown.bins["latency"] = grown.bins["e2e"]
        if "router.latency" not in self.bounds and "engine.e2e" in self.bounds:
            self.bounds["router.latency"] = self.bounds["engine.e2e"]
        grown.counts.update(started=ended, failed=0.0, unanswered=0.0)

    def _note_flow(self, arm: int, at: float, grown: Increase) -> None:
        flow = self.flows[arm]
        started = grown.counts.get("started", math.nan)
        active = grown.active
        if not self.seen_routers and flow.active:
            # The engines count what ends; what came is that and what is in the system more.
            more = active - flow.active[-1]
            started = max(0.0, started + (more if math.isfinite(more) else 0.0))
            grown.counts["started"] = started
        before = flow.started[-1] if flow.started else 0.0
        flow.at.append(at)
        flow.started.append(before + (started if math.isfinite(started) else 0.0))
        flow.active.append(active)
        if len(flow.at) > 2 * MOST_INSTANTS:
            for kept in (flow.at, flow.started, flow.active):
                del kept[:MOST_INSTANTS]

    def _is_full(self, at: float, weight: float) -> bool:
        passed = at - self._begin
        if passed < self._batch - 1e-6 or self._open[0].instants < 2:
            return False
        # An arm that takes requests and ends none is evidence enough.
        arms = self._open if weight > 0 else self._open[:1]
        busy = [max(_ended(one), one.counts.get("started", 0.0)) for one in arms]
        return min(busy) >= WORTHWHILE or passed >= LONGEST * self._batch

    def _reopen(self, at: float) -> None:
        self._begin = at
        self._open = (Increase(), Increase())
        self._active_at_begin = [flow.active[-1] for flow in self.flows]

    def _close(self, before: Tick, at: float) -> Closed:
        calm = self._begin > self._died + SHADE * self.interval
        if not calm and self._died >= self._begin and self._closed:
            # The requests that a death has cost may have failed before it was seen.
            self.table.set_last("calm", 0.0)
        baseline, canary = self._open
        self.table.append(
            (
                self._begin,
                at,
                before.step,
                self._closing,
                before.weight,
                self._begin >= self._changed + self._warm_up - 1e-6,
                baseline.whole and canary.whole,
                calm,
            ),
            (self._side(BASELINE), self._side(CANARY)),
            (_columns(baseline), _columns(canary)),
        )
        self.table.keep(self._closing, MOST_BATCHES, 8 * MOST_BATCHES)
        self._closed += 1
        closed = Closed(
            at,
            at - self._begin,
            before.step,
            (baseline.deaths, canary.deaths),
            (baseline.replicas, canary.replicas),
        )
        self._reopen(at)
        return closed

    def _side(self, arm: int) -> tuple[float, ...]:
        """Return the arm's numbers in the order of `table.SIDES`."""
        grown = self._open[arm]
        counts = grown.counts
        started, ended = counts.get("started", math.nan), _ended(grown)
        more = grown.active - self._active_at_begin[arm]
        vanished = 0.0
        if self.seen_routers and math.isfinite(started - ended - more):
            # Envoy shows a latency up to a second after it has counted the request, so that this is
            # below zero at times. Cut off there, it would not be zero in the mean.
            vanished = started - ended - more
        in_system = grown.running + grown.waiting
        return (
            started,
            ended,
            counts.get("failed", math.nan),
            counts.get("unanswered", math.nan),
            vanished,
            counts.get("finished", math.nan),
            counts.get("preemptions", math.nan),
            counts.get("generated_tokens", math.nan),
            counts.get("prompt_tokens", math.nan),
            grown.waiting / in_system if in_system > 0 else grown.waiting,
            grown.running,
            grown.replicas,
        )


def _columns(grown: Increase) -> dict[str, Array]:
    """Return the histograms of an arm, and the signals of the user's as columns of one more."""
    custom = {
        name: np.array((value, 0.0))
        for name, value in grown.counts.items()
        if name.startswith("custom.")
    }
    return {**grown.bins, **custom}


def _ended(grown: Increase) -> float:
    latency = grown.bins.get("latency")
    answered = 0.0 if latency is None else float(latency[-2])
    unanswered = grown.counts.get("unanswered", 0.0)
    total = answered + unanswered
    return total if math.isfinite(total) else 0.0
