"""Make the world what the persisted status says. Idempotent; reads nothing but its arguments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from kvquant import autoscaling, evaluation_acting, shadow_acting
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, PodProof, Pool, Status, Verdict, parse_duration
from kvquant.config import OperatorConfig
from kvquant.core.adopting import differs
from kvquant.core.gateway_manifests import GatewaySpec, gateway_objects
from kvquant.core.manifests import (
    ANNOTATION_ATTEMPT,
    PoolIdentity,
    canary_deployment,
    canary_selector,
    engine_container,
    replicas_of,
    target_selector,
)
from kvquant.core.record import fingerprint
from kvquant.core.router_manifests import RouterSpec, router_objects, slot_service
from kvquant.engines import vllm
from kvquant.errors import TemplateError
from kvquant.gateway_acting import Routes
from kvquant.ports import Cluster, Object, RouterKey, Traffic
from kvquant.world import ENGINE_CONTAINER, World, annotations_of, identity, labels_of, pod_view

REAPPLY_AFTER = timedelta(seconds=30)
"""Objects that we own are applied again after this time, so that drift is undone."""

REAPPLY_SETTLED_AFTER = timedelta(minutes=10)
"""The same for rollouts that have ended, of which there are many."""


class Actor:
    """Applies the persisted status to cluster and routers.

    It remembers only what it applied last, to spare the API server; forgetting that costs a few
    calls and changes nothing.

    Attributes:
        xds_ca: Authority of the weights service that routers are to trust, PEM.
    """

    def __init__(
        self, cluster: Cluster, traffic: Traffic, config: OperatorConfig, xds_ca: str
    ) -> None:
        self._cluster = cluster
        self._traffic = traffic
        self._config = config
        self.xds_ca = xds_ca
        self._applied: dict[tuple[str, str, str], tuple[str, datetime]] = {}
        self._routes = Routes()

    def act(self, world: World, now: datetime) -> None:
        """Do what the status says: routers and weights first, then pods.

        Raises:
            ClusterError: The API server did not do what was asked.
            TemplateError: The target has become something that no canary can be derived from.
        """
        status = world.rollout.status
        if status.phase is Phase.PENDING or status.canary is None or status.baseline is None:
            return
        if self._holds(world, status):
            self._route(world, status, status.baseline, status.canary, now)
        self._pool(world, status, status.canary)
        if not status.adopted:
            container = annotations_of(world.canary).get(ENGINE_CONTAINER)
            self._label(world, world.canary_pods, container, status.regime_proof)
        self._adopt(world, status)
        self._shadow(world, status, status.baseline, status.canary, now)
        if status.settled and status.phase is Phase.PROMOTED:
            self._retire(world, status.baseline)
        self._evaluate(world, status.baseline, status.canary)
        if status.settled and not status.adopting:
            self._release_autoscalers_once(world, now)
        else:
            # The target's pods idle until they are all proven: an autoscaler would take them away.
            autoscaling.pin(self._cluster, world)
            metadata = world.rollout.metadata
            self._applied.pop((autoscaling.KIND, metadata.namespace, metadata.name), None)

    def release_autoscalers(self, namespace: str, holder: str) -> None:
        """Give back the bounds of the autoscalers that a rollout (`name/uid`) has pinned."""
        autoscaling.release(self._cluster, namespace, holder)

    def _release_autoscalers_once(self, world: World, now: datetime) -> None:
        """Give back what an ended rollout has pinned, without asking for it at every pass."""
        namespace, holder = world.rollout.metadata.namespace, identity(world.rollout)
        ended = f"{holder}/{world.rollout.status.attempt}"
        key = (autoscaling.KIND, namespace, world.rollout.metadata.name)
        done = self._applied.get(key)
        if done is None or done[0] != ended or now - done[1] >= REAPPLY_SETTLED_AFTER:
            self.release_autoscalers(namespace, holder)
            self._applied[key] = (ended, now)

    def doubt(self, obj: Object) -> None:
        """Apply an object again in the next pass, because somebody has touched it."""
        self._applied.pop((obj["kind"], *_address(obj)), None)

    def remove_pool(self, world: World) -> None:
        """Delete the canary's Deployment."""
        if world.canary is not None:
            self._cluster.delete(
                "Deployment", world.rollout.metadata.namespace, world.canary["metadata"]["name"]
            )

    def release(self, world: World) -> None:
        """Mark the router as free for another rollout; its weights stay as they are."""
        if world.mine and world.router_config is not None:
            namespace, name = _address(world.router_config)
            self._cluster.patch(
                "ConfigMap",
                namespace,
                name,
                {"metadata": {"annotations": {names.ANNOTATION_SETTLED: "true"}}},
            )
            self._traffic.forget(RouterKey(namespace, name))

    def give_back(self, world: World, now: datetime) -> None:
        """Leave everything to the target: an HTTPRoute as it was, and no pool."""
        status = world.rollout.status
        if status.gateway is not None and status.canary is not None and self._holds(world, status):
            # Which port the canary has does not matter where it is not named any more.
            self._routes.drive(self._cluster, world, status, status.canary, 0, now)
        self.remove_pool(world)

    def hand_over(self, world: World, now: datetime) -> None:
        """Make what serves an ordinary pool, because nobody proves its new pods any more.

        It gets all of the traffic first, if no pass has come to that since the promotion, or since
        the target has adopted its dtype.

        Without this a pod that starts after the rollout is gone would never get a request. What
        the pool is labelled as decides how a later rollout selects its pods, too.
        """
        status, canary = world.rollout.status, world.canary
        if status.canary is None or status.baseline is None:
            return
        if canary is None and not status.adopted:
            return
        if self._holds(world, status):
            self._route(world, status, status.baseline, status.canary, now)
        if status.adopting and world.mine and status.router is not None:
            self._open_slot(world, status.router, status.baseline.slot)
        if canary is None:
            return
        if status.adopted and world.mine:
            self.remove_pool(world)
            return
        namespace, name = _address(canary)
        if names.LABEL_POOL in labels_of(canary):
            self._cluster.patch(
                "Deployment", namespace, name, {"metadata": {"labels": {names.LABEL_POOL: None}}}
            )
        if world.mine and status.router is not None:
            self._open_slot(world, status.router, status.canary.slot)

    def _open_slot(self, world: World, router: str, slot: str) -> None:
        """Let a slot's Service find pods that nobody has proven, too."""
        self._cluster.patch(
            "Service",
            world.rollout.metadata.namespace,
            slot_service(router, slot),
            {"spec": {"selector": {names.LABEL_SERVING: None}}},
        )

    def _holds(self, world: World, status: Status) -> bool:
        """Tell whether the router is ours to drive; an ended rollout never takes it back."""
        return world.mine or (not status.settled and world.taken_by is None)

    def _route(
        self, world: World, status: Status, baseline: Pool, canary: Pool, now: datetime
    ) -> None:
        namespace, router = world.rollout.metadata.namespace, status.router or ""
        settings = world.rollout.spec.traffic.router
        weights = {
            baseline.slot: status.weights.baseline,
            canary.slot: status.weights.canary,
        }
        if settings is not None:
            # The live routers follow at once; the ConfigMap is for routers that start without us.
            self._traffic.set_weights(RouterKey(namespace, router), weights, status.weights.mirror)
        serves_baseline = self._baseline_selector(world, router, baseline.slot)
        if serves_baseline is None:
            return
        if status.adopting:
            # Like a canary's, a pod of the target is found once it is proven, and not before.
            serves_baseline = {**serves_baseline, names.LABEL_SERVING: "true"}
        port, canary_port = self._ports(world)
        selectors = {
            baseline.slot: serves_baseline,
            canary.slot: canary_selector(canary.deployment),
        }
        engine_ports = {baseline.slot: port, canary.slot: canary_port}
        annotations = {
            names.ANNOTATION_HOLDER: identity(world.rollout),
            names.ANNOTATION_SETTLED: "true" if _leaves_router(status) else "false",
            names.ANNOTATION_SERVING_POOL: (
                canary.deployment
                if status.phase is Phase.PROMOTED and not status.handed_back
                else baseline.deployment
            ),
        }
        if settings is None:
            objects = gateway_objects(
                GatewaySpec(router, namespace, selectors, engine_ports, annotations)
            )
        else:
            objects = router_objects(
                RouterSpec(
                    name=router,
                    namespace=namespace,
                    image=self._config.router_image,
                    image_pull_policy=self._config.image_pull_policy,
                    image_pull_secrets=self._config.pull_secrets,
                    port=settings.port,
                    replicas=settings.replicas,
                    selectors=selectors,
                    engine_ports=engine_ports,
                    weights=weights,
                    request_timeout=parse_duration(settings.request_timeout),
                    drain_timeout=parse_duration(settings.drain_timeout),
                    hash_header=settings.hash_header,
                    xds_host=self._config.xds_host,
                    xds_port=self._config.xds_port,
                    xds_ca=self.xds_ca,
                    annotations=annotations,
                )
            )
        every = REAPPLY_SETTLED_AFTER if status.settled else REAPPLY_AFTER
        for obj in objects:
            self._apply(obj, now, every)
        if settings is None:
            self._routes.drive(self._cluster, world, status, canary, canary_port, now)
        if world.target is not None and labels_of(world.target).get(names.LABEL_ROUTER) != router:
            mark = {names.LABEL_ROUTER: router, names.LABEL_SLOT: baseline.slot}
            self._cluster.patch(
                "Deployment", namespace, baseline.deployment, {"metadata": {"labels": mark}}
            )

    def _baseline_selector(self, world: World, router: str, slot: str) -> dict[str, str] | None:
        """Return the labels of the baseline's pods; None when nobody knows them any more.

        An old pool that its owner has deleted must not keep its router from the next rollout, so
        that its Service stays as it was.
        """
        if world.target is not None:
            pool = labels_of(world.target).get(names.LABEL_POOL)
            return canary_selector(pool) if pool else target_selector(world.target)
        namespace = world.rollout.metadata.namespace
        service = self._cluster.get("Service", namespace, slot_service(router, slot))
        selector: dict[str, str] | None = (service or {}).get("spec", {}).get("selector")
        return selector

    def _apply(self, obj: Object, now: datetime, every: timedelta) -> None:
        """Apply an object when it changed, or when drift is due to be looked for."""
        key = (obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        digest = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()
        before = self._applied.get(key)
        if before is not None and before[0] == digest and now - before[1] < every:
            return
        self._cluster.apply(obj)
        self._applied[key] = (digest, now)

    def _pool(self, world: World, status: Status, canary: Pool) -> None:
        """Create the canary's Deployment once an attempt, then hold its number of replicas."""
        namespace = world.rollout.metadata.namespace
        attempt = f"{world.rollout.metadata.uid}/{status.attempt}"
        current = world.canary
        if current is None or annotations_of(current).get(ANNOTATION_ATTEMPT) != attempt:
            going = status.settled or status.phase is Phase.ROLLING_BACK
            if going or world.target is None:
                return
            index = engine_container(world.target, world.rollout.spec.engine.container)
            mark = fingerprint(world.rollout.metadata.uid, status.attempt)
            deployment = canary_deployment(
                world.target,
                index,
                PoolIdentity(
                    name=canary.deployment,
                    rollout=world.rollout.metadata.name,
                    router=status.router or "",
                    slot=canary.slot,
                    attempt=attempt,
                ),
                status.resolved_dtype or "",
                canary.replicas,
                mark if world.rollout.spec.engine.fingerprint else None,
            )
            deployment["metadata"]["annotations"][ENGINE_CONTAINER] = _engine(world, world.target)[
                "name"
            ]
            self._cluster.apply(deployment)
        elif current["spec"].get("replicas") != canary.replicas and not (
            status.settled and status.phase is Phase.PROMOTED
        ):
            # A settled, promoted pool belongs to its owner again, autoscalers included.
            self._cluster.patch(
                "Deployment", namespace, canary.deployment, {"spec": {"replicas": canary.replicas}}
            )

    def _shadow(
        self, world: World, status: Status, baseline: Pool, canary: Pool, now: datetime
    ) -> None:
        """Bring up the shadow service before its phase.

        It goes when the rollout does or has ended well, and not before: what it has logged may be
        on its own volume, and explains a rollback. The rest, which costs nothing, is left to the
        garbage collector.
        """
        if status.settled and status.phase is Phase.PROMOTED and world.shadow is not None:
            self._cluster.delete("Deployment", *_address(world.shadow))
        if shadow_acting.wanted(status, world.rollout.spec.shadow) and world.mine:
            ports = self._ports(world)
            for obj in shadow_acting.objects(world, baseline, canary, ports, self._config):
                self._apply(obj, now, REAPPLY_AFTER)

    def _evaluate(self, world: World, baseline: Pool, canary: Pool) -> None:
        """Make the Job of the run that is on its way, and stop every other.

        What has ended is kept for its log until Kubernetes removes it.
        """
        for job in evaluation_acting.superfluous(world):
            self._cluster.delete("Job", *_address(job))
        if evaluation_acting.missing(world):
            ports = self._ports(world)
            self._cluster.apply(evaluation_acting.job(world, baseline, canary, ports, self._config))

    def _label(
        self,
        world: World,
        pods: Sequence[Object],
        container: str | None,
        proofs: Iterable[PodProof],
    ) -> None:
        """Let exactly the proven containers' pods into the slot's Service."""
        proven = {(p.pod, p.container_id) for p in proofs if p.verdict is Verdict.PASS}
        for pod in pods:
            view = pod_view(pod, container)
            labelled = labels_of(pod).get(names.LABEL_SERVING) == "true"
            may_serve = (view.name, view.container_id) in proven
            if may_serve and not view.serving:
                self._serve(world, view.name, "true", view.container_id)
            elif labelled and not may_serve:
                self._serve(world, view.name, None, None)

    def _adopt(self, world: World, status: Status) -> None:
        """Let the target's proven pods in, and remove the pool once it has handed over."""
        adoption, target = status.adoption, world.target
        if adoption is None:
            return
        if status.adopted:
            # Another rollout that has taken the router meanwhile may have begun with this pool.
            if world.mine:
                self.remove_pool(world)
            return
        if target is None:
            return
        self._restore(world, target, status)
        if world.mine:
            engine = _engine(world, target)["name"]
            self._label(world, world.baseline_pods, engine, adoption.regime_proof)

    def _restore(self, world: World, target: Object, status: Status) -> None:
        """Give a target that this rollout scaled to zero its pods back, once.

        Whoever else has set its replicas meanwhile, or does so afterwards, is not overruled.
        """
        mine, marks = identity(world.rollout), annotations_of(target)
        retired = marks.get(names.ANNOTATION_RETIRED_BY) == mine
        restored = marks.get(names.ANNOTATION_RESTORED_BY) == mine
        if replicas_of(target) != 0 or not retired or restored:
            return
        serving = 0 if world.canary is None else replicas_of(world.canary)
        # Fewer than serve now would never be given the traffic.
        replicas = max(1, status.retired_replicas or 0, serving)
        namespace, name = _address(target)
        mark = {names.ANNOTATION_RESTORED_BY: mine}
        patch = {"metadata": {"annotations": mark}, "spec": {"replicas": replicas}}
        self._cluster.patch("Deployment", namespace, name, patch)

    def _serve(self, world: World, pod: str, serving: str | None, container_id: str | None) -> None:
        self._cluster.patch(
            "Pod",
            world.rollout.metadata.namespace,
            pod,
            {
                "metadata": {
                    "labels": {names.LABEL_SERVING: serving},
                    "annotations": {names.ANNOTATION_VERIFIED: container_id},
                }
            },
        )

    def _retire(self, world: World, baseline: Pool) -> None:
        """Scale the old pool to zero once; afterwards it is its owner's."""
        mark = {names.ANNOTATION_RETIRED_BY: identity(world.rollout)}
        if (
            world.target is None
            or baseline.replicas != 0
            or world.rollout.status.adoption is not None
            or mark.items() <= annotations_of(world.target).items()
            or _adopts(world, world.target)
        ):
            return
        self._cluster.patch(
            "Deployment",
            world.rollout.metadata.namespace,
            baseline.deployment,
            {"metadata": {"annotations": mark}, "spec": {"replicas": 0}},
        )

    def _ports(self, world: World) -> tuple[int, int]:
        """Return the ports of the baseline's and of the canary's engines.

        Either stands in for the other, so that a target that was edited beyond recognition keeps
        no router from following a rollback.

        Raises:
            TemplateError: Neither can be recognised.
        """
        ports, problems = [], []
        for deployment in (world.target, world.canary):
            try:
                ports.append(vllm.port_of(_engine(world, deployment)))
            except TemplateError as error:
                problems.append(error)
        if not ports:
            raise problems[0]
        return ports[0], ports[-1]


def _engine(world: World, deployment: Object | None) -> Object:
    if deployment is None:
        raise TemplateError("DeploymentNotFound", "The engines' Deployment is gone.")
    index = engine_container(deployment, world.rollout.spec.engine.container)
    container: Object = deployment["spec"]["template"]["spec"]["containers"][index]
    return container


def _leaves_router(status: Status) -> bool:
    """Tell whether another rollout may take the router: not while its traffic is handed over."""
    return status.settled and not (status.adopting and status.handed_back)


def _adopts(world: World, target: Object) -> bool:
    """Tell whether a target asks for the promoted dtype, so that its pods are wanted."""
    rollout = world.rollout
    dtype = rollout.status.resolved_dtype or ""
    return differs(target, rollout.spec.engine.container, dtype) is None


def _address(obj: Object) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
