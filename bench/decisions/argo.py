"""The rule of Argo Rollouts: one AnalysisRun per step (argoproj/argo-rollouts at 9f8d111).

- A measurement whose `successCondition` is not true is failed when there is no
  `failureCondition` (utils/evaluate/evaluate.go:40-50).
- The run fails when failed measurements exceed `failureLimit`, and errs when more than
  `consecutiveErrorLimit` in a row had an error, by default 4 (analysis/analysis.go:658-687,
  utils/defaults/defaults.go:37). An empty result cannot be evaluated, which is an error
  (evaluate.go:62-68, metricproviders/prometheus/prometheus.go:175-184).
- After an error it is tried again in 10 s instead of an interval (analysis/analysis.go:28-30,
  :735-737); errors do not count towards `count` (:401-405).
- The run succeeds when every metric has `count` measurements (:612-649). A run that failed or
  erred aborts the rollout (rollout/analysis.go:434-443).

The conditions here are those of the documentation's examples, guarded against NaN as it advises:
success rate at least 95 %, p99 at most a static limit, interval 1 m, count 10, failureLimit 3.
"""

from __future__ import annotations

import math

from bench.decisions.rules import CHECK, Look, Move
from bench.decisions.world import CANARY

_SUCCESS = 0.95
_COUNT = 10
_FAILURE_LIMIT = 3
_CONSECUTIVE_ERROR_LIMIT = 4
_RETRY = 10.0
"""Seconds until a measurement that erred is tried again."""


class _Metric:
    """What an AnalysisRun keeps of one metric."""

    def __init__(self, begin: float) -> None:
        self.failed = self.count = self.errors = 0
        self.next = begin + CHECK

    def measured(self, now: float, good: bool | None) -> str:
        """Note a measurement, None being an error; return why the run ends badly, if it does."""
        if good is None:
            self.errors += 1
            self.next = now + _RETRY
            if self.errors > _CONSECUTIVE_ERROR_LIMIT:
                return f"consecutiveErrors ({self.errors}) > {_CONSECUTIVE_ERROR_LIMIT}"
            return ""
        self.errors = 0
        self.count += 1
        self.failed += not good
        self.next = now + CHECK
        if self.failed > _FAILURE_LIMIT:
            return f"failed ({self.failed}) > failureLimit ({_FAILURE_LIMIT})"
        return ""


class Argo:
    """An AnalysisRun anew in each step.

    Attributes:
        name: Name in the tables.
    """

    def __init__(self, name: str, window: float, slowest: float) -> None:
        """Measure over that many seconds, and allow a p99 of that many."""
        self.name = name
        self._window = window
        self._slowest = slowest
        self._step = 0
        self._metrics: dict[str, _Metric] = {}

    def look(self, look: Look) -> tuple[Move, str]:
        """Say what to do, and why."""
        if not look.step:
            return Move.STAY, ""
        if look.step != self._step:
            self._step = look.step
            self._metrics = {name: _Metric(look.since) for name in ("success-rate", "p99")}
        counted = look.books.increase(CANARY, look.now, self._window)
        for name, metric in self._metrics.items():
            if metric.count >= _COUNT or look.now + 1e-6 < metric.next:
                continue
            good: bool | None = None
            if counted is not None:
                if name == "success-rate":
                    value = 1 - counted.failed_share()
                    good = math.isnan(value) or value >= _SUCCESS
                else:
                    value = counted.quantile(0.99)
                    good = math.isnan(value) or value <= self._slowest
            wrong = metric.measured(look.now, good)
            if wrong:
                return Move.ROLL_BACK, f"{name}: {wrong}"
        if all(metric.count >= _COUNT for metric in self._metrics.values()):
            return Move.ADVANCE, "AnalysisRun successful"
        return Move.STAY, ""
