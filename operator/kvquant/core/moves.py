"""What a turn may do to a rollout: a step up, promotion, or the way back.

The step rises in `advance` and nowhere else.
"""

from __future__ import annotations

from datetime import timedelta

from kvquant.api.v1alpha1 import DecisionKind, EvaluationReport, Phase, Status, Verdict
from kvquant.core.overtaken import STARTS_OVER
from kvquant.core.turn import Turn

REMEMBERED = 32
"""Rejected specs that are remembered."""


REJECTED_BEFORE = (
    "SpecRejectedBefore",
    "This very spec was rolled back before, and is not tried again by itself: change it, or ask "
    "for it with `kubectl kvquant retry`.",
)


def prepare_next(turn: Turn, reason: str) -> None:
    """Ask for the pods of the next step, which begins when they serve."""
    step = turn.status.step + 1
    # Pods are only added within an attempt: traffic has to leave a pod before it may go.
    replicas = turn.plan.next_replicas(
        turn.status.step, turn.baseline.replicas, turn.canary.replicas
    )
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


def leave_verification(turn: Turn, reason: str) -> None:
    """Go on from a proven canary to the first that the spec asks of it."""
    report = turn.status.evaluation
    # What an example set says of this attempt's canary does not change when its pods come back.
    passed = report is not None and report.verdict is Verdict.PASS
    if turn.plan.evaluation is None or passed:
        leave_evaluation(turn, reason)
    else:
        evaluate(turn, reason)


def evaluate(turn: Turn, reason: str) -> None:
    """Begin to evaluate the example set; no request of a user's is involved."""
    before = turn.status.evaluation or EvaluationReport()
    # A run that was on its way when the canary was taken back is void.
    report = EvaluationReport(run=before.run, failures=before.failures)
    turn.enter(Phase.EVALUATING, evaluation=report)
    turn.record(
        DecisionKind.EVALUATE,
        "Evaluating",
        f"A Job asks both pools the example set of spec.evaluation. {reason}",
    )
    turn.requeue_after = timedelta(0)


def leave_evaluation(turn: Turn, reason: str) -> None:
    """Go on from the example set, or without one: to copies of requests, or to the first step."""
    begin = shadow if turn.plan.shadow.percent else advance
    begin(turn, reason)


def shadow(turn: Turn, reason: str) -> None:
    """Begin to copy requests; both pools answer them, and no user sees the canary's answers."""
    turn.enter(Phase.SHADOWING, shadow=None)
    turn.record(
        DecisionKind.SHADOW,
        "Shadowing",
        f"{turn.plan.shadow.percent} % of the generation requests are copied, stripped of personal "
        f"data, and asked of both pools. {reason}",
    )
    turn.requeue_after = timedelta(0)


def advance(turn: Turn, reason: str) -> None:
    """Go one step up: the only place where a step rises."""
    step = turn.status.step + 1
    turn.enter(
        Phase.PROGRESSING,
        step=step,
        next_step=None,
        step_started_at=turn.now,
        canary_since=(turn.now if turn.status.weights.canary == 0 else turn.status.canary_since),
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
    spec = turn.status.spec_hash
    if reason not in STARTS_OVER and spec is not None:
        others = (known for known in turn.status.rejected_spec_hashes if known != spec)
        turn.set(rejected_spec_hash=spec, rejected_spec_hashes=(*others, spec)[-REMEMBERED:])
    else:
        turn.set(rejected_spec_hash=None)
    turn.enter(Phase.ROLLING_BACK, next_step=None, promoted_at=None)
    turn.record(DecisionKind.ROLL_BACK, reason, message)
    turn.requeue_after = timedelta(0)


def withdraw(turn: Turn) -> None:
    """Send everything to the baseline, because the last pod of the canary goes or is gone.

    A drained node says nothing against the canary: the steps start over when its pods are back.
    """
    turn.enter(Phase.VERIFYING, step=0, next_step=None, promoted_at=None)
    turn.record(
        DecisionKind.HOLD,
        "CanaryLost",
        f"No proven pod of {turn.canary.deployment} is ready any more (evicted, drained or "
        "unready): the baseline serves 100 %, and the steps start over when they are back.",
    )
    turn.requeue_after = timedelta(0)


def rejected(status: Status) -> frozenset[str | None]:
    """Return the hashes of the specs that were rolled back and are not tried again unasked."""
    # An older operator remembered the latest one only.
    return frozenset({*status.rejected_spec_hashes, status.rejected_spec_hash} - {None})


def forgive(turn: Turn) -> None:
    """Forget that the present spec was rejected, because somebody wants it tried again."""
    spec = turn.seen.spec_hash
    known = tuple(one for one in turn.status.rejected_spec_hashes if one != spec)
    turn.set(rejected_spec_hashes=known)
    if turn.status.rejected_spec_hash == spec:
        turn.set(rejected_spec_hash=None)
