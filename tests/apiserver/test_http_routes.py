"""HTTPRoutes as a real API server keeps them: what is written is what is found, and comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.adapters.watching import WatchedCluster
from kvquant.api.v1alpha1 import GatewayRule
from kvquant.core.http_routes import (
    API_VERSION,
    MIRROR_FEATURE,
    Split,
    lacks_mirror,
    others,
    rule_of,
    with_split,
)
from kvquant.errors import Conflict
from kvquant.ports import Object
from tests.apiserver.conftest import Kubectl

pytestmark = [pytest.mark.apiserver, pytest.mark.usefixtures("gateway_api")]

ROUTE = {
    "apiVersion": API_VERSION,
    "kind": "HTTPRoute",
    "metadata": {"name": "llama"},
    "spec": {
        "parentRefs": [{"name": "edge"}],
        "rules": [
            {"backendRefs": [{"name": "embeddings", "port": 8000}]},
            {
                "matches": [{"path": {"value": "/v1"}}],
                "filters": [
                    {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x"]}}
                ],
                "backendRefs": [{"name": "llama", "port": 8000}],
                "timeouts": {"request": "15m"},
            },
        ],
    },
}


@pytest.fixture
def cluster(connection: Connection) -> KubernetesCluster:
    return KubernetesCluster(connection, field_validation="Strict")


@pytest.fixture
def route(kubectl: Kubectl, namespace: str, cluster: KubernetesCluster) -> Object:
    """A route that its owner has applied."""
    kubectl.ok("apply", "--server-side", "-n", namespace, "-f-", stdin=yaml.safe_dump(ROUTE))
    return found(cluster, namespace)


def found(cluster: KubernetesCluster, namespace: str) -> Object:
    one = cluster.get("HTTPRoute", namespace, "llama")
    assert one is not None
    return one


def driven(route: Object) -> GatewayRule:
    return rule_of(route, lambda name: name == "llama", None)


def split(weight: int, mirror: int = 0) -> Split:
    shadow, named = "llama-route-shadow", weight > 0
    return Split("llama-route-green", 8000, "green", weight, named, shadow, mirror)


def write(cluster: KubernetesCluster, route: Object, rules: list[Any]) -> Object:
    metadata = {k: route["metadata"][k] for k in ("namespace", "name", "resourceVersion")}
    kind = {"apiVersion": API_VERSION, "kind": "HTTPRoute"}
    return cluster.apply({**kind, "metadata": metadata, "spec": {"rules": rules}})


def test_each_split_is_kept_as_it_was_sent_and_the_last_one_as_it_was_found(
    cluster: KubernetesCluster, route: Object, namespace: str
) -> None:
    rule, before = driven(route), route["spec"]
    assert rule.index == 1
    for weight, mirror in ((0, 5), (10, 0), (50, 7), (100, 0), (0, 0)):
        wanted = with_split(route, rule, split(weight, mirror))
        write(cluster, route, wanted)
        route = found(cluster, namespace)
        assert route["spec"]["rules"] == wanted, "else it would be written in each pass"
        assert with_split(route, rule, split(weight, mirror)) == wanted
    assert route["spec"] == before


def test_what_a_gateway_can_do_is_read_of_its_class(
    connection: Connection, kubectl: Kubectl, namespace: str
) -> None:
    kind = {"apiVersion": API_VERSION, "kind": "GatewayClass", "metadata": {"name": namespace}}
    spec = {"controllerName": "example.invalid/none"}
    kubectl.ok("create", "-f-", stdin=yaml.safe_dump({**kind, "spec": spec}))
    features = {"supportedFeatures": [{"name": MIRROR_FEATURE}]}
    watched = WatchedCluster(connection)
    try:
        seen = watched.get("GatewayClass", "", namespace)
        assert seen is not None
        assert lacks_mirror(seen)
        patch = json.dumps({"status": features})
        where = ("gatewayclass", namespace, "--subresource=status", "--type=merge", "-p", patch)
        kubectl.ok("patch", *where)
        seen = watched.get("GatewayClass", "", namespace)
        assert seen is not None
        assert not lacks_mirror(seen)
        assert watched.get("GatewayClass", "", "of-nobody") is None
    finally:
        watched.close()
        kubectl.ok("delete", "gatewayclass", namespace)


def test_a_write_on_something_stale_is_refused(cluster: KubernetesCluster, route: Object) -> None:
    rule = driven(route)
    write(cluster, route, with_split(route, rule, split(10)))
    with pytest.raises(Conflict):
        write(cluster, route, with_split(route, rule, split(25)))


def test_who_writes_the_rules_is_known_by_name(
    cluster: KubernetesCluster, kubectl: Kubectl, namespace: str, route: Object
) -> None:
    assert others(route) == ["kubectl"]
    route = write(cluster, route, with_split(route, driven(route), split(10)))
    assert others(route) == [], "what we have taken over is ours alone"
    kubectl.ok(
        *("apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller"),
        *("-n", namespace, "-f-"),
        stdin=yaml.safe_dump(ROUTE),
    )
    assert others(found(cluster, namespace)) == ["argocd-controller"]


def test_an_owner_that_applies_politely_is_told_whose_the_rules_are(
    cluster: KubernetesCluster, kubectl: Kubectl, namespace: str, route: Object
) -> None:
    write(cluster, route, with_split(route, driven(route), split(10)))
    done = kubectl("apply", "--server-side", "-n", namespace, "-f-", stdin=yaml.safe_dump(ROUTE))
    assert done.returncode != 0
    assert "kvquant-operator" in done.stderr
