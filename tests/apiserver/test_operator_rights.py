"""The rights in examples/install/operator.yaml suffice for what the operator does, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.adapters.tokens import TokenReviewer
from kvquant.adapters.watching import WATCHED, WatchedCluster
from kvquant.api import names
from kvquant.core import record
from kvquant.errors import Refused
from kvquant.recording import Recorder
from kvquant.world import read
from tests import manifests
from tests.apiserver.conftest import Kubectl

pytestmark = pytest.mark.apiserver

HOME = "kvquant-system"
LABELS = {"app": "x"}
POD: dict[str, Any] = {
    "metadata": {"labels": LABELS},
    "spec": {"containers": [{"name": "engine", "image": "example.invalid/engine:1"}]},
}
SPECS: dict[str, dict[str, Any]] = {
    "ConfigMap": {"data": {"a": "1"}},
    "Deployment": {"spec": {"replicas": 0, "selector": {"matchLabels": LABELS}, "template": POD}},
    "Job": {"spec": {"template": {**POD, "spec": {**POD["spec"], "restartPolicy": "Never"}}}},
    "PodDisruptionBudget": {
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": LABELS}},
    },
    "Service": {"spec": {"selector": LABELS, "ports": [{"port": 80}]}},
    "ServiceAccount": {"automountServiceAccountToken": False},
}
API_VERSIONS = {
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "PodDisruptionBudget": "policy/v1",
}


@pytest.fixture(scope="module")
def operator(
    kubectl: Kubectl, kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Connection:
    """A connection with the credentials of the installed operator and nothing else."""
    file = manifests.EXAMPLES / "install" / "operator.yaml"
    kubectl.ok("apply", "--server-side", "--force-conflicts", "-f", str(file))
    token = kubectl.ok("create", "token", "kvquant-operator", "-n", HOME).strip()
    document = yaml.safe_load(kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    path = tmp_path_factory.mktemp("operator") / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return Connection.from_kubeconfig(str(path))


@pytest.fixture
def cluster(operator: Connection) -> KubernetesCluster:
    return KubernetesCluster(operator, field_validation="Strict")


def thing(kind: str, namespace: str, name: str = "x") -> dict[str, Any]:
    return {
        "apiVersion": API_VERSIONS.get(kind, "v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        **SPECS[kind],
    }


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_the_operator_may_make_and_keep_what_a_rollout_needs(
    cluster: KubernetesCluster, namespace: str, kind: str
) -> None:
    cluster.apply(thing(kind, namespace))
    changed = thing(kind, namespace)
    changed["metadata"]["annotations"] = {"again": "1"}
    cluster.apply(changed)
    found = cluster.get(kind, namespace, "x")
    assert found is not None
    assert found["metadata"]["annotations"]["again"] == "1"


def test_the_operator_may_patch_deployments_and_configmaps(
    cluster: KubernetesCluster, namespace: str
) -> None:
    for kind in ("Deployment", "ConfigMap"):
        cluster.apply(thing(kind, namespace))
        mark = {"metadata": {"labels": {names.LABEL_ROUTER: "r"}}}
        assert cluster.patch(kind, namespace, "x", mark)["metadata"]["labels"]


def test_the_operator_may_look_for_pods_services_and_rollouts(
    cluster: KubernetesCluster, namespace: str
) -> None:
    for kind in ("Pod", "Service", names.KIND):
        assert cluster.list(kind, namespace, {}) == []


def test_the_operator_may_hold_an_autoscaler_still_but_make_none(
    cluster: KubernetesCluster, kubectl: Kubectl, namespace: str
) -> None:
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "x", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
            "minReplicas": 2,
            "maxReplicas": 8,
        },
    }
    with pytest.raises(Refused, match="HTTP 403"):
        cluster.apply(autoscaler)
    kubectl.ok("create", "-f-", stdin=yaml.safe_dump(autoscaler))
    (found,) = cluster.list("HorizontalPodAutoscaler", namespace, {})
    bounds = {"minReplicas": 3, "maxReplicas": 3}
    version = {"resourceVersion": found["metadata"]["resourceVersion"]}
    cluster.patch("HorizontalPodAutoscaler", namespace, "x", {"metadata": version, "spec": bounds})
    found_again = cluster.get("HorizontalPodAutoscaler", namespace, "x")
    assert found_again is not None
    assert bounds.items() <= found_again["spec"].items()


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_the_operator_may_delete_a_pool_and_an_evaluation_of_its_own(
    cluster: KubernetesCluster, namespace: str, kind: str
) -> None:
    cluster.apply(thing(kind, namespace))
    cluster.delete(kind, namespace, "x")
    assert cluster.get(kind, namespace, "x") is None


def test_the_operator_may_write_a_rollouts_status_and_its_finalizer_but_make_none(
    cluster: KubernetesCluster, kubectl: Kubectl, namespace: str
) -> None:
    (document,) = manifests.documents("fp8-minimal.yaml")
    document["metadata"]["namespace"] = namespace
    with pytest.raises(Refused, match="HTTP 403"):
        cluster.apply(document)
    kubectl.ok("create", "-f-", stdin=yaml.safe_dump(document))

    finalizer = {"metadata": {"finalizers": [names.FINALIZER]}}
    held = cluster.patch(names.KIND, namespace, "llama-fp8", finalizer)
    written = cluster.replace_status({**held, "status": {"phase": "Pending"}})
    cluster.patch(names.KIND, namespace, "llama-fp8", {"metadata": {"finalizers": None}})

    assert written["status"] == {"phase": "Pending"}


def test_the_operator_may_keep_the_record_of_a_rollout(
    cluster: KubernetesCluster, kubectl: Kubectl, namespace: str
) -> None:
    (document,) = manifests.documents("fp8-minimal.yaml")
    document["metadata"]["namespace"] = namespace
    kubectl.ok("create", "-f-", stdin=yaml.safe_dump(document))
    raw = cluster.get(names.KIND, namespace, "llama-fp8")
    assert raw is not None
    for number in (1, record.KEPT + 1):
        decided = {"at": "2026-11-25T12:00:00Z", "kind": "Hold", "reason": "Why", "step": 0}
        decision = {**decided, "number": number, "weight": 0, "message": "So."}
        raw = cluster.replace_status({**raw, "status": {"decisions": [decision]}})
        Recorder(cluster).keep(read(cluster, raw))
    found = cluster.get("ConfigMap", namespace, record.name_of("llama-fp8"))
    assert found is not None
    assert [entry.number for entry in record.read(found["data"])] == [record.KEPT + 1]
    (owner,) = found["metadata"]["ownerReferences"]
    assert owner["uid"] == raw["metadata"]["uid"]


def test_the_operator_touches_one_secret_of_its_own_namespace_and_no_other(
    cluster: KubernetesCluster, namespace: str
) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "kvquant-xds-tls", "namespace": HOME},
        "stringData": {"a": "1"},
    }
    cluster.apply(secret)
    assert cluster.get("Secret", HOME, "kvquant-xds-tls") is not None
    for where, name in ((HOME, "another"), (namespace, "kvquant-xds-tls")):
        with pytest.raises(Refused, match="HTTP 403"):
            cluster.get("Secret", where, name)


def test_the_operator_may_have_tokens_reviewed(operator: Connection) -> None:
    assert TokenReviewer(operator).review("nonsense", "kvquant") is None


def test_the_operator_may_watch_all_that_it_reads_again_and_again(
    operator: Connection, namespace: str, gateway_api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = WatchedCluster(operator)
    for kind in WATCHED:
        watched.list(kind, namespace, {})
    asked: list[str] = []
    monkeypatch.setattr(operator, "request", lambda *arguments, **_: asked.append(str(arguments)))
    for kind in WATCHED:
        assert isinstance(watched.list(kind, namespace, {}), list)
    watched.close()
    assert asked == [], "a watch that is refused would be made up for by reading each time"


READ = {"get", "list", "watch"}
WHAT_FOR: dict[tuple[str, str], set[str]] = {
    ("kvquant.dev", "kvquantrollouts"): READ | {"patch"},  # the finalizer
    ("kvquant.dev", "kvquantrollouts/status"): {"get", "update"},
    ("kvquant.dev", "kvquantrollouts/finalizers"): {"update"},  # owner references
    ("apps", "deployments"): READ | {"create", "patch", "delete"},  # routers and canary pools
    ("", "pods"): READ | {"patch"},  # the label that lets a proven pod serve
    ("", "services"): READ | {"create", "patch"},
    ("", "configmaps"): READ | {"create", "patch"},  # of routers, and records of decisions
    ("", "serviceaccounts"): READ | {"create", "patch"},
    ("batch", "jobs"): READ | {"create", "patch", "delete"},  # evaluations of example sets
    ("policy", "poddisruptionbudgets"): READ | {"create", "patch"},
    ("autoscaling", "horizontalpodautoscalers"): READ | {"patch"},  # held still meanwhile
    ("gateway.networking.k8s.io", "httproutes"): READ | {"patch"},  # users' own
    ("gateway.networking.k8s.io", "gateways"): {"get"},
    ("gateway.networking.k8s.io", "gatewayclasses"): {"get"},  # whether it can copy a share
    ("", "events"): {"create", "patch"},
    ("events.k8s.io", "events"): {"create", "patch"},
    ("authentication.k8s.io", "tokenreviews"): {"create"},
}


def test_the_operator_has_these_rights_and_no_others(operator: Connection, namespace: str) -> None:
    review = operator.expect(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        subject="own rights",
        body={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        },
    )
    found: dict[tuple[str, str], set[str]] = {}
    for rule in review["status"]["resourceRules"]:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    # What everybody may who is authenticated: ask about themselves.
    everybody = {key for key in found if key[1].startswith("self")}
    assert {key: verbs for key, verbs in found.items() if key not in everybody} == WHAT_FOR
