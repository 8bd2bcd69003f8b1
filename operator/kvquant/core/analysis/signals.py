"""The signals: what each compares, and over which batches; `comparing` puts it as one number."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from kvquant.core.analysis.batches import Ledger
from kvquant.core.analysis.comparing import (
    FAULTS,
    RATIOS,
    SCATTER,
    Harm,
    ratio,
    shares,
)
from kvquant.core.analysis.sequential import Array, estimate
from kvquant.core.analysis.slowness import quantile_of
from kvquant.core.analysis.table import BASELINE, CANARY, Batches, Mask, finite

POOLING = 0.15
"""Slow-down of one pod against very many at the same load per pod, because one pod balances its
load less well: 7 to 15 % were measured for 1 against 7, 2 to 6 % for 2 against 6."""

DELIVERED = 0.92
"""Share of what comes that a queueing canary must deliver: two equal engines differed by less."""

DEEP = 0.3
"""Share of an arm's requests that wait, in one batch after the other, at which it is at its limit
beyond doubt."""

MISALIGNED = 0.1
"""Share by which what engines finished may differ from what routers saw end, for no more reason
than that they were looked at in different moments, or asked by somebody's probe."""

FEW = 4
"""Batches from which on it is known what a baseline pod carries."""


def usable(batches: Batches) -> Batches:
    """Return the batches that are evidence of anything but deaths."""
    good = batches.fact("warm") * batches.fact("whole") * batches.fact("calm")
    return batches.where((good > 0) & (batches.fact("weight") > 0) & (batches.fact("step") > 0))


def clear(batches: Batches) -> Batches:
    """Return the batches in which neither arm is at its limit.

    There latency is the engine's own, short queues included: a canary that queues now and then at
    a load that the baseline carries is slower to its users. At the limit a queue is as long as it
    has had time to grow, and what the engine delivers is all that can be judged.
    """
    return batches.where(~(at_limit(batches, BASELINE) | at_limit(batches, CANARY)))


def at_limit(batches: Batches, arm: int) -> Mask:
    """Tell where an arm has a deep queue in one batch after the other."""
    deep = queues(batches, arm, DEEP)
    result = deep.copy()
    result[1:] &= deep[:-1]
    result[:-1] |= deep[:-1] & deep[1:]
    return result


def queues(batches: Batches, arm: int, threshold: float) -> Mask:
    """Tell where an arm has a backlog: so large a share of its requests wait, and one a pod."""
    result: Mask = (batches.side("queued", arm) >= threshold) & batches.waits(arm)
    return result


def latency_quantile(ledger: Ledger, batches: Batches, arm: int, quantile: float) -> float | None:
    """Return an arm's latency quantile in seconds, for people; None beyond the bounds."""
    bounds = ledger.bounds.get("router.latency")
    told = batches.where(batches.told("latency", arm))
    counts = told.bins("latency", arm)
    if bounds is None or counts is None or not len(told):
        return None
    edges = np.array((0.0, *bounds[:-1]))
    lost = float(finite(told.side("unanswered", arm)).sum())
    return quantile_of(edges, counts.sum(axis=0), lost, quantile)


def tokens_slower(
    batches: Batches, factor: float, easy: float, history: Batches | None = None
) -> Harm | None:
    """Compare the mean time between two tokens, batch by batch, as the logarithm of its ratio.

    Args:
        batches: Over which to compare.
        factor: Slow-down beyond which the canary fails, at least 1.
        easy: Slow-down below which it passes.
        history: Batches of the baseline to compare with instead, when it has other load now.
    """
    ours, theirs = batches.bins("itl", CANARY), batches.bins("itl", BASELINE)
    if ours is None or theirs is None:
        return None
    served_b, served_c = (_served(batches, arm) for arm in (BASELINE, CANARY))
    if history is not None:
        past = history.bins("itl", BASELINE)
        assert past is not None  # noqa: S101 - all batches have the same histograms
        told = history.told("itl", BASELINE)
        theirs = np.broadcast_to(past[told].sum(axis=0), ours.shape)
        served_b = np.full(len(batches), _served(history, BASELINE)[told].sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        means_b, means_c = theirs[:, -1] / theirs[:, -2], ours[:, -1] / ours[:, -2]
        logs = np.log(means_c / means_b)
    sound = np.isfinite(logs) & (served_b > 0) & (served_c > 0)
    if not sound.any():
        return None
    return ratio(
        logs[sound],
        served_c[sound],
        served_b[sound],
        means_b[sound],
        means_c[sound],
        factor,
        easy,
    )


def _served(batches: Batches, arm: int) -> Array:
    """Return the requests behind an arm's numbers, by batch."""
    ended = finite(batches.side("ended", arm))
    return np.where(ended > 0, ended, finite(batches.side("finished", arm)))


def added(batches: Batches, arm: int) -> Array:
    """Return the requests of each batch that an arm's engines had beyond those of the routers.

    Such are copies that the shadow service sends to give the canary load. Engines and routers are
    not scraped at the same moment, so that the two are compared over all the batches, and a
    difference of less than MISALIGNED counts as none.
    """
    ended = finite(batches.side("ended", arm))
    told = np.isfinite(batches.side("finished", arm)) & (ended > 0)
    theirs = float(ended[told].sum())
    if theirs <= 0:
        return np.zeros(len(batches))
    share = float(batches.side("finished", arm)[told].sum()) / theirs - 1
    return ended * share if share > MISALIGNED else np.zeros(len(batches))


def carried(batches: Batches, arm: int, threshold: float) -> float:
    """Return the most requests per second that a pod of an arm has carried without a backlog.

    Taken as the mean over a step, or the time before the first, if most of it was without a
    backlog: what it did for a while, and not what it did while a backlog was worked off.
    """
    if not len(batches):
        return 0.0
    backlog = queues(batches, arm, threshold)
    near = backlog.copy()
    near[1:] |= backlog[:-1]
    near[:-1] |= backlog[1:]
    sound = (batches.fact("whole") * batches.fact("calm") > 0) & ~near
    served = np.minimum(batches.side("started", arm), batches.side("ended", arm))
    served = served + added(batches, arm)
    rates = finite(served / batches.pods(arm) / batches.seconds)
    visits = batches.fact("visit").astype(np.int64)
    count = np.bincount(visits, weights=sound.astype(np.float64))
    total = np.bincount(visits, weights=np.where(sound, rates, 0.0))
    known = (count >= FEW) & (2 * count > np.bincount(visits))
    return float((total[known] / count[known]).max()) if known.any() else 0.0


def less_delivered(
    batches: Batches, floor: float, threshold: float, carried_before: float
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
    # An engine with a deep queue all the time works at its limit whatever comes. With a short one
    # it may have had too little to do now and then.
    deep = queues(batches, CANARY, DEEP)
    limit = deep & np.concatenate(([False], deep[:-1]))
    backlog = queues(batches, CANARY, threshold)
    backlog &= (batches.side("started", CANARY) > 0) & (batches.side("ended", BASELINE) > 0)
    if not backlog.any():
        return None
    some, limit = batches.where(backlog), limit[backlog]
    pods_b, pods_c = some.pods(BASELINE), some.pods(CANARY)
    more = added(batches, CANARY)[backlog]
    started, ended_b = some.side("started", CANARY) + more, some.side("ended", BASELINE)
    asked, theirs = started / pods_c, np.maximum(ended_b / pods_b, carried_before * some.seconds)
    wanted = np.where(limit, theirs, np.minimum(asked, theirs))
    # What timed out has ended, but was not delivered.
    done = some.side("ended", CANARY) - finite(some.side("unanswered", CANARY)) + more
    ratios = [(done + 0.5) / pods_c / wanted]
    with np.errstate(divide="ignore", invalid="ignore"):
        for name in ("tokens", "prompt_tokens"):
            per_request = some.side(name, BASELINE) / ended_b
            ratio = some.side(name, CANARY) / pods_c / per_request / wanted
            ratios.append(np.where(per_request > 0, ratio, np.nan))
    # Each of the three is as large for equal engines, and together they scatter least.
    mean_ratio = np.maximum(np.nanmean(ratios, axis=0), 1e-3)
    worth = (done + started) / 4  # a quotient of two counts, each of half as many requests
    found = estimate(math.log(floor) - np.log(mean_ratio), worth, SCATTER * SCATTER, RATIOS)
    if found is None:
        return None
    return Harm(
        found,
        lambda: found.shifted(math.log(0.95)),
        1.0,
        math.exp(float(np.average(np.log(mean_ratio), weights=worth))),
        requests=float((done + started).sum()) / 2,
    )


def failures(batches: Batches, tolerance: float, threshold: float) -> Harm | None:
    """Compare the shares of failed requests; what a backlog lets time out is not counted twice."""

    def bad(arm: int) -> Array:
        failed, timed_out = batches.side("failed", arm), finite(batches.side("unanswered", arm))
        backlog = queues(batches, arm, threshold)
        return np.where(backlog, np.maximum(0.0, failed - timed_out), failed)

    ended = [batches.side("ended", arm) for arm in (BASELINE, CANARY)]
    return shares(bad(CANARY), ended[CANARY], bad(BASELINE), ended[BASELINE], tolerance)


def page_faults(batches: Batches, tolerance: float) -> Harm | None:
    """Compare preemptions per finished request with twice the baseline's.

    Capped at one in two requests per batch, so that a single bad half minute is not everything.
    """
    cap = 0.5
    finished = [batches.side("finished", arm) for arm in (0, 1)]
    events = [batches.side("preemptions", arm) for arm in (0, 1)]
    # A doubled baseline is what its own scatter looks like in a batch.
    base = np.minimum(2 * np.minimum(events[0], cap * finished[0]), finished[0])
    return shares(
        np.minimum(events[1], cap * finished[1]), finished[1], base, finished[0], tolerance, FAULTS
    )


def custom_share(
    batches: Batches, name: str, tolerance: float, *, higher_is_worse: bool
) -> Harm | None:
    """Compare a share of the user's: of what is harm, or of what is left of what is good."""
    parts = [f"custom.{name}.events", f"custom.{name}.total"]
    if any(batches.bins(part, CANARY) is None for part in parts):
        return None

    def read(arm: int) -> tuple[Array, Array]:
        events, total = (batches.histogram(part, arm)[:, 0] for part in parts)
        return events if higher_is_worse else total - events, total

    harm = shares(*read(CANARY), *read(BASELINE), tolerance)
    if harm is None or higher_is_worse:
        return harm
    # Told as it was asked for.
    return replace(harm, baseline=1 - harm.baseline, canary=1 - harm.canary)
