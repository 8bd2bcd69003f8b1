"""What a turn may do to a rollout: a step up, promotion, or the way back.

The step rises in `advance` and nowhere else.
"""

from __future__ import annotations

from datetime import timedelta

from kvquant.api.v1alpha1 import DecisionKind, Phase
from kvquant.core.plan import replicas_for
from kvquant.core.turn import Turn

STARTS_OVER = frozenset({"SpecChanged", "RouterBusy", "BaselineChanged"})
"""Causes of a rollback that say nothing against the spec: it is tried again without being asked."""


def prepare_next(turn: Turn, reason: str) -> None:
    """Ask for the pods of the next step, which begins when they serve."""
    step = turn.status.step + 1
    wanted = replicas_for(turn.plan.weight(step), turn.baseline.replicas)
    # Pods are only added within an attempt: traffic has to leave a pod before it may go.
    replicas = max(turn.canary.replicas, wanted)
    turn.set(
        next_step=step,
        canary=turn.canary.model_copy(update={"replicas": replicas}),
        phase_started_at=turn.now,
    )
    # Recorded now, because the numbers are gone when the pods are ready.
    turn.record(
        DecisionKind.PROVISION,
        "StepPassed",
        f"Step {turn.status.step} passed: {reason} Step {step} needs {replicas} canary pods.",
    )
    turn.requeue_after = timedelta(0)


def advance(turn: Turn, reason: str) -> None:
    """Go one step up: the only place where a step rises."""
    step = turn.status.step + 1
    turn.enter(
        Phase.PROGRESSING,
        step=step,
        next_step=None,
        previous_step_started_at=(
            turn.status.step_started_at or turn.status.previous_step_started_at
        ),
        step_started_at=turn.now,
        analysis=None,
        # What was asked before the step began does not speak of its evidence.
        handled=turn.status.handled.model_copy(update={"promote": turn.seen.requests.promote}),
    )
    turn.record(
        DecisionKind.ADVANCE,
        "StepStarted",
        f"Step {step}/{len(turn.plan.steps)}: canary {turn.plan.weight(step)} %. {reason}".strip(),
    )
    turn.requeue_after = timedelta(0)


def promote(turn: Turn, reason: str) -> None:
    """Make the canary pool the serving one; the old pool stays ready for the way back."""
    turn.enter(Phase.PROMOTED, promoted_at=turn.now, next_step=None)
    turn.record(
        DecisionKind.PROMOTE,
        "Promoted",
        f"{turn.canary.deployment} is the serving pool now: {reason} "
        f"{turn.baseline.deployment} keeps its pods for {turn.plan.rollback_window}.",
    )
    turn.requeue_after = timedelta(0)


def roll_back(turn: Turn, reason: str, message: str) -> None:
    """Take all traffic from the canary at once; its pods go when they are drained."""
    rejected = None if reason in STARTS_OVER else turn.status.spec_hash
    turn.enter(Phase.ROLLING_BACK, next_step=None, promoted_at=None, rejected_spec_hash=rejected)
    turn.record(DecisionKind.ROLL_BACK, reason, message)
    turn.requeue_after = timedelta(0)
