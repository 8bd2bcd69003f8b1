"""The signals: what each compares, over which batches, and how its harm is put as one number.

Every signal is turned into *harm beyond its tolerance*: below zero the canary is within it, above
zero beyond. A FAIL needs its lower bound above zero, a PASS its upper bound near or below it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from kvquant.core.analysis.batches import BASELINE, CANARY, Batch, Ledger, stack
from kvquant.core.analysis.sequential import Array, Estimate, Prior, estimate

RELAXED = 1.2
"""A pass may be wrong by a fifth of the tolerance: being sure of less would take for ever, since
a canary that is exactly at its tolerance never shows to be within it."""

POOLING = 0.15
"""Slow-down of one pod against very many at the same load per pod, because one pod balances its
load less well: 7 to 15 % were measured for 1 against 7, 2 to 6 % for 2 against 6."""

# Of shares at the router: at medium load the variance is one to two times the binomial one, while
# nothing queues; bursts and long prompts make it more.
SHARES = Prior(inflation=3.0, batches=20.0, floor=1.0)
FAILURES = Prior(inflation=2.5, batches=15.0, floor=1.0)
# Preemptions come in clusters: a full cache throws out one sequence after the other.
FAULTS = Prior(inflation=6.0, batches=20.0, floor=2.0)
# Logarithms of ratios of means; `SCATTER` is the deviation of one request's.
RATIOS = Prior(inflation=1.0, batches=15.0, floor=0.05)
SCATTER = 0.5

DELIVERED = 0.92
"""Share of what comes that a queueing canary must deliver: two equal engines differed by less."""

DEEP = 0.3
"""Share of an arm's requests that wait, in one batch after the other, at which it is at its limit
beyond doubt."""

FEW = 4
"""Batches from which on it is known what a baseline pod carries."""

RARE = 0.05
"""Shares below this have skewed counts: their variance is taken where it is largest."""


@dataclass(frozen=True, slots=True)
class Harm:
    """One signal's harm beyond its tolerance over some batches.

    Attributes:
        estimate: Harm beyond the tolerance, for a verdict of FAIL.
        relaxed: Harm beyond the relaxed tolerance, for a verdict of PASS.
        baseline: The baseline's value, in the signal's unit.
        canary: The canary's.
        edge: For shares of slow requests, the baseline's quantile in seconds; else NaN.
        factor: Slow-down that is tolerated.
        requests: Canary requests behind it.
    """

    estimate: Estimate
    relaxed: Estimate
    baseline: float
    canary: float
    edge: float = math.nan
    factor: float = 1.0
    requests: float = 0.0


def usable(batches: Sequence[Batch]) -> list[Batch]:
    """Return the batches that are evidence of anything but deaths."""
    return [b for b in batches if b.warm and b.whole and b.calm and b.weight > 0 and b.step > 0]


def clear(batches: Sequence[Batch], threshold: float) -> list[Batch]:
    """Return the batches in which neither arm queues: there end-to-end latency is the engine's."""
    return [b for b in batches if not any(queues(b, arm, threshold) for arm in (0, 1))]


def queues(batch: Batch, arm: int, threshold: float) -> bool:
    """Tell whether an arm has a backlog: a tenth of its requests wait, and one a pod at least."""
    side = batch.sides[arm]
    waiting = side.queued * side.running / max(1e-9, 1 - side.queued) if side.queued < 1 else 1e9
    return side.queued >= threshold and waiting >= max(1.0, side.replicas)


def queue_allowance(batches: Sequence[Batch]) -> float:
    """Return by which factor the canary's requests take longer for what little more they queue.

    One pod queues more than eight at the same load each, which is not the engine's doing.
    """
    queued = [
        [b.sides[arm].queued for b in batches if math.isfinite(b.sides[arm].queued)]
        for arm in (BASELINE, CANARY)
    ]
    if not all(queued):
        return 1.0
    base, canary = (min(0.9, float(np.mean(one))) for one in queued)
    return max(1.0, (1 - base) / (1 - canary))


def slower(
    ledger: Ledger,
    batches: Sequence[Batch],
    histogram: str,
    quantile: float,
    factor: float,
    *,
    by_age: bool,
    history: Sequence[Batch] = (),
) -> Harm | None:
    """Compare the share of requests slower than the baseline's quantile.

    The canary may be slower by the factor: its share beyond `factor` times the quantile is held
    against the baseline's beyond the quantile itself. Interpolating within buckets cannot make
    equal arms unequal, as both are read off the same curve, which falls.

    Args:
        ledger: Where the batches are from.
        batches: Over which to compare.
        histogram: Name of the histogram.
        quantile: Quantile of the baseline.
        factor: Tolerated slow-down, at least 1.
        by_age: Count requests in flight by their age, those that clients gave up as slow.
        history: Batches of the baseline to compare with instead, when it has other load now.
    """
    source = "router.latency" if histogram == "latency" else f"engine.{histogram}"
    bounds = ledger.bounds.get(source)
    if bounds is None:
        return None
    told = [
        [b for b in source if _told(b, arm, histogram)]
        for arm, source in ((BASELINE, history or batches), (CANARY, batches))
    ]
    if not history:
        # Concurrent arms are compared batch by batch, so that both must tell.
        told = [[b for b in told[CANARY] if _told(b, BASELINE, histogram)]] * 2
    both = (told[BASELINE], told[CANARY])
    if not both[BASELINE] or not both[CANARY]:
        return None
    # The first bucket begins at zero; the last has no end, and nothing can be asked beyond it.
    edges = np.array((0.0, *bounds[:-1]))
    counts = [np.stack([b.sides[arm].bins[histogram] for b in both[arm]]) for arm in (0, 1)]
    lost = [_lost(both[arm], arm) if by_age else np.zeros(len(both[arm])) for arm in (0, 1)]
    edge = _quantile(edges, counts[BASELINE].sum(axis=0), float(lost[BASELINE].sum()), quantile)
    if edge is None or edge * (1 + RELAXED * (factor - 1)) > bounds[-2]:
        return None

    def beyond(arm: int, bound: float) -> tuple[Array, Array]:
        fast = _at_or_below(edges, counts[arm], bound)
        slow = counts[arm][:, -2] - fast + lost[arm]
        if by_age:
            slow = slow + _grown_old(ledger, arm, both[arm], bound)
        return slow, np.maximum(fast + slow, 0.0)

    base = beyond(BASELINE, edge)
    ours = beyond(CANARY, edge * factor)
    easier = beyond(CANARY, edge * (1 + RELAXED * (factor - 1)))
    difference = _from_history if history else _difference
    harm = difference(*ours, *base, 0.0, SHARES)
    relaxed = difference(*easier, *base, 0.0, SHARES)
    if harm is None or relaxed is None:
        return None
    return Harm(
        harm,
        relaxed,
        float(base[0].sum() / base[1].sum()),
        float(ours[0].sum() / ours[1].sum()),
        edge,
        factor,
        float(ours[1].sum()),
    )


def quantile_of(
    ledger: Ledger, batches: Sequence[Batch], arm: int, quantile: float
) -> float | None:
    """Return an arm's latency quantile in seconds, for people; None beyond the bounds."""
    bounds = ledger.bounds.get("router.latency")
    told = [b for b in batches if _told(b, arm, "latency")]
    if bounds is None or not told:
        return None
    edges = np.array((0.0, *bounds[:-1]))
    counts = np.sum([b.sides[arm].bins["latency"] for b in told], axis=0)
    lost = sum(_finite(b.sides[arm].unanswered) for b in told)
    return _quantile(edges, counts, lost, quantile)


def _lost(batches: Sequence[Batch], arm: int) -> Array:
    """Return the requests that never got an answer, or whose clients gave up waiting for one."""
    sides = [b.sides[arm] for b in batches]
    return np.array([_finite(side.unanswered) + side.vanished for side in sides])


def _told(batch: Batch, arm: int, histogram: str) -> bool:
    bins = batch.sides[arm].bins.get(histogram)
    return bins is not None and math.isfinite(float(bins[-2]))


def _quantile(edges: Array, counts: Array, lost: float, quantile: float) -> float | None:
    total = float(counts[-2]) + lost
    if total <= 0:
        return None
    below = np.concatenate(([0.0], counts[:-2]))
    if quantile * total >= below[-1]:
        return None
    return float(np.interp(quantile * total, below, edges))


def _at_or_below(edges: Array, counts: Array, bound: float) -> Array:
    """Return how many of each batch took at most so long, interpolated within the bucket."""
    j = int(np.searchsorted(edges, bound, side="left"))
    if j >= len(edges):
        return counts[:, len(edges) - 2]
    upper = counts[:, j - 1]
    lower = counts[:, j - 2] if j >= 2 else np.zeros(len(counts))
    share = (bound - edges[j - 1]) / (edges[j] - edges[j - 1])
    result: Array = lower + share * (upper - lower)
    return result


def _grown_old(ledger: Ledger, arm: int, batches: Sequence[Batch], bound: float) -> Array:
    """Return by how many the requests in flight for longer than a bound grew in each batch.

    At most those that came within the bound can be younger than it, so that at least the rest of
    those in flight is older. This never counts a request that is not.
    """
    flow = ledger.flows[arm]
    at, started, active = map(np.asarray, (flow.at, flow.started, flow.active))

    def old(instants: Array) -> Array:
        came = np.interp(instants, at, started) - np.interp(instants - bound, at, started)
        in_flight = np.interp(instants, at, np.nan_to_num(active))
        result: Array = np.maximum(0.0, in_flight - came)
        return result

    ends = stack(list(batches), lambda b: b.end)
    begins = stack(list(batches), lambda b: b.begin)
    return old(ends) - old(begins)


def tokens_slower(
    batches: Sequence[Batch], factor: float, history: Sequence[Batch] = ()
) -> Harm | None:
    """Compare the mean time between two tokens, batch by batch, as the logarithm of its ratio.

    Args:
        batches: Over which to compare.
        factor: Tolerated slow-down, at least 1.
        history: Batches of the baseline to compare with instead, when it has other load now.
    """
    past = [b.sides[BASELINE] for b in history if _told(b, BASELINE, "itl")]
    rows = []
    for b in batches:
        base, canary = (side.bins.get("itl") for side in b.sides)
        if past:
            base = np.sum([side.bins["itl"] for side in past], axis=0)
        if base is None or canary is None or len(base) != len(canary):
            continue
        if min(base[-2], canary[-2], base[-1], canary[-1]) <= 0:
            continue
        requests = [_finite(side.ended) or _finite(side.finished) for side in b.sides]
        if past:
            requests[BASELINE] = sum(_finite(side.ended) for side in past)
        if min(requests) <= 0:
            continue
        rows.append((base[-1] / base[-2], canary[-1] / canary[-2], *requests))
    if not rows:
        return None
    means_b, means_c, n_b, n_c = np.array(rows, dtype=np.float64).T
    return _ratio(np.log(means_c / means_b), n_c, n_b, factor, means_b, means_c)


def carried(batches: Sequence[Batch], arm: int, threshold: float) -> float:
    """Return the most requests per second that a pod of an arm has carried without a backlog.

    Taken as the mean over one step, or over the time before the first: what it did for a while,
    and not by a lucky draw.
    """
    rates: dict[int, list[float]] = defaultdict(list)
    for b in batches:
        side = b.sides[arm]
        if b.whole and b.calm and not queues(b, arm, threshold):
            rates[b.visit].append(side.ended / max(1.0, side.replicas) / b.seconds)
    return max((fmean(one) for one in rates.values() if len(one) >= FEW), default=0.0)


def less_delivered(
    batches: Sequence[Batch], floor: float, threshold: float, carried_before: float
) -> Harm | None:
    """Compare what the canary delivers while it queues with what a baseline pod carries.

    A queueing engine works at its limit, so that what it delivers is what it can. It is worse when
    that is less than what a baseline pod delivers at the same time or carried before; of two equal
    engines one may queue for long, but it delivers as much as the other. Requests, prompt tokens
    and generated tokens count alike: by themselves they differ by the luck of the draw.

    Args:
        batches: Usable batches; those in which the canary does not queue are passed over.
        floor: Share of it that must be delivered.
        threshold: Share of requests waiting from which on an arm queues.
        carried_before: Requests per second that a baseline pod carries without a backlog.
    """
    rows, weights = [], []
    was_deep = False
    for b in batches:
        base, canary = b.sides
        is_deep = queues(b, CANARY, DEEP)
        at_limit, was_deep = is_deep and was_deep, is_deep
        if not queues(b, CANARY, threshold) or not canary.started > 0 or not base.ended > 0:
            continue
        pods_b, pods_c = max(1.0, base.replicas), max(1.0, canary.replicas)
        asked = canary.started / pods_c
        theirs = max(base.ended / pods_b, carried_before * b.seconds)
        # An engine with a deep queue all the time works at its limit whatever comes. With a short
        # one it may have had too little to do now and then.
        wanted = theirs if at_limit else min(asked, theirs)
        # What timed out has ended, but was not delivered.
        done = canary.ended - _finite(canary.unanswered)
        row = [(done + 0.5) / pods_c / wanted]
        for tokens, ours in (
            (base.tokens, canary.tokens),
            (base.prompt_tokens, canary.prompt_tokens),
        ):
            per_request = tokens / base.ended
            row.append(ours / pods_c / per_request / wanted if per_request > 0 else math.nan)
        rows.append(row)
        weights.append(done + canary.started)
    if not rows:
        return None
    # Each of the three is as large for equal engines, and together they scatter least.
    ratios = np.maximum(np.nanmean(np.array(rows), axis=1), 1e-3)
    worth = np.array(weights) / 4  # a quotient of two counts, each of half as many requests
    harm = math.log(floor) - np.log(ratios)
    found = estimate(harm, worth, SCATTER * SCATTER, RATIOS)
    relaxed = estimate(harm + math.log(0.95), worth, SCATTER * SCATTER, RATIOS)
    if found is None or relaxed is None:
        return None
    mean = math.exp(float(np.average(np.log(ratios), weights=worth)))
    return Harm(found, relaxed, 1.0, mean, requests=float(sum(weights)) / 2)


def failures(batches: Sequence[Batch], tolerance: float, threshold: float) -> Harm | None:
    """Compare the shares of failed requests; what a backlog lets time out is not counted twice."""

    def bad(b: Batch, arm: int) -> float:
        side = b.sides[arm]
        if queues(b, arm, threshold):
            return max(0.0, side.failed - _finite(side.unanswered))
        return side.failed

    return _shares(
        stack(list(batches), lambda b: bad(b, CANARY)),
        stack(list(batches), lambda b: b.sides[CANARY].ended),
        stack(list(batches), lambda b: bad(b, BASELINE)),
        stack(list(batches), lambda b: b.sides[BASELINE].ended),
        tolerance,
    )


def page_faults(batches: Sequence[Batch], tolerance: float) -> Harm | None:
    """Compare preemptions per finished request with twice the baseline's.

    Capped at one in two requests per batch, so that a single bad half minute is not everything.
    """
    cap = 0.5
    finished = [np.array([b.sides[arm].finished for b in batches]) for arm in (0, 1)]
    events = [np.array([b.sides[arm].preemptions for b in batches]) for arm in (0, 1)]
    # A doubled baseline is what its own scatter looks like in a batch.
    base = np.minimum(2 * np.minimum(events[0], cap * finished[0]), finished[0])
    return _shares(
        np.minimum(events[1], cap * finished[1]), finished[1], base, finished[0], tolerance, FAULTS
    )


def custom_share(
    batches: Sequence[Batch], name: str, tolerance: float, *, higher_is_worse: bool
) -> Harm | None:
    """Compare a share of the user's."""
    nothing = (math.nan, math.nan)

    def read(part: str, arm: int) -> Array:
        return stack(list(batches), lambda b: b.custom.get(f"custom.{name}.{part}", nothing)[arm])

    base, canary = read("events", BASELINE), read("events", CANARY)
    if not higher_is_worse:
        base, canary = read("total", BASELINE) - base, read("total", CANARY) - canary
    return _shares(canary, read("total", CANARY), base, read("total", BASELINE), tolerance)


def _shares(
    canary: Array,
    canary_total: Array,
    baseline: Array,
    baseline_total: Array,
    tolerance: float,
    prior: Prior = FAILURES,
) -> Harm | None:
    sound = np.isfinite(canary + canary_total + baseline + baseline_total)
    sound &= (canary_total > 0) & (baseline_total > 0)
    if not sound.any():
        return None
    xc, nc, xb, nb = (part[sound] for part in (canary, canary_total, baseline, baseline_total))
    harm = _difference(xc, nc, xb, nb, tolerance, prior)
    relaxed = _difference(xc, nc, xb, nb, RELAXED * tolerance, prior)
    alone = _alone(xc, nc, RELAXED * tolerance, prior)
    if harm is None or relaxed is None or alone is None:
        return None
    # No baseline is better than one without any event: however little is known of this one, the
    # canary's own share is the most by which it can be worse.
    relaxed = min(relaxed, alone, key=Estimate.sound_upper)
    return Harm(
        harm,
        relaxed,
        float(xb.sum() / nb.sum()),
        float(xc.sum() / nc.sum()),
        requests=float(nc.sum()),
    )


def _difference(
    xc: Array, nc: Array, xb: Array, nb: Array, tolerance: float, prior: Prior
) -> Estimate | None:
    """Return the mean difference of two shares beyond a tolerance.

    Batches are weighted as by Mantel and Haenszel (1959); the unit of variance is the binomial one
    of equal arms.
    """
    weights = np.where((nc > 0) & (nb > 0), nc * nb / np.maximum(nc + nb, 1e-9), 0.0)
    total_c, total_b = float(nc.sum()), float(nb.sum())
    if total_c <= 0 or total_b <= 0:
        return None
    pc = (float(xc.sum()) + 0.5) / (total_c + 1)
    pb = (float(xb.sum()) + 0.5) / (total_b + 1)
    pooled = (float(xc.sum() + xb.sum()) + 0.5) / (total_c + total_b + 1)
    variance = pooled * (1 - pooled)
    if pooled < RARE:
        apart = (pc * (1 - pc) / total_c + pb * (1 - pb) / total_b) / (1 / total_c + 1 / total_b)
        variance = max(variance, apart)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(weights > 0, xc / nc - xb / nb - tolerance, 0.0)
    return estimate(values, weights, max(variance, 1e-6), prior)


def _alone(xc: Array, nc: Array, tolerance: float, prior: Prior) -> Estimate | None:
    """Return the mean share of one arm beyond a tolerance."""
    p = (float(xc.sum()) + 0.5) / (float(nc.sum()) + 1)
    return estimate(xc / nc - tolerance, nc, max(p * (1 - p), 1e-6), prior)


def _from_history(
    xc: Array, nc: Array, xb: Array, nb: Array, tolerance: float, prior: Prior
) -> Estimate | None:
    """Return the same difference when the arms' batches are not from the same time."""
    total = float(nb.sum())
    if total <= 0 or float(nc.sum()) <= 0:
        return None
    share = (float(xb.sum()) + 0.5) / (total + 1)
    used = nc > 0
    values = xc[used] / nc[used] - share - tolerance
    found = estimate(values, nc[used], max(share * (1 - share), 1e-6), prior)
    past = estimate(
        np.where(nb > 0, xb / np.maximum(nb, 1e-9), 0.0),
        nb,
        max(share * (1 - share), 1e-6),
        prior,
    )
    if found is None or past is None:
        return None
    return replace(found, error=math.hypot(found.error, past.error))


def _ratio(
    logs: Array, n_c: Array, n_b: Array, factor: float, means_b: Array, means_c: Array
) -> Harm | None:
    weights = n_c * n_b / (n_c + n_b)
    harm = estimate(logs - math.log(factor), weights, SCATTER * SCATTER, RATIOS)
    wider = 1 + RELAXED * (factor - 1)
    relaxed = estimate(logs - math.log(wider), weights, SCATTER * SCATTER, RATIOS)
    if harm is None or relaxed is None:
        return None
    return Harm(
        harm,
        relaxed,
        float(np.average(means_b, weights=n_b)),
        float(np.average(means_c, weights=n_c)),
        requests=float(n_c.sum()),
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
