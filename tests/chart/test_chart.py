"""What the chart makes of values, and which values it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml

from kvlocal import chart
from kvlocal.problems import LocalError
from kvquant.api import names
from kvquant.config import OperatorConfig
from tests.chart.conftest import Documents

Rendered = Callable[..., Documents]

VALUES: dict[str, Any] = yaml.safe_load((chart.CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((chart.CHART / "values.schema.json").read_text())

EVERYTHING: dict[str, Any] = {
    "nameOverride": "other",
    "image": {
        "registry": "registry.example.com/kvquant",
        "tag": "1.2.3",
        "pullPolicy": "Always",
        "pullSecrets": [{"name": "registry"}, {"name": "mirror"}],
        "digests": {"operator": f"sha256:{'0' * 64}"},
    },
    "watchNamespaces": ["inference", "staging"],
    "serviceAccount": {"name": "rollouts", "annotations": {"cloud/role": "audit"}},
    "prometheus": {
        "url": "https://mimir.example.com/prometheus",
        "timeout": 20,
        "authSecret": "mimir",
        "namespaceLabel": "ns",
        "podLabel": "pod_name",
        "matchers": 'cluster="prod-1"',
        "delay": 12.5,
        "tickSeconds": 30,
    },
    "alerts": {
        "tlsSecret": "alerts-tls",
        "clientCASecret": "alerts-ca",
        "matchers": 'cluster="prod-1"',
        "pollSeconds": 0,
    },
    "record": {"url": "s3://audit/kvquant", "credentialsSecret": "audit"},
    "notifications": {"secret": "slack", "format": "slack"},
    "logLevel": "DEBUG",
    "stuckAfter": 600,
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "podLabels": {"team": "serving"},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "priorityClassName": "system-cluster-critical",
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {}}],
        "alertsFrom": [{"podSelector": {}}],
    },
    "monitoring": {
        "podMonitors": True,
        "rules": True,
        "runbooks": "https://docs.example.com/runbooks",
        "dashboard": True,
        "labels": {"release": "prometheus"},
    },
}


def one(documents: Documents, kind: str, name: str | None = None) -> dict[str, Any]:
    found = [
        document
        for document in documents
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def container(documents: Documents) -> dict[str, Any]:
    (found,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(documents: Documents) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in container(documents)["env"]}


# What is refused.


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"prometeus": {"url": "http://p:9090"}}, "prometeus"),
        ({"prometheus": {"uri": "http://p:9090"}}, "uri"),
        ({"prometheus": {"url": "p:9090"}}, "/prometheus/url"),
        ({"prometheus": {"timeout": 0}}, "/prometheus/timeout"),
        ({"prometheus": {"podLabel": "pod-name"}}, "/prometheus/podLabel"),
        ({"image": {"registry": "example.com/"}}, "/image/registry"),
        ({"image": {"digests": {"operator": "0123"}}}, "/image/digests/operator"),
        ({"image": {"digests": {"engine": ""}}}, "engine"),
        ({"logLevel": "verbose"}, "/logLevel"),
        ({"notifications": {"format": "teams"}}, "/notifications/format"),
        ({"watchNamespaces": "inference"}, "/watchNamespaces"),
        ({"watchNamespaces": ["Inference"]}, "/watchNamespaces/0"),
        ({"record": {"url": "bucket"}}, "/record/url"),
        ({"replicas": "two"}, "/replicas"),
        ({"leaseSeconds": 1}, "/leaseSeconds"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
        ({"alerts": {"tokenSecret": ""}}, "alerts.tokenSecret"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(LocalError) as refused:
        chart.render(values)
    assert named in str(refused.value)


def test_every_value_is_in_the_schema_and_explained() -> None:
    text = (chart.CHART / "values.yaml").read_text()
    explained = re.findall(r"^ *# -- (.+)$", text, re.MULTILINE)
    assert all(comment.endswith(("`.", ".")) for comment in explained)

    def leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
        for key, inner in schema.get("properties", {}).items():
            if "properties" in inner and inner.get("additionalProperties") is False:
                yield from leaves(inner, f"{path}{key}.")
            else:
                yield f"{path}{key}"

    def given(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
        for key, value in values.items():
            inner = schema["properties"][key]
            if "properties" in inner and inner.get("additionalProperties") is False:
                yield from given(value, inner, f"{path}{key}.")
            else:
                yield f"{path}{key}"

    assert set(given(VALUES, SCHEMA)) == set(leaves(SCHEMA)) - {"global"}
    # The four digests share a line.
    assert len(explained) == len(list(leaves(SCHEMA))) - 1 - 3


# What is made.


def test_every_setting_of_the_operator_can_be_reached_and_has_its_own_default(
    rendered: Rendered,
) -> None:
    plain, full = environment(rendered()), environment(rendered(EVERYTHING))
    # Its ports are the chart's own affair: they are behind Services and probes.
    fixed = {"xds_port", "metrics_port", "health_port"}
    for field in fields(OperatorConfig):
        variable = f"KVQUANT_{field.name.upper()}"
        assert (variable in full) != (field.name in fixed), variable
    told = {k: v for k, v in plain.items() if v and k != "KVQUANT_NAMESPACE"}
    given = OperatorConfig.from_environment(told)
    # The chart differs from the process's defaults in where things are, and in nothing else.
    places = {"router_image", "shadow_image", "evaluation_image"}
    places |= {"alerts_port", "alerts_token_file", "lease_seconds"}
    for field in fields(OperatorConfig):
        if field.name not in places:
            assert getattr(given, field.name) == field.default, field.name


def test_the_operator_understands_all_that_it_is_given(rendered: Rendered) -> None:
    told = environment(rendered(EVERYTHING))
    config = OperatorConfig.from_environment({**told, "KVQUANT_NAMESPACE": chart.NAMESPACE})
    assert config.namespaces == ("inference", "staging")
    assert config.prometheus_matchers == 'cluster="prod-1"'
    assert (config.prometheus_delay, config.tick_seconds) == (12.5, 30.0)
    assert config.router_image == "registry.example.com/kvquant/router:1.2.3"
    assert (config.alerts_poll, config.image_pull_policy) == (0.0, "Always")
    assert config.pull_secrets == ("registry", "mirror")


def test_everything_that_is_mounted_is_a_volume_and_the_other_way_round(
    rendered: Rendered,
) -> None:
    for values in (None, EVERYTHING, {"alerts": {"receiver": False}}):
        documents = rendered(values)
        pod = one(documents, "Deployment")["spec"]["template"]["spec"]
        mounted = [mount["name"] for mount in container(documents)["volumeMounts"]]
        assert sorted(mounted) == sorted(volume["name"] for volume in pod["volumes"])


def test_an_image_is_named_by_its_digest_where_one_is_given(rendered: Rendered) -> None:
    image = container(rendered(EVERYTHING))["image"]
    assert image == f"registry.example.com/kvquant/operator@sha256:{'0' * 64}"
    assert container(rendered())["image"] == "localhost/kvquant/operator:dev"


def test_services_and_policies_reach_ports_that_the_pod_has(rendered: Rendered) -> None:
    documents = rendered({**EVERYTHING, "replicas": 1})
    template = one(documents, "Deployment")["spec"]["template"]
    ports = {port["name"] for port in container(documents)["ports"]}
    for service in (d for d in documents if d["kind"] == "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    policy = one(documents, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert {p["port"] for rule in policy["ingress"] for p in rule["ports"]} == ports - {"health"}


def test_several_replicas_agree_on_a_leader_and_one_asks_nobody(rendered: Rendered) -> None:
    several, alone = rendered(), rendered({"replicas": 1})
    assert environment(several)["KVQUANT_LEASE_SECONDS"] == "5"
    assert "KVQUANT_LEASE_SECONDS" not in environment(alone)
    for documents, labels in ((several, {names.LABEL_LEADER: "true"}), (alone, {})):
        selector = one(documents, "Service", "kvquant-xds")["spec"]["selector"]
        assert selector == {"app.kubernetes.io/name": "kvquant-operator", **labels}
    assert one(several, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert "PodDisruptionBudget" not in {document["kind"] for document in alone}
    assert one(alone, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    granted = [r["resources"] for r in one(several, "Role", "kvquant-operator")["rules"]]
    assert ["leases"] in granted
    granted = [r["resources"] for r in one(alone, "Role", "kvquant-operator")["rules"]]
    assert ["leases"] not in granted


def test_with_namespaces_named_nothing_is_granted_in_others(rendered: Rendered) -> None:
    documents = rendered({"watchNamespaces": ["inference"]})
    roles = [d for d in documents if d["kind"] == "ClusterRole"]
    operators = one(documents, "ClusterRole", "kvquant-operator")
    beyond = [["tokenreviews"], ["gateways", "gatewayclasses"]]
    assert [rule["resources"] for rule in operators["rules"]] == beyond
    assert {role["metadata"]["name"] for role in roles} == {
        *("kvquant-operator", "kvquant-edit", "kvquant-view"),
    }
    there = one(documents, "Role", "kvquant-operator-rollouts")
    assert there["metadata"]["namespace"] == "inference"
    everywhere = one(rendered(), "ClusterRole", "kvquant-operator")
    assert there["rules"] == everywhere["rules"][len(beyond) :]


def test_every_binding_binds_a_role_that_is_there_to_the_operator(rendered: Rendered) -> None:
    for values in (None, EVERYTHING):
        documents = rendered(values)
        account = one(documents, "ServiceAccount")["metadata"]
        pod = one(documents, "Deployment")["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == account["name"]
        roles = {
            (d["kind"], d["metadata"]["name"], d["metadata"].get("namespace"))
            for d in documents
            if d["kind"] in ("Role", "ClusterRole")
        }
        for binding in (d for d in documents if d["kind"].endswith("RoleBinding")):
            role, where = binding["roleRef"], binding["metadata"].get("namespace")
            assert (role["kind"], role["name"], where) in roles
            assert [subject["name"] for subject in binding["subjects"]] == [account["name"]]


def test_no_role_may_read_secrets_but_the_certificate_of_the_weights_service(
    rendered: Rendered,
) -> None:
    for values in (None, EVERYTHING):
        for role in (d for d in rendered(values) if d["kind"] in ("Role", "ClusterRole")):
            for rule in role["rules"]:
                assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
                if "secrets" in rule["resources"] and rule["verbs"] != ["create"]:
                    assert rule["resourceNames"] == ["kvquant-xds-tls"]
                    assert role["metadata"]["namespace"] == chart.NAMESPACE


def test_the_crd_is_kept_unless_one_asks_otherwise(rendered: Rendered) -> None:
    annotations = one(rendered(), "CustomResourceDefinition")["metadata"].get("annotations")
    assert annotations == {"helm.sh/resource-policy": "keep"}
    gone = one(rendered({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in gone["metadata"]
    kinds = {document["kind"] for document in rendered({"crds": {"install": False}})}
    assert "CustomResourceDefinition" not in kinds


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("kvquant", {}, "kvquant-operator"),
        ("kvquant-operator", {}, "kvquant-operator"),
        ("team-a", {}, "team-a-kvquant-operator"),
        ("team-a", {"fullnameOverride": "rollouts"}, "rollouts"),
    ],
)
def test_what_the_operator_is_called(
    rendered: Rendered, release: str, values: dict[str, Any], name: str
) -> None:
    assert one(rendered(values, release=release), "Deployment")["metadata"]["name"] == name


# What is written beside the chart.


def test_the_manifest_for_those_without_helm_is_the_chart_s() -> None:
    assert chart.MANIFEST.read_text() == chart.manifest(), "run `make manifests`"


def test_the_readme_tells_every_value() -> None:
    assert chart.README.read_text() == chart.readme(), "run `make manifests`"
