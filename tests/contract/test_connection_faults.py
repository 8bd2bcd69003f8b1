"""The connection against a loopback server that misbehaves as API servers do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3
import yaml

from kvquant.adapters import connection
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.adapters.tokens import TokenReviewer
from kvquant.errors import ClusterError, Conflict, Refused, Unavailable

Respond = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A loopback HTTP server whose answers a test scripts, one for each request in turn.

    Attributes:
        script: Answers to come.
        requests: Method and path of every request so far.
    """

    def __init__(self, directory: Path) -> None:
        self.script: list[Respond] = []
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.script.pop(0)(self)

            do_GET = do_PUT = do_PATCH = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Stay silent."""

        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.02,))
        self._thread.start()
        kubeconfig = {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        }
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig))
        self.connection = Connection.from_kubeconfig(str(path), timeouts=(1.0, 0.3))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def close(self) -> None:
        self.connection.close()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def says(status: int, document: Any, **headers: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def failure(status: int, message: str, **headers: str) -> Respond:
    details = {"name": "x", "kind": "configmaps"}
    return says(status, {"kind": "Status", "message": message, "details": details}, **headers)


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def stalls(handler: BaseHTTPRequestHandler) -> None:
    """Send the head of an answer and never its body, until the client gives up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.flush()
    handler.rfile.read(1)


def trickles(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte now and then, always before the client loses its patience."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


PATCH = {"data": {"a": "1"}}
TOKEN = "planted-token"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Refused),
        (401, Refused),
        (403, Refused),
        (405, Refused),
        (409, Conflict),
        (422, Refused),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
def test_each_status_becomes_the_error_that_says_what_to_do(
    server: Server, status: int, error: type[ClusterError]
) -> None:
    server.script = [failure(status, "the reason why")]
    with pytest.raises(error, match=f"ConfigMap ns/x: the reason why .HTTP {status}.") as caught:
        KubernetesCluster(server.connection).patch("ConfigMap", "ns", "x", PATCH)
    assert type(caught.value) is error
    assert len(server.requests) == 1


def test_an_answer_that_never_comes_is_unavailable(server: Server) -> None:
    server.script = [stalls]
    with pytest.raises(Unavailable, match="no answer from the API server to PATCH"):
        KubernetesCluster(server.connection).patch("ConfigMap", "ns", "x", PATCH)


def test_an_answer_that_is_no_json_is_told_as_it_came(server: Server) -> None:
    server.script = [says(502, "bad gateway")]
    with pytest.raises(Unavailable, match="bad gateway"):
        KubernetesCluster(server.connection).patch("ConfigMap", "ns", "x", PATCH)


def test_a_read_is_tried_again_on_a_connection_that_was_just_closed(server: Server) -> None:
    server.script = [hangs_up, says(200, {"kind": "ConfigMap"})]
    assert KubernetesCluster(server.connection).get("ConfigMap", "ns", "x") == {"kind": "ConfigMap"}


def test_a_write_is_never_tried_again_behind_the_callers_back(server: Server) -> None:
    server.script = [hangs_up, says(200, {})]
    with pytest.raises(Unavailable):
        KubernetesCluster(server.connection).patch("ConfigMap", "ns", "x", PATCH)
    assert len(server.requests) == 1


def test_a_busy_server_does_not_make_the_thread_sleep(server: Server) -> None:
    server.script = [failure(429, "too many requests", Retry_After="30")]
    began = time.monotonic()
    with pytest.raises(Unavailable):
        KubernetesCluster(server.connection).get("ConfigMap", "ns", "x")
    assert time.monotonic() - began < 5


def test_an_answer_without_end_is_not_read_to_its_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LARGEST_ANSWER", 10_000)
    server.script = [says(200, "x" * 10_001), says(200, {"kind": "ConfigMap"})]
    with pytest.raises(Unavailable, match="more than 10000 bytes"):
        KubernetesCluster(server.connection).get("ConfigMap", "ns", "x")
    assert KubernetesCluster(server.connection).get("ConfigMap", "ns", "x") is not None


def test_an_answer_that_trickles_ends_in_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LONGEST_ANSWER", 0.5)
    server.script = [trickles]
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"longer than 0\.5 s"):
        KubernetesCluster(server.connection).get("ConfigMap", "ns", "x")
    assert time.monotonic() - began < 3


def test_of_what_a_server_says_no_more_is_told_than_fits_an_event(server: Server) -> None:
    server.script = [says(502, "<html>" * 10_000)]
    with pytest.raises(Unavailable) as caught:
        KubernetesCluster(server.connection).get("ConfigMap", "ns", "x")
    assert len(str(caught.value)) < 2100


def test_neither_token_nor_server_side_credentials_are_told(server: Server) -> None:
    server.script = [failure(401, "Unauthorized"), hangs_up, hangs_up]
    for _ in range(2):
        with pytest.raises(ClusterError) as caught:
            KubernetesCluster(server.connection).get("ConfigMap", "ns", "x")
        chain: BaseException | None = caught.value
        while chain is not None:
            assert TOKEN not in repr(chain)
            chain = chain.__cause__


def test_a_connection_is_used_again_after_each_answer(server: Server) -> None:
    ports: set[int] = set()

    def notes(handler: BaseHTTPRequestHandler) -> None:
        ports.add(handler.client_address[1])
        says(200, {"kind": "ConfigMap"})(handler)

    server.script = [notes] * 5
    for _ in range(5):
        KubernetesCluster(server.connection).get("ConfigMap", "ns", "x")
    assert len(ports) == 1


def test_a_peer_that_vanished_is_found_out_by_the_kernel_within_25_seconds(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    connect = urllib3.util.connection.create_connection

    def noting(*arguments: Any, **options: Any) -> socket.socket:
        made.append(connect(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(urllib3.util.connection, "create_connection", noting)
    server.script = [says(200, {"kind": "ConfigMap"})]
    KubernetesCluster(server.connection).get("ConfigMap", "ns", "x")
    (used,) = made
    assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, interval, count = (
        used.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle + interval * count == 25


def test_a_long_list_is_read_page_by_page(server: Server) -> None:
    def page(names: list[str], token: str) -> Respond:
        items = [{"metadata": {"name": name}} for name in names]
        return says(200, {"metadata": {"continue": token}, "items": items})

    server.script = [page(["a", "b"], "next"), page(["c"], "")]
    found = KubernetesCluster(server.connection).list("Pod", "ns", {"app": "llama"})

    assert [obj["metadata"]["name"] for obj in found] == ["a", "b", "c"]
    queries = [parse_qs(urlsplit(line).query) for line in server.requests]
    assert [query.get("continue") for query in queries] == [None, ["next"]]
    assert all(query["labelSelector"] == ["app=llama"] for query in queries)


def test_a_token_counts_only_when_the_audience_is_confirmed(server: Server) -> None:
    status = {"authenticated": True, "user": {"username": "system:serviceaccount:a:b"}}
    reviewer = TokenReviewer(server.connection)
    server.script = [
        says(201, {"status": status}),
        says(201, {"status": {**status, "audiences": ["ours"]}}),
    ]
    assert reviewer.review("token", "ours") is None
    assert reviewer.review("token", "ours") == "system:serviceaccount:a:b"
