"""The Kubernetes objects beside an HTTPRoute that is driven: who drives it, and its backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.api import names
from kvquant.core.router_manifests import backend_services

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
    labels = {
        names.LABEL_ROUTER: spec.name,
        "app.kubernetes.io/name": "kvquant-gateway",
        "app.kubernetes.io/instance": spec.name,
        "app.kubernetes.io/part-of": "kvquant",
        "app.kubernetes.io/managed-by": "kvquant",
    }
    config: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "labels": labels,
            "annotations": dict(spec.annotations),
        },
    }
    return [config, *backend_services(spec, labels)]
