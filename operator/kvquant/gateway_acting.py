"""Make an HTTPRoute of the user's split the traffic as the persisted status says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kvquant.api.v1alpha1 import GatewayRule, Phase, Pool, Status
from kvquant.core import http_routes
from kvquant.core.http_routes import Split
from kvquant.core.manifests import selects
from kvquant.core.observation import Problem
from kvquant.core.router_manifests import shadow_name, slot_service
from kvquant.errors import Refused, TemplateError
from kvquant.ports import Cluster, Object
from kvquant.world import World


def rule_for(
    world: World, cluster: Cluster, services: list[Object], labels: Mapping[str, str]
) -> GatewayRule:
    """Return the rule that an attempt would drive.

    Args:
        world: The rollout, with its HTTPRoute.
        cluster: Where the route's Gateways are looked up.
        services: Services of the namespace.
        labels: Labels that serving pods of the target have.

    Raises:
        ClusterError: The API server did not answer.
        TemplateError: The route cannot be driven; the message names the field and the remedy.
    """
    asked = world.rollout.spec.traffic.gateway_api
    assert asked is not None  # noqa: S101 - the caller has looked
    if world.route is None:
        problem = world.route_problem or Problem("RouteNotFound", "The HTTPRoute is gone.")
        raise TemplateError(problem.reason, problem.message)
    selectors = {s["metadata"]["name"]: s.get("spec", {}).get("selector") for s in services}
    rule = http_routes.rule_of(
        world.route, lambda name: selects(selectors.get(name), labels), asked.rule
    )
    shadow = world.rollout.spec.shadow
    if shadow.percent or shadow.match_load:
        _refuse_without_mirror(world.route, cluster)
    return rule


def _refuse_without_mirror(route: Object, cluster: Cluster) -> None:
    """Refuse to shadow through a Gateway that does not say that it can copy a share."""
    for parent in route["spec"].get("parentRefs") or ():
        if parent.get("kind", "Gateway") != "Gateway":
            continue
        namespace = parent.get("namespace") or route["metadata"]["namespace"]
        try:
            gateway = cluster.get("Gateway", namespace, parent["name"])
            name = ((gateway or {}).get("spec") or {}).get("gatewayClassName", "")
            found = cluster.get("GatewayClass", "", name) if name else None
        except Refused as error:
            raise TemplateError(
                "MirrorUnknown",
                f"spec.shadow.percent: whether Gateway {namespace}/{parent['name']} can copy a "
                f"share of the requests may not be seen ({error}): grant it as the chart does, or "
                "set spec.shadow.percent: 0.",
            ) from error
        if found is None or http_routes.lacks_mirror(found):
            raise TemplateError(
                "MirrorUnsupported",
                f"spec.shadow.percent: GatewayClass {name or 'of ' + parent['name']} does not say "
                f"in status.supportedFeatures that it has {http_routes.MIRROR_FEATURE}, by which "
                "requests are shadowed: set spec.shadow.percent: 0 (and matchLoad: false), or use "
                "a Gateway that has it.",
            )


@dataclass(slots=True)
class Routes:
    """Drives routes, and remembers whose changes it has undone."""

    _wanted: dict[tuple[str, str], tuple[int, GatewayRule, Split]] = field(default_factory=dict)
    _undone: dict[tuple[str, str], list[datetime]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def drive(
        self, cluster: Cluster, world: World, status: Status, canary: Pool, port: int, now: datetime
    ) -> None:
        """Let the route split as committed; say in the world why it cannot be.

        Once a rollback is complete, or the target has adopted the dtype, the rule becomes what it
        was, and is its owner's again. The route of a promoted pool stays with it until then,
        because its old backend has no pods.

        Raises:
            ClusterError: The API server did not do what was asked.
        """
        rule, route = status.gateway, world.route
        if rule is None or route is None:
            return
        ended = status.phase in (Phase.PENDING, Phase.ROLLED_BACK)
        over = status.adopted or ended
        router = status.router or ""
        split = Split(
            canary=slot_service(router, canary.slot),
            port=port,
            slot=canary.slot,
            weight=status.weights.canary,
            named=not over,
            shadow=shadow_name(router),
            mirror=min(100, status.weights.mirror),
        )
        if over and not http_routes.is_ours(route, rule, split):
            return
        key = route["metadata"]["namespace"], route["metadata"]["name"]
        try:
            rules = http_routes.with_split(route, rule, split)
            undone = self._undone[key]
            wanted = status.attempt, rule, split
            drifted = rules != route["spec"].get("rules")
            if drifted and self._wanted.get(key) == wanted:
                undone.append(now)
            # Whoever fights us must be known before our write takes the fields from them.
            conflict = http_routes.fights(route, undone, now)
            if drifted:
                world.route = self._write(cluster, route, rules)
                self._wanted[key] = wanted
            undone[:] = [at for at in undone if now - at <= http_routes.FIGHT_WITHIN]
        except TemplateError as error:
            world.route_problem = Problem(error.reason, str(error))
            return
        except Refused as error:
            world.route_problem = Problem("RouteRefused", f"HTTPRoute {key[1]}: {error}")
            return
        if conflict is not None:
            world.route_problem = Problem("RouteConflict", conflict)

    def _write(self, cluster: Cluster, route: Object, rules: list[Object]) -> Object:
        metadata = {k: route["metadata"][k] for k in ("namespace", "name", "resourceVersion")}
        return cluster.apply(
            {
                "apiVersion": http_routes.API_VERSION,
                "kind": "HTTPRoute",
                # What was read must still be so: everything else in the rules is the user's.
                "metadata": metadata,
                "spec": {"rules": rules},
            }
        )
