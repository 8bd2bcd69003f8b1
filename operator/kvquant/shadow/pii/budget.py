"""How long a search may take and how much it may read; beyond it the text is withheld."""

from __future__ import annotations

from collections.abc import Callable

TIMEOUT, OVERSIZED, ERROR, UNREADABLE = "timeout", "oversized", "error", "unreadable"
REASONS = (TIMEOUT, OVERSIZED, ERROR, UNREADABLE)
"""Why a text is withheld: the search took too long, the text is too long, the search failed, or the
text is nested too deeply to be read."""


class Withheld(Exception):  # noqa: N818 (it is an outcome that callers count, not a mistake)
    """The text could not be cleaned, so nothing of it may leave. Tells nothing of the text."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"withheld: {reason}")
        self.reason = reason


class Budget:
    """What is left of the time and of the characters for one call."""

    def __init__(self, clock: Callable[[], float], seconds: float, characters: int) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._characters = characters

    def check(self) -> None:
        """Raise when the time is over."""
        if self._clock() > self._end:
            raise Withheld(TIMEOUT)

    def take(self, text: str) -> None:
        """Count a text in, before it is searched."""
        self._characters -= len(text)
        if self._characters < 0:
            raise Withheld(OVERSIZED)
        self.check()
