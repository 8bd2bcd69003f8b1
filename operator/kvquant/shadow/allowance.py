"""How many tokens a second may be asked of an arm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

BYTES_PER_TOKEN = 4
"""Of English prose; a guess that the engine's own count corrects."""


class Allowance:
    """A bucket that fills at a rate, holds one second's worth, and may be overdrawn.

    A request costs what it costs: the longest one must pass, too, and the next ones wait for it.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        """Make a full bucket.

        Args:
            rate: Tokens per second; 0: as many as one likes.
            clock: Returns the present time in seconds.
        """
        self._rate, self._clock = rate, clock
        self._left, self._at = rate, clock()

    def wait(self) -> float:
        """Return the seconds until something may be spent."""
        if not self._rate:
            return 0.0
        self._fill()
        return max(0.0, -self._left / self._rate)

    def spend(self, tokens: float) -> None:
        """Take tokens out; a negative number puts back what was guessed too high."""
        self._fill()
        self._left -= tokens

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now

    async def ready(self) -> None:
        """Wait until something may be spent."""
        while (seconds := self.wait()) > 0:  # noqa: ASYNC110 - time is what is waited for
            await asyncio.sleep(seconds)
