"""GitOps tools apply a rollout's manifest again and again: nothing of the rollout's own is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout
from kvquant.core.plan import spec_hash
from tests.apiserver.conftest import Kubectl
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.apiserver


def manifest(namespace: str, **spec: Any) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "llama-fp8", "namespace": namespace, "labels": {"team": "a"}},
            "spec": {
                "targetRef": {"kind": "Deployment", "name": "llama"},
                "kvCache": {"dtype": "fp8"},
                "traffic": {"router": {}},
                **spec,
            },
        }
    )


IN_THE_MIDDLE = REPOSITORY / "tests" / "data" / "statuses" / "0.1.0" / "between-steps.json"

APPLY = {
    "argocd": ("apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller"),
    "flux": ("apply", "--server-side", "--force-conflicts", "--field-manager=kustomize-controller"),
    "kubectl": ("apply",),
    "replacing": ("replace",),
}


@pytest.mark.parametrize("tool", sorted(APPLY))
def test_the_same_manifest_again_changes_nothing_that_a_rollout_lives_by(
    kubectl: Kubectl, connection: Connection, namespace: str, tool: str
) -> None:
    port = KubernetesCluster(connection)
    first = ("create",) if tool == "replacing" else APPLY[tool]
    kubectl.ok(*first, "-f", "-", stdin=manifest(namespace))
    # What kopf, the operator and a person on call have added since.
    port.patch(
        *(names.KIND, namespace, "llama-fp8"),
        {"metadata": {"finalizers": [names.FINALIZER]}},
    )
    kubectl.ok(
        *("annotate", "kvqr", "llama-fp8", "-n", namespace, f"{names.ANNOTATION_PAUSED}=Ada"),
        "--field-manager=kubectl-kvquant",
    )
    stored = port.get(names.KIND, namespace, "llama-fp8")
    assert stored is not None
    rollout = KVQuantRollout.parse(stored)
    status = {**json.loads(IN_THE_MIDDLE.read_text()), "specHash": spec_hash(rollout.spec)}
    before = port.replace_status({**stored, "status": status})

    kubectl.ok(*APPLY[tool], "-f", "-", stdin=manifest(namespace))

    after = port.get(names.KIND, namespace, "llama-fp8")
    assert after is not None
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["status"] == before["status"]
    assert spec_hash(KVQuantRollout.parse(after).spec) == status["specHash"]
    if tool != "replacing":
        # A tool that replaces takes finalizers and annotations away, as it does everybody's.
        assert after["metadata"]["finalizers"] == [names.FINALIZER]
        assert after["metadata"]["annotations"][names.ANNOTATION_PAUSED] == "Ada"


@pytest.mark.parametrize("tool", ["argocd", "flux"])
def test_the_operator_owns_the_status_and_no_field_of_the_spec(
    kubectl: Kubectl, connection: Connection, namespace: str, tool: str
) -> None:
    port = KubernetesCluster(connection)
    kubectl.ok(*APPLY[tool], "-f", "-", stdin=manifest(namespace))
    stored = port.get(names.KIND, namespace, "llama-fp8")
    assert stored is not None
    port.replace_status({**stored, "status": {"phase": "Pending", "attempt": 1}})
    told = kubectl.ok(
        *("get", "kvqr", "llama-fp8", "-n", namespace, "-o", "json", "--show-managed-fields")
    )
    owners = json.loads(told)["metadata"]["managedFields"]
    of_spec = {one["manager"] for one in owners if "f:spec" in one["fieldsV1"]}
    of_status = {one["manager"] for one in owners if "f:status" in one["fieldsV1"]}
    assert of_spec == {APPLY[tool][-1].partition("=")[2]}
    assert of_status == {names.FIELD_MANAGER}
    # Without --force-conflicts: a spec that its own tool changes conflicts with nobody.
    without = [word for word in APPLY[tool] if word != "--force-conflicts"]
    changed = manifest(namespace, analysis={"minRequests": 200})
    kubectl.ok(*without, "-f", "-", stdin=changed)
