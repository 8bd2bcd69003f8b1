"""A/A: one pool split in two at random, many times: how often is an innocent canary rolled back?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Settings
from kvquant.core.analysis.samples import Arm, EngineSample, Tick
from kvquant.core.backtest.question import HistoricStep, Moment, spans
from kvquant.core.backtest.replay import Outcome, Replay
from kvquant.core.backtest.thresholds import Ruled, Thresholds
from kvquant.core.proportion import interval
from kvquant.core.ticking import Span, in_effect


@dataclass(frozen=True, slots=True)
class Split:
    """One way to make two arms of a pool.

    Attributes:
        canary: Names of the pods that play the canary.
        start: When it gets its first traffic, in seconds since the epoch.
    """

    canary: frozenset[str]
    start: float


def draw(
    pods: Sequence[str], start: float, latest: float, count: int, seed: int
) -> tuple[Split, ...]:
    """Return random splits: any number of pods up to half of them, at any time that leaves room.

    Of few pods and one start there are only so many. Each is returned once: to try one again shows
    nothing new, and would make a rate look surer than it is.

    Args:
        pods: Names of the pool's pods; at least two.
        start: Earliest start.
        latest: Latest start.
        count: How many to draw.
        seed: The same seed draws the same splits.
    """
    # Nobody's secrets hang on it, and the same seed has to draw the same.
    dice = random.Random(seed)  # noqa: S311
    found = []
    for _ in range(count):
        size = dice.randint(1, max(1, len(pods) // 2))
        canary = frozenset(dice.sample(sorted(pods), size))
        found.append(Split(canary, dice.uniform(start, max(start, latest))))
    return tuple(dict.fromkeys(found))


@dataclass(slots=True)
class _Running:
    """A split while it is replayed."""

    split: Split
    spans: tuple[Span, ...]
    begin: float
    end: float
    replay: Replay
    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class Tried:
    """A split and what would have become of it.

    Attributes:
        split: The split.
        outcome: What the analysis would have decided.
        ruled: What static thresholds would have done.
    """

    split: Split
    outcome: Outcome
    ruled: tuple[Ruled, ...]


class Splits:
    """Takes the moments of one pool in order and replays every split."""

    def __init__(
        self,
        drawn: Sequence[Split],
        ladder: Sequence[HistoricStep],
        length: float,
        look_back: float,
        pods: int,
        settings: Settings,
    ) -> None:
        """Make every split ready.

        Args:
            drawn: The splits.
            ladder: The steps. Traffic was split evenly all the time, so that only their lengths
                are taken.
            length: Seconds that a split lasts.
            look_back: Seconds before its start that count as the pool's past.
            pods: Pods that the pool has.
            settings: As the operator has them.
        """
        self._running = []
        for split in drawn:
            weight = 100 * len(split.canary) / pods
            even = [HistoricStep(weight, step.lasts) for step in ladder]
            own = spans(even, datetime.fromtimestamp(split.start, UTC))
            self._running.append(
                _Running(
                    split,
                    own,
                    split.start - look_back,
                    split.start + length,
                    Replay(settings, own),
                    Thresholds(settings.time_scale),
                )
            )

    def take(self, moment: Moment) -> None:
        """Take in one instant."""
        for one in self._running:
            if not one.begin <= moment.at <= one.end:
                continue
            arms: tuple[dict[str, EngineSample], dict[str, EngineSample]] = ({}, {})
            for name, engine in moment.engines.items():
                arms[name in one.split.canary][name] = engine
            baseline, canary = (
                Arm(engines=engines, replicas=max(1, len(engines))) for engines in arms
            )
            tick = Tick(moment.at, 0, 0.0, baseline, canary)
            one.replay.take(tick)
            step = in_effect(tick, one.spans).step
            one.thresholds.take(moment.at, step, baseline, canary)

    def tried(self) -> tuple[Tried, ...]:
        """Return what would have become of each split."""
        return tuple(
            Tried(one.split, one.replay.outcome(), one.thresholds.ruled()) for one in self._running
        )


@dataclass(frozen=True, slots=True)
class Share:
    """How often something happened.

    Attributes:
        hits: Times.
        of: Trials.
        lower: Lower end of the exact 95 % interval of the rate, as a fraction.
        upper: Upper end of it.
    """

    hits: int
    of: int
    lower: float = field(init=False)
    upper: float = field(init=False)

    def __post_init__(self) -> None:
        """Work out the interval."""
        low, high = interval(self.hits, self.of)
        object.__setattr__(self, "lower", low)
        object.__setattr__(self, "upper", high)

    @property
    def rate(self) -> float:
        """As a fraction."""
        return self.hits / self.of if self.of else 0.0


def counted(tried: Sequence[Tried], verdict: Verdict) -> Share:
    """Return how many splits had a verdict."""
    return Share(sum(1 for one in tried if one.outcome.verdict is verdict), len(tried))


def room(start: float, end: float, ladder: timedelta) -> float:
    """Return the latest start, in seconds since the epoch, that leaves room for the ladder."""
    return max(start, end - ladder.total_seconds())
