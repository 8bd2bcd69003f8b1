"""One turn of the state machine: the status under revision, and what is to be told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from kvquant.api.conditions import set_condition
from kvquant.api.v1alpha1 import (
    DecisionKind,
    DecisionRecord,
    Phase,
    Pool,
    Status,
    TrafficSpan,
    Weights,
)
from kvquant.core.observation import Observation
from kvquant.core.plan import Plan

UNDECIDED = "InsufficientEvidence"
"""Reason of a hold for lack of evidence."""

SIGN_OF_LIFE = timedelta(seconds=60)
"""Time after which a look that found nothing new is written all the same: it shows that we look."""

DECISIONS_KEPT = 50
SPANS_KEPT = 64

WARNINGS = frozenset({DecisionKind.ROLL_BACK, DecisionKind.REFUSE, DecisionKind.KILL})
"""Decisions that are told as Warning Events; the others are Normal."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """An Event to post: its type (Normal or Warning), distinct reason and sentence."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Outcome of one turn.

    Attributes:
        status: What to persist; equal to the old one when nothing changed.
        announcements: Events to post once the status is persisted.
        requeue_after: Time until the next look, at the latest; wakes come earlier.
    """

    status: Status
    announcements: tuple[Announcement, ...]
    requeue_after: timedelta


@dataclass(slots=True)
class Turn:
    """The status under revision. Phase functions call its verbs and nothing else."""

    plan: Plan
    seen: Observation
    now: datetime
    status: Status
    requeue_after: timedelta = timedelta(seconds=15)
    announcements: list[Announcement] = field(default_factory=list)
    held: tuple[str, str] | None = None

    def set(self, **changes: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=changes)

    def enter(self, phase: Phase, **changes: Any) -> None:
        """Begin a phase now, and commit the weights that belong to the new state."""
        self.set(phase=phase, phase_started_at=self.now, **changes)
        self.commit_weights()

    def commit_weights(self) -> None:
        """Commit the one split of traffic that the state allows: a function of it and nothing else.

        This is the only place where weights come from.
        """
        canary = mirror = 0
        if not self.status.killed:
            if self.status.phase is Phase.SHADOWING and not self.status.alerts:
                # While an alert fires nothing is copied: a copy costs what production may need.
                mirror = self.plan.shadow.percent
            elif self.status.phase is Phase.PROGRESSING:
                canary = self.plan.weight(self.status.step)
                if self.status.baseline is not None and not self.status.alerts:
                    mirror = self.plan.top_up(self.status.step, self.status.baseline.replicas)
            elif self.status.phase is Phase.PROMOTED and not self.status.handed_back:
                canary = 100
        self.set(weights=Weights(baseline=100 - canary, canary=canary, mirror=mirror))
        step = self.status.step if canary else 0
        last = self.status.traffic[-1] if self.status.traffic else None
        if last is None or (last.step, last.weight) != (step, canary):
            span = TrafficSpan(since=self.now, step=step, weight=canary)
            self.set(traffic=(*self.status.traffic, span)[-SPANS_KEPT:])

    def record(self, kind: DecisionKind, reason: str, message: str) -> None:
        """Keep a decision and announce it. Call it after the change that it speaks of."""
        entry = DecisionRecord(
            number=_following(self.status.decisions),
            at=self.now,
            kind=kind,
            reason=reason,
            step=self.status.step,
            weight=self.status.weights.canary,
            message=message[:2048],
        )
        decisions = [*self.status.decisions, entry]
        while len(decisions) > DECISIONS_KEPT:
            # Waits come in any number; what was done and why must not be pushed out by them.
            waits = (i for i, d in enumerate(decisions) if d.kind is DecisionKind.HOLD)
            decisions.pop(next(waits, 0))
        self.set(decisions=tuple(decisions), verdict=message[:256])
        type_ = "Warning" if kind in WARNINGS else "Normal"
        self.announcements.append(Announcement(type_, reason, message[:1000]))

    def handle(self, **tokens: str | None) -> None:
        """Note one-shot requests as handled: `promote`, `abort` or `retry` by their token."""
        self.set(handled=self.status.handled.model_copy(update=tokens))

    def hold(self, reason: str, message: str) -> None:
        """Say why nothing moves. A new cause is recorded once, however long it lasts."""
        self.held = (reason, message)
        before = self.status.condition("Held")
        if before is None or before.status != "True" or before.reason != reason:
            self.record(DecisionKind.HOLD, reason, message)
        self.set(verdict=message[:256])

    @property
    def baseline(self) -> Pool:
        """The pool that served when the attempt began."""
        assert self.status.baseline is not None, "the attempt has begun"  # noqa: S101
        return self.status.baseline

    @property
    def canary(self) -> Pool:
        """The pool with the quantized cache."""
        assert self.status.canary is not None, "the attempt has begun"  # noqa: S101
        return self.status.canary

    def since_phase(self) -> timedelta:
        """Return how long the phase has lasted."""
        return self.now - (self.status.phase_started_at or self.now)

    def since_step(self) -> timedelta:
        """Return how long the step in effect has lasted."""
        return self.now - (self.status.step_started_at or self.now)

    def condition(self, type_: str, holds: bool, reason: str, message: str = "") -> None:
        """Set a condition to True or False."""
        self.set(
            conditions=set_condition(
                self.status.conditions,
                type_,
                "True" if holds else "False",
                reason,
                message,
                self.now,
                self.seen.generation,
            )
        )


def is_new(token: str | None, handled: str | None) -> bool:
    """Tell whether a one-shot request was made that has not been handled."""
    return token is not None and token != handled


def _following(decisions: Sequence[DecisionRecord]) -> int:
    """Return the number of the next decision. An older operator gave them none."""
    newest = max((d.number or 0 for d in decisions), default=0)
    return 1 + (newest or len(decisions))
