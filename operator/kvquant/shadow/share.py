"""Replays are held to a share of what clients ask of the baseline, whoever sends the copies.

The router copies a share of the requests, and that is what the user agreed to. Anybody else in the
cluster who finds the service's port could have it replay as fast as the engines answer. So it
counts what the baseline finishes beyond the service's own questions, and lets no more pairs begin
than the share allows.
"""

from __future__ import annotations

from collections.abc import Mapping

SLACK = 1.25
"""Pairs that may begin, as a multiple of the share: the router draws by chance."""
BURST = 16.0
"""Pairs that may begin at once after a quiet time."""


class Share:
    """Counts pairs against requests of clients. Not safe to share between threads."""

    def __init__(self, percent: float) -> None:
        """Begin with a burst.

        Args:
            percent: Share of the clients' requests of which there may be pairs; 0: no limit.
        """
        self._percent = percent
        self._left = BURST
        self._before: dict[str, float] = {}
        self.own = 0
        """Requests of the service's own that the baseline has answered since the last look."""

    @property
    def used_up(self) -> bool:
        """Whether no pair may begin now."""
        return bool(self._percent) and self._left < 1

    def begin(self) -> None:
        """Take note of a pair that begins."""
        self._left -= 1

    def look(self, finished: Mapping[str, float | None]) -> None:
        """Take note of what the baseline has finished.

        Args:
            finished: Requests that each pod has finished since its process started; None: it does
                not tell, and nothing is allowed for it.
        """
        grown = 0.0
        for pod, total in finished.items():
            if total is None:
                continue
            before = self._before.get(pod)
            if before is not None:
                # A process that began anew has finished what it says.
                grown += total if total < before else total - before
            self._before[pod] = total
        # Their own questions may be counted by one look and finished in the next.
        allowed = SLACK * self._percent / 100 * (grown - self.own)
        self.own = 0
        self._left = min(BURST, self._left + allowed)
