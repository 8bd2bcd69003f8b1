"""The Job of an evaluation on a real API server: it is taken whole, once, in a restricted place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.core.evaluation_manifests import Source, job_object
from kvquant.errors import Refused
from tests.apiserver.conftest import Kubectl
from tests.unit.test_evaluation_manifests import JOB

pytestmark = pytest.mark.apiserver

SOURCES = [
    Source(config_map="rag", path="set.jsonl"),
    Source(claim="sets", path="2026/set.jsonl"),
    Source(url="s3://sets/set.jsonl", secret="sets"),
]


@pytest.mark.parametrize("source", SOURCES)
def test_it_is_taken_under_strict_validation_and_applied_again_changes_nothing(
    connection: Connection, namespace: str, source: Source
) -> None:
    cluster = KubernetesCluster(connection, field_validation="Strict")
    job = job_object(replace(JOB, namespace=namespace, source=source))
    first = cluster.apply(job)
    again = cluster.apply(job)
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    assert again["spec"] == first["spec"]
    pod = first["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False


def test_one_that_would_be_another_is_refused_and_not_changed_in_place(
    connection: Connection, namespace: str
) -> None:
    cluster = KubernetesCluster(connection, field_validation="Strict")
    cluster.apply(job_object(replace(JOB, namespace=namespace)))
    with pytest.raises(Refused, match=r"spec\.template: Invalid value"):
        cluster.apply(job_object(replace(JOB, namespace=namespace, image="another:1")))


def test_its_pod_fits_the_restricted_security_standard(
    connection: Connection, kubectl: Kubectl, namespace: str
) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    kubectl.ok("label", "namespace", namespace, enforce)
    template = job_object(JOB)["spec"]["template"]
    # No controller runs here that would make one.
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    cluster = KubernetesCluster(connection)
    cluster.apply({**account, "metadata": {"name": "default", "namespace": namespace}})
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": namespace},
        "spec": template["spec"],
    }
    path = f"/api/v1/namespaces/{namespace}/pods"
    answer = connection.request("POST", path, query={"dryRun": "All"}, body=pod)
    assert answer.status == 201, answer.message
    pod["spec"] = {**pod["spec"], "hostNetwork": True}
    answer = connection.request("POST", path, query={"dryRun": "All"}, body=pod)
    assert "PodSecurity" in answer.message, "the standard is enforced here"
