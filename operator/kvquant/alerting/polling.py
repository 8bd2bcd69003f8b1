"""Asks Prometheus which alerts fire, once for all rollouts, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from kvquant.alerting.board import AlertBoard
from kvquant.errors import MetricsError
from kvquant.ports import AlertQueries

logger = logging.getLogger(__name__)


class AlertPoller:
    """Polls from `start` to `stop`. An outage is told to the board as what it is: no answer."""

    def __init__(
        self,
        board: AlertBoard,
        prometheus: AlertQueries,
        every: float,
        clock: Callable[[], datetime],
    ) -> None:
        """Make a poller that asks nothing yet.

        Args:
            board: Where the alerts are told.
            prometheus: Who knows them.
            every: Seconds between the end of a look and the next.
            clock: Returns the present instant.
        """
        self._board = board
        self._prometheus = prometheus
        self._every = every
        self._clock = clock
        self._answers = True
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alert-poller", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._end.set()

    def look(self) -> None:
        """Ask once."""
        try:
            alerts = self._prometheus.alerts(self._clock())
        except MetricsError as error:
            if self._answers:
                logger.warning("Which alerts fire is not known: %s", error)
            self._answers = False
            self._board.polled(None)
            return
        self._answers = True
        self._board.polled(alerts)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.look()
            except Exception:
                # A thread that ends here would be missed by nobody until it matters.
                logger.exception("Looking for alerts failed")
                self._board.polled(None)
            self._end.wait(self._every)
