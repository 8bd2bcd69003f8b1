"""What the analysis saw over time: the operator's own, fed again from what Prometheus remembers.

The record holds the evidence of each decision; in between, the same ticks give the same evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvquant.analysing import LOOK_BACK, spans
from kvquant.cli.report.history import History
from kvquant.cli.rollouts import Seen
from kvquant.core import http_routes
from kvquant.core.analysis import Analysis, Report
from kvquant.core.analysis.samples import Tick
from kvquant.core.custom_signals import queries_of
from kvquant.core.evidence import ArmNeed
from kvquant.core.judgement import settings_of
from kvquant.core.plan import Plan
from kvquant.core.queries import Window
from kvquant.core.scope import EVERYWHERE
from kvquant.core.tick_queries import TickQueries
from kvquant.core.ticking import (
    Scrapes,
    TickNeed,
    first_instant,
    instants,
    last_instant,
)
from kvquant.errors import MetricsError

MOST_LOOKS = 240
"""Looks that are drawn: more would not be seen."""

MOST_INSTANTS = 500
"""Of one answer; a longer past is read in parts."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What was seen of an attempt.

    Attributes:
        looks: Reports over time, oldest first; empty when nothing could be judged.
        problem: Why there are none, in a sentence; None when there are, or nothing was to be.
    """

    looks: tuple[Report, ...] = ()
    problem: str | None = None


def judge(seen: Seen, history: History, end: datetime, grid: timedelta) -> Judged:
    """Return what the analysis saw of the latest attempt.

    Args:
        seen: The rollout.
        history: Where to ask.
        end: Last instant of interest.
        grid: Time between two looks of the operator.
    """
    status = seen.status
    if status.baseline is None or status.canary is None or status.router is None:
        return Judged()
    if not status.traffic:
        # An operator that kept no splits of the traffic judged otherwise, too.
        return Judged()
    plan = Plan.of(seen.spec)
    settings = settings_of(plan.analysis, grid)
    in_effect = spans(status, plan)
    need = TickNeed(
        key="report",
        namespace=seen.namespace,
        router=status.router,
        baseline=ArmNeed(status.baseline.slot, status.baseline.deployment),
        canary=ArmNeed(status.canary.slot, status.canary.deployment),
        since=in_effect[0].since - LOOK_BACK / settings.time_scale,
        spans=in_effect,
        signals=queries_of(plan.analysis.custom),
        clusters=http_routes.clusters(seen.namespace, seen.spec.traffic, status),
    )
    analysis = Analysis(settings)
    looks: list[Report] = []
    try:
        for tick in _ticks(history, need, end, grid):
            analysis.take(tick)
            if tick.step > 0 and tick.weight > 0:
                looks.append(analysis.report())
    except MetricsError as error:
        return Judged(problem=f"The evidence over time is missing: {error}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return Judged(problem=f"The evidence over time is missing: it cannot be read ({error}).")
    measured = [look for look in looks if any(s.effect is not None for s in look.signals)]
    every = max(1, -(-len(measured) // MOST_LOOKS))
    return Judged(tuple(measured[::-1][::every][::-1]))


def _ticks(history: History, need: TickNeed, end: datetime, grid: timedelta) -> Iterator[Tick]:
    step = grid.total_seconds()
    first, last = first_instant(need.since, grid), last_instant(end, timedelta(0), grid)
    texts = TickQueries.of([need], EVERYWHERE)
    while window := instants(first, min(last, first + (MOST_INSTANTS - 1) * step), grid):
        yield from _scrapes(history, texts, window).timelines([need])[need.key].ticks
        first = window.end + step


def _scrapes(history: History, texts: TickQueries, window: Window) -> Scrapes:
    scrapes = Scrapes(window)
    scrapes.add_routers(texts, lambda text: history.series(text, window))
    scrapes.add_seen(engines=history.series(texts.engines_seen, window))
    scrapes.add_engines_started(history.series(texts.engines_started, window))
    scrapes.add_engine_scalars(history.series(texts.engine_scalars, window))
    for name, text in texts.engine_histograms.items():
        scrapes.add_engine_histogram(name, history.series(text, window))
    for key, text in texts.custom.items():
        scrapes.add_custom(key, history.series(text, window))
    return scrapes


def signals(looks: tuple[Report, ...]) -> list[str]:
    """Return the signals of which there is an effect to draw, in the analysis' order."""
    found: dict[str, None] = {}
    for look in looks:
        found |= dict.fromkeys(s.name for s in look.signals if s.effect is not None)
    return list(found)
