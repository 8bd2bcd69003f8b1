"""What clients send: how long prompts and answers are, and when they come."""

from __future__ import annotations

import math
from random import Random

MIXES = ("recorded", "log-normal")
"""The traffic that was recorded, and one with a heavier tail. In both a prompt and its answer fit
into a cache of half the usual size: what does not is refused, not served."""

# Shares and ranges of the recorded traffic: half short chat turns, the rest documents.
_PROMPTS = (
    (0.45, 1_000, 1_800),
    (0.78, 4_000, 7_500),
    (0.90, 8_000, 14_000),
    (1.0, 15_000, 22_000),
)
_ANSWERS = ((0.49, 90, 170), (1.0, 270, 970))
"""Cumulative share, fewest and most tokens."""

# Logs of public services look log-normal: (median, sigma, fewest, most) tokens.
_PROMPT = (2_500, 1.0, 50, 20_000)
_ANSWER = (220, 0.9, 5, 2_500)

ARRIVALS = ("poisson", "bursty", "diurnal")
_BURST, _LULL = (2.0, 20.0), (0.75, 80.0)
"""Rate as a multiple of the mean, and mean seconds that it lasts: the mean over both is 1."""
_DAY, _SWING = 5400.0, 0.35
"""Seconds of a compressed day, and by how much its rate swings."""


def _tokens(bands: tuple[tuple[float, int, int], ...], chance: Random) -> int:
    share = chance.random()
    for upto, fewest, most in bands:
        if share <= upto:
            return int(fewest * math.exp(chance.random() * math.log(most / fewest)))
    raise AssertionError


def _log_normal(shape: tuple[int, float, int, int], chance: Random) -> int:
    median, sigma, fewest, most = shape
    return min(most, max(fewest, int(median * math.exp(sigma * chance.gauss(0.0, 1.0)))))


class Traffic:
    """A stream of requests, the same for all that judge it: it draws from a source of its own.

    Attributes:
        rate: Requests a second, on average.
        next_at: When the next request comes.
    """

    def __init__(self, rate: float, arrivals: str, mix: str, seed: str) -> None:
        self.rate = rate
        self._recorded = mix == "recorded"
        self._arrivals = arrivals
        self._chance = Random(seed)
        self._phase = self._chance.random() * _DAY
        self._burst, self._burst_until = False, 0.0
        self.next_at = 0.0
        self.advance()

    def advance(self) -> None:
        """Draw when the next request comes."""
        chance, at = self._chance, self.next_at
        if self._arrivals == "bursty":
            self.next_at = self._after_bursts(at)
            return
        most = self.rate * (1 + _SWING if self._arrivals == "diurnal" else 1)
        while True:
            at += chance.expovariate(most)
            if self._arrivals == "poisson":
                break
            angle = 2 * math.pi * (at + self._phase) / _DAY
            if chance.random() * (1 + _SWING) < 1 + _SWING * math.sin(angle):
                break
        self.next_at = at

    def _after_bursts(self, at: float) -> float:
        """Return the next arrival of a process that switches between two rates."""
        while True:
            times, _ = _BURST if self._burst else _LULL
            upto = at + self._chance.expovariate(self.rate * times)
            if upto <= self._burst_until:
                return upto
            at = self._burst_until
            self._burst = not self._burst
            _, lasts = _BURST if self._burst else _LULL
            self._burst_until = at + self._chance.expovariate(1 / lasts)

    def lengths(self) -> tuple[int, int]:
        """Return the tokens of the next request's prompt and answer."""
        if self._recorded:
            return _tokens(_PROMPTS, self._chance), _tokens(_ANSWERS, self._chance)
        return _log_normal(_PROMPT, self._chance), _log_normal(_ANSWER, self._chance)
