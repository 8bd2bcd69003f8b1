"""How long to leave alone what has just failed, and how to speak of it."""

from __future__ import annotations

import logging

from kvquant.shadow.log_counts import LogCounts

_LOG = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_LONGEST_TEXT = 200


class Trouble:
    """Counts and logs failures of one thing, and doubles the pause after each one."""

    def __init__(self, counts: LogCounts, what: str) -> None:
        """Begin without any.

        Args:
            counts: Where failures are counted.
            what: What cannot be done, for the log of the process.
        """
        self._counts = counts
        self._what = what
        self.pause = 0.0
        """Seconds to wait before the next try; 0 while all is well."""

    def happened(self, error: BaseException) -> None:
        """Count and log a failure."""
        self._counts.errors += 1
        self.pause = min(_LONGEST_PAUSE, 2 * self.pause or _FIRST_PAUSE)
        _LOG.warning(
            "Cannot %s; again in %.0f s. %s: %s",
            self._what,
            self.pause,
            type(error).__name__,
            said(error),
        )

    def over(self) -> None:
        """Note that it works again."""
        self.pause = 0.0


def said(error: BaseException) -> str:
    """Return what an error says, less the answer of a server that it may quote."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split("<", 1)[0].split())[:_LONGEST_TEXT]
