"""The CRD on a real API server: it is taken, it refuses with our words, and it teaches."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from kvquant.adapters.connection import Connection
from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout
from kvquant.core.plan import Plan
from tests import manifests
from tests.apiserver.conftest import Kubectl
from tests.conftest import CRD_FILE, CRD_PATH, crd_conditions
from tests.odd import WHOLE, changed

pytestmark = pytest.mark.apiserver


def rollout(**spec: Any) -> str:
    """Return the manifest of a rollout, from the smallest example with changes to its spec."""
    (document,) = manifests.documents("fp8-minimal.yaml")
    del document["metadata"]["namespace"]
    document["spec"] = {**document["spec"], **spec}
    return yaml.safe_dump(document)


def test_the_crd_is_taken_under_strict_validation_and_established(
    connection: Connection, kubectl: Kubectl
) -> None:
    taken = kubectl("apply", "--server-side", "--validate=strict", "-f", str(CRD_FILE))
    assert taken.returncode == 0, taken.stderr
    assert "Warning" not in taken.stderr

    conditions = crd_conditions(connection.expect("GET", CRD_PATH, subject="CRD"))
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


CUSTOM = {
    "name": "toolErrors",
    "tolerancePercent": 2,
    "ratio": {"events": 'tool_calls_total{outcome="error"}', "total": "tool_calls_total"},
}

REFUSED = {
    "unknown dtype": (
        {"kvCache": {"dtype": "int7"}},
        ['spec.kvCache.dtype: Unsupported value: "int7": supported values: "int8", "int4", "fp8"'],
    ),
    "steps that fall": (
        {"steps": [{"weight": 50}, {"weight": 10}, {"weight": 100}]},
        ["spec.steps: Invalid value", "weights must rise strictly", "reorder the steps"],
    ),
    "a repeated weight": (
        {"steps": [{"weight": 10}, {"weight": 10}, {"weight": 100}]},
        ["spec.steps: Invalid value", "remove the repeated weight"],
    ),
    "steps that end early": (
        {"steps": [{"weight": 10}, {"weight": 50}]},
        ["spec.steps: Invalid value", "append `- weight: 100`"],
    ),
    "no steps": ({"steps": []}, ["spec.steps: Invalid value: 0", "at least 1 items"]),
    "too many steps": (
        {"steps": [{"weight": weight} for weight in range(84, 101)]},
        ["spec.steps: Too many: 17: must have at most 16 items"],
    ),
    "a weight above 100": (
        {"steps": [{"weight": 101}]},
        ["spec.steps[0].weight: Invalid value: 101", "less than or equal to 100"],
    ),
    "a duration without a unit": (
        {"progressDeadline": "90"},
        ["spec.progressDeadline: Invalid value", "such as 90s, 10m or 1h30m"],
    ),
    "a soak in days": (
        {"steps": [{"weight": 100, "soak": "1d"}]},
        ["spec.steps[0].soak: Invalid value", "such as 90s, 10m or 1h30m"],
    ),
    "a duration of nothing": (
        {"analysis": {"interval": "0s"}},
        ["spec.analysis.interval: Invalid value", "must last at least 1s"],
    ),
    "no way to split traffic": (
        {"traffic": {}},
        ["spec.traffic: Invalid value", "exactly one of router (the built-in Envoy) and"],
    ),
    "two ways to split traffic": (
        {"traffic": {"router": {}, "gatewayAPI": {"httpRoute": "llama"}}},
        ["spec.traffic: Invalid value", "exactly one of router (the built-in Envoy) and"],
    ),
    "a rule counted from the end": (
        {"traffic": {"gatewayAPI": {"httpRoute": "llama", "rule": -1}}},
        ["spec.traffic.gatewayAPI.rule: Invalid value: -1"],
    ),
    "a target that is no Deployment": (
        {"targetRef": {"kind": "StatefulSet", "name": "llama"}},
        ['spec.targetRef.kind: Unsupported value: "StatefulSet": supported values: "Deployment"'],
    ),
    "a target without a name": ({"targetRef": {}}, ["spec.targetRef.name: Required value"]),
    "a tolerance above 100": (
        {"analysis": {"pageFaults": {"tolerancePercent": 101}}},
        ["spec.analysis.pageFaults.tolerancePercent: Invalid value: 101"],
    ),
    "a custom signal of both kinds": (
        {"analysis": {"custom": [{**CUSTOM, "latency": {"histogram": "rerank_seconds"}}]}},
        ["spec.analysis.custom[0]: Invalid value", "exactly one of ratio (two counters) and"],
    ),
    "a custom signal of no kind": (
        {"analysis": {"custom": [{"name": "toolErrors", "tolerancePercent": 2}]}},
        ["spec.analysis.custom[0]: Invalid value", "exactly one of ratio (two counters) and"],
    ),
    "a custom signal without a tolerance": (
        {"analysis": {"custom": [{"name": "toolErrors", "ratio": CUSTOM["ratio"]}]}},
        ["spec.analysis.custom[0].tolerancePercent: Required value"],
    ),
    "a function for a selector": (
        {"analysis": {"custom": [{**CUSTOM, "ratio": {"events": "rate(a[5m])", "total": "a"}}]}},
        ["spec.analysis.custom[0].ratio.events: Invalid value", "no functions, no ranges"],
    ),
    "a bucket's bound in a selector": (
        {
            "analysis": {
                "custom": [
                    {
                        "name": "rerank",
                        "tolerancePercent": 20,
                        "latency": {"histogram": 'rerank_seconds{le="1"}'},
                    }
                ]
            }
        },
        ["spec.analysis.custom[0].latency.histogram: Invalid value", "no matchers of `le`"],
    ),
    "a direction of a latency": (
        {
            "analysis": {
                "custom": [
                    {
                        "name": "rerank",
                        "tolerancePercent": 20,
                        "direction": "decrease",
                        "latency": {"histogram": "rerank_seconds"},
                    }
                ]
            }
        },
        ["spec.analysis.custom[0]: Invalid value", "of a latency, longer is always worse"],
    ),
    "two custom signals of one name": (
        {"analysis": {"custom": [CUSTOM, {**CUSTOM, "direction": "decrease"}]}},
        ["spec.analysis.custom: Invalid value", "rename or remove the repeated one"],
    ),
    "a custom signal by a built-in name": (
        {"analysis": {"custom": [{**CUSTOM, "name": "failures"}]}},
        ["spec.analysis.custom[0]: Invalid value", "which the operator has itself"],
    ),
    "an engine's key without a key": (
        {"shadow": {"engineKeySecret": {"name": "engines"}}},
        ["spec.shadow.engineKeySecret.key: Required value"],
    ),
    "an engine's key by a path": (
        {"shadow": {"engineKeySecret": {"name": "engines", "key": "../key"}}},
        ["spec.shadow.engineKeySecret.key: Invalid value"],
    ),
    "too many custom signals": (
        {"analysis": {"custom": [{**CUSTOM, "name": f"own{i}"} for i in range(9)]}},
        ["spec.analysis.custom: Too many: 9: must have at most 8 items"],
    ),
    "a model without a name": (
        {"evaluation": {"dataset": {"configMapName": "rag"}, "model": ""}},
        ["spec.evaluation.model: Invalid value"],
    ),
    "an example set of no source": (
        {"evaluation": {"dataset": {}}},
        ["spec.evaluation.dataset: Invalid value", "name exactly one source of the example set"],
    ),
    "an example set of two sources": (
        {"evaluation": {"dataset": {"configMapName": "rag", "url": "s3://sets/rag.jsonl"}}},
        ["spec.evaluation.dataset: Invalid value", "configMapName, claimName or url"],
    ),
    "no example set": ({"evaluation": {}}, ["spec.evaluation.dataset: Required value"]),
    "a key without its ConfigMap": (
        {"evaluation": {"dataset": {"claimName": "sets", "key": "rag.jsonl"}}},
        ["key belongs to configMapName: remove it, or name the ConfigMap"],
    ),
    "a path without its volume": (
        {"evaluation": {"dataset": {"configMapName": "rag", "path": "rag.jsonl"}}},
        ["path belongs to claimName: remove it, or name the PersistentVolumeClaim"],
    ),
    "credentials without a bucket": (
        {"evaluation": {"dataset": {"configMapName": "rag", "secretName": "sets"}}},
        ["secretName holds the credentials of a bucket: remove it, or name the url"],
    ),
    "a path out of its volume": (
        {"evaluation": {"dataset": {"claimName": "sets", "path": "a/../../etc/passwd"}}},
        ["spec.evaluation.dataset.path: Invalid value", "without '..', such as sets/rag.jsonl"],
    ),
    "an absolute path": (
        {"evaluation": {"dataset": {"claimName": "sets", "path": "/rag.jsonl"}}},
        ["spec.evaluation.dataset.path: Invalid value", "without a leading '/'"],
    ),
    "a set from the web": (
        {"evaluation": {"dataset": {"url": "https://example.org/rag.jsonl"}}},
        ["spec.evaluation.dataset.url: Invalid value"],
    ),
    "an evaluation of weeks": (
        {"evaluation": {"dataset": {"configMapName": "rag"}, "deadline": "169h"}},
        ["spec.evaluation: Invalid value", "deadline may be 168h at most"],
    ),
    "an evaluation without a unit of time": (
        {"evaluation": {"dataset": {"configMapName": "rag"}, "deadline": "90"}},
        ["spec.evaluation.deadline: Invalid value", "such as 90s, 10m or 1h30m"],
    ),
    "an evaluation that passes when it fails": (
        {"evaluation": {"dataset": {"configMapName": "rag"}, "onError": "proceed"}},
        ['spec.evaluation.onError: Unsupported value: "proceed": supported values: "hold"'],
    ),
    "an unknown field": ({"ladder": {}}, ['unknown field "spec.ladder"']),
}


@pytest.mark.parametrize(("spec", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_spec_is_refused_in_words_that_name_field_and_remedy(
    kubectl: Kubectl, spec: dict[str, Any], words: list[str]
) -> None:
    answer = kubectl("create", "--dry-run=server", "-n", "default", "-f-", stdin=rollout(**spec))
    assert answer.returncode != 0, answer.stdout
    for expected in words:
        assert expected in answer.stderr


@pytest.mark.parametrize("name", ["llama.fp8", "8bit", "l" * 53])
def test_a_name_that_cannot_become_a_services_is_refused(kubectl: Kubectl, name: str) -> None:
    manifest = rollout().replace("name: llama-fp8", f"name: {name}")
    answer = kubectl("create", "--dry-run=server", "-n", "default", "-f-", stdin=manifest)
    assert answer.returncode != 0
    assert "metadata.name becomes part of Service names and labels" in answer.stderr


def test_the_target_cannot_be_changed(kubectl: Kubectl, namespace: str) -> None:
    kubectl.ok("create", "-n", namespace, "-f-", stdin=rollout())
    patch = json.dumps({"spec": {"targetRef": {"name": "other"}}})
    answer = kubectl("patch", "kvqr", "llama-fp8", "-n", namespace, "--type=merge", "-p", patch)
    assert answer.returncode != 0
    assert "targetRef cannot be changed: make a new KVQuantRollout" in answer.stderr


@pytest.mark.parametrize(
    "traffic",
    [
        {"router": None, "gatewayAPI": {"httpRoute": "llama"}},
        {"router": {"port": 8080}},
    ],
    ids=["by a Gateway", "by a port"],
)
def test_traffic_cannot_be_led_another_way(
    kubectl: Kubectl, namespace: str, traffic: dict[str, Any]
) -> None:
    """What was set on a router or a route must be put back there."""
    kubectl.ok("create", "-n", namespace, "-f-", stdin=rollout())
    patch = json.dumps({"spec": {"traffic": traffic}})
    answer = kubectl("patch", "kvqr", "llama-fp8", "-n", namespace, "--type=merge", "-p", patch)
    if "gatewayAPI" in traffic:
        assert answer.returncode != 0
        assert "traffic cannot be led another way in mid-life" in answer.stderr
    else:
        assert answer.returncode == 0, answer.stderr


def test_another_http_route_is_another_way(kubectl: Kubectl, namespace: str) -> None:
    (document,) = yaml.safe_load_all((manifests.EXAMPLES / "fp8-gateway-api.yaml").read_text())
    document["metadata"]["namespace"] = namespace
    kubectl.ok("create", "-f-", stdin=yaml.safe_dump(document))
    name = document["metadata"]["name"]
    for gateway, refused in (({"rule": 1}, False), ({"httpRoute": "another"}, True)):
        patch = json.dumps({"spec": {"traffic": {"gatewayAPI": gateway}}})
        answer = kubectl("patch", "kvqr", name, "-n", namespace, "--type=merge", "-p", patch)
        assert (answer.returncode != 0) is refused, answer.stderr


def test_the_smallest_example_gets_every_default(kubectl: Kubectl, namespace: str) -> None:
    kubectl.ok("create", "-n", namespace, "-f-", stdin=rollout())
    spec = json.loads(kubectl.ok("get", "kvqr", "llama-fp8", "-n", namespace, "-o", "json"))["spec"]
    assert spec == {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama"},
        "kvCache": {"dtype": "fp8", "headDim": 128},
        "engine": {"type": "auto", "fingerprint": True},
        "traffic": {
            "router": {
                "port": 8000,
                "replicas": 2,
                "requestTimeout": "15m",
                "drainTimeout": "5m",
            }
        },
        "shadow": {
            "percent": 5,
            "minPairs": 200,
            "soak": "10m",
            "onInconclusive": "hold",
            "decideWithin": "2h",
            "noisePercent": 20,
            "maxAnswerTokens": 256,
            "driftPercent": 5,
            "answersPercent": 2,
            "matchLoad": False,
            "saturationProbe": True,
            "patterns": [],
            "log": {"maxSizeMi": 4096, "retention": "720h"},
        },
        "steps": [
            {"weight": w, "soak": soak, "onInconclusive": "hold", "decideWithin": "2h"}
            for w, soak in ((10, "15m"), (25, "15m"), (50, "30m"), (100, "30m"))
        ],
        "alerts": [],
        "analysis": {
            "interval": "15s",
            "minRequests": 100,
            "errorBudgetPercent": 5,
            "holdbackPercent": 5,
            "pageFaults": {"tolerancePercent": 5},
            "oomRetries": {"tolerancePercent": 1},
            "p99": {"tolerancePercent": 25},
            "custom": [],
        },
        "promotion": {"rollbackWindow": "1h", "oldPool": "ScaleToZero"},
        "progressDeadline": "30m",
    }


@pytest.mark.parametrize(
    "dataset",
    [
        {"configMapName": "rag"},
        {"configMapName": "rag", "key": "rag.jsonl"},
        {"claimName": "sets", "path": "2026/rag..jsonl"},
        {"url": "gs://sets/2026/rag.jsonl", "secretName": "sets"},
    ],
)
def test_an_example_set_of_one_source_gets_every_default(
    kubectl: Kubectl, dataset: dict[str, str]
) -> None:
    manifest = rollout(evaluation={"dataset": dataset})
    told = kubectl.ok(
        *("create", "--dry-run=server", "-n", "default", "-o", "json", "-f-"), stdin=manifest
    )
    assert json.loads(told)["spec"]["evaluation"] == {
        "dataset": dataset,
        "marginPercent": 5,
        "driftPercent": 5,
        "noisePercent": 20,
        "concurrency": 4,
        "deadline": "1h",
        "onInconclusive": "hold",
        "onError": "hold",
    }


def spec_fields() -> list[tuple[str, str]]:
    """Return every field of the spec by its path, with what it should be explained as."""
    crd = yaml.safe_load(CRD_FILE.read_text())
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: list[tuple[str, str]] = []

    def walk(path: str, schema: dict[str, Any]) -> None:
        found.append((path, schema["description"]))
        fields = schema.get("items", schema).get("properties", {})
        for name, inner in fields.items():
            walk(f"{path}.{name}", inner)

    walk("spec", root["properties"]["spec"])
    return found


def test_kubectl_explain_teaches_every_field_of_the_spec(kubectl: Kubectl) -> None:
    fields = spec_fields()
    assert len(fields) > 30
    parents = {path.rpartition(".")[0] for path, _ in fields} - {""}
    explained = {
        parent: " ".join(kubectl.ok("explain", f"kvqr.{parent}").split()) for parent in parents
    }
    for path, description in fields:
        parent = path.rpartition(".")[0]
        if parent:
            assert description in explained[parent], path


def test_kubectl_get_shows_how_a_rollout_stands(kubectl: Kubectl, namespace: str) -> None:
    kubectl.ok("create", "-n", namespace, "-f-", stdin=rollout())
    status = {
        "status": {
            "phase": "Progressing",
            "stepLabel": "2/4",
            "weights": {"baseline": 75, "canary": 25},
            "verdict": "Pass",
        }
    }
    kubectl.ok(
        *("patch", "kvqr", "llama-fp8", "-n", namespace),
        *("--subresource=status", "--type=merge", "-p", json.dumps(status)),
    )
    header, row = kubectl.ok("get", "kvqr", "-n", namespace).splitlines()
    assert header.split() == [
        *("NAME", "TARGET", "DTYPE", "PHASE", "STEP", "WEIGHT", "VERDICT", "AGE"),
    ]
    assert row.split()[:-1] == ["llama-fp8", "llama", "fp8", "Progressing", "2/4", "25", "Pass"]


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changed(WHOLE))
def test_whatever_the_api_server_admits_the_operator_can_read(
    connection: Connection, kubectl: Kubectl, spec: dict[str, Any]
) -> None:
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "odd", "namespace": "default"},
        "spec": spec,
    }
    path = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
    answer = connection.request("POST", path, query={"dryRun": "All"}, body=document)
    if answer.status == 201:
        Plan.of(KVQuantRollout.parse(answer.document).spec)
    else:
        assert answer.status in (400, 422), answer.message


@pytest.mark.parametrize("file", manifests.FILES)
def test_every_example_is_taken_under_strict_validation(kubectl: Kubectl, file: str) -> None:
    spaces = {doc["metadata"].get("namespace") for doc in manifests.documents(file)} - {None}
    for space in sorted(spaces):
        kubectl.ok(
            *("apply", "--server-side", "--force-conflicts", "-f-"),
            stdin=f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {space}}}\n",
        )
    arguments = ("--server-side", "--validate=strict", "-f", str(manifests.EXAMPLES / file))
    answer = kubectl("apply", *arguments)
    for document in manifests.documents(file):
        if document["kind"] == names.KIND:
            # Two examples may show the same rollout with another target, which is immutable.
            name, space = document["metadata"]["name"], document["metadata"]["namespace"]
            kubectl("delete", "kvqr", name, "-n", space)
    assert answer.returncode == 0, answer.stderr
    assert "Warning" not in answer.stderr
