"""The connection to a real API server: credentials, errors and tokens."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection, in_cluster_or_kubeconfig
from kvquant.adapters.tokens import TokenReviewer
from kvquant.errors import ClusterError, Refused, Unavailable
from tests.apiserver.conftest import Kubectl

pytestmark = pytest.mark.apiserver

AUDIENCE = "kvquant.dev/weights"


def rewritten(kubeconfig: Path, directory: Path, **cluster: object) -> str:
    """Return the path of a copy of a kubeconfig with changes to its cluster."""
    document = yaml.safe_load(kubeconfig.read_text())
    document["clusters"][0]["cluster"] |= cluster
    document["contexts"][0]["context"]["namespace"] = "inference"
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_the_context_tells_the_namespace(kubeconfig: Path, tmp_path: Path) -> None:
    named = Connection.from_kubeconfig(rewritten(kubeconfig, tmp_path))
    assert named.namespace == "inference"
    assert Connection.from_kubeconfig(str(kubeconfig)).namespace == "default"


def test_an_unknown_context_is_an_error_that_says_what_to_name(kubeconfig: Path) -> None:
    with pytest.raises(ClusterError, match="kubectl config get-contexts"):
        Connection.from_kubeconfig(str(kubeconfig), context="nowhere")


def test_a_missing_kubeconfig_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="absent"):
        Connection.from_kubeconfig(str(tmp_path / "absent"))


def test_outside_a_pod_there_are_no_in_cluster_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match="service account token is mounted"):
        Connection.in_cluster()


def test_a_pod_is_known_by_its_service_account(
    kubeconfig: Path,
    kubectl: Kubectl,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kubectl.ok("create", "serviceaccount", "operator", "-n", namespace)
    cluster = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
    authority = (
        base64.b64decode(cluster["certificate-authority-data"])
        if "certificate-authority-data" in cluster
        else Path(cluster["certificate-authority"]).read_bytes()
    )
    (tmp_path / "ca.crt").write_bytes(authority)
    (tmp_path / "token").write_text(kubectl.ok("create", "token", "operator", "-n", namespace))
    server = urlsplit(cluster["server"])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(server.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    mounted = "kubernetes.config.incluster_config.SERVICE_{}_FILENAME"
    monkeypatch.setattr(mounted.format("TOKEN"), str(tmp_path / "token"))
    monkeypatch.setattr(mounted.format("CERT"), str(tmp_path / "ca.crt"))

    me = in_cluster_or_kubeconfig().expect(
        "POST",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        subject="myself",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
    )

    user = f"system:serviceaccount:{namespace}:operator"
    assert me["status"]["userInfo"]["username"] == user


def test_a_server_that_is_not_there_is_unavailable(kubeconfig: Path, tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        server = f"https://127.0.0.1:{held.getsockname()[1]}"
        connection = Connection.from_kubeconfig(rewritten(kubeconfig, tmp_path, server=server))
        with pytest.raises(Unavailable, match="no answer from the API server"):
            KubernetesCluster(connection).get("Pod", "default", "x")


def test_a_kind_that_is_not_served_is_told_from_an_object_that_is_missing(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvquant.adapters import cluster

    moved = cluster.Resource("kvquant.dev/v9", "kvquantrollouts")
    monkeypatch.setitem(cluster.RESOURCES, "KVQuantRollout", moved)
    with pytest.raises(Refused, match="does not serve KVQuantRollout: apply the files in crds/"):
        KubernetesCluster(connection).get("KVQuantRollout", "default", "x")


def account_token(kubectl: Kubectl, namespace: str, audience: str) -> str:
    kubectl.ok("create", "serviceaccount", "router", "-n", namespace)
    return kubectl.ok(
        *("create", "token", "router", "-n", namespace, f"--audience={audience}")
    ).strip()


def test_a_token_for_our_audience_names_its_service_account(
    connection: Connection, kubectl: Kubectl, namespace: str
) -> None:
    token = account_token(kubectl, namespace, AUDIENCE)
    user = TokenReviewer(connection).review(token, AUDIENCE)
    assert user == f"system:serviceaccount:{namespace}:router"


def test_a_token_for_another_audience_is_no_good(
    connection: Connection, kubectl: Kubectl, namespace: str
) -> None:
    token = account_token(kubectl, namespace, "somebody.else")
    assert TokenReviewer(connection).review(token, AUDIENCE) is None


def test_a_forged_token_is_no_good(
    connection: Connection, kubectl: Kubectl, namespace: str
) -> None:
    header, payload, signature = account_token(kubectl, namespace, AUDIENCE).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["sub"] = "system:serviceaccount:kube-system:admin"
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    reviewer = TokenReviewer(connection)
    assert reviewer.review(f"{header}.{forged}.{signature}", AUDIENCE) is None
    assert reviewer.review("nonsense", AUDIENCE) is None


def test_an_account_without_rights_is_refused_with_the_servers_words(
    kubeconfig: Path, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    kubectl.ok("create", "serviceaccount", "nobody", "-n", namespace)
    token = kubectl.ok("create", "token", "nobody", "-n", namespace).strip()
    document = yaml.safe_load(kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    cluster = KubernetesCluster(Connection.from_kubeconfig(str(path)))
    with pytest.raises(Refused, match=r"nobody.* cannot list resource .*HTTP 403"):
        cluster.list("Pod", namespace, {})
