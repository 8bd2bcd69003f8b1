"""The roles in examples/install/operator.yaml suffice for the CLI, on a real API server's RBAC."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from kvquant.adapters.connection import APPLY_PATCH, Connection
from kvquant.cli.program import kvquant
from tests import manifests

pytestmark = pytest.mark.apiserver

HOME = "kvquant-system"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": f"/api/v1/namespaces/{HOME}/serviceaccounts",
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "Role": f"{RBAC}/namespaces/{HOME}/roles",
    "RoleBinding": f"{RBAC}/namespaces/{HOME}/rolebindings",
}

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def admin(connection: Connection) -> Connection:
    """The administrator, after the namespace and the roles of the example were applied."""
    for document in manifests.documents("install/operator.yaml"):
        if document["kind"] in ("Namespace", "ClusterRole", "Role"):
            _apply(connection, document)
    return connection


@pytest.fixture
def person(admin: Connection, kubeconfig: Path, tmp_path: Path) -> Callable[..., Run]:
    """Makes somebody with these bindings, each a kind and a role; returns how they call us."""

    def make(name: str, *bindings: tuple[str, str]) -> Run:
        _apply(admin, _named("v1", "ServiceAccount", name))
        subject = {"kind": "ServiceAccount", "name": name, "namespace": HOME}
        for kind, role in bindings:
            of = "Role" if kind == "RoleBinding" and role == "kvquant-kill-switch" else None
            reference = {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": of or "ClusterRole",
                "name": role,
            }
            binding = _named("rbac.authorization.k8s.io/v1", kind, f"{name}-{role}")
            _apply(admin, {**binding, "roleRef": reference, "subjects": [subject]})
        token = admin.expect(
            "POST",
            f"{PATHS['ServiceAccount']}/{name}/token",
            subject="token",
            body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        )["status"]["token"]
        config = yaml.safe_load(kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))

        def run(*arguments: str) -> Result:
            shared = ("--kubeconfig", str(path), "-n", HOME)
            return CliRunner().invoke(kvquant, [*arguments, *shared], prog_name="kvquant")

        return run

    return make


@pytest.fixture
def rollout(admin: Connection) -> Iterator[str]:
    (document,) = manifests.documents("fp8-minimal.yaml")
    document["metadata"]["namespace"] = HOME
    path = f"/apis/kvquant.dev/v1alpha1/namespaces/{HOME}/kvquantrollouts"
    name = str(document["metadata"]["name"])
    admin.expect("POST", path, subject="rollout", body=document)
    yield name
    admin.expect("DELETE", f"{path}/{name}", subject="rollout")


def test_a_stranger_is_told_which_role_to_ask_for(person: Callable[..., Run], rollout: str) -> None:
    stranger = person("stranger")
    assert "RoleBinding to the ClusterRole kvquant-view in namespace" in _refusal(
        stranger("status", rollout)
    )
    assert "ClusterRoleBinding to the ClusterRole kvquant-view in the whole cluster" in _refusal(
        stranger("status", "-A")
    )
    assert "Role kvquant-kill-switch in namespace kvquant-system" in _refusal(
        stranger("kill", "--all")
    )


def test_who_may_view_sees_and_cannot_steer(person: Callable[..., Run], rollout: str) -> None:
    viewer = person("viewer", ("RoleBinding", "kvquant-view"))
    shown = viewer("status", rollout)
    assert shown.exit_code == 0, shown.stderr
    assert "ClusterRole kvquant-edit" in _refusal(viewer("pause", rollout, "--no-wait"))
    explained = viewer("explain", rollout)
    assert explained.exit_code == 0, explained.stderr
    assert "ask for the right to get ConfigMaps in namespace" in explained.stderr


def test_who_may_edit_steers_their_namespace_and_not_the_cluster(
    person: Callable[..., Run], rollout: str
) -> None:
    editor = person("editor", ("RoleBinding", "kvquant-edit"))
    paused = editor("pause", rollout, "--no-wait")
    assert paused.exit_code == 0, paused.stderr
    assert "kvquant-kill-switch" in _refusal(editor("kill", "--all", "--no-wait"))


def test_the_kill_switch_needs_its_own_role_and_a_look_at_every_rollout(
    admin: Connection, person: Callable[..., Run]
) -> None:
    blind = person("blind", ("RoleBinding", "kvquant-kill-switch"))
    # The first call creates the ConfigMap, the second changes it.
    assert "the kill switch of the whole cluster is on" in _refusal(blind("kill", "--all"))
    assert _switch(admin)["killed"] == "true"
    on_call = person(
        "on-call",
        ("RoleBinding", "kvquant-kill-switch"),
        ("ClusterRoleBinding", "kvquant-view"),
    )
    lifted = on_call("unkill", "--all")
    assert lifted.exit_code == 0, lifted.stderr
    assert _switch(admin)["killed"] == "false"


def _refusal(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return str(result.stderr)


def _switch(admin: Connection) -> dict[str, str]:
    path = f"/api/v1/namespaces/{HOME}/configmaps/kvquant-kill-switch"
    data: dict[str, str] = admin.expect("GET", path, subject="switch")["data"]
    return data


def _named(api_version: str, kind: str, name: str) -> dict[str, Any]:
    metadata: dict[str, Sequence[str] | str] = {"name": name}
    if kind != "ClusterRoleBinding":
        metadata["namespace"] = HOME
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _apply(admin: Connection, document: dict[str, Any]) -> None:
    admin.expect(
        "PATCH",
        f"{PATHS[document['kind']]}/{document['metadata']['name']}",
        subject=document["kind"],
        query={"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"},
        body=document,
        content_type=APPLY_PATCH,
    )
