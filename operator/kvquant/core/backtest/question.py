"""What a backtest is asked: which pods, from when to when, and which steps were in effect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kvquant.core.analysis.samples import EngineSample, RouterSample
from kvquant.core.scope import MATCHERS
from kvquant.core.ticking import GRID, Span

LADDER = "10:15m,25:15m,50:15m,100:15m"
"""The steps of a backtest that is told of none and has the time for them."""

_STEP = re.compile(r"(\d{1,3})(?::((?:\d+(?:\.\d+)?(?:ms|s|m|h))+))?")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Moment:
    """What the pods of one selector had counted at one instant.

    Attributes:
        at: Seconds since the epoch.
        engines: What each engine pod had counted, by its name.
        routers: What each router pod had counted, by slot and the pod's name.
    """

    at: float
    engines: Mapping[str, EngineSample] = field(default_factory=dict)
    routers: Mapping[str, Mapping[str, RouterSample]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HistoricStep:
    """A step of the past.

    Attributes:
        weight: The canary's share of the traffic in it, in per cent.
        lasts: How long, by the clock of the recording; None: until the end.
    """

    weight: float
    lasts: timedelta | None = None


def matchers(selector: str) -> str:
    """Return a selector's matchers, with or without braces around them.

    Raises:
        ValueError: It is none.
    """
    text = selector.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    if not MATCHERS.fullmatch(text):
        raise ValueError(
            f"{selector!r} is no selector of pods: write matchers of labels, such as "
            'namespace="chat",pod=~"llama-.*"'
        )
    return text.strip().rstrip(",").rstrip()


def steps(text: str) -> tuple[HistoricStep, ...]:
    """Return the steps of a text such as `10:15m,25:15m,50`; the last one may lack its length.

    Raises:
        ValueError: It is no such text.
    """
    found = []
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for index, part in enumerate(parts):
        match = _STEP.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no step: write weight and length, as in {LADDER}")
        weight = int(match[1])
        if not 1 <= weight <= 100:
            raise ValueError(f"{part!r}: a weight is between 1 and 100 per cent")
        if match[2] is None and index < len(parts) - 1:
            raise ValueError(
                f"{part!r}: only the last step may go without a length, as in {LADDER}"
            )
        lasts = None if match[2] is None else _length(match[2])
        if lasts is not None and lasts <= timedelta(0):
            raise ValueError(f"{part!r}: a step lasts longer than nothing")
        found.append(HistoricStep(weight, lasts))
    if not found:
        raise ValueError(f"there is no step: write weight and length, as in {LADDER}")
    return tuple(found)


def total(asked: Sequence[HistoricStep]) -> timedelta:
    """Return how long steps last together, as far as they say."""
    return sum((step.lasts or timedelta(0) for step in asked), timedelta(0))


def spans(asked: Sequence[HistoricStep], start: datetime) -> tuple[Span, ...]:
    """Return what was in effect when. How many pods a later step had is not known."""
    found = []
    since = start
    for index, step in enumerate(asked):
        following = asked[index + 1].weight if index + 1 < len(asked) else None
        found.append(Span(since=since, step=index + 1, weight=step.weight, next_weight=following))
        since += step.lasts or timedelta(0)
    return tuple(found)


def interval_of(seconds: float, samples: float) -> float:
    """Return the time between two scrapes in seconds, whole where that explains the count.

    Args:
        seconds: A stretch of time.
        samples: How many samples lie in it.
    """
    interval = seconds / max(1.0, samples)
    # As many may lie in it as its length allows, one more or one less.
    off = 1.5 * interval / max(1.0, samples)
    whole = round(interval)
    return float(whole) if whole >= 1 and abs(interval - whole) <= off else interval


def grid_of(time_scale: float, interval: float) -> timedelta:
    """Return the time between two ticks, in tenths of a second.

    Args:
        time_scale: Factor by which the recorded time was compressed.
        interval: Seconds between two scrapes. Looking more often than that shows nothing new.
    """
    usual = GRID.total_seconds()
    seconds = max(usual / time_scale, min(interval, usual))
    return timedelta(seconds=max(0.1, round(seconds, 1)))


def _length(text: str) -> timedelta:
    parts = _PART.findall(text)
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))
