"""One reading of the cluster around a rollout, and views of it for decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, Phase
from kvquant.core import record
from kvquant.core.evaluation_manifests import jobs_selector
from kvquant.core.manifests import target_selector
from kvquant.core.observation import PodView, Problem
from kvquant.core.ownership import owners_of
from kvquant.core.router_manifests import shadow_name, shadow_selector
from kvquant.engines import vllm_limits
from kvquant.errors import Refused, TemplateError
from kvquant.ports import Cluster, Object

ENGINE_CONTAINER = f"{names.GROUP}/engine-container"
"""Annotation on a pool's Deployment: name of the container that is the engine."""


@dataclass(slots=True)
class World:
    """Raw objects, as read at the beginning of a pass. None means: there is none."""

    rollout: KVQuantRollout
    raw: Object
    target: Object | None = None
    canary: Object | None = None
    router: Object | None = None
    router_config: Object | None = None
    route: Object | None = None
    """The HTTPRoute that splits the traffic; None with the built-in router."""
    route_problem: Problem | None = None
    """Why the route cannot be driven, or who else drives it."""
    record: Object | None = None
    shadow: Object | None = None
    """Deployment of the rollout's own shadow service."""
    dataset: Object | None = None
    """ConfigMap with the example set, read while it may be needed."""
    taken_by: str | None = None
    """Another rollout that drives the router now; None when it is ours or free to be taken."""
    target_taken_by: str | None = None
    """Another rollout that works on the target through another router and comes first."""
    baseline_pods: list[Object] = field(default_factory=list)
    canary_pods: list[Object] = field(default_factory=list)
    shadow_pods: list[Object] = field(default_factory=list)
    evaluation_jobs: list[Object] = field(default_factory=list)
    jobs_refused: str | None = None
    """Why the API server lets nobody see Jobs; None when it does."""
    evaluation_pods: list[Object] = field(default_factory=list)

    @property
    def holder(self) -> str | None:
        """Who sets the router's weights: `name/uid` of a rollout."""
        return annotations_of(self.router_config).get(names.ANNOTATION_HOLDER)

    @property
    def router_free(self) -> bool:
        """Whether the router's last holder has ended."""
        return annotations_of(self.router_config).get(names.ANNOTATION_SETTLED) == "true"

    @property
    def mine(self) -> bool:
        """Whether the router's weights are set by this rollout."""
        return self.holder == identity(self.rollout)


def identity(rollout: KVQuantRollout) -> str:
    """Return how a rollout signs the router that it holds."""
    return f"{rollout.metadata.name}/{rollout.metadata.uid}"


def annotations_of(obj: Object | None) -> dict[str, str]:
    """Return an object's annotations; none for no object."""
    return dict((obj or {}).get("metadata", {}).get("annotations") or {})


def labels_of(obj: Object | None) -> dict[str, str]:
    """Return an object's labels; none for no object."""
    return dict((obj or {}).get("metadata", {}).get("labels") or {})


def router_name(rollout: KVQuantRollout, target: Object | None) -> str:
    """Return the router of a rollout: asked for, serving the target already, or named after it.

    What belongs to an HTTPRoute is named after that.
    """
    gateway, router = rollout.spec.traffic.gateway_api, rollout.spec.traffic.router
    if gateway is not None:
        return f"{gateway.http_route[:46]}-route"
    return (
        (router.name if router is not None else None)
        or labels_of(target).get(names.LABEL_ROUTER)
        or f"{rollout.spec.target_ref.name[:45]}-router"
    )


def pool_name(rollout: KVQuantRollout) -> str:
    """Return the name of the pool that a rollout makes."""
    return f"{rollout.metadata.name}-pool"


def read(cluster: Cluster, raw: Object) -> World:
    """Read everything around a rollout.

    Raises:
        ClusterError: The API server did not answer.
        pydantic.ValidationError: The rollout does not fit this version of the API.
    """
    rollout = KVQuantRollout.parse(raw)
    namespace, status = rollout.metadata.namespace, rollout.status
    world = World(rollout, raw)
    world.target = cluster.get("Deployment", namespace, rollout.spec.target_ref.name)
    router = status.router or router_name(rollout, world.target)
    world.router_config = cluster.get("ConfigMap", namespace, router)
    gateway = rollout.spec.traffic.gateway_api
    if gateway is not None:
        _read_route(cluster, world, gateway.http_route)
    world.record = cluster.get("ConfigMap", namespace, record.name_of(rollout.metadata.name))
    if not status.settled:
        world.taken_by = _other_holder(cluster, world)
        world.target_taken_by = _other_owner(cluster, world)
    if world.target is not None:
        try:
            selector = target_selector(world.target)
            world.baseline_pods = cluster.list("Pod", namespace, selector)
        except TemplateError:
            world.baseline_pods = []
    if status.canary is not None:
        world.router = cluster.get("Deployment", namespace, router)
        world.canary = cluster.get("Deployment", namespace, status.canary.deployment)
        world.canary_pods = cluster.list(
            "Pod", namespace, {names.LABEL_POOL: status.canary.deployment}
        )
        shadow = cluster.get("Deployment", namespace, shadow_name(router))
        # The last rollout of this router may have left its own.
        if shadow is not None and rollout.metadata.uid in owners_of(shadow):
            world.shadow = shadow
            world.shadow_pods = cluster.list("Pod", namespace, shadow_selector(router))
        _read_evaluation(cluster, world)
    return world


def _read_route(cluster: Cluster, world: World, name: str) -> None:
    """Read the HTTPRoute. That it cannot be had must keep nothing from being rolled back."""
    field, namespace = "spec.traffic.gatewayAPI.httpRoute", world.rollout.metadata.namespace
    try:
        world.route = cluster.get("HTTPRoute", namespace, name)
    except Refused as error:
        world.route_problem = Problem("GatewayAPIRefused", f"{field}: {error}")
        return
    if world.route is None:
        world.route_problem = Problem(
            "RouteNotFound", f"{field}: there is no HTTPRoute {name!r} in namespace {namespace}."
        )


def _read_evaluation(cluster: Cluster, world: World) -> None:
    """Read the Jobs of a rollout that evaluates an example set; others ask for none."""
    rollout, namespace = world.rollout, world.rollout.metadata.namespace
    asked, status = rollout.spec.evaluation, rollout.status
    if asked is None and status.evaluation is None:
        return
    selector = jobs_selector(rollout.metadata.name)
    try:
        jobs = cluster.list("Job", namespace, selector)
    except Refused as error:
        # Rights of an older release must keep nothing from being rolled back.
        jobs, world.jobs_refused = [], str(error)
    world.evaluation_jobs = [job for job in jobs if rollout.metadata.uid in owners_of(job)]
    if status.phase is not Phase.EVALUATING:
        return
    world.evaluation_pods = cluster.list("Pod", namespace, selector)
    if asked is not None and asked.dataset.config_map_name is not None:
        world.dataset = cluster.get("ConfigMap", namespace, asked.dataset.config_map_name)


def _other_holder(cluster: Cluster, world: World) -> str | None:
    """Return the living rollout that drives the router in place of this one, if there is one."""
    if world.holder is None or world.mine or world.router_free:
        return None
    name, _, uid = world.holder.partition("/")
    other = cluster.get(names.KIND, world.rollout.metadata.namespace, name)
    lives = other is not None and other["metadata"].get("uid") == uid
    return name if lives else None


def _other_owner(cluster: Cluster, world: World) -> str | None:
    """Return the rollout that works on the target through another router, if it comes first.

    One that has begun comes before one that has not; of two that have, the older one. Those with
    the same router are kept apart by the router.
    """
    rollout = world.rollout
    begun = rollout.status.phase is not Phase.PENDING
    for other in cluster.list(names.KIND, rollout.metadata.namespace, {}):
        metadata, status = other["metadata"], other.get("status") or {}
        if metadata.get("uid") == rollout.metadata.uid or status.get("settled"):
            continue
        if status.get("phase") in (None, Phase.PENDING):
            continue
        if status.get("router") == (rollout.status.router or router_name(rollout, world.target)):
            continue
        pools = {(status.get(arm) or {}).get("deployment") for arm in ("baseline", "canary")}
        if rollout.spec.target_ref.name not in pools:
            continue
        if not begun or _age(other) < _age(world.raw):
            return str(metadata["name"])
    return None


def _age(rollout: Object) -> tuple[str, str]:
    metadata = rollout["metadata"]
    return metadata.get("creationTimestamp") or "", metadata.get("uid") or ""


def kill_switch(config: Object | None) -> str | None:
    """Return why and by whom the cluster-wide kill switch is pulled; None when it is not.

    Args:
        config: The ConfigMap that is the switch; None when there is none.
    """
    data = (config or {}).get("data") or {}
    if data.get("killed") != "true":
        return None
    why, who = data.get("reason") or "no reason given", data.get("by") or "unknown"
    return f"whole cluster: {why} (by {who})"


def pod_view(pod: Object, container: str | None) -> PodView:
    """Return what decisions need of a pod.

    Args:
        pod: The pod as the API server returns it.
        container: Name of the engine's container; None takes the first.
    """
    status = pod.get("status", {})
    statuses = status.get("containerStatuses") or []
    engine = (
        next((s for s in statuses if container is None or s.get("name") == container), None) or {}
    )
    state, last = engine.get("state") or {}, engine.get("lastState") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    finished = status.get("phase") in ("Failed", "Succeeded")
    if finished or _was_asked_to_end(pod, ended):
        ended = {}
    container_id = engine.get("containerID") or ""
    last_words = vllm_limits.reason_of_death(ended.get("message") or "")
    return PodView(
        name=pod["metadata"]["name"],
        ready=_is_true(status, "Ready") and "deletionTimestamp" not in pod["metadata"],
        serving=labels_of(pod).get(names.LABEL_SERVING) == "true"
        and annotations_of(pod).get(names.ANNOTATION_VERIFIED) == container_id != "",
        container_id=container_id,
        started_at=_instant((state.get("running") or {}).get("startedAt")),
        restarts=int(engine.get("restartCount") or 0),
        died_at=_instant(ended.get("finishedAt")),
        death=_death(ended, last_words),
        hopeless=last_words is not None and last_words.hopeless,
        trouble=_trouble(status, state),
        finished=finished,
    )


def _death(ended: Object, last_words: vllm_limits.Death | None) -> str:
    if not ended:
        return ""
    told = f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode')}"
    return told if last_words is None else f"{told}: {last_words.sentence}"


def _was_asked_to_end(pod: Object, ended: Object) -> bool:
    """Tell whether an engine ended because its pod was sent away, as when a node is drained."""
    if _is_true(pod.get("status", {}), "DisruptionTarget"):
        return True
    gone_at, ended_at = _instant(pod["metadata"].get("deletionTimestamp")), ended.get("finishedAt")
    if gone_at is None or ended_at is None:
        return False
    # The timestamp is when the pod must be gone: the grace period after it was deleted.
    grace = timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    return datetime.fromisoformat(ended_at) >= gone_at - grace


def _trouble(status: Object, state: Object) -> str:
    if status.get("phase") == "Failed":
        # Kubelet or scheduler ended the pod: its engines would be started again for ever.
        return f"{status.get('reason', 'Failed')}: {status.get('message', '')}".strip(": ")
    waiting = state.get("waiting") or {}
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"not scheduled: {condition.get('message', condition.get('reason', ''))}"
    return ""


def _is_true(status: Object, type_: str) -> bool:
    return any(
        c.get("type") == type_ and c.get("status") == "True" for c in status.get("conditions") or ()
    )


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
