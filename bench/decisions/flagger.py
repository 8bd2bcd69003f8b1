"""The rule of Flagger, as its controller applies it (fluxcd/flagger at 15bd6ad).

- Every analysis interval all metrics are checked in order; the first that misses its threshold
  fails the check (pkg/controller/scheduler_metrics.go:143-257). The built-in metrics are the
  percentage of answers that are no 5xx (at least the threshold, :177) and the p99 of the duration
  (at most the threshold, :212), both of the canary alone, over the metric's interval of 1 m
  (pkg/apis/flagger/v1beta1/canary.go:36; pkg/metrics/observers/istio.go:27-63).
- A query that fails, and one without values or with NaN, fails the check just so
  (scheduler_metrics.go:154-163, pkg/metrics/providers/prometheus.go:170-171).
- A failed check halts the advance and is counted; the count is of the whole rollout, it is not
  set back by a check that succeeds (pkg/controller/scheduler.go:461-466, :344).
- Once it has reached `threshold` the next pass rolls back (scheduler.go:429-440).

Flagger raises the weight with every check that succeeds. Here it takes ten of them to climb a
step, which is the soak that every rule has to keep.
"""

from __future__ import annotations

import math

from bench.decisions.rules import CHECK, SOAK, EveryMinute, Look, Move
from bench.decisions.world import CANARY

_SUCCESS = 99.0
"""Per cent: the threshold of `request-success-rate` in Flagger's own tutorials."""
_THRESHOLD = 5
"""Failed checks until rollback, as in Flagger's own tutorials."""


class Flagger:
    """Static thresholds, checked once a minute.

    Attributes:
        name: Name in the tables.
    """

    def __init__(self, name: str, window: float, slowest: float) -> None:
        """Check over that many seconds, and allow a p99 of that many."""
        self.name = name
        self._window = window
        self._slowest = slowest
        self._minutes = EveryMinute()
        self._failed = 0
        self._step = 0
        self._good = 0
        self._last = ""

    def look(self, look: Look) -> tuple[Move, str]:
        """Say what to do, and why."""
        if look.step != self._step:
            self._step, self._good = look.step, 0
        if not self._minutes.strikes(look):
            return Move.STAY, ""
        if self._failed >= _THRESHOLD:
            return Move.ROLL_BACK, f"failed checks threshold reached; last: {self._last}"
        complaint = self._check(look)
        if complaint:
            self._failed += 1
            self._last = complaint
            return Move.STAY, complaint
        self._good += 1
        return (Move.ADVANCE if self._good * CHECK >= SOAK else Move.STAY), "checks passed"

    def _check(self, look: Look) -> str:
        counted = look.books.increase(CANARY, look.now, self._window)
        if counted is None or not counted.ended:
            return "no values for request-success-rate"
        success = 100 * (1 - counted.failed_share())
        if success < _SUCCESS:
            return f"success rate {success:.1f} % < {_SUCCESS} %"
        slowest = counted.quantile(0.99)
        if math.isnan(slowest):
            return "no values for request-duration"
        if slowest > self._slowest:
            return f"request duration {slowest:.1f} s > {self._slowest:.1f} s"
        return ""
