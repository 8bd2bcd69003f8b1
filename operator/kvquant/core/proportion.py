"""Exact (Clopper-Pearson) intervals of a share that was counted."""

from __future__ import annotations

import math


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def at_most(hits: int, of: int, p: float) -> float:
    """Return the probability of at most so many hits in so many independent trials."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return float(hits >= of)
    log_p, log_q = math.log(p), math.log1p(-p)
    return min(
        1.0,
        math.fsum(
            math.exp(_log_choose(of, k) + k * log_p + (of - k) * log_q) for k in range(hits + 1)
        ),
    )


def _share_where(hits: int, of: int, tail: float) -> float:
    """Return the share at which at most so many hits have that probability."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if at_most(hits, of, middle) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def upper(hits: int, of: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound of a share."""
    return 1.0 if hits >= of else _share_where(hits, of, 1 - confidence)


def interval(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a share."""
    tail = (1 - confidence) / 2
    low = 0.0 if not hits else _share_where(hits - 1, of, 1 - tail)
    return low, 1.0 if hits >= of else _share_where(hits, of, tail)
