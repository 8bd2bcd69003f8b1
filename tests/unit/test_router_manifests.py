"""Invariants of the objects that make up a router."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api import names
from kvquant.core.router_manifests import ANNOTATION_CONFIG, RouterSpec, router_objects

SPEC = RouterSpec(
    name="llama-router",
    namespace="inference",
    image="registry.example/kvquant/router:1",
    image_pull_policy="IfNotPresent",
    port=80,
    replicas=2,
    selectors={"blue": {"app": "llama"}, "green": None},
    engine_ports={"blue": 8000, "green": 9000},
    weights={"blue": 100, "green": 0},
    request_timeout=timedelta(minutes=15),
    drain_timeout=timedelta(minutes=5),
    hash_header=None,
    xds_host="kvquant-xds.kvquant-system.svc",
    xds_port=18000,
    xds_ca="-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    annotations={names.ANNOTATION_HOLDER: "llama-fp8/uid", names.ANNOTATION_SETTLED: "false"},
)

CHANGES: dict[str, Any] = {
    "engine_ports": {"blue": 8000, "green": 8000},
    "request_timeout": timedelta(minutes=16),
    "hash_header": "x-conversation",
    "xds_host": "elsewhere.svc",
    "xds_port": 18001,
    "xds_ca": "another",
}


def objects(spec: RouterSpec = SPEC) -> dict[tuple[str, str], dict[str, Any]]:
    return {(o["kind"], o["metadata"]["name"]): o for o in router_objects(spec)}


def deployment(spec: RouterSpec = SPEC) -> dict[str, Any]:
    found: dict[str, Any] = objects(spec)["Deployment", spec.name]
    return found


def pod(spec: RouterSpec = SPEC) -> dict[str, Any]:
    template: dict[str, Any] = deployment(spec)["spec"]["template"]
    return template


def bootstrap(spec: RouterSpec = SPEC) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(objects(spec)["ConfigMap", spec.name]["data"]["envoy.json"])
    return loaded


def config_hash(spec: RouterSpec) -> str:
    value: str = pod(spec)["metadata"]["annotations"][ANNOTATION_CONFIG]
    return value


shares = st.integers(0, 100).map(lambda blue: {"blue": blue, "green": 100 - blue})


def test_what_others_need_comes_first() -> None:
    order = [(o["kind"], o["metadata"]["name"]) for o in router_objects(SPEC)]
    assert order == [
        ("ServiceAccount", "llama-router"),
        ("ConfigMap", "llama-router"),
        ("Service", "llama-router-blue"),
        ("Service", "llama-router-green"),
        ("Service", "llama-router"),
        ("Service", "llama-router-shadow"),
        ("PodDisruptionBudget", "llama-router"),
        ("Deployment", "llama-router"),
    ]


def test_every_object_bears_the_routers_name_and_namespace() -> None:
    for obj in router_objects(SPEC):
        assert obj["metadata"]["namespace"] == "inference"
        assert obj["metadata"]["labels"][names.LABEL_ROUTER] == "llama-router"
        assert obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "kvquant"


@given(weights=shares)
def test_weights_change_the_config_map_and_nothing_else(weights: dict[str, int]) -> None:
    before, after = objects(), objects(replace(SPEC, weights=weights))
    differing = {key for key in before if before[key] != after[key]}
    assert differing == (set() if weights == SPEC.weights else {("ConfigMap", "llama-router")})
    static = bootstrap(replace(SPEC, weights=weights))["layered_runtime"]["layers"][0]
    assert static["static_layer"] == {"kvquant": {"weight": weights, "mirror": 0}}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_any_other_change_of_the_configuration_rolls_the_pods(field: str) -> None:
    assert config_hash(replace(SPEC, **{field: CHANGES[field]})) != config_hash(SPEC)


def test_a_new_holder_rolls_nothing() -> None:
    other = replace(SPEC, annotations={names.ANNOTATION_HOLDER: "llama-int8/uid2"})
    assert deployment(other) == deployment()
    assert objects(other)["ConfigMap", "llama-router"]["metadata"]["annotations"] == {
        names.ANNOTATION_HOLDER: "llama-int8/uid2"
    }


def test_weights_that_do_not_sum_to_100_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 90"):
        router_objects(replace(SPEC, weights={"blue": 90, "green": 0}))


def test_slots_are_found_by_headless_services_of_ready_pods() -> None:
    for slot, port in SPEC.engine_ports.items():
        service = objects()["Service", f"llama-router-{slot}"]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is False
        assert [p["targetPort"] for p in service["spec"]["ports"]] == [port]
        assert service["metadata"]["labels"][names.LABEL_SLOT] == slot
    assert objects()["Service", "llama-router-blue"]["spec"]["selector"] == {"app": "llama"}


def test_an_empty_slot_selects_labels_that_no_pod_bears() -> None:
    # A Service without a selector would keep the endpoints that it had.
    selector = objects()["Service", "llama-router-green"]["spec"]["selector"]
    assert selector[names.LABEL_SERVING] == "never"


def test_clients_reach_router_pods_on_the_port_asked_for() -> None:
    service = objects()["Service", "llama-router"]["spec"]
    assert [(p["port"], p["targetPort"]) for p in service["ports"]] == [(80, "http")]
    labels = pod()["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert deployment()["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {p["name"]: p["containerPort"] for p in pod()["spec"]["containers"][0]["ports"]}
    # Unprivileged, whatever the Service's port is.
    assert ports["http"] == 8000
    listeners = bootstrap()["static_resources"]["listeners"]
    assert {x["address"]["socket_address"]["port_value"] for x in listeners} == set(ports.values())


def test_the_pod_fits_the_restricted_security_standard() -> None:
    spec = pod()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not spec.get("hostNetwork")
    assert {next(k for k in v if k != "name") for v in spec["volumes"]} == {
        "configMap",
        "projected",
    }


def test_the_pod_holds_no_token_but_the_one_for_the_weights_service() -> None:
    spec = pod()["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == "llama-router"
    (sources,) = [v["projected"]["sources"] for v in spec["volumes"] if "projected" in v]
    assert [s["serviceAccountToken"]["audience"] for s in sources] == ["kvquant-xds"]


def test_files_are_mounted_where_envoy_looks_for_them() -> None:
    mounts = {m["name"]: m["mountPath"] for m in pod()["spec"]["containers"][0]["volumeMounts"]}
    data = objects()["ConfigMap", "llama-router"]["data"]
    secret = json.loads(data["token-secret.json"])["resources"][0]["generic_secret"]["secret"]
    assert secret["filename"] == f"{mounts['xds-token']}/token"
    assert f"{mounts['config']}/token-secret.json" in data["envoy.json"]


def test_the_node_id_names_namespace_router_and_pod() -> None:
    args = pod()["spec"]["containers"][0]["args"]
    assert args[args.index("--service-node") + 1] == "$(POD_NAMESPACE)/llama-router/$(POD_NAME)"
    assert {e["name"] for e in pod()["spec"]["containers"][0]["env"]} == {
        "POD_NAME",
        "POD_NAMESPACE",
    }


def test_prometheus_and_the_kubelet_look_at_the_stats_listener_only() -> None:
    annotations = pod()["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == "9902"
    assert annotations["prometheus.io/path"] == "/stats/prometheus"
    container = pod()["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "stats"}
    admin = bootstrap()["admin"]["address"]["socket_address"]["address"]
    assert admin == "127.0.0.1"


@given(request=st.integers(1, 7200), drain=st.integers(0, 7200))
def test_the_grace_period_outlasts_the_longest_answer(request: int, drain: int) -> None:
    spec = replace(
        SPEC, request_timeout=timedelta(seconds=request), drain_timeout=timedelta(seconds=drain)
    )
    assert pod(spec)["spec"]["terminationGracePeriodSeconds"] > max(request, drain)


def test_a_router_that_drains_is_not_killed_for_it() -> None:
    container = pod()["spec"]["containers"][0]
    assert container["lifecycle"]["preStop"]["exec"]["command"]
    # /ready says no while draining.
    assert "httpGet" not in container["livenessProbe"]


def test_a_rolled_router_is_never_fewer_than_before() -> None:
    assert deployment()["spec"]["strategy"]["rollingUpdate"] == {
        "maxUnavailable": 0,
        "maxSurge": 1,
    }
    budget = objects()["PodDisruptionBudget", "llama-router"]["spec"]
    # Also with one replica, so that a node can be drained.
    assert budget["maxUnavailable"] == 1


def test_the_slow_answers_of_engines_are_not_taken_for_failures() -> None:
    (clients, _) = bootstrap()["static_resources"]["listeners"]
    manager = clients["filter_chains"][0]["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert route["timeout"] == "900s"
    assert route["idle_timeout"] == manager["stream_idle_timeout"] == "930s"
    assert [f["name"] for f in manager["http_filters"]] == ["envoy.filters.http.router"]


@pytest.mark.parametrize(("header", "policy"), [(None, "least_request"), ("x-id", "ring_hash")])
def test_the_hash_header_chooses_arm_and_pod(header: str | None, policy: str) -> None:
    config = bootstrap(replace(SPEC, hash_header=header))["static_resources"]
    manager = config["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert route["weighted_clusters"].get("use_hash_policy", False) is (header is not None)
    for cluster in config["clusters"][:2]:
        (used,) = cluster["load_balancing_policy"]["policies"]
        assert used["typed_extension_config"]["name"].endswith(policy)
