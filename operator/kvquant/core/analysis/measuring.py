"""Which signals are compared, over which batches, and beyond which tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kvquant.core.analysis import signals
from kvquant.core.analysis.batches import QUEUEING, Ledger
from kvquant.core.analysis.comparing import RELAXED, Harm
from kvquant.core.analysis.report import percent
from kvquant.core.analysis.settings import CustomSignal, Settings
from kvquant.core.analysis.slowness import Slowness
from kvquant.core.analysis.table import BASELINE, CANARY, Batches

OVERLOADED = 1.25
"""Load per pod of canary to baseline beyond which only the baseline's past is a fair control."""

OTHER_TIME = 1.5
"""What a comparison with the baseline's past tolerates, as a multiple: traffic may have changed
since, so that only gross harm fails. What lies between that and the usual tolerance neither fails
nor passes."""

PASSES_OTHER_TIME = 1.1
"""What such a comparison allows a pass, likewise."""

BY_CHANCE = 1.1
"""Ratio of loads per pod that may be chance among a hundred requests."""

Found = dict[str, tuple[Harm | None, str]]
"""By the name of the signal: its harm, None when it is not measured, and what is tolerated."""

Factors = Callable[[float], tuple[float, float]]
"""Of a slow-down that is tolerated: the factor that fails, and the one that passes."""


def measure(
    ledger: Ledger,
    settings: Settings,
    known: Batches,
    batches: Batches,
    ratio: float | None,
    carried: float,
) -> tuple[Found, bool]:
    """Return every signal but the deaths, and whether the baseline's past was the control.

    Args:
        ledger: Where the batches are from.
        settings: What is tolerated.
        known: All batches.
        batches: Those that are to be judged.
        ratio: Load per pod of canary to baseline.
        carried: Requests per second that a baseline pod has carried without a backlog.
    """
    clear = below_limit = signals.clear(batches)
    history: Batches | None = None
    allowance, other_time = 1.0, 1.0
    if len(batches):
        pods_b, pods_c = (float(batches.pods(arm)[-1]) for arm in (BASELINE, CANARY))
        allowance = 1 + signals.POOLING * max(0.0, 1 / pods_c - 1 / pods_b)
    if ratio is not None and ratio > OVERLOADED:
        history, other_time = _history(known, batches), OTHER_TIME
        # A queue may be the hour's doing, so that it fails nobody; it passes nobody either.
        clear = batches.where(~signals.queues(batches, CANARY, QUEUEING))
        if not len(history):
            clear = clear.where(np.zeros(len(clear), dtype=np.bool_))
    elif ratio is not None:
        # A ratio that is a tenth off may be chance.
        allowance *= max(1.0, ratio / BY_CHANCE)

    def factors(slowdown: float) -> tuple[float, float]:
        factor = (1 + slowdown) * allowance
        easy = factor * (PASSES_OTHER_TIME if history is not None else 1.0)
        return factor * other_time, 1 + RELAXED * (easy - 1)

    found = _latencies(ledger, settings, clear, below_limit, history, factors)
    found |= _first_token(ledger, settings, clear, history, factors)
    fails, easy = factors(settings.token_slowdown)
    found["tokenTime"] = signals.tokens_slower(clear, fails, easy, history), _slower(fails)
    found["delivered"] = (
        signals.less_delivered(batches, signals.DELIVERED, QUEUEING, carried),
        f"{percent(1 - signals.DELIVERED)} less",
    )
    found["failures"] = (
        signals.failures(batches, settings.failures, QUEUEING),
        f"{percent(settings.failures)} more",
    )
    found["pageFaults"] = (
        signals.page_faults(batches, settings.page_faults),
        f"{100 * settings.page_faults:g} per 100 requests beyond twice the baseline's",
    )
    for custom in settings.custom:
        found[custom.name] = _custom(ledger, custom, batches, clear, history, factors)
    return found, history is not None


def _latencies(
    ledger: Ledger,
    settings: Settings,
    clear: Batches,
    below_limit: Batches,
    history: Batches | None,
    factors: Factors,
) -> Found:
    found: Found = {}
    slowness = whole = Slowness(ledger, clear, "latency", by_age=True, history=history)
    if history is not None:
        whole = Slowness(ledger, below_limit, "latency", by_age=True, history=history)
    for name, quantile, part in (
        ("latencyP50", 0.5, 0.6),
        ("latencyP90", 0.9, 0.8),
        ("latencyP99", 0.99, 1.0),
    ):
        fails, easy = factors(part * settings.slowdown)
        harm = slowness.beyond_quantile(quantile, fails, easy)
        if harm is not None and history is not None:
            wider = whole.beyond_quantile(quantile, fails, easy)
            harm = harm if wider is None else replace(harm, relax=wider.relax)
        found[name] = harm, _slower(fails)
    return found


def _first_token(
    ledger: Ledger,
    settings: Settings,
    clear: Batches,
    history: Batches | None,
    factors: Factors,
) -> Found:
    fails, easy = factors(settings.first_token_slowdown)
    # The queue is the load's doing, and a prefill is not. Engines that do not tell them apart
    # are judged by both together.
    first = "prefill" if "engine.prefill" in ledger.bounds else "ttft"
    slowness = Slowness(ledger, clear, first, history=history)
    return {
        name: (slowness.beyond_quantile(quantile, fails, easy), _slower(fails))
        for name, quantile in (("firstTokenP90", 0.9), ("firstTokenP99", 0.99))
    }


def _custom(
    ledger: Ledger,
    custom: CustomSignal,
    batches: Batches,
    clear: Batches,
    history: Batches | None,
    factors: Factors,
) -> tuple[Harm | None, str]:
    """Compare a signal of the user's: by what it is made of one sees which kind it is."""
    histogram = f"custom.{custom.name}"
    if histogram in ledger.bounds:
        fails, easy = factors(custom.tolerance)
        slowness = Slowness(ledger, clear, histogram, history=history)
        return slowness.beyond_quantile(custom.quantile, fails, easy), _slower(fails)
    harm = signals.custom_share(
        batches, custom.name, custom.tolerance, higher_is_worse=custom.higher_is_worse
    )
    if harm is None:
        return None, f"{percent(custom.tolerance)} worse"
    return harm, f"{percent(custom.tolerance)} {'more' if custom.higher_is_worse else 'less'}"


def _slower(factor: float) -> str:
    return f"{percent(factor - 1)} slower"


def _history(known: Batches, batches: Batches) -> Batches:
    """Return the baseline's batches at about the load that a canary pod has now."""
    had = batches.side("started", CANARY) + signals.added(batches, CANARY)
    loads = had / batches.pods(CANARY) / batches.seconds
    now = float(np.median(loads)) if len(loads) else 0.0
    if not now > 0:
        return known.where(np.zeros(len(known), dtype=np.bool_))
    theirs = known.side("started", BASELINE) / known.pods(BASELINE) / known.seconds / now
    sound = known.fact("whole") * known.fact("calm") * known.fact("warm") > 0
    sound &= theirs >= 0.7
    sound &= ~signals.queues(known, BASELINE, QUEUEING)
    alike = sound & (theirs <= 1.1)
    # A baseline that was always busier was slower, if anything: better than nothing.
    return known.where(alike if alike.any() else sound)
