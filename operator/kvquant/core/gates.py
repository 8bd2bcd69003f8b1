"""What must hold before a rollout moves: proven pods, routers that follow, drained pools.

Each gate tells whether it is open; a closed one says on the turn what it waits for, and those that
find what cannot be waited for roll back.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from kvquant.api.v1alpha1 import Verdict
from kvquant.core import alarm
from kvquant.core.evidence import worst
from kvquant.core.moves import roll_back
from kvquant.core.observation import PodView, deaths_since
from kvquant.core.turn import Turn

DRAIN_AT_LEAST = timedelta(seconds=15)
"""Prometheus must have scraped the routers after the traffic left before its count of requests
in flight can be believed."""

START_FAILURES = 3
"""Restarts of a canary's engine before it ever served that end the attempt."""


def proofs(turn: Turn, *, may_fail: bool = True) -> bool:
    """Keep the latest proofs; roll back and return True when a pod is proven wrong."""
    turn.set(regime_proof=turn.seen.proofs)
    for proof in turn.seen.proofs:
        if proof.verdict is Verdict.PASS and turn.status.proven_capacity_tokens is None:
            turn.set(proven_capacity_tokens=proof.capacity_tokens)
    wrong = [proof for proof in turn.seen.proofs if proof.verdict is Verdict.FAIL]
    if wrong and may_fail:
        roll_back(turn, "RegimeProofFailed", worst([f"{p.pod}: {p.message}" for p in wrong]))
    return bool(wrong) and may_fail


def pods_serve(turn: Turn) -> bool:
    """Tell whether as many verified pods serve as asked for; else say what is missing."""
    pods, wanted = turn.seen.canary_pods, turn.canary.replicas
    serving = [pod for pod in pods if pod.ready and pod.serving]
    if turn.seen.problem is not None:
        turn.hold(turn.seen.problem.reason, turn.seen.problem.message)
        return False
    if len(serving) >= wanted:
        if turn.seen.router.follows:
            return _routers_know(turn, wanted)
        turn.hold("RouterNotReady", router_trouble(turn))
    elif unproven := [p for p in turn.seen.proofs if p.verdict is not Verdict.PASS]:
        turn.hold("RegimeNotProven", worst([f"{p.pod}: {p.message}" for p in unproven]))
    else:
        why = trouble(pods) or "waiting for them to become ready and verified"
        turn.hold("CanaryNotReady", f"{len(serving)} of {wanted} canary pods serve: {why}")
    return False


def nobody_serves(turn: Turn) -> bool:
    """Tell whether the canary gets requests, or copies, and has no pod for them, or soon none."""
    weights = turn.status.weights
    return weights.canary + weights.mirror > 0 and nobody_proven(turn)


def nobody_proven(turn: Turn) -> bool:
    """Tell whether the canary has no proven pod that is ready, or soon none."""
    proven = {p.pod for p in turn.status.regime_proof if p.verdict is Verdict.PASS}
    return not any(pod.ready and pod.name in proven for pod in turn.seen.canary_pods)


def slot_is_empty(turn: Turn) -> bool:
    """Tell whether no router has a pod of an earlier pool in the canary's slot; else say so.

    Names linger in DNS for a while after a pool has left. Only an empty slot shows later that the
    pods which appear in it are the canary's own.
    """
    known = _pods_known_to_routers(turn)
    if known == 0:
        return True
    if known is None:
        _hold_without_metrics(turn, "Whether the routers have let the slot's last pool go")
    else:
        turn.hold(
            "RouterNotReady",
            f"Router {turn.status.router} still finds {known:g} pods of an earlier pool in slot "
            f"{turn.canary.slot}.",
        )
    return False


def _routers_know(turn: Turn, wanted: int) -> bool:
    """Tell whether every router finds the canary's pods healthy; else say how far they are.

    A pod that serves has yet to get around by DNS and to pass the routers' own health checks.
    Weight before that would be answered with 503.
    """
    known = _pods_known_to_routers(turn)
    if known is not None and known >= wanted:
        return True
    if known is None:
        _hold_without_metrics(turn, "Whether the routers find the canary's pods")
    else:
        turn.hold(
            "RouterNotReady",
            f"Router {turn.status.router} finds {known:g} of {wanted} canary pods healthy so far.",
        )
    return False


def _pods_known_to_routers(turn: Turn) -> float | None:
    """Return the pods in the canary's slot that every router finds healthy, if anybody knows."""
    evidence = turn.seen.evidence
    return evidence.canary.healthy if evidence is not None else None


def _hold_without_metrics(turn: Turn, question: str) -> None:
    why = turn.seen.metrics_problem or "Prometheus has not scraped the routers yet"
    turn.hold("MetricsUnavailable", f"{question}: {why}.")


def fails_to_start(turn: Turn) -> bool:
    """Roll back when an engine keeps dying while no traffic goes to it: a retry would not help."""
    dying = [p for p in turn.seen.canary_pods if p.hopeless or p.restarts >= START_FAILURES]
    if not dying:
        return False
    if turn.status.canary_since is None or any(p.hopeless for p in dying):
        told = [f"{p.name} ended before it served ({_end(p)})" for p in dying]
        roll_back(turn, "EngineFailsToStart", worst(told))
    else:
        # It had traffic in this attempt, which was taken from it when its last pod died.
        told = [f"{p.name} ({_end(p)})" for p in dying]
        roll_back(turn, "EngineKeepsDying", f"Canary engines keep dying: {worst(told)}.")
    return True


def keeps_dying(turn: Turn) -> bool:
    """Roll back when an engine has died in this step and keeps dying, as Kubernetes tells.

    The statistics find a rate of deaths that is too high; this finds a crash loop, whose processes
    may not live long enough to be scraped.
    """
    since = turn.status.step_started_at or turn.now
    here = [p for p in turn.seen.canary_pods if p.died_at is not None and p.died_at >= since]
    dying = [p for p in here if p.restarts >= START_FAILURES]
    most = turn.plan.analysis.oom_retries.max_restarts
    if not dying and most is not None:
        excess = len(here) - deaths_since(turn.seen.baseline_pods, since)
        dying = here if excess > most else []
    if dying:
        told = worst([f"{p.name} ({_end(p)})" for p in dying])
        roll_back(turn, "EngineKeepsDying", f"Canary engines died in this step: {told}.")
    return bool(dying)


def _end(pod: PodView) -> str:
    return f"{pod.death}; {pod.restarts} restarts"


def ended(turn: Turn) -> str:
    """Name the canary's engines that ended in this step, with the reason that Kubernetes gives.

    An engine that dies of a full GPU ends with exit code 0 as `Completed`, which reads like
    success to those who look at the pod alone.
    """
    since = turn.status.step_started_at or turn.now
    dead = [p for p in turn.seen.canary_pods if p.died_at is not None and p.died_at >= since]
    return f"Ended: {worst([f'{p.name} ({p.death})' for p in dead])}." if dead else ""


def deadline(turn: Turn) -> None:
    """Roll back when the pods or routers have taken longer than the spec allows."""
    if turn.seen.metrics_problem is not None:
        # A Prometheus that does not answer is no failure of the canary's.
        return
    if turn.since_phase() > turn.plan.progress_deadline:
        roll_back(
            turn,
            "ProgressDeadlineExceeded",
            f"Not done within {turn.plan.progress_deadline}: {turn.status.verdict}",
        )


def drained(turn: Turn, *, of_canary: bool, since: datetime | None = None) -> bool:
    """Tell whether the pool that lost its traffic has finished its requests, or had its time.

    The clock counts from the instant at which the traffic left, which is the beginning of the
    phase unless one is given. A canary that never reached a step has never had any.
    """
    left = since or turn.status.phase_started_at or turn.now
    waited = turn.now - left
    if turn.status.step_started_at is None or waited >= turn.plan.drain_timeout:
        return True
    if waited < DRAIN_AT_LEAST or not turn.seen.router.follows or turn.seen.evidence is None:
        return False
    evidence = turn.seen.evidence
    if evidence.at - left < DRAIN_AT_LEAST:
        return False
    arm = evidence.canary if of_canary else evidence.baseline
    return arm.active == 0


def trouble(pods: tuple[PodView, ...]) -> str:
    """Return why pods are not ready, in the words of scheduler and kubelet."""
    return worst([f"{pod.name}: {pod.trouble}" for pod in pods if pod.trouble])


def router_trouble(turn: Turn) -> str:
    """Return how far the router's pods have followed."""
    router = turn.seen.router
    if router.trouble:
        return router.trouble
    return (
        f"Router {turn.status.router}: {router.available} pods available, {router.connected} "
        f"connected to the operator, {router.applied} follow the committed weights."
    )


def obstacle(turn: Turn) -> tuple[str, str] | None:
    """Return what stands in the way whatever both pools' answers say, as reason and sentence."""
    seen = turn.seen
    if seen.requests.paused:
        return "Paused", f"Paused: {seen.requests.paused}"
    if seen.problem is not None:
        return seen.problem.reason, seen.problem.message
    if (alert := alarm.why_not(turn)) is not None:
        return alert
    if not seen.router.follows:
        return "RouterNotReady", router_trouble(turn)
    return None
