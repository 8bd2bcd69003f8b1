"""The rule of Kayenta: Mann-Whitney on minute values, and a score (spinnaker/kayenta at a69573b).

- Each metric's values of canary and baseline are compared by the confidence interval of the
  Hodges-Lehmann shift at 98 %, with a tolerance of a quarter of the estimate: High when the lower
  end lies above it (kayenta-judge/.../NetflixACAJudge.scala:146,
  classifiers/metric/MannWhitneyClassifier.scala:72-79, 105-143). The interval is found as the root
  of the normal approximation with corrections for ties and continuity
  (kayenta-mannwhitney/.../MannWhitney.scala:58-108).
- Equal data pass (MannWhitneyClassifier.scala:166-175); no data are Nodata (:152-164), which
  counts neither for nor against, unless half of the metrics have none: then the score is nought
  (judge/scorers/WeightedSumScorer.scala:84-88, :98-100).
- The score is the weighted sum over groups of the share of metrics that pass (:29-78).
- Judgements are made at an interval over a growing window; a score at or below `marginal` ends
  the analysis at once (kayenta-standalone-canary-analysis/.../MonitorCanaryTask.java:116), and
  the last must reach `pass` (GenerateCanaryAnalysisResultTask.java:228-254).

Judged here: p50, p90, p99 and the share of failed requests, in groups of equal weight for latency
and errors, the harmful direction alone; NaN is left out, for errors it is nought. One judgement
after five and one after ten minutes of a step. Kayenta wants a baseline of the canary's size and
load, so the last step, in which the baseline is all but idle, is waited out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bench.decisions.books import Counted
from bench.decisions.rules import CHECK, EveryMinute, Look, Move
from bench.decisions.world import BASELINE, CANARY

_TOLERANCE = 0.25
_Z = 2.3263478740408408
"""The normal quantile of confidence 98 %, two-sided."""
_JUDGEMENTS = (5, 10)
"""Minutes of a step after which it is judged; the last is final."""
_LATENCY: dict[str, Callable[[Counted], float]] = {
    "p50": lambda counted: counted.quantile(0.5),
    "p90": lambda counted: counted.quantile(0.9),
    "p99": lambda counted: counted.quantile(0.99),
}


def _ranks(values: Sequence[float]) -> tuple[list[float], float]:
    """Return average ranks, and the sum of t^3 - t over the ties."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks, ties, start = [0.0] * len(values), 0.0, 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for index in order[start : end + 1]:
            ranks[index] = (start + end) / 2 + 1
        size = end - start + 1
        ties += size**3 - size
        start = end + 1
    return ranks, ties


def _statistic(shift: float, x: Sequence[float], y: Sequence[float], z: float) -> float:
    m, n = len(x), len(y)
    ranks, ties = _ranks([*(value - shift for value in x), *y])
    difference = sum(ranks[:m]) - m * (m + 1) / 2 - m * n / 2
    spread = math.sqrt(m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1))))
    if not spread:
        raise ValueError("all observations are tied")
    return (difference - 0.5 * ((difference > 0) - (difference < 0))) / spread - z


def _root(x: Sequence[float], y: Sequence[float], z: float) -> float:
    """Return the shift at which the statistic, which falls with it, meets z."""
    low, high = min(x) - max(y), max(x) - min(y)
    if _statistic(low, x, y, z) <= 0:
        return low
    if _statistic(high, x, y, z) >= 0:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        if _statistic(middle, x, y, z) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def is_high(canary: Sequence[float], baseline: Sequence[float]) -> bool | None:
    """Tell whether the canary's values are High; None when there are no data to tell."""
    if not canary or not baseline:
        return None
    if sorted(canary) == sorted(baseline):
        return False
    try:
        lower, estimate = _root(canary, baseline, _Z), _root(canary, baseline, 0.0)
    except ValueError:
        return None
    ratio = (sum(canary) / len(canary)) / (sum(baseline) / len(baseline) or math.nan)
    return lower > _TOLERANCE * abs(estimate) and not ratio < 1


class Kayenta:
    """Scores, with thresholds for the last judgement of a step and for those before it.

    Attributes:
        name: Name in the tables.
    """

    def __init__(self, name: str, passing: float, marginal: float) -> None:
        """Pass a step at that score, and give up at or below the marginal one."""
        self.name = name
        self._passing = passing
        self._marginal = marginal
        self._minutes = EveryMinute()
        self._step = 0
        self._values: tuple[list[Counted | None], list[Counted | None]] = ([], [])

    def look(self, look: Look) -> tuple[Move, str]:
        """Say what to do, and why."""
        if look.step != self._step:
            self._step, self._values = look.step, ([], [])
        if not self._minutes.strikes(look):
            return Move.STAY, ""
        for arm in (BASELINE, CANARY):
            self._values[arm].append(look.books.increase(arm, look.now, CHECK))
        minute = len(self._values[CANARY])
        if minute not in _JUDGEMENTS:
            return (Move.ADVANCE if minute > _JUDGEMENTS[-1] else Move.STAY), ""
        if look.last:
            return (Move.ADVANCE if minute == _JUDGEMENTS[-1] else Move.STAY), "no control"
        score, why = self._score()
        last = minute == _JUDGEMENTS[-1]
        if score <= self._marginal or (last and score < self._passing):
            return Move.ROLL_BACK, f"score {score:.0f}: {why}"
        return (Move.ADVANCE if last else Move.STAY), f"score {score:.0f}"

    def _score(self) -> tuple[float, str]:
        highs = {name: is_high(*self._series(of)) for name, of in _LATENCY.items()}
        errors = is_high(*self._series(Counted.failed_share, nan=0.0))
        why = ", ".join(name for name, high in {**highs, "errors": errors}.items() if high)
        judged = [high for high in highs.values() if high is not None]
        if len(judged) + (errors is not None) <= 2:
            return 0.0, "no data"
        latency = 100 * judged.count(False) / len(judged)
        return (latency + (0.0 if errors else 100.0)) / 2, why or "nothing high"

    def _series(
        self, of: Callable[[Counted], float], nan: float | None = None
    ) -> tuple[list[float], list[float]]:
        """Return the canary's and the baseline's minute values."""
        both = []
        for arm in (CANARY, BASELINE):
            values = [of(c) if c is not None else math.nan for c in self._values[arm]]
            if nan is not None:
                values = [nan if math.isnan(value) else value for value in values]
            both.append([value for value in values if not math.isnan(value)])
        return both[0], both[1]
