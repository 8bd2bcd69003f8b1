"""Load per pod: what a canary has shown that it can carry, and what the next step asks of it.

A canary with less load per pod than the baseline looks better than it is, and one with more looks
worse; rounding the number of pods makes this the normal case.
"""

from __future__ import annotations

import math

from kvquant.core.analysis.report import Load
from kvquant.core.analysis.samples import Tick
from kvquant.core.analysis.signals import added, queues
from kvquant.core.analysis.table import BASELINE, CANARY, Batches

STRETCH = 1.3
"""Load per pod that a step may bring, as a multiple of what was tested.

Tested is what canary pods carried, what baseline pods carry or carried, or the share of all traffic
that each pod of the baseline would get by itself, as it did before the rollout: a canary of one pod
beside a baseline of two could otherwise never leave the first step, and that it carries what the
baseline does is what the next step is there to find out.
"""

LATELY = 4
"""Batches by which one tells whether an arm queues now."""


def judge_load(
    tick: Tick,
    step: Batches,
    usable: Batches,
    threshold: float,
    tested_before: float,
    carried_before: float,
) -> Load:
    """Return the load per pod of a step and whether the next one's is within what was tested.

    Args:
        tick: The latest instant, with what the next step plans.
        step: The step's batches.
        usable: Of these, the evidence.
        threshold: Share of requests waiting from which on an arm queues.
        tested_before: Requests per second that a canary pod has carried without a backlog.
        carried_before: Requests per second that a baseline pod has carried without a backlog.
    """
    span = float(usable.seconds.sum())
    if span <= 0:
        return Load()
    live = [float(usable.side("started", arm).sum()) / span for arm in (BASELINE, CANARY)]
    rates = [
        rate + float(added(usable, arm).sum()) / span
        for arm, rate in zip((BASELINE, CANARY), live, strict=True)
    ]
    pods = [float((usable.pods(arm) * usable.seconds).sum()) / span for arm in (BASELINE, CANARY)]
    if not all(map(math.isfinite, rates)) or rates[CANARY] <= 0:
        return Load()
    here = rates[CANARY] / pods[CANARY]
    base = rates[BASELINE] / pods[BASELINE]
    ratio = here / base if base > 0 else None
    lately = queues(step, CANARY, threshold)[-LATELY:]
    queueing = bool(lately.sum() * 2 > len(lately))
    tested = max(here, tested_before)
    if queueing:
        return Load(
            ratio,
            here,
            tested,
            queueing=True,
            message=(
                f"The canary's pods have a backlog at {here:.3g} requests/s each: they are "
                "at their limit, so that their latency says nothing about the cache. Add replicas "
                "to the target, or wait for less traffic."
            ),
        )
    if tick.next_weight is None or tick.next_replicas is None:
        return Load(ratio, here, tested)
    # Users' requests are split between the arms; copies that give the canary load are not.
    coming = sum(live) * tick.next_weight / 100
    after = coming / max(1, tick.next_replicas)
    known = max(tested, base, carried_before, sum(live) / pods[BASELINE])
    if after <= STRETCH * known:
        return Load(ratio, here, tested, after)
    needed = math.ceil(coming / (STRETCH * known))
    return Load(
        ratio,
        here,
        tested,
        after,
        replicas_needed=needed,
        message=(
            f"The next step would bring {after:.3g} requests/s to each canary pod, "
            f"{after / known:.2g} times what any pod has carried ({known:.3g}): it needs "
            f"{needed} canary pods instead of {tick.next_replicas}."
        ),
    )
