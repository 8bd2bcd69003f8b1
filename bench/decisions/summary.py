"""From outcomes to counts: cell by cell, and over all good and all bad cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.decisions.rollout import HELD, PROMOTED, ROLLED_BACK, Outcome


@dataclass(frozen=True, slots=True)
class Cell:
    """How one rule did in some rollouts.

    Attributes:
        runs: Rollouts.
        promoted: Of these, promoted.
        rolled_back: Of these, rolled back.
        held: Of these, neither, until the cap.
        delay: Median minutes from the fault to the rollback; None without one.
        sent: Median of the requests that the canary was sent until the rollback.
        promoted_after: Median minutes to the promotion; None without one.
    """

    runs: int
    promoted: int
    rolled_back: int
    held: int
    delay: float | None
    sent: float | None
    promoted_after: float | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Cell:
        """Count outcomes."""
        back = [o for o in outcomes if o.end == ROLLED_BACK]
        promoted = [o for o in outcomes if o.end == PROMOTED]
        return cls(
            len(outcomes),
            len(promoted),
            len(back),
            sum(o.end == HELD for o in outcomes),
            median(o.delay for o in back) if back else None,
            median(o.sent for o in back) if back else None,
            median(o.minutes for o in promoted) if promoted else None,
        )


def by_cell(outcomes: Iterable[Outcome]) -> dict[tuple[str, str, str], Cell]:
    """Return counts by kind, load and rule, in the order of first appearance."""
    found: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.kind, outcome.load, outcome.rule), []).append(outcome)
    return {key: Cell.of(those) for key, those in found.items()}
