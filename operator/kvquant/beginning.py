"""May a rollout begin? Everything that can be known before anything is touched.

Each refusal names the field and the remedy. Nothing is built on a guess: while Prometheus does not
tell how the baseline fares, there is nothing to compare a canary with, and none is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kvquant import gateway_acting
from kvquant.api import names
from kvquant.api.v1alpha1 import Pool
from kvquant.core import regime
from kvquant.core.manifests import (
    Object,
    PoolIdentity,
    canary_deployment,
    engine_container,
    replicas_of,
    selects,
    template_hash,
)
from kvquant.core.observation import Candidate
from kvquant.engines import vllm, vllm_limits
from kvquant.errors import MetricsError, TemplateError
from kvquant.ports import Cluster, Metrics
from kvquant.world import World, annotations_of, labels_of, pod_view, pool_name, router_name


def candidate(world: World, cluster: Cluster, metrics: Metrics, now: datetime) -> Candidate:
    """Return what an attempt would work with.

    Raises:
        ClusterError: The API server did not answer.
        TemplateError: The rollout cannot begin; the message names the field and the remedy.
    """
    rollout, target = world.rollout, world.target
    namespace, wanted = rollout.metadata.namespace, rollout.spec.target_ref.name
    if target is None:
        raise TemplateError(
            "TargetNotFound",
            f"spec.targetRef.name: there is no Deployment {wanted!r} in namespace {namespace}.",
        )
    index = engine_container(target, rollout.spec.engine.container)
    pod = target["spec"]["template"]["spec"]
    container = pod["containers"][index]
    dtype = vllm.resolve_dtype(rollout.spec.kv_cache.dtype)
    running = vllm.dtype_of(container)
    _refuse_same_dtype(wanted, dtype, running)
    vllm_limits.refuse(
        wanted,
        pod,
        container,
        dtype,
        rollout.spec.kv_cache.head_dim,
        rollout.spec.engine.fingerprint,
    )
    router = router_name(rollout, target)
    _refuse_busy_router(world, router)
    if world.target_taken_by is not None:
        raise TemplateError(
            "TargetBusy",
            f"spec.targetRef.name: rollout {world.target_taken_by!r} works on Deployment {wanted} "
            "through another router; this one begins when that one has ended and its rollback "
            "window is closed.",
        )
    _refuse_second_router(world, router, cluster)
    _refuse_idle_target(world, router, cluster)
    ready = [v.name for p in world.baseline_pods if (v := pod_view(p, container["name"])).ready]
    if not ready:
        raise TemplateError(
            "TargetNotReady",
            f"spec.targetRef.name: Deployment {wanted} has no ready pod, so there is nothing to "
            "compare a canary with. Bring it up first.",
        )
    slot = labels_of(target).get(names.LABEL_SLOT, names.SLOTS[0])
    other = names.SLOTS[1] if slot == names.SLOTS[0] else names.SLOTS[0]
    pool = pool_name(rollout)
    existing = cluster.get("Deployment", namespace, pool)
    if (
        existing is not None
        and labels_of(existing).get(names.LABEL_ROLLOUT) != rollout.metadata.name
    ):
        raise TemplateError(
            "PoolNameTaken",
            f"metadata.name: Deployment {pool}, which the canary pool would be called, exists and "
            "is not this rollout's. Give the rollout another name.",
        )
    planned = canary_deployment(
        target, index, PoolIdentity(pool, rollout.metadata.name, router, other, ""), dtype, 1, None
    )
    services = cluster.list("Service", namespace, {})
    _refuse_shared_services(target, planned, services)
    gateway = None
    if rollout.spec.traffic.gateway_api is not None:
        labels = target["spec"]["template"]["metadata"].get("labels") or {}
        serving = {**labels, names.LABEL_SERVING: "true"}
        gateway = gateway_acting.rule_for(world, cluster, services, serving)
    _refuse_unmeasured(world, ready, dtype, metrics, now)
    return Candidate(
        engine=vllm.NAME,
        resolved_dtype=dtype,
        router=router,
        baseline=Pool(
            deployment=wanted,
            slot=slot,
            dtype=running,
            replicas=replicas_of(target),
            template_hash=template_hash(target),
        ),
        canary_deployment=pool,
        canary_slot=other,
        gateway=gateway,
    )


def _refuse_same_dtype(deployment: str, dtype: str, running: str) -> None:
    if regime.canonical(dtype) == regime.canonical(running):
        raise TemplateError(
            "AlreadyRunning",
            f"spec.kvCache.dtype: Deployment {deployment} runs {running} already; ask for another.",
        )


def _refuse_unmeasured(
    world: World, pods: Sequence[str], dtype: str, metrics: Metrics, now: datetime
) -> None:
    """Refuse a baseline that nobody measures: no canary could ever be proven against it."""
    wanted, namespace = world.rollout.spec.target_ref.name, world.rollout.metadata.namespace
    try:
        configs = metrics.cache_configs(namespace, pods, now)
    except MetricsError as error:
        raise TemplateError("MetricsUnavailable", str(error)) from error
    if not configs:
        raise TemplateError(
            "BaselineNotMeasured",
            f"spec.targetRef.name: Prometheus has no vllm:cache_config_info of the pods of "
            f"{wanted} (namespace={namespace!r}, pod={pods[0]!r}). Let it scrape them, with "
            "the labels namespace and pod, or name your labels in "
            "KVQUANT_PROMETHEUS_NAMESPACE_LABEL and KVQUANT_PROMETHEUS_POD_LABEL.",
        )
    if not any(config.capacity_tokens for config in configs.values()):
        raise TemplateError(
            "EngineTooOld",
            f"spec.targetRef.name: the pods of {wanted} do not report how many tokens their KV "
            "cache holds (kv_cache_size_tokens of vllm:cache_config_info), from which the "
            "quantization is proven: use vLLM 0.25 or newer.",
        )
    for config in configs.values():
        # Some checkpoints turn `auto` into a quantized cache, which no argument shows.
        _refuse_same_dtype(wanted, dtype, config.dtype)


def _refuse_busy_router(world: World, router: str) -> None:
    if world.taken_by is not None:
        raise TemplateError(
            "RouterBusy",
            f"spec.traffic: rollout {world.taken_by!r} still drives router {router}; this "
            "one begins when that one has ended and its rollback window is closed.",
        )


def _refuse_idle_target(world: World, router: str, cluster: Cluster) -> None:
    """Refuse a target that the router sends nothing to, such as the pool before a promotion.

    The first weights of a rollout give everything to its target: all traffic would jump there.
    """
    wanted, namespace = world.rollout.spec.target_ref.name, world.rollout.metadata.namespace
    serving = annotations_of(world.router_config).get(names.ANNOTATION_SERVING_POOL, wanted)
    if serving != wanted and cluster.get("Deployment", namespace, serving) is not None:
        raise TemplateError(
            "TargetNotServing",
            f"spec.targetRef.name: router {router} sends its requests to Deployment {serving}, "
            f"not to {wanted}. Make a rollout with targetRef.name: {serving}.",
        )


def _refuse_second_router(world: World, router: str, cluster: Cluster) -> None:
    """Refuse to go past the router that serves the target: a promotion would empty its pool."""
    wanted, namespace = world.rollout.spec.target_ref.name, world.rollout.metadata.namespace
    usual = labels_of(world.target).get(names.LABEL_ROUTER, router)
    if usual != router and cluster.get("Deployment", namespace, usual) is not None:
        raise TemplateError(
            "ServedByAnotherRouter",
            f"spec.traffic.router.name: requests to Deployment {wanted} go through router {usual}, "
            f"not {router}: a promotion would leave its clients without pods. Name {usual}, or "
            "delete its Deployment when no client uses it any more.",
        )


def _refuse_shared_services(target: Object, canary: Object, services: Sequence[Object]) -> None:
    baseline_labels = target["spec"]["template"]["metadata"].get("labels") or {}
    canary_labels = {
        **canary["spec"]["template"]["metadata"]["labels"],
        names.LABEL_SERVING: "true",
    }
    for service in services:
        selector = service.get("spec", {}).get("selector")
        if selects(selector, baseline_labels) and selects(selector, canary_labels):
            raise TemplateError(
                "ServiceSelectsBothArms",
                f"Service {service['metadata']['name']} would select pods of both pools, past the "
                "router's weights: add a label that only the target's selector has to its "
                "spec.selector.",
            )
