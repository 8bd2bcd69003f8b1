"""From the world as read to the observation that decisions are made of."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from kvquant import evaluation_acting
from kvquant.analysing import Analyses
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, PodProof, Status, Verdict
from kvquant.beginning import candidate
from kvquant.core import regime
from kvquant.core.alerts import Heard, Watch, blamed, services, standing
from kvquant.core.evidence import CacheConfig, worst
from kvquant.core.machine import RUNNING
from kvquant.core.manifests import Object, replicas_of, template_hash
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
    acknowledged = traffic.acknowledged(RouterKey(rollout.metadata.namespace, status.router))
    if status.phase in RUNNING and problem is None:
        problem = _baseline_trouble(world)
    available = (world.router or {}).get("status", {}).get("availableReplicas") or 0
    seen = replace(
        seen,
        problem=problem,
        target=_target_view(world.target),
        canary_pods=canary_pods,
        baseline_pods=baseline_pods,
        router=RouterView(available, acknowledged.connected, acknowledged.applied),
        proofs=tuple(p for p in status.regime_proof if _still_there(p, canary_pods)),
        **_shadow_pods(world),
        **evaluation_acting.seen(world),
    )
    if urgent(status, asked) or _alarmed(status, seen, now):
        return seen
    try:
        seen = replace(seen, proofs=_proofs(world, seen, metrics, now))
        if not status.settled:
            evidence, report = analyses.look(world, Plan.of(rollout.spec), metrics, now)
            seen = replace(seen, evidence=evidence, report=report)
        if status.phase is Phase.SHADOWING:
            need = _shadow_need(world)
            seen = replace(seen, shadow=metrics.shadows([need], now).get(need.key))
    except MetricsError as error:
        seen = replace(seen, metrics_problem=str(error))
    return seen


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


def _target_view(target: Object | None) -> TargetView | None:
    return None if target is None else TargetView(replicas_of(target), template_hash(target))


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
    """Prove the ready pods that have not passed yet; a passed container stays proven."""
    status, spec = world.rollout.status, world.rollout.spec
    assert status.baseline is not None and status.resolved_dtype is not None  # noqa: S101
    passed = {p.pod: p for p in seen.proofs if p.verdict is Verdict.PASS}
    due = [pod for pod in seen.canary_pods if pod.ready and pod.name not in passed]
    if due:
        pods = [pod.name for pod in (*due, *seen.baseline_pods)]
        configs = metrics.cache_configs(world.rollout.metadata.namespace, pods, now)
        baseline = [configs[p.name] for p in seen.baseline_pods if p.name in configs]
        baseline_dtype = status.baseline.dtype
        if not baseline and status.proven_capacity_tokens is not None:
            # The old pool is gone after promotion; a new pod must then hold as many tokens as
            # the pods that were proven against it.
            baseline_dtype = status.resolved_dtype
            baseline = [CacheConfig("proven", now, baseline_dtype, status.proven_capacity_tokens)]
        for pod in due:
            passed[pod.name] = regime.prove(
                pod.name,
                pod.container_id,
                pod.started_at,
                configs.get(pod.name),
                baseline,
                status.resolved_dtype,
                baseline_dtype,
                spec.kv_cache.head_dim,
            )
    return tuple(passed[name] for name in sorted(passed))
