"""How far an evaluation has come, in lines for people."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvquant.evaluation.results import BASELINE, CANARY, Result


class Progress:
    """Counts results, and writes a line now and then."""

    def __init__(
        self,
        total: int,
        write: Callable[[str], None],
        every: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            total: Examples in the set.
            write: Takes a line.
            every: Seconds between two lines at least.
            clock: Returns the present time in seconds.
        """
        self._total, self._write, self._every, self._clock = total, write, every, clock
        self._began = self._last = clock()
        self._done = self._baseline_missing = self._canary_missing = 0

    def __call__(self, result: Result) -> None:
        """Count a result."""
        self._done += 1
        self._baseline_missing += bool(result.said[BASELINE].failure)
        self._canary_missing += bool(result.said[CANARY].failure)
        now = self._clock()
        if self._done == self._total or now - self._last >= self._every:
            self._last = now
            self._write(self._line(now - self._began))

    def _line(self, took: float) -> str:
        left = took / self._done * (self._total - self._done)
        told = [f"{self._done}/{self._total} examples"]
        if self._baseline_missing or self._canary_missing:
            told.append(
                f"not answered: baseline {self._baseline_missing}, canary {self._canary_missing}"
            )
        told.append(f"{took:.0f} s" + (f", about {left:.0f} s left" if left >= 1 else ""))
        return ", ".join(told)
