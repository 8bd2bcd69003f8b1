"""The chart, installed, upgraded and removed by a real Helm on a real API server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvlocal import binaries, chart
from kvlocal.commands import run
from tests.apiserver.conftest import Kubectl
from tests.chart.test_chart import EVERYTHING

pytestmark = pytest.mark.apiserver

CRD = "kvquantrollouts.kvquant.dev"
NOT_SERVED = {"monitoring": {"dashboard": True}}
"""Kinds of the Prometheus Operator, which this API server does not know."""


@dataclass(frozen=True)
class Release:
    """A release in a namespace of its own. What is global is another test's: it is left out."""

    kubeconfig: Path
    namespace: str
    name: str

    def upgrade(self, values: dict[str, Any]) -> str:
        alone = {"crds": {"install": False}, "rbac": {"aggregate": False}}
        return self("upgrade", "--install", self.name, str(chart.CHART), values={**values, **alone})

    def __call__(self, *arguments: str, values: dict[str, Any] | None = None) -> str:
        given = [] if values is None else ["--values=-"]
        return run(
            *(str(binaries.helm()), *arguments, f"--namespace={self.namespace}"),
            *(f"--kubeconfig={self.kubeconfig}", *given),
            stdin=None if values is None else yaml.safe_dump(values),
        )


@pytest.fixture
def release(kubeconfig: Path, namespace: str) -> Iterator[Release]:
    made = Release(kubeconfig, namespace, f"t{uuid.uuid4().hex[:8]}")
    yield made
    made("uninstall", made.name, "--ignore-not-found")


def test_a_rendered_chart_is_what_the_api_server_takes_to_the_letter(
    kubectl: Kubectl, namespace: str
) -> None:
    for values in ({}, {**EVERYTHING, **NOT_SERVED, "watchNamespaces": [namespace]}):
        documents = yaml.safe_load_all(chart.render(values))
        for document in documents:
            # The release's namespace need not exist for a look at its contents.
            if document["metadata"].get("namespace") == chart.NAMESPACE:
                document["metadata"]["namespace"] = namespace
            kubectl.ok(
                *("apply", "--server-side", "--dry-run=server", "--validate=strict"),
                *("--force-conflicts", "-f", "-"),
                stdin=yaml.safe_dump(document),
            )


def test_a_release_is_installed_upgraded_rolled_back_and_removed(
    kubectl: Kubectl, release: Release
) -> None:
    deployment = ("get", "deployment", "-n", release.namespace, "-o", "yaml")
    notes = release.upgrade({})
    assert f"kubectl -n {release.namespace} rollout status" in notes
    assert "every namespace" in notes
    assert "set image.registry" in notes
    elsewhere = {"image": {"registry": "registry.example.com/kvquant"}}
    assert "WARNING" not in release.upgrade(elsewhere)

    def url() -> str:
        (found,) = yaml.safe_load(kubectl.ok(*deployment))["items"]
        (container,) = found["spec"]["template"]["spec"]["containers"]
        return next(
            str(e["value"]) for e in container["env"] if e["name"] == "KVQUANT_PROMETHEUS_URL"
        )

    before = url()
    release.upgrade({"prometheus": {"url": "http://thanos.example.com:9090"}})
    assert url() == "http://thanos.example.com:9090"
    release("rollback", release.name, "2")
    assert url() == before
    release("uninstall", release.name)
    left = kubectl.ok(
        "get", "deploy,svc,sa,role,rolebinding", "-n", release.namespace, "-o", "name"
    )
    assert left.split() == ["serviceaccount/default"] or left == ""
    assert release.name not in kubectl.ok("get", "clusterroles,clusterrolebindings", "-o", "name")


def test_the_crd_and_its_rollouts_outlive_the_release(
    kubectl: Kubectl, kubeconfig: Path, namespace: str
) -> None:
    # The tests' API server has the CRD from elsewhere; Helm adopts only what says that it may.
    release = Release(kubeconfig, namespace, f"t{uuid.uuid4().hex[:8]}")
    kubectl.ok(
        *("annotate", "crd", CRD, f"meta.helm.sh/release-name={release.name}"),
        *(f"meta.helm.sh/release-namespace={namespace}", "--overwrite"),
    )
    kubectl.ok("label", "crd", CRD, "app.kubernetes.io/managed-by=Helm", "--overwrite")
    release(
        *("upgrade", "--install", release.name, str(chart.CHART), "--force-conflicts"),
        values={"rbac": {"aggregate": False}},
    )
    rollout = {
        "apiVersion": "kvquant.dev/v1alpha1",
        "kind": "KVQuantRollout",
        "metadata": {"name": "kept", "namespace": namespace},
        "spec": {
            "targetRef": {"kind": "Deployment", "name": "llama"},
            "kvCache": {"dtype": "fp8"},
            "traffic": {"router": {}},
        },
    }
    kubectl.ok("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(rollout))
    release("uninstall", release.name)
    kubectl.ok("get", "kvqr", "kept", "-n", namespace)


def test_with_namespaces_named_the_operator_has_no_rights_elsewhere(
    kubectl: Kubectl, release: Release
) -> None:
    there = f"{release.namespace}-there"
    kubectl.ok("create", "namespace", there)
    try:
        release.upgrade({"watchNamespaces": [there]})
        who = f"system:serviceaccount:{release.namespace}:{release.name}-kvquant-operator"

        def may(verb: str, what: str, where: str) -> bool:
            answer = kubectl("auth", "can-i", verb, what, "-n", where, f"--as={who}")
            return answer.stdout.strip() == "yes"

        assert may("create", "deployments.apps", there)
        assert may("watch", "configmaps", release.namespace)
        assert may("patch", "secrets/kvquant-xds-tls", release.namespace)
        assert not may("get", "secrets", release.namespace)
        assert not may("create", "deployments.apps", release.namespace)
        assert not may("list", "pods", "default")
        assert not may("get", "secrets", there)
    finally:
        kubectl("delete", "namespace", there, "--wait=false")
