"""What `-o json` prints: stable names, documented in docs/cli.md.

The screens are drawn from the same documents, so that people and programs are told the same.
Instants are RFC 3339 in UTC, lengths of time whole seconds, shares whole per cents. A field that is
not known is null, never absent.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from kvquant.api import names
from kvquant.api.fields import Model
from kvquant.api.v1alpha1 import (
    AdoptionStage,
    AlertPolicy,
    AlertSource,
    Condition,
    DecisionKind,
    DecisionRecord,
    EvaluationReport,
    Phase,
    PodProof,
    Pool,
    Spec,
    Weights,
    parse_duration,
)
from kvquant.cli import verbs
from kvquant.cli.looks import AnalysisDocument, ShadowDocument, copied, looked
from kvquant.cli.rollouts import Seen

LOOKS_MISSED = 4
"""Intervals without a look at the evidence after which the operator is reported silent."""

SLACK = timedelta(seconds=90)
"""Time that a look may take beyond its interval to show: a slow Prometheus, a restart of the
operator, and the minute in which a look that finds nothing new is not written."""


class StepState(StrEnum):
    """How a step of the ladder stands."""

    DONE = "Done"
    CURRENT = "Current"
    NEXT = "Next"
    TODO = "ToDo"
    FAILED = "Failed"


class StepDocument(Model):
    """One rung of the ladder."""

    weight: int
    """Share of the traffic that the canary has in this step, in per cent."""
    soak_seconds: int
    """Least time that the step lasts."""
    state: StepState
    """Done, Current, Next (its pods are being made ready), ToDo or Failed."""


class ArmDocument(Model):
    """One of the two pools, with what was measured in the step in effect."""

    pool: str
    """Name of the pool's Deployment."""
    slot: str
    """Router slot that the pool fills: blue or green."""
    dtype: str
    """KV-cache dtype as the engine calls it."""
    replicas: int
    """Pods that the pool has or is asked to have."""
    weight: int
    """Committed share of the traffic, in per cent."""
    requests: int | None = None
    """Requests that ended in this step, as of the latest look."""
    p99_ms: int | None = None
    """99th percentile of the latency at the router in this step, in milliseconds."""


class AlertDocument(Model):
    """An alert that fires and concerns the rollout."""

    name: str
    """Name of the alert."""
    since: datetime
    """Since when it fires."""
    policy: AlertPolicy
    """What it does to the rollout: rollback, pause or ignore."""
    learned: AlertSource
    """How it became known: by webhook or by polling."""
    before_traffic: bool
    """Whether it fired before the canary had traffic, so that it is not held against the canary."""


class WaitingDocument(Model):
    """Why the rollout does not move."""

    reason: str
    """Machine-readable cause in CamelCase."""
    message: str
    """The cause in a sentence."""
    since: datetime | None = None
    """Since when it has waited, whatever the reason."""
    soak_left_seconds: int | None = None
    """What is left of the step's soak; null outside of a step."""


class RolloutDocument(Model):
    """One rollout as `status -o json` prints it."""

    name: str
    """Name of the rollout."""
    namespace: str
    """Namespace of the rollout."""
    created_at: datetime | None = None
    """When the rollout was created."""
    target: str
    """Name of the Deployment that served when the rollout was written."""
    dtype: str
    """KV-cache dtype that was asked for."""
    resolved_dtype: str | None = None
    """The same as the engine calls it."""
    router: str | None = None
    """Name of the router: clients send to the Service of this name."""
    phase: Phase
    """Where the rollout stands."""
    phase_started_at: datetime | None = None
    """When the phase began."""
    attempt: int
    """Number of the attempt; a new spec or a retry begins a new one."""
    paused: str | None = None
    """Who asked for a pause, when and why; null while nobody does."""
    killed: str | None = None
    """Who pulled the kill switch, when and why; null while it is off."""
    settled: bool
    """Whether nothing is left to do: the rollback window is closed, or the rollback complete."""
    deleting: bool
    """Whether somebody has deleted it, so that it only winds down."""
    step: int
    """Step in effect, counted from 1; 0 before the first."""
    total_steps: int
    """Number of steps."""
    step_started_at: datetime | None = None
    """When the step in effect began: soak and samples count from here."""
    steps: tuple[StepDocument, ...] = ()
    """The steps in order."""
    weights: Weights
    """Committed split of the traffic."""
    adoption: AdoptionStage | None = None
    """How far the target is that has adopted the promoted dtype; null while it has not."""
    verdict: str | None = None
    """The latest verdict or the reason to wait, in a few words."""
    waiting: WaitingDocument | None = None
    """Why the rollout does not move; null while it moves or has ended."""
    cause: str | None = None
    """Why it went back; null unless it is rolling back or rolled back."""
    baseline: ArmDocument | None = None
    """The pool that served when the attempt began; null before it begins."""
    canary: ArmDocument | None = None
    """The pool with the quantized cache; null before the attempt begins."""
    analysis: AnalysisDocument | None = None
    """The latest look at the evidence; null before the first."""
    evaluation: EvaluationReport | None = None
    """What the evaluation of the example set has come to; null where there is none."""
    shadow: ShadowDocument | None = None
    """The latest look at the answers of both pools to copied requests; null before the first, and
    when nothing is copied."""
    alerts: tuple[AlertDocument, ...] = ()
    """Alerts that fire and concern the rollout."""
    regime_proof: tuple[PodProof, ...] = ()
    """Regime proof by pod of the canary, and of a target that has adopted its dtype."""
    conditions: tuple[Condition, ...] = ()
    """Conditions as Kubernetes has them."""
    decisions: tuple[DecisionRecord, ...] = ()
    """The last 50 decisions, oldest first."""
    warnings: tuple[str, ...] = ()
    """What a person should know before believing the rest, in sentences."""
    verbs: tuple[str, ...] = ()
    """Verbs that would change something now."""


class ListDocument(Model):
    """Several rollouts as `status -o json` without a name prints them."""

    items: tuple[RolloutDocument, ...]
    """The rollouts by namespace and name."""


def describe(seen: Seen, now: datetime) -> RolloutDocument:
    """Return what there is to say of a rollout at an instant."""
    status, spec = seen.status, seen.spec
    analysis = status.analysis
    return RolloutDocument(
        name=seen.name,
        namespace=seen.namespace,
        created_at=seen.created_at,
        target=spec.target_ref.name,
        dtype=spec.kv_cache.dtype.value,
        resolved_dtype=status.resolved_dtype,
        router=status.router,
        phase=status.phase,
        phase_started_at=status.phase_started_at,
        attempt=status.attempt,
        paused=seen.asked(names.ANNOTATION_PAUSED),
        killed=_killed(seen),
        settled=status.settled,
        deleting=seen.deleting,
        step=status.step,
        total_steps=status.total_steps or len(spec.steps),
        step_started_at=status.step_started_at,
        steps=_steps(seen),
        weights=status.weights,
        adoption=None if status.adoption is None else status.adoption.stage,
        verdict=status.verdict,
        waiting=_waiting(seen, now),
        cause=_cause(seen),
        baseline=_arm(
            status.baseline,
            status.weights.baseline,
            analysis.baseline_requests if analysis else None,
            analysis.baseline_p99_ms if analysis else None,
        ),
        canary=_arm(
            status.canary,
            status.weights.canary,
            analysis.canary_requests if analysis else None,
            analysis.canary_p99_ms if analysis else None,
        ),
        analysis=None if analysis is None else looked(analysis),
        evaluation=status.evaluation,
        shadow=None if status.shadow is None else copied(status.shadow, spec.shadow.min_pairs),
        alerts=tuple(AlertDocument(**alert.model_dump()) for alert in status.alerts),
        regime_proof=(
            *status.regime_proof,
            *(status.adoption.regime_proof if status.adoption is not None else ()),
        ),
        conditions=status.conditions,
        decisions=status.decisions,
        warnings=_warnings(seen, now),
        verbs=verbs.applicable(seen),
    )


def _killed(seen: Seen) -> str | None:
    """Return who pulled the kill switch, as soon as it is asked for or as long as it holds."""
    asked = seen.asked(names.ANNOTATION_KILLED)
    if asked is not None or not seen.status.killed:
        return asked
    condition = seen.status.condition("Killed")
    return (condition.message if condition else "") or "cluster-wide kill switch"


def _steps(seen: Seen) -> tuple[StepDocument, ...]:
    status = seen.status

    def state(number: int) -> StepState:
        if status.phase is Phase.PROMOTED or number < status.step:
            return StepState.DONE
        if number == status.step:
            back = status.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
            return StepState.FAILED if back else StepState.CURRENT
        return StepState.NEXT if number == status.next_step else StepState.TODO

    return tuple(
        StepDocument(
            weight=step.weight,
            soak_seconds=int(parse_duration(step.soak).total_seconds()),
            state=state(number),
        )
        for number, step in enumerate(seen.spec.steps, 1)
    )


def _waiting(seen: Seen, now: datetime) -> WaitingDocument | None:
    held, left = seen.status.condition("Held"), soak_left(seen.spec, seen, now)
    soak = None if left is None else int(left.total_seconds())
    if held is not None and held.status == "True":
        return WaitingDocument(
            reason=held.reason,
            message=held.message,
            since=held.last_transition_time,
            soak_left_seconds=soak,
        )
    if not seen.status.conditions:
        return WaitingDocument(
            reason="NotSeenYet",
            message="The operator has not looked at this rollout yet: see whether it runs and "
            "watches this namespace.",
            since=seen.created_at,
        )
    return None


def soak_left(spec: Spec, seen: Seen, now: datetime) -> timedelta | None:
    """Return how long the step in effect still has to soak; None when no step is in effect."""
    status = seen.status
    if status.phase is not Phase.PROGRESSING or status.step_started_at is None:
        return None
    if not 1 <= status.step <= len(spec.steps):
        return None
    until = status.step_started_at + parse_duration(spec.steps[status.step - 1].soak)
    return max(timedelta(0), until - now)


def _cause(seen: Seen) -> str | None:
    """Return why a rollout went back, while it is the last thing that happened."""
    if seen.status.phase not in (Phase.ROLLING_BACK, Phase.ROLLED_BACK):
        return None
    decisions = reversed(seen.status.decisions)
    return next((d.message for d in decisions if d.kind is DecisionKind.ROLL_BACK), None)


def _arm(
    pool: Pool | None, weight: int, requests: int | None, p99_ms: int | None
) -> ArmDocument | None:
    if pool is None:
        return None
    return ArmDocument(
        pool=pool.deployment,
        slot=pool.slot,
        dtype=pool.dtype,
        replicas=pool.replicas,
        weight=weight,
        requests=requests,
        p99_ms=p99_ms,
    )


def _warnings(seen: Seen, now: datetime) -> tuple[str, ...]:
    """Return what a person should know before believing the rest."""
    status, found = seen.status, []
    generation = seen.rollout.metadata.generation
    if status.conditions and (status.observed_generation or 0) < generation:
        found.append("The spec was changed and the operator has not taken it up yet.")
    if seen.deleting:
        found.append("This rollout is being deleted: traffic goes back to the baseline first.")
    if status.phase is Phase.PROGRESSING and status.analysis is not None:
        patience = LOOKS_MISSED * parse_duration(seen.spec.analysis.interval) + SLACK
        silent = now - status.analysis.at
        if silent > patience:
            found.append(
                f"The operator has not looked at the evidence for {int(silent.total_seconds())} s "
                f"(it should every {seen.spec.analysis.interval}): see whether it runs. Until "
                "then the router keeps the weights as they are."
            )
    return tuple(found)
