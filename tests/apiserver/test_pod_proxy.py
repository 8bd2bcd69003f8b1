"""Pods behind a real API server's proxy, as `kubectl kvquant eval NAME` asks them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvquant.adapters.connection import Connection
from kvquant.cli.evaluation.reaching import ProxiedReplayer
from kvquant.cli.session import Access, connect
from kvquant.evaluation.arms import ArmError
from kvquant.shadow.throttle import Load
from tests.apiserver.conftest import Kubectl

pytestmark = pytest.mark.apiserver

LONG = 4 * 2**20
"""Bytes of a body that is longer than any object an API server takes."""


def own_address() -> str:
    """This machine's address: an API server does not proxy to loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: this only asks which way packets would go.
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
    return address


class Engine(ThreadingHTTPServer):
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        super().__init__((own_address(), 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = "vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_waiting 2\n"
        self._answer(200, text.encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, Engine)
        self.server.seen.append({"path": self.path, "body": body, "headers": dict(self.headers)})
        if self.path.endswith("/v1/messages"):
            self._answer(500, b'{"error": {"message": "broken"}}')
        else:
            self._answer(200, json.dumps({"length": len(body["prompt"])}).encode())

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the server's name
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        yield engine
        engine.shutdown()


@pytest.fixture
def root(kubectl: Kubectl, connection: Connection, namespace: str, engine: Engine) -> str:
    """The proxy of a pod that no scheduler takes, whose address is the engine's."""
    kubectl("create", "serviceaccount", "default", "-n", namespace)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "engine", "namespace": namespace},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{"name": "engine", "image": "example.invalid/engine:1"}],
        },
    }
    path = f"/api/v1/namespaces/{namespace}/pods"
    connection.expect("POST", path, subject="the pod", body=pod)
    address = own_address()
    connection.expect(
        "PATCH",
        f"{path}/engine/status",
        subject="the pod's status",
        body={"status": {"podIP": address, "podIPs": [{"ip": address}]}},
        content_type="application/merge-patch+json",
    )
    return f"{path}/engine:{engine.server_address[1]}/proxy"


def replayer(kubeconfig: Path) -> ProxiedReplayer:
    return ProxiedReplayer(connect(Access(str(kubeconfig))).proxied, 30.0)


async def test_requests_of_any_length_reach_the_pod_with_our_mark(
    kubeconfig: Path, root: str, engine: Engine
) -> None:
    asking = replayer(kubeconfig)
    for length in (1, LONG):
        body = json.dumps({"prompt": "x" * length}).encode()
        reply = await asking.post(root, "/v1/completions", body)
        assert (reply.status, reply.document, reply.failure) == (200, {"length": length}, "")
    assert engine.seen[0]["path"] == "/v1/completions"
    headers = {name.lower(): value for name, value in engine.seen[0]["headers"].items()}
    assert headers["x-kvquant-shadow"] == "1"
    assert "authorization" not in headers
    assert await asking.load(root) == Load(0.5, 2.0)


async def test_an_error_of_the_engine_is_one_and_a_pod_that_is_away_is_a_broken_connection(
    kubeconfig: Path, root: str, engine: Engine
) -> None:
    asking = replayer(kubeconfig)
    reply = await asking.post(root, "/v1/messages", b"{}")
    assert (reply.status, reply.failure) == (500, "http5xx")
    with pytest.raises(ConnectionError, match="not found"):
        await asking.post(root.replace("/engine:", "/other:"), "/v1/completions", b"{}")
    closed = root.replace(f":{engine.server_address[1]}/", ":1/")
    with pytest.raises(ConnectionError, match="refused"):
        await asking.post(closed, "/v1/completions", b"{}")
    assert await asking.load(closed) is None


def kubeconfig_of(
    kubeconfig: Path, kubectl: Kubectl, namespace: str, role: str, folder: Path
) -> Path:
    """A kubeconfig of somebody with this role."""
    kubectl.ok("create", "serviceaccount", "somebody", "-n", namespace)
    who = f"--serviceaccount={namespace}:somebody"
    kubectl.ok("create", "rolebinding", "somebody", f"--clusterrole={role}", who, "-n", namespace)
    token = kubectl.ok("create", "token", "somebody", "-n", namespace).strip()
    document = yaml.safe_load(kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


# What the roles `view` and `edit` are made of: nothing adds it to them where no controllers run.
@pytest.mark.parametrize(
    ("role", "may"), [("system:aggregate-to-view", False), ("system:aggregate-to-edit", True)]
)
async def test_it_takes_the_role_that_the_documentation_names(
    kubeconfig: Path,
    kubectl: Kubectl,
    namespace: str,
    root: str,
    tmp_path: Path,
    role: str,
    may: bool,
) -> None:
    asking = replayer(kubeconfig_of(kubeconfig, kubectl, namespace, role, tmp_path))
    if may:
        reply = await asking.post(root, "/v1/completions", b'{"prompt": "x"}')
        assert reply.document == {"length": 1}
        return
    with pytest.raises(ArmError, match="Ask for the right to get and create pods/proxy"):
        await asking.post(root, "/v1/completions", b"{}")
