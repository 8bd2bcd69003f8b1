"""A Gateway in the simulated world: it takes an HTTPRoute as it stands, and clients follow it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from kvquant.core.http_routes import API_VERSION, MIRROR_FEATURE
from kvquant.core.router_manifests import shadow_name
from kvquant.ports import Object, RouterKey
from tests.site import NAMESPACE, Site, rollout

ROUTE = "llama"
OURS = RouterKey(NAMESPACE, "llama-route")
"""What belongs to the route is named like this."""
BACKEND = {"group": "", "kind": "Service", "name": "llama", "port": 8000, "weight": 1}


def service(name: str = "llama", **selector: str) -> Object:
    """Return the Service that people put in front of a pool."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": selector or {"app": name}, "ports": [{"port": 8000}]},
    }


def http_route(*rules: Object, **spec: Any) -> Object:
    """Return a route as the API server keeps it, its defaults filled in."""
    return {
        "apiVersion": API_VERSION,
        "kind": "HTTPRoute",
        "metadata": {"name": ROUTE, "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"kind": "Gateway", "name": "edge"}],
            "rules": [copy.deepcopy(rule) for rule in rules] or [rule()],
            **spec,
        },
    }


def rule(*backends: Object, **fields: Any) -> Object:
    """Return a rule that sends to the target's Service, unless told otherwise."""
    match = {"path": {"type": "PathPrefix", "value": "/v1"}}
    return {"matches": [match], "backendRefs": list(backends) or [dict(BACKEND)], **fields}


def through_gateway(name: str = "llama-fp8", target: str = "llama", **spec: Any) -> Object:
    """Return a rollout that drives the route."""
    gateway = {"httpRoute": ROUTE, "drainTimeout": "30s"}
    return rollout(name, target, **{"traffic": {"gatewayAPI": gateway}, **spec})


@dataclass(slots=True)
class GatewaySite(Site):
    """The world with a Gateway in place of the built-in router.

    Attributes:
        deaf: Whether the Gateway takes no news of routes.
        driven: The rule through which clients send.
    """

    deaf: bool = False
    driven: int = 0

    def install(self, *rules: Object, features: tuple[str, ...] = (MIRROR_FEATURE,)) -> None:
        """Bring up pool, Service, Gateway and route."""
        self.deploy()
        self.cluster.put(service())
        gateway = {"apiVersion": API_VERSION, "kind": "Gateway"}
        self.cluster.put(
            {
                **gateway,
                "metadata": {"name": "edge", "namespace": NAMESPACE},
                "spec": {"gatewayClassName": "envoy"},
            }
        )
        self.cluster.put(
            {
                **gateway,
                "kind": "GatewayClass",
                "metadata": {"name": "envoy", "namespace": ""},
                "status": {"supportedFeatures": [{"name": feature} for feature in features]},
            }
        )
        self.cluster.put(http_route(*rules))
        self.control()

    def route(self) -> Object:
        """Return the route as stored."""
        return copy.deepcopy(self.cluster._objects["HTTPRoute", NAMESPACE, ROUTE])

    def backends(self, index: int = 0) -> dict[str, int]:
        """Return the weights of a rule's backends."""
        refs = self.route()["spec"]["rules"][index]["backendRefs"]
        return {ref["name"]: ref.get("weight", 1) for ref in refs}

    def control(self) -> None:
        """Let controllers act, the Gateway's among them."""
        Site.control(self)
        if ("HTTPRoute", NAMESPACE, ROUTE) not in self.cluster._objects or self.deaf:
            return
        route = self.route()
        seen = {"status": "True", "observedGeneration": route["metadata"].get("generation", 1)}
        conditions = [{"type": "Accepted", **seen}, {"type": "ResolvedRefs", **seen}]
        parent = {"parentRef": {"name": "edge"}, "conditions": conditions}
        self.cluster.set_status("HTTPRoute", NAMESPACE, ROUTE, {"parents": [parent]})
        weights = {"blue": 0, "green": 0}
        backends = self.backends(self.driven)
        total = sum(backends.values())
        for name, weight in backends.items():
            slot = "green" if name.endswith("-green") else "blue"
            weights[slot] += round(100 * weight / total)
        if ("Service", NAMESPACE, f"{OURS.name}-blue") in self.cluster._objects:
            self.traffic.set_weights(OURS, weights, self.mirrored())

    def mirrored(self) -> int:
        """Return the share of requests of which the route has copies made, in per cent."""
        filters = self.route()["spec"]["rules"][self.driven].get("filters") or []
        return sum(
            int(one["requestMirror"]["percent"])
            for one in filters
            if one["type"] == "RequestMirror"
            and one["requestMirror"]["backendRef"]["name"] == shadow_name(OURS.name)
        )
