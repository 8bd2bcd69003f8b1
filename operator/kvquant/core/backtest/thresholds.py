"""What static thresholds would have done: the rules that people write for Flagger and Argo.

Both ask every minute for the canary's p99 over the last minute and compare it with a number, here a
multiple of what the pool had shown before. The rules are those of their controllers (cited in
`bench/decisions`): Flagger rolls back once five checks have failed in the whole rollout, a check
without data among them; an Argo AnalysisRun, which begins anew in each step, once more than three
measurements have failed, or more than four in a row had no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from kvquant.core.analysis.arms import Latency
from kvquant.core.analysis.samples import Arm, Bins
from kvquant.core.evidence import Histogram

MINUTE = 60.0
FACTORS = (1.25, 2.0)
FLAGGER_THRESHOLD = 5
ARGO_FAILURE_LIMIT = 3
ARGO_CONSECUTIVE_ERRORS = 4

Counts = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Check:
    """One minute's p99 of the canary.

    Attributes:
        at: End of the minute, in seconds since the epoch.
        step: Step in effect.
        p99: In seconds; None without a request.
    """

    at: float
    step: int
    p99: float | None


@dataclass(frozen=True, slots=True)
class Ruled:
    """What a static rule would have done.

    Attributes:
        rule: The rule in words.
        limit: Its threshold in seconds; None when nothing was known to derive it from.
        rolled_back_at: When it would have rolled back, in seconds since the epoch; None: never.
        failed: Checks that failed until then, or to the end.
        checks: Checks that were made until then, or to the end.
    """

    rule: str
    limit: float | None
    rolled_back_at: float | None
    failed: int
    checks: int


class _Counted:
    """Adds up the latencies of an arm, pod by pod, through restarts."""

    def __init__(self) -> None:
        self.bounds: tuple[float, ...] = ()
        self.total: Counts | None = None
        self._pods: dict[str, Counts] = {}

    def take(self, arm: Arm) -> None:
        for name, bins in _latencies(arm):
            if not self.bounds:
                self.bounds = bins.bounds
                self.total = np.zeros(len(bins.bounds))
            if bins.bounds != self.bounds or self.total is None:
                continue
            now = np.array(bins.counts)
            before = self._pods.get(name)
            self._pods[name] = now
            if before is not None:
                # A counter that fell has begun anew at zero.
                self.total = self.total + (now - before if now[-1] >= before[-1] else now)

    def since(self, before: Counts | None) -> Counts | None:
        if self.total is None:
            return None
        return self.total if before is None else self.total - before


class Thresholds:
    """Takes the same ticks as the analysis and tells what static rules would have done."""

    def __init__(self, time_scale: float = 1.0) -> None:
        """Begin without checks.

        Args:
            time_scale: Factor by which recorded time was compressed.
        """
        self._minute = MINUTE / time_scale
        self._canary, self._baseline = _Counted(), _Counted()
        self._history: Counts | None = None
        self._before: Counts | None = None
        self._next: float | None = None
        self._checks: list[Check] = []

    def take(self, at: float, step: int, baseline: Arm, canary: Arm) -> None:
        """Take in one instant.

        Args:
            at: Seconds since the epoch.
            step: Step in effect; 0 before the canary gets traffic.
            baseline: The pool that serves.
            canary: The pool that is checked.
        """
        self._baseline.take(baseline)
        self._canary.take(canary)
        if step <= 0:
            self._history = self._baseline.total
            return
        if self._next is None:
            self._next, self._before = at + self._minute, self._canary.total
        elif at >= self._next - 1e-6:
            grown = self._canary.since(self._before)
            self._checks.append(Check(at, step, _p99(self._canary.bounds, grown)))
            self._next, self._before = at + self._minute, self._canary.total

    def ruled(self) -> tuple[Ruled, ...]:
        """Return what each rule would have done."""
        usual = _p99(self._baseline.bounds, self._history)
        whence = "what the pool showed before"
        if usual is None:
            usual = _p99(self._baseline.bounds, self._baseline.total)
            whence = "the baseline's in all of this time, known only afterwards"
        found = []
        for factor in FACTORS:
            limit = None if usual is None else factor * usual
            for name, rule in (("Flagger", _flagger), ("Argo Rollouts", _argo)):
                text = f"{name}: p99 of a minute above {factor:g} times {whence}"
                found.append(_ruled(text, limit, rule, self._checks))
        return tuple(found)


Rule = Callable[[Sequence[Check], float], tuple[float | None, int, int]]


def _ruled(text: str, limit: float | None, rule: Rule, checks: Sequence[Check]) -> Ruled:
    if limit is None:
        return Ruled(text, None, None, 0, 0)
    at, failed, made = rule(checks, limit)
    return Ruled(text, limit, at, failed, made)


def _flagger(checks: Sequence[Check], limit: float) -> tuple[float | None, int, int]:
    failed = 0
    for made, check in enumerate(checks, 1):
        failed += check.p99 is None or check.p99 > limit
        if failed >= FLAGGER_THRESHOLD:
            return check.at, failed, made
    return None, failed, len(checks)


def _argo(checks: Sequence[Check], limit: float) -> tuple[float | None, int, int]:
    made = all_failed = 0
    for _, run in groupby(checks, key=lambda check: check.step):
        failed = errors = 0
        for check in run:
            made += 1
            errors = errors + 1 if check.p99 is None else 0
            bad = check.p99 is not None and check.p99 > limit
            failed += bad
            all_failed += bad
            if failed > ARGO_FAILURE_LIMIT or errors > ARGO_CONSECUTIVE_ERRORS:
                return check.at, all_failed, made
    return None, all_failed, made


def _latencies(arm: Arm) -> Iterator[tuple[str, Bins]]:
    """Yield the latency of each router of an arm or, where there is none, of each engine."""
    sides: Mapping[str, Bins | None] = {name: r.latency for name, r in arm.routers.items()}
    if not arm.routers:
        sides = {name: engine.e2e for name, engine in arm.engines.items()}
    for name, bins in sides.items():
        if bins is not None:
            yield name, bins


def _p99(bounds: tuple[float, ...], counts: Counts | None) -> float | None:
    if counts is None or not counts[-1] > 0:
        return None
    return Latency(Histogram(bounds, tuple(counts.tolist())), 0.0).quantile(0.99)
