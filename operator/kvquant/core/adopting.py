"""The way back of the traffic: from a promoted pool to the target, once that has adopted its dtype.

A promotion leaves two Deployments: the pool that serves, and the target in Git that does not. When
the target's own pod template asks for the promoted dtype, its pods are proven like a canary's, get
the traffic, and the pool goes. Until the pool is gone it is the way back.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from kvquant.api import names
from kvquant.api.v1alpha1 import Adoption, AdoptionStage, DecisionKind, PodProof, Verdict
from kvquant.core import regime
from kvquant.core.evidence import worst
from kvquant.core.gates import DRAIN_AT_LEAST, drained, router_trouble, trouble
from kvquant.core.manifests import Object, engine_container, target_selector
from kvquant.core.observation import PodView, Problem
from kvquant.core.turn import Turn
from kvquant.engines import vllm
from kvquant.errors import TemplateError

CONDITION = "Adopted"

WATCHFUL = timedelta(seconds=2)
"""Time between looks while pods or routers are expected to change."""

PATIENT = timedelta(seconds=15)
"""Time between looks at a target that has not been fit for longer than a canary may take."""

Why = tuple[str, str]
"""A CamelCase reason and a sentence."""


def differs(target: Object, container: str | None, dtype: str) -> Problem | None:
    """Return why a target does not ask for a dtype by itself, or could not be served if it did.

    Args:
        target: The target's Deployment.
        container: spec.engine.container, if the user gave one.
        dtype: What the engine calls the promoted dtype.
    """
    name = target["metadata"]["name"]
    try:
        target_selector(target)
        index = engine_container(target, container)
        engine = target["spec"]["template"]["spec"]["containers"][index]
        vllm.port_of(engine)
    except TemplateError as error:
        return Problem(error.reason, str(error))
    asked = vllm.dtype_of(engine)
    if regime.canonical(asked) != regime.canonical(dtype):
        return Problem(
            "NotAsked",
            f"{name} asks for {asked}. When its own pod template asks for {dtype}, and its pods "
            "are proven, it gets the traffic back.",
        )
    if names.LABEL_POOL in (target["metadata"].get("labels") or {}):
        return Problem(
            "TargetIsPool",
            f"{name} is the pool of another rollout, which still proves its pods: delete that "
            "rollout first.",
        )
    return None


def adopting(turn: Turn) -> None:
    """Go on with the adoption of a rollout that is promoted and whose rollback window is closed."""
    adoption = turn.status.adoption
    if adoption is None:
        _begin(turn)
    elif adoption.stage is AdoptionStage.PROVING:
        _proving(turn, adoption)
    elif adoption.stage is AdoptionStage.HANDING_OVER:
        _handing_over(turn, adoption)


def _begin(turn: Turn) -> None:
    why = _not_asked(turn) or _stopped(turn)
    if why is not None:
        turn.condition(CONDITION, False, *why)
        return
    turn.set(adoption=Adoption(stage=AdoptionStage.PROVING, since=turn.now))
    message = (
        f"{turn.baseline.deployment} asks for {turn.status.resolved_dtype} by itself now: its pods "
        f"are proven before they get the traffic of {turn.canary.deployment}."
    )
    turn.record(DecisionKind.ADOPT, "AdoptionStarted", message)
    turn.condition(CONDITION, False, "AdoptionStarted", message)
    turn.requeue_after = timedelta(0)


def _proving(turn: Turn, adoption: Adoption) -> None:
    """Prove the target's pods, and move the traffic when every one of them can take it."""
    turn.requeue_after = PATIENT
    if (why := _not_asked(turn) or _taken(turn)) is not None:
        # Nothing is left to hold still for, such as the target's autoscaler.
        turn.set(adoption=None)
        turn.condition(CONDITION, False, *why)
        return
    if turn.now - adoption.since < turn.plan.progress_deadline:
        turn.requeue_after = WATCHFUL
    _keep_proofs(turn, adoption)
    why = _stopped(turn) or _paused(turn) or _unfit(turn) or _unready_to_receive(turn, adoption)
    if why is not None:
        _wait(turn, *why)
        return
    target = turn.seen.target
    assert target is not None  # noqa: S101 - it asks for the dtype
    now_is = {"replicas": target.replicas, "dtype": turn.status.resolved_dtype}
    turn.set(baseline=turn.baseline.model_copy(update=now_is))
    _enter(turn, AdoptionStage.HANDING_OVER)
    message = (
        f"Every pod of {turn.baseline.deployment} is ready and runs {turn.status.resolved_dtype}, "
        f"proven by dtype and capacity: it serves 100 % now. {turn.canary.deployment} keeps its "
        "pods until it is drained."
    )
    turn.record(DecisionKind.ADOPT, "HandingOver", message)
    turn.condition(CONDITION, False, "HandingOver", message)
    turn.requeue_after = timedelta(0)


def _handing_over(turn: Turn, adoption: Adoption) -> None:
    """Wait until the pool is drained; take the traffic back to it if the target gives way."""
    turn.requeue_after = WATCHFUL
    _keep_proofs(turn, adoption)
    why = _not_asked(turn) or _stopped(turn) or _unfit(turn)
    if why is not None and _can_go_back(turn):
        _go_back(turn, *why)
        return
    why = why or _paused(turn) or _not_followed(turn)
    if why is not None:
        _wait(turn, *why)
        return
    message = f"{turn.baseline.deployment} serves; {turn.canary.deployment} is being drained."
    if not drained(turn, of_canary=True, since=adoption.since):
        turn.set(verdict=message)
        turn.condition(CONDITION, False, "Draining", message)
        return
    proofs = turn.seen.target_proofs
    _enter(
        turn,
        AdoptionStage.ADOPTED,
        regime_proof=proofs,
        canary=turn.canary.model_copy(update={"replicas": 0}),
    )
    message = (
        f"{turn.baseline.deployment} has adopted {turn.status.resolved_dtype} and serves 100 %; "
        f"{turn.canary.deployment} is removed. This rollout may be deleted: "
        f"{turn.baseline.deployment} goes on serving behind {turn.status.router}."
    )
    turn.record(DecisionKind.ADOPT, CONDITION, message)
    turn.condition(CONDITION, True, CONDITION, message)
    turn.requeue_after = timedelta(0)


def _enter(turn: Turn, stage: AdoptionStage, **changes: object) -> None:
    """Begin a stage now, and commit the weights that belong to it."""
    proofs = () if stage is AdoptionStage.ADOPTED else turn.seen.target_proofs
    adoption = Adoption(stage=stage, since=turn.now, regime_proof=proofs)
    turn.set(adoption=adoption, **changes)
    turn.commit_weights()


def _go_back(turn: Turn, reason: str, message: str) -> None:
    """Give the traffic back to the pool, which has kept its pods for this."""
    _enter(turn, AdoptionStage.PROVING)
    told = f"The traffic is back on {turn.canary.deployment}: {message}"
    turn.record(DecisionKind.ADOPT, "AdoptionTakenBack", told)
    turn.condition(CONDITION, False, reason, told)
    turn.requeue_after = timedelta(0)


def _can_go_back(turn: Turn) -> bool:
    """Tell whether the pool serves better than the target, which has given way.

    Without a pod that is proven and ready the pool can take nothing. A router that somebody else
    drives is not moved by what is committed here, and a pool that it uses must not be removed.
    """
    if not turn.seen.drives_router:
        return True
    pool = len(_proven(turn.seen.canary_pods, turn.status.regime_proof))
    target = len(_proven(turn.seen.baseline_pods, turn.seen.target_proofs))
    return pool > 0 and (turn.seen.requests.killed is not None or pool >= target)


def _keep_proofs(turn: Turn, adoption: Adoption) -> None:
    changed = adoption.model_copy(update={"regime_proof": turn.seen.target_proofs})
    turn.set(adoption=changed)


def _wait(turn: Turn, reason: str, message: str) -> None:
    if turn.held is None:
        # Two reasons in turn would be a new decision each time.
        turn.hold(reason, message)
    turn.condition(CONDITION, False, reason, message)


def _not_asked(turn: Turn) -> Why | None:
    """Return why the target does not ask for the traffic; None when it does."""
    target, name = turn.seen.target, turn.baseline.deployment
    if target is None:
        return "TargetNotFound", f"Deployment {name} is gone, and {turn.canary.deployment} serves."
    why = target.differs
    return None if why is None else (why.reason, why.message)


def _stopped(turn: Turn) -> Why | None:
    """Return what keeps the traffic on the pool whatever the target's pods are like."""
    killed = turn.seen.requests.killed
    if killed:
        return "Killed", f"The kill switch holds, under which nothing is handed over: {killed}"
    return _taken(turn)


def _taken(turn: Turn) -> Why | None:
    if turn.seen.drives_router:
        return None
    return (
        "RouterTaken",
        f"Router {turn.status.router} is another rollout's by now: what it sends where is not for "
        "this one to change.",
    )


def _paused(turn: Turn) -> Why | None:
    paused = turn.seen.requests.paused
    return ("Paused", f"Paused: {paused}") if paused else None


def _unfit(turn: Turn) -> Why | None:
    """Return why the target's pods cannot carry the traffic; None when they can."""
    seen, name = turn.seen, turn.baseline.deployment
    wanted = seen.target.replicas if seen.target is not None else 0
    if wanted == 0:
        return (
            "TargetScaledToZero",
            f"Deployment {name} asks for no pods, and somebody else than the operator wanted it "
            "so: set its replicas.",
        )
    wrong = [proof for proof in seen.target_proofs if proof.verdict is Verdict.FAIL]
    if wrong:
        return "RegimeProofFailed", worst([f"{proof.pod}: {proof.message}" for proof in wrong])
    proven = _proven(seen.baseline_pods, seen.target_proofs)
    if len(proven) < wanted:
        return _missing(turn, len(proven), wanted)
    # Pods beyond those asked for are about to go.
    held = sorted(p.capacity_tokens or 0 for p in seen.target_proofs if p.pod in proven)[:wanted]
    needed, there = _tokens_of_pool(turn), sum(held)
    if there < needed * (1 - regime.TOLERANCE):
        return (
            "TargetTooSmall",
            f"The {len(held)} pods of {name} hold {there:,} tokens, those of "
            f"{turn.canary.deployment} {needed:,}: give it as many replicas.",
        )
    return None


def _missing(turn: Turn, proven: int, wanted: int) -> Why:
    """Return what the pods lack of which there are too few."""
    seen, name = turn.seen, turn.baseline.deployment
    if seen.outdated:
        return (
            "RollingOut",
            f"{proven} of {wanted} pods of {name} are proven; {seen.outdated[0]} still comes from "
            "another template.",
        )
    ready = [pod for pod in seen.baseline_pods if pod.ready]
    if len(ready) < wanted:
        why = trouble(seen.baseline_pods) or "waiting for their model to load"
        return "TargetNotReady", f"{len(ready)} of {wanted} pods of {name} are ready: {why}"
    unproven = [p for p in seen.target_proofs if p.verdict is not Verdict.PASS]
    why = seen.metrics_problem or worst([f"{p.pod}: {p.message}" for p in unproven])
    return "RegimeNotProven", f"{proven} of {wanted} pods of {name} are proven. {why}".strip()


def _unready_to_receive(turn: Turn, adoption: Adoption) -> Why | None:
    """Return what is missing before the first request may go to pods that are all fit."""
    seen, name = turn.seen, turn.baseline.deployment
    if seen.problem is not None:
        return seen.problem.reason, seen.problem.message
    proven = _proven(seen.baseline_pods, seen.target_proofs)
    pods = [pod for pod in seen.baseline_pods if not pod.finished]
    others = [pod.name for pod in pods if pod.name not in proven or not pod.serving]
    if others:
        # Routers may still know a pod of the template before by its name in DNS.
        return (
            "RollingOut",
            f"{len(others)} of {len(pods)} pods of {name} are not verified, or about to go: "
            f"{others[0]}.",
        )
    if turn.now - adoption.since < DRAIN_AT_LEAST:
        return "RouterNotReady", "Routers let pods go that were there before they were verified."
    if (why := _not_followed(turn)) is not None:
        return why
    known = seen.evidence.baseline.healthy if seen.evidence is not None else None
    if known is None:
        told = seen.metrics_problem or "Prometheus has not scraped the routers yet"
        return "MetricsUnavailable", f"Whether the routers find the pods of {name}: {told}."
    if known < len(pods):
        return (
            "RouterNotReady",
            f"Router {turn.status.router} finds {known:g} of {len(pods)} pods of {name} healthy "
            "so far.",
        )
    return None


def _not_followed(turn: Turn) -> Why | None:
    if turn.seen.problem is not None:
        return turn.seen.problem.reason, turn.seen.problem.message
    return None if turn.seen.router.follows else ("RouterNotReady", router_trouble(turn))


def _proven(pods: Iterable[PodView], proofs: Iterable[PodProof]) -> set[str]:
    """Return the names of the pods that are ready, and whose container has passed the proof."""
    passed = {(p.pod, p.container_id) for p in proofs if p.verdict is Verdict.PASS}
    return {pod.name for pod in pods if pod.ready and (pod.name, pod.container_id) in passed}


def _tokens_of_pool(turn: Turn) -> int:
    """Return how much the pool's pods hold, those that start or are unready just now included."""
    known = {p.pod: p.capacity_tokens for p in turn.status.regime_proof}
    usual = turn.status.proven_capacity_tokens or 0
    pods = (pod.name for pod in turn.seen.canary_pods if not pod.finished)
    return sum(known.get(pod) or usual for pod in pods)
