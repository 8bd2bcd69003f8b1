"""Rollouts from beginning to end, with the counters that Prometheus would have kept of them.

Every second, requests come at a steady rate and are split by the weights of the decisions; their
latencies are log-normal, their failures and preemptions rare. The seed is fixed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from kvquant.core import queries
from kvquant.core.counters import Series
from kvquant.core.queries import Window
from kvquant.engines import vllm_metrics
from tests.unit.cli import made

BOUNDS_MS = (5, 10, 20, 50, 75, 100, 150, 200, 300, 450, 600, 900, 1200, 1800, 2500, 3600)
BOUNDS = (*BOUNDS_MS, 5000, 7500, 10000, 15000, 20000, 30000, 60000, 120000, 600000, math.inf)

BEGIN = made.NOW - timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one arm does to its requests."""

    median: float
    spread: float = 0.35
    failing: float = 0.0
    preempting: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A decision so many seconds after the start."""

    at: float
    kind: str
    reason: str
    step: int
    weight: int
    message: str


def record(moment: Moment) -> dict[str, Any]:
    at = (BEGIN + timedelta(seconds=moment.at)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "at": at,
        "kind": moment.kind,
        "reason": moment.reason,
        "step": moment.step,
        "weight": moment.weight,
        "message": moment.message,
    }


GOOD = (
    Moment(
        0, "Start", "Started", 0, 0, "Attempt 1: llama (auto, 2 pods) against llama-fp8-pool (fp8)."
    ),
    Moment(0, "Hold", "CanaryNotReady", 0, 0, "0 of 1 canary pods are ready: loading the model."),
    Moment(14, "Verify", "Verifying", 0, 0, "1 canary pods are ready; proving their KV cache."),
    Moment(22, "Advance", "StepStarted", 1, 10, "Step 1/4: canary 10 %. Every pod is proven."),
    Moment(27, "Hold", "InsufficientEvidence", 1, 10, "12 of 60 canary requests so far."),
    Moment(90, "Advance", "StepStarted", 2, 25, "Step 2/4: canary 25 %. Every signal is within."),
    Moment(140, "Advance", "StepStarted", 3, 50, "Step 3/4: canary 50 %. Every signal is within."),
    Moment(195, "Advance", "StepStarted", 4, 100, "Step 4/4: canary 100 %. Every signal is fine."),
    Moment(240, "Promote", "Promoted", 4, 100, "llama-fp8-pool is the serving pool now."),
    Moment(258, "Settle", "RollbackWindowClosed", 4, 100, "llama is scaled to zero."),
)

BAD = (
    Moment(0, "Start", "Started", 0, 0, "Attempt 1: llama (auto, 2 pods) against llama-int8-pool."),
    Moment(15, "Verify", "Verifying", 0, 0, "1 canary pods are ready; proving their KV cache."),
    Moment(23, "Advance", "StepStarted", 1, 10, "Step 1/4: canary 10 %. Every pod is proven."),
    Moment(29, "Hold", "InsufficientEvidence", 1, 10, "9 of 60 canary requests so far."),
    Moment(72, "RollBack", "AnalysisFailed", 1, 0, made.CAUSE),
    Moment(92, "Settle", "RolledBack", 1, 0, f"Rolled back: {made.CAUSE}"),
)


def promoted() -> dict[str, Any]:
    """The rollout that went well, when all was over."""
    raw = made.promoted(settled=True)
    return _told(raw, GOOD, "llama-fp8-pool")


def rolled_back() -> dict[str, Any]:
    """The rollout that was taken back, when all was over."""
    return _told(made.rolled_back(), BAD, "llama-int8-pool")


def split(raw: dict[str, Any]) -> dict[str, Any]:
    """Let the status know the splits of the traffic, as newer operators do."""
    known: list[dict[str, Any]] = []
    for one in raw["status"]["decisions"]:
        span = {"step": one["step"] if one["weight"] else 0, "weight": one["weight"]}
        if not known or span != {key: known[-1][key] for key in span}:
            known.append({"since": one["at"], **span})
    raw["status"]["traffic"] = known
    return raw


def _told(raw: dict[str, Any], moments: Sequence[Moment], canary: str) -> dict[str, Any]:
    raw["metadata"]["creationTimestamp"] = BEGIN.strftime("%Y-%m-%dT%H:%M:%SZ")
    raw["status"]["decisions"] = [record(moment) for moment in moments]
    raw["status"]["canary"]["deployment"] = canary
    last_look = max(m.at for m in moments if m.kind in ("Promote", "RollBack"))
    raw["status"]["analysis"]["at"] = record(replace(moments[0], at=last_look))["at"]
    return raw


@dataclass(slots=True)
class _Arm:
    """Counters of one arm at a second."""

    completed: int = 0
    failed: int = 0
    preemptions: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))

    def copy(self) -> _Arm:
        return _Arm(self.completed, self.failed, self.preemptions, [*self.buckets])


TOOL_CALLS = "tool_calls_total"
"""A counter of the user's that the engines' pods export."""


class StoryHistory:
    """The port `History` over a made-up Prometheus that scrapes every 5 seconds."""

    source = "http://prometheus.example:9090"

    def __init__(
        self,
        moments: Sequence[Moment],
        baseline: Behaviour,
        canary: Behaviour,
        canary_pool: str,
        rate: float = 14.0,
    ) -> None:
        self.asked: list[str] = []
        self._pool = canary_pool
        self._begin = BEGIN - timedelta(seconds=120)
        self._seconds: list[tuple[_Arm, _Arm]] = []
        draw = random.Random(4711)
        arms = (_Arm(), _Arm())
        for second in range(900):
            weight = 0
            for moment in moments:
                if second - 120 >= moment.at:
                    weight = moment.weight
            for _ in range(_poisson(draw, rate)):
                index = int(draw.random() * 100 < weight)
                _serve(arms[index], (baseline, canary)[index], draw)
            self._seconds.append((arms[0].copy(), arms[1].copy()))

    def series(self, query: str, window: Window) -> list[Series]:
        self.asked.append(query)
        if "timestamp(" in query:
            return self._seen(window, router=queries.ROUTER_UPTIME in query)
        if queries.TRIES in query:
            return self._router_since_start(window)
        if vllm_metrics.WITNESS in query and queries.FINISHED in query:
            return self._engines(window)
        if any(name in query for name in vllm_metrics.HISTOGRAMS) or "process_start" in query:
            return self._engines(window) if queries.FINISHED in query else []
        if queries.LATENCY in query:
            return self._latencies(window)
        if queries.COMPLETED in query:
            return self._router(window)
        if TOOL_CALLS in query:
            return self._tool_calls(window, errors='outcome="error"' in query)
        return self._engines(window)

    def _at(self, instant: float, arm: int) -> _Arm | None:
        second = math.floor(instant - self._begin.timestamp()) // 5 * 5
        return self._seconds[second][arm] if 0 <= second < len(self._seconds) else None

    def _line(self, window: Window, arm: int, name: str, value: Any, **labels: str) -> Series:
        points = []
        for at in range(window.start_ms, window.end_ms + 1, window.step_ms):
            state = self._at(at / 1000, arm)
            if state is not None:
                points.append((at / 1000, float(value(state))))
        return Series({"__name__": name, "namespace": "inference", **labels}, points)

    def _router(self, window: Window) -> list[Series]:
        found = []
        for arm, slot in enumerate(("blue", "green")):
            labels = {"pod": "llama-router-6d9f7c8b5d-aaaaa", queries.CLUSTER_LABEL: slot}
            fives = {**labels, queries.CLASS_LABEL: "5"}
            found += [
                self._line(window, arm, queries.COMPLETED, lambda s: s.completed, **labels),
                self._line(window, arm, queries.TIMEOUTS, lambda s: 0, **labels),
                self._line(window, arm, queries.BY_CLASS, lambda s: s.failed, **fives),
            ]
        return found

    def _seen(self, window: Window, *, router: bool) -> list[Series]:
        """When each pod was scraped last; it is asked for as a value."""
        pods = ["llama-router-6d9f7c8b5d-aaaaa"]
        if not router:
            pods = [f"{pool}-6d9f7c8b5d-bbbbb" for pool in ("llama", self._pool)]
        instants = range(window.start_ms, window.end_ms + 1, window.step_ms)
        points = [(ms / 1000, ms / 1000) for ms in instants if self._at(ms / 1000, 0) is not None]
        return [Series({"namespace": "inference", "pod": pod}, points) for pod in pods]

    def _router_since_start(self, window: Window) -> list[Series]:
        found = []
        for arm, slot in enumerate(("blue", "green")):
            labels = {"pod": "llama-router-6d9f7c8b5d-aaaaa", queries.CLUSTER_LABEL: slot}
            fives = {**labels, queries.CLASS_LABEL: "5"}
            found += [
                self._line(window, arm, queries.TRIES, lambda s: s.completed, **labels),
                self._line(window, arm, queries.ACTIVE, lambda _: 0, **labels),
                self._line(window, arm, queries.BY_CLASS, lambda s: s.failed, **fives),
            ]
        return found

    def _latencies(self, window: Window) -> list[Series]:
        found = []
        for arm, slot in enumerate(("blue", "green")):
            for index, bound in enumerate(BOUNDS):
                labels = {
                    "pod": "llama-router-6d9f7c8b5d-aaaaa",
                    queries.CLUSTER_LABEL: slot,
                    "le": "+Inf" if math.isinf(bound) else str(bound),
                }

                def value(state: _Arm, index: int = index) -> int:
                    return state.buckets[index]

                found.append(self._line(window, arm, queries.LATENCY, value, **labels))
        return found

    def _tool_calls(self, window: Window, *, errors: bool) -> list[Series]:
        """One call to each request; of the canary's, a third goes wrong."""
        share = (0.0, 1 / 3) if errors else (1.0, 1.0)
        return [
            self._line(
                window,
                arm,
                "",
                lambda s, part=share[arm]: s.completed * part,
                pod=f"{pool}-6d9f7c8b5d-bbbbb",
            )
            for arm, pool in enumerate(("llama", self._pool))
        ]

    def _engines(self, window: Window) -> list[Series]:
        found = []
        for arm, pool in enumerate(("llama", self._pool)):
            labels = {"pod": f"{pool}-6d9f7c8b5d-bbbbb"}
            found += [
                self._line(window, arm, queries.FINISHED, lambda s: s.completed, **labels),
                self._line(window, arm, queries.PREEMPTIONS, lambda s: s.preemptions, **labels),
            ]
        return found


def good() -> StoryHistory:
    """An FP8 canary that is a little quicker and hardly preempts."""
    return StoryHistory(
        GOOD, Behaviour(0.62, preempting=0.03), Behaviour(0.55, preempting=0.004), "llama-fp8-pool"
    )


def bad() -> StoryHistory:
    """An INT8 canary that is more than three times slower and fails now and then."""
    return StoryHistory(
        BAD,
        Behaviour(0.62, preempting=0.03),
        Behaviour(2.3, 0.5, failing=0.04, preempting=0.002),
        "llama-int8-pool",
    )


def end() -> datetime:
    """An instant after both stories."""
    return made.NOW


def _serve(arm: _Arm, behaviour: Behaviour, draw: random.Random) -> None:
    milliseconds = 1000 * behaviour.median * math.exp(draw.gauss(0, behaviour.spread))
    for index, bound in enumerate(BOUNDS):
        if milliseconds <= bound:
            arm.buckets[index] += 1
    arm.completed += 1
    arm.failed += draw.random() < behaviour.failing
    arm.preemptions += draw.random() < behaviour.preempting


def _poisson(draw: random.Random, mean: float) -> int:
    limit, product, count = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        count += 1
    return count
