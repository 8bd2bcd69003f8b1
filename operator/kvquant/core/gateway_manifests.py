"""The Kubernetes objects beside an HTTPRoute that is driven: who drives it, and its backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.api import names
from kvquant.core.router_manifests import (
    MATCHES_NOTHING,
    shadow_name,
    shadow_selector,
    slot_service,
)
from kvquant.core.shadow_settings import PORT

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """What belongs to one route.

    Attributes:
        name: Name of all of it, as a router's.
        namespace: Namespace of route and target.
        selectors: Labels of the pods that each slot serves from.
        engine_ports: Port on which each slot's engines serve.
        annotations: Who holds the route, and whether it is free.
    """

    name: str
    namespace: str
    selectors: Mapping[str, Mapping[str, str]]
    engine_ports: Mapping[str, int]
    annotations: Mapping[str, str]


def gateway_objects(spec: GatewaySpec) -> list[Object]:
    """Return the objects in the order in which they must be applied."""
    config = _object(spec, "ConfigMap", spec.name)
    config["metadata"]["annotations"] = dict(spec.annotations)
    return [config, *(_slot_service(spec, slot) for slot in names.SLOTS), _shadow_service(spec)]


def _slot_service(spec: GatewaySpec, slot: str) -> Object:
    """Return the Service of a slot's pods, without an address: the shadow service looks at each."""
    service = _object(spec, "Service", slot_service(spec.name, slot))
    service["metadata"]["labels"][names.LABEL_SLOT] = slot
    service["spec"] = {
        "clusterIP": "None",
        "selector": dict(spec.selectors.get(slot) or MATCHES_NOTHING),
        "ports": [_port("http", spec.engine_ports[slot])],
    }
    return service


def _shadow_service(spec: GatewaySpec) -> Object:
    service = _object(spec, "Service", shadow_name(spec.name))
    service["spec"] = {"selector": shadow_selector(spec.name), "ports": [_port("copies", PORT)]}
    return service


def _port(name: str, number: int) -> Object:
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}


def _object(spec: GatewaySpec, kind: str, name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": spec.namespace,
            "labels": {
                names.LABEL_ROUTER: spec.name,
                "app.kubernetes.io/name": "kvquant-gateway",
                "app.kubernetes.io/instance": spec.name,
                "app.kubernetes.io/part-of": "kvquant",
                "app.kubernetes.io/managed-by": "kvquant",
            },
        },
    }
