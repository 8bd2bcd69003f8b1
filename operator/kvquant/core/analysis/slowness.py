"""How many requests took longer than a bound: answered, never answered, or still in flight."""

from __future__ import annotations

import numpy as np

from kvquant.core.analysis.batches import Ledger
from kvquant.core.analysis.comparing import SHARES, Counted, Harm, difference, from_history
from kvquant.core.analysis.sequential import Array
from kvquant.core.analysis.table import BASELINE, CANARY, Batches, finite


class Slowness:
    """Both arms' requests by how long they took, to be compared at any quantile."""

    def __init__(
        self,
        ledger: Ledger,
        batches: Batches,
        histogram: str,
        *,
        by_age: bool = False,
        history: Batches | None = None,
    ) -> None:
        """Pick out what can be compared.

        Args:
            ledger: Where the batches are from.
            batches: Over which to compare.
            histogram: Name of the histogram.
            by_age: Count requests in flight by their age, those that clients gave up as slow.
            history: Batches of the baseline to compare with instead, when it has other load now.
        """
        self._history = history
        bounds = ledger.bounds.get(source_of(histogram))
        self._bounds = bounds
        if bounds is None:
            return
        ours_told = batches.told(histogram, CANARY)
        if history is None:
            # Concurrent arms are compared batch by batch, so that both must tell.
            both = (batches.where(ours_told & batches.told(histogram, BASELINE)),) * 2
        else:
            both = (history.where(history.told(histogram, BASELINE)), batches.where(ours_told))
        if not len(both[BASELINE]) or not len(both[CANARY]):
            self._bounds = None
            return
        # The first bucket begins at zero; the last has no end, and nothing can be asked beyond it.
        self._edges = np.array((0.0, *bounds[:-1]))
        self._counts = [both[arm].histogram(histogram, arm) for arm in (BASELINE, CANARY)]
        self._in_all = self._counts[BASELINE].sum(axis=0)
        self._lost = 0.0
        self._aged: list[_Aged] | None = None
        if by_age:
            self._lost = float(finite(both[BASELINE].side("unanswered", BASELINE)).sum())
            self._aged = [
                _Aged(ledger, arm, histogram, self._edges, both[arm]) for arm in (BASELINE, CANARY)
            ]

    def beyond_quantile(self, quantile: float, factor: float, easy: float) -> Harm | None:
        """Compare the share of requests slower than the baseline's quantile.

        The canary may be slower by the factor: its share beyond `factor` times the quantile is held
        against the baseline's beyond the quantile itself. Interpolating within buckets cannot make
        equal arms unequal, as both are read off the same curve, which falls.

        Args:
            quantile: Quantile of the baseline.
            factor: Slow-down beyond which the canary fails, at least 1.
            easy: Slow-down below which it passes.
        """
        if self._bounds is None:
            return None
        edge = quantile_of(self._edges, self._in_all, self._lost, quantile)
        if edge is None or edge * max(factor, easy) > self._bounds[-2]:
            return None
        base = self._beyond(BASELINE, edge)
        ours = self._beyond(CANARY, edge * factor)
        compare = difference if self._history is None else from_history
        harm = compare(ours, base, 0.0, SHARES)
        if harm is None:
            return None
        return Harm(
            harm,
            lambda: compare(self._beyond(CANARY, edge * easy), base, 0.0, SHARES),
            base.share,
            ours.share,
            edge,
            factor,
            ours.every_one,
            self._share_beyond(edge * easy) - (1 - quantile),
        )

    def _beyond(self, arm: int, bound: float) -> Counted:
        """Return by batch how many of an arm's requests took longer, and of how many."""
        if self._aged is not None:
            fast, slow = self._aged[arm].split(bound)
        else:
            counts = self._counts[arm]
            fast = at_or_below(self._edges, counts, bound)
            slow = counts[:, -2] - fast
        return Counted(slow, fast + slow)

    def _share_beyond(self, bound: float) -> float:
        """Return the share of all that the baseline answered that took longer than a bound."""
        answered = float(self._in_all[-2])
        if answered <= 0:
            return 0.0
        below = float(at_or_below(self._edges, self._in_all[np.newaxis], bound)[0])
        return 1 - below / answered


class _Aged:
    """Requests of one arm that were slow, those in flight told by their age.

    Slow is what was answered too late, what was never answered, and what is in flight for longer
    than the bound: at most those that came within the bound can be younger than it, so that at
    least the rest is older. This never counts a request that is not slow. That what is known to be
    slow has been slow before makes the largest number so far the best lower bound.
    """

    def __init__(
        self, ledger: Ledger, arm: int, histogram: str, edges: Array, batches: Batches
    ) -> None:
        self._edges = edges
        known = ledger.table.all()
        self._rows = None if len(batches) == len(known) else batches.rows
        self._counts = known.histogram(histogram, arm)
        self._total = self._counts[:, -2]
        self._lost = finite(known.side("unanswered", arm)) + known.side("vanished", arm)
        self._ends = known.fact("end")
        flow = ledger.flows[arm].at_ends(self._ends)
        self._at, self._came_so_far, came_by_end, in_flight = flow
        self._in_flight_less_came = in_flight - came_by_end

    def split(self, bound: float) -> tuple[Array, Array]:
        """Return by batch how many took at most so long, and by how many those beyond grew."""
        fast = at_or_below(self._edges, self._counts, bound)
        late = finite(self._total - fast) + self._lost
        came_before = np.interp(self._ends - bound, self._at, self._came_so_far)
        old = np.maximum(0.0, self._in_flight_less_came + came_before)
        so_far = np.maximum.accumulate(np.cumsum(late) + old)
        grown = so_far.copy()
        grown[1:] -= so_far[:-1]
        grown = np.maximum(grown, 0.0)
        return (fast, grown) if self._rows is None else (fast[self._rows], grown[self._rows])


def source_of(histogram: str) -> str:
    """Return the name by which a ledger has a histogram's bounds."""
    if histogram == "latency":
        return "router.latency"
    return histogram if histogram.startswith("custom.") else f"engine.{histogram}"


def quantile_of(edges: Array, counts: Array, lost: float, quantile: float) -> float | None:
    """Return a quantile of a histogram, interpolated within its bucket; None beyond the bounds.

    Args:
        edges: Zero, and the finite bounds.
        counts: Cumulative counts, then the sum.
        lost: Requests that took longer than anything.
        quantile: Which.
    """
    total = float(counts[-2]) + lost
    if total <= 0:
        return None
    below = np.zeros(len(counts) - 1)
    below[1:] = counts[:-2]
    if quantile * total >= below[-1]:
        return None
    return float(np.interp(quantile * total, below, edges))


def at_or_below(edges: Array, counts: Array, bound: float) -> Array:
    """Return how many of each batch took at most so long, interpolated within the bucket."""
    j = int(edges.searchsorted(bound, side="left"))
    if j >= len(edges):
        return counts[:, len(edges) - 2]
    upper = counts[:, j - 1]
    share = (bound - edges[j - 1]) / (edges[j] - edges[j - 1])
    lower = counts[:, j - 2] if j >= 2 else 0.0
    result: Array = lower + share * (upper - lower)
    return result
