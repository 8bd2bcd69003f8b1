"""Latencies of one condition against those of another, with an interval that noise explains."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kvdemo.load import percentile

CONFIDENCE = 0.99
"""Of an interval. Five conditions have two quantiles each: at 95 % one of ten intervals would
often lie beside the truth by chance alone."""
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer, and between which bounds.

    Attributes:
        value: The ratio of all rounds together.
        low: Lower bound.
        high: Upper bound.
    """

    value: float
    low: float
    high: float

    def slower_than(self, noise: Ratio) -> bool:
        """Return whether it took longer than noise explains.

        Args:
            noise: Ratio of two conditions that do not differ.
        """
        return self.low > max(1.0, noise.high)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(
    rounds: Sequence[Sequence[float]],
    against: Sequence[Sequence[float]],
    share: float,
    seed: int,
) -> Ratio:
    """Return the ratio of a quantile of two conditions that took turns.

    Rounds are drawn anew with replacement, both conditions of a round together: what else the
    machine did in a round has fallen on both, and requests of one round are not independent.

    Args:
        rounds: Seconds of the requests of each round.
        against: The same of what it is compared with, round by round.
        share: Which quantile, from 0 to 1.
        seed: Of the draws.

    Raises:
        ValueError: There are not two rounds of both, or one has no request that was answered.
    """
    if len(rounds) < 2:
        raise ValueError("an interval needs at least two rounds")
    if len(rounds) != len(against):
        raise ValueError(f"{len(rounds)} rounds against {len(against)}: they must pair")
    if not all(rounds) or not all(against):
        raise ValueError("a round has no answered request: give it more seconds or a higher rate")
    count, chance = len(rounds), random.Random(seed)
    drawn = sorted(
        _of(rounds, against, share, chance.choices(range(count), k=count)) for _ in range(DRAWS)
    )
    beyond = int(DRAWS * (1 - CONFIDENCE) / 2)
    return Ratio(
        _of(rounds, against, share, range(count)), drawn[beyond], drawn[DRAWS - 1 - beyond]
    )


def _of(
    rounds: Sequence[Sequence[float]],
    against: Sequence[Sequence[float]],
    share: float,
    taken: Sequence[int],
) -> float:
    ours = percentile([value for index in taken for value in rounds[index]], share)
    theirs = percentile([value for index in taken for value in against[index]], share)
    assert ours is not None
    assert theirs
    return ours / theirs
