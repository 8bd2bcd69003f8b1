"""What a rule is: it looks every 15 seconds, and says whether the canary may move."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from bench.decisions.books import Books
from kvquant.core.analysis.samples import Tick

CHECK = 60.0
"""Seconds between two checks of the rules that check once a minute."""
SOAK = 600.0
"""Seconds that a canary stays at a step at least, whatever the rule."""


class Move(Enum):
    """What a rule wants."""

    STAY = "stay"
    ADVANCE = "advance"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True)
class Look:
    """What a rule sees.

    Attributes:
        now: Simulated seconds.
        since: When this step began.
        step: The step, counted from 1; 0 before the canary gets traffic.
        last: Whether this is the last step, whose baseline is all but idle: rules that compare
            two arms of like load have nothing to compare with there.
        tick: What the operator's analysis is fed; None when its Prometheus is not there.
        books: What the peers may ask their Prometheus.
    """

    now: float
    since: float
    step: int
    last: bool
    tick: Tick | None
    books: Books


class Rule(Protocol):
    """A way to decide, made anew for each rollout."""

    name: str

    def look(self, look: Look) -> tuple[Move, str]:
        """Say what to do, and why."""
        ...


class EveryMinute:
    """The minute hand of a rule that checks once a minute, beginning anew with each step."""

    def __init__(self) -> None:
        self._step = 0
        self._next = 0.0

    def strikes(self, look: Look) -> bool:
        """Tell whether this is the time of a check."""
        if not look.step:
            return False
        if look.step != self._step:
            self._step, self._next = look.step, look.since + CHECK
        if look.now + 1e-6 < self._next:
            return False
        self._next += CHECK
        return True
