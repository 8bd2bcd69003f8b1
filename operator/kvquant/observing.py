"""From the world as read to the observation that decisions are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from kvquant import evaluation_acting
from kvquant.analysing import Analyses
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, PodProof, Status, Verdict
from kvquant.beginning import candidate
from kvquant.core import http_routes, regime
from kvquant.core.adopting import differs
from kvquant.core.alerts import Heard, Watch, blamed, services, standing
from kvquant.core.evidence import ArmSample, CacheConfig, Evidence, worst
from kvquant.core.machine import RUNNING
from kvquant.core.manifests import Object, engine_container, replicas_of, template_hash
from kvquant.core.observation import (
    Observation,
    PodView,
    Problem,
    Requests,
    RouterView,
    TargetView,
)
from kvquant.core.plan import Plan, spec_hash
from kvquant.core.shadow_reading import ShadowNeed
from kvquant.engines import vllm
from kvquant.errors import MetricsError, TemplateError
from kvquant.ports import Cluster, Metrics, RouterKey, Traffic
from kvquant.world import (
    ENGINE_CONTAINER,
    World,
    annotations_of,
    pod_view,
    pool_name,
    router_name,
)


def requests(world: World, cluster_kill: str | None, *, deleting: bool) -> Requests:
    """Return what people have asked of the rollout. Deleting it asks for an abort first."""
    asked = annotations_of(world.raw)
    if deleting:
        return Requests(abort=f"deleted at {world.rollout.metadata.deletion_timestamp}")
    return Requests(
        paused=_level(asked.get(names.ANNOTATION_PAUSED)),
        killed=cluster_kill or _level(asked.get(names.ANNOTATION_KILLED)),
        promote=asked.get(names.ANNOTATION_PROMOTE),
        abort=asked.get(names.ANNOTATION_ABORT),
        retry=asked.get(names.ANNOTATION_RETRY),
    )


def urgent(status: Status, asked: Requests) -> bool:
    """Tell whether something was asked that takes traffic away and must not wait for Prometheus."""
    if status.adopting:
        return asked.killed is not None and status.handed_back
    if status.settled or status.phase not in (*RUNNING, Phase.PROMOTED):
        return False
    killed = asked.killed is not None and not status.killed
    return killed or (asked.abort is not None and asked.abort != status.handled.abort)


def alert_watch(world: World) -> Watch:
    """Return what the rollout has to do with alerts."""
    rollout = world.rollout
    target = rollout.spec.target_ref.name
    router = rollout.status.router or router_name(rollout, world.target)
    return Watch(
        rollout.metadata.namespace,
        rollout.metadata.name,
        services(target, router, pool_name(rollout)),
        rollout.spec.alerts,
    )


def observe(
    world: World,
    asked: Requests,
    cluster: Cluster,
    metrics: Metrics,
    traffic: Traffic,
    now: datetime,
    analyses: Analyses,
    problem: Problem | None = None,
    alerts: Heard | None = None,
) -> Observation:
    """Return everything that a decision may need. Metrics that fail are a finding, no error.

    Args:
        world: What was read at the beginning of the pass.
        asked: What people have asked for.
        cluster: Where a rollout that has not begun looks for what could be in its way.
        metrics: Where the evidence comes from.
        traffic: What the routers say.
        now: The present instant.
        analyses: What was made of the evidence so far.
        problem: What of the status could not be done in this pass, and never can be as it is.
        alerts: What is known of alerts.

    Raises:
        ClusterError: The API server did not answer.
    """
    rollout, status = world.rollout, world.rollout.status
    seen = Observation(
        generation=rollout.metadata.generation,
        spec_hash=spec_hash(rollout.spec),
        requests=asked,
        problem=problem,
        router_taken_by=world.taken_by,
        target_taken_by=world.target_taken_by,
        alerts=alerts,
    )
    if status.phase is Phase.PENDING:
        try:
            return replace(seen, candidate=candidate(world, cluster, metrics, now))
        except TemplateError as error:
            return replace(seen, problem=Problem(error.reason, str(error)))
    assert status.canary is not None and status.router is not None  # noqa: S101 - set at the start
    container = annotations_of(world.canary).get(ENGINE_CONTAINER)
    canary_pods = tuple(pod_view(pod, container) for pod in world.canary_pods)
    baseline_pods = tuple(pod_view(pod, container) for pod in world.baseline_pods)
    if status.phase in RUNNING and problem is None:
        problem = _baseline_trouble(world)
    seen = replace(
        seen,
        problem=problem,
        target=_target_view(world),
        canary_pods=canary_pods,
        baseline_pods=baseline_pods,
        router=_router(world, traffic),
        proofs=tuple(p for p in status.regime_proof if _still_there(p, canary_pods)),
        drives_router=world.mine,
        **_shadow_pods(world),
        **evaluation_acting.seen(world),
    )
    if status.adopting:
        seen = _with_target(world, seen)
    if urgent(status, asked) or _alarmed(status, seen, now):
        return seen
    try:
        seen = replace(seen, proofs=_proofs(world, seen, metrics, now))
        if status.adopting:
            seen = replace(seen, target_proofs=_target_proofs(world, seen, metrics, now))
            standing_now = analyses.standing(world, metrics, now)
            seen = replace(seen, evidence=_known_by_pods(world, seen, standing_now))
        if not status.settled:
            evidence, report = analyses.look(world, Plan.of(rollout.spec), metrics, now)
            evidence = _known_by_pods(world, seen, evidence)
            seen = replace(seen, evidence=evidence, report=report)
        if status.phase is Phase.SHADOWING:
            need = _shadow_need(world)
            seen = replace(seen, shadow=metrics.shadows([need], now).get(need.key))
    except MetricsError as error:
        seen = replace(seen, metrics_problem=str(error))
    return seen


def _router(world: World, traffic: Traffic) -> RouterView:
    """Return how far the data plane has followed: the routers, or the HTTPRoute's parents."""
    status = world.rollout.status
    if status.gateway is not None:
        return http_routes.view(world.route)
    assert status.router is not None  # noqa: S101 - set at the start
    acknowledged = traffic.acknowledged(RouterKey(world.rollout.metadata.namespace, status.router))
    available = (world.router or {}).get("status", {}).get("availableReplicas") or 0
    return RouterView(available, acknowledged.connected, acknowledged.applied)


def _known_by_pods(world: World, seen: Observation, evidence: Evidence) -> Evidence:
    """Fill in how many of an arm's pods serve, where a Gateway routes and cannot tell.

    A Gateway knows nothing of a backend before it has answered anything, and takes its pods from
    the same Services that they are counted for here.
    """
    if world.rollout.status.gateway is None:
        return evidence
    # A baseline's pods need no label to serve.
    canary = sum(pod.ready and pod.serving for pod in seen.canary_pods)
    baseline = sum(pod.ready for pod in seen.baseline_pods)
    return replace(
        evidence,
        canary=_filled_in(evidence.canary, canary),
        baseline=_filled_in(evidence.baseline, baseline),
    )


def _filled_in(arm: ArmSample, healthy: int) -> ArmSample:
    return arm if arm.healthy is not None else replace(arm, healthy=float(healthy))


def _shadow_pods(world: World) -> dict[str, Any]:
    """Return whether the shadow service is ready, and why it is not."""
    pods = [pod_view(pod, None) for pod in world.shadow_pods]
    if any(pod.ready for pod in pods):
        return {"shadow_ready": True}
    return {"shadow_trouble": worst([f"{pod.name}: {pod.trouble}" for pod in pods if pod.trouble])}


def _shadow_need(world: World) -> ShadowNeed:
    metadata, status = world.rollout.metadata, world.rollout.status
    assert status.router is not None and status.phase_started_at is not None  # noqa: S101
    return ShadowNeed(
        key=f"{metadata.namespace}/{metadata.name}",
        namespace=metadata.namespace,
        router=status.router,
        uid=metadata.uid,
        attempt=status.attempt,
        since=status.phase_started_at,
    )


def _alarmed(status: Status, seen: Observation, now: datetime) -> bool:
    """Tell whether an alert takes traffic away, and must not wait for Prometheus."""
    if seen.alerts is None or not any(pod.ready for pod in seen.baseline_pods):
        return False
    return bool(blamed(status, standing(status, seen.alerts, now)))


def _level(text: str | None) -> str | None:
    return None if text is None or text.strip().lower() in ("", "false") else text


def _target_view(world: World) -> TargetView | None:
    target, rollout = world.target, world.rollout
    if target is None:
        return None
    status, why = rollout.status, None
    if status.phase is Phase.PROMOTED:
        why = differs(target, rollout.spec.engine.container, status.resolved_dtype or "")
    return TargetView(replicas_of(target), template_hash(target), why)


def _with_target(world: World, seen: Observation) -> Observation:
    """Add what is known of the pods of a target that adopts the dtype, without asking anybody."""
    target, status = world.target, world.rollout.status
    if target is None or seen.target is None or seen.target.differs is not None:
        return replace(seen, baseline_pods=())
    template = target["spec"]["template"]["spec"]["containers"]
    engine = template[engine_container(target, world.rollout.spec.engine.container)]["name"]
    pods = tuple(pod_view(pod, engine) for pod in world.baseline_pods)
    known = status.adoption.regime_proof if status.adoption is not None else ()
    old = [p for p in world.baseline_pods if not _asks_for(p, engine, status.resolved_dtype or "")]
    outdated = {pod["metadata"]["name"] for pod in old}
    return replace(
        seen,
        baseline_pods=pods,
        target_proofs=tuple(p for p in known if _still_there(p, pods)),
        outdated=tuple(pod.name for pod in pods if pod.ready and pod.name in outdated),
    )


def _asks_for(pod: Object, engine: str, dtype: str) -> bool:
    """Tell whether a pod was itself started with a dtype, and not from an older template."""
    return any(
        regime.canonical(vllm.dtype_of(container)) == regime.canonical(dtype)
        for container in pod["spec"]["containers"]
        if container["name"] == engine
    )


def _baseline_trouble(world: World) -> Problem | None:
    """Return what the baseline's owner did that leaves nothing to compare with or to go back to."""
    wanted = world.rollout.spec.target_ref.name
    if world.target is None:
        return Problem(
            "TargetNotFound",
            f"spec.targetRef.name: Deployment {wanted!r} was deleted in mid-rollout. Nothing moves "
            "until it is back; requests to it fail. Delete the rollout to end it.",
        )
    if replicas_of(world.target) == 0:
        return Problem(
            "TargetScaledToZero",
            f"Deployment {wanted} was scaled to zero in mid-rollout. Nothing moves until it has "
            "pods again; requests to it fail.",
        )
    return None


def _still_there(proof: PodProof, pods: tuple[PodView, ...]) -> bool:
    return any(pod.name == proof.pod and pod.container_id == proof.container_id for pod in pods)


def _proofs(
    world: World, seen: Observation, metrics: Metrics, now: datetime
) -> tuple[PodProof, ...]:
    """Prove the canary's ready pods that have not passed yet."""
    status = world.rollout.status
    assert status.baseline is not None and status.resolved_dtype is not None  # noqa: S101
    # Once a promotion has settled, nobody vouches for the pods of the old pool any more.
    vouched = status.settled and status.proven_capacity_tokens is not None
    yardstick = () if vouched else seen.baseline_pods
    baseline_dtype = status.baseline.dtype
    due = _due(seen.canary_pods, seen.proofs)
    return _prove(world, due, seen.proofs, yardstick, baseline_dtype, metrics, now)


def _target_proofs(
    world: World, seen: Observation, metrics: Metrics, now: datetime
) -> tuple[PodProof, ...]:
    """Prove the target's ready pods that have not passed yet against the pool that serves."""
    dtype = world.rollout.status.resolved_dtype
    assert dtype is not None  # noqa: S101
    passed = {p.pod for p in seen.proofs if p.verdict is Verdict.PASS}
    pool = tuple(pod for pod in seen.canary_pods if pod.name in passed)
    due = [p for p in _due(seen.baseline_pods, seen.target_proofs) if p.name not in seen.outdated]
    called = "the promoted pool"
    return _prove(world, due, seen.target_proofs, pool, dtype, metrics, now, called)


def _due(pods: Iterable[PodView], proofs: Iterable[PodProof]) -> list[PodView]:
    """Return the ready pods that have not passed; a passed container stays proven."""
    passed = {p.pod for p in proofs if p.verdict is Verdict.PASS}
    return [pod for pod in pods if pod.ready and pod.name not in passed]


def _prove(
    world: World,
    due: Sequence[PodView],
    known: Iterable[PodProof],
    yardstick: Iterable[PodView],
    yardstick_dtype: str,
    metrics: Metrics,
    now: datetime,
    called: str = "the baseline",
) -> tuple[PodProof, ...]:
    """Return the proofs that have passed and those of the pods that are due.

    Args:
        world: The rollout.
        due: Pods to prove.
        known: Proofs so far.
        yardstick: Pods that they are held against.
        yardstick_dtype: KV-cache dtype that those were started with.
        metrics: Where the pods' cache configs come from.
        now: The present instant.
        called: What the yardstick is called in sentences.
    """
    status = world.rollout.status
    assert status.resolved_dtype is not None  # noqa: S101
    passed = {p.pod: p for p in known if p.verdict is Verdict.PASS}
    if due:
        others = [pod.name for pod in yardstick]
        asked = [*(pod.name for pod in due), *others]
        configs = metrics.cache_configs(world.rollout.metadata.namespace, asked, now)
        against = [configs[name] for name in others if name in configs]
        if not against and status.proven_capacity_tokens is not None:
            # The old pool is gone after promotion; a new pod must then hold as many tokens as
            # the pods that were proven against it.
            yardstick_dtype = status.resolved_dtype
            tokens = status.proven_capacity_tokens
            against = [CacheConfig("proven", now, yardstick_dtype, tokens)]
        for pod in due:
            passed[pod.name] = regime.prove(
                pod.name,
                pod.container_id,
                pod.started_at,
                configs.get(pod.name),
                against,
                status.resolved_dtype,
                yardstick_dtype,
                world.rollout.spec.kv_cache.head_dim,
                called,
            )
    return tuple(passed[name] for name in sorted(passed))
