"""What a Prometheus that means ill, or has a password, can do to the operator."""

from __future__ import annotations

import base64
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kvquant.adapters import prometheus_http
from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.errors import MetricsError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
EMPTY = b'{"status":"success","data":{"resultType":"vector","result":[]}}'
BOMB = gzip.compress(b" " * 20_000_000)
PASSWORD = "planted/p@ssword"

Respond = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers as the test says, and keeps the Authorization headers."""

    def __init__(self) -> None:
        self.respond: Respond = plain
        self.authorizations: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.authorizations.append(self.headers["Authorization"])
                outer.respond(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.where = f"127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()


def plain(handler: BaseHTTPRequestHandler) -> None:
    send(handler, EMPTY)


def send(handler: BaseHTTPRequestHandler, body: bytes, **headers: str) -> None:
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    # Who has had enough hangs up.
    with suppress(OSError):
        handler.wfile.write(body)


def bomb(handler: BaseHTTPRequestHandler) -> None:
    send(handler, BOMB, Content_Encoding="gzip")


def trickle(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
    server.thread.join()


def ask(server: Server, credentials: str = "") -> None:
    client = PrometheusMetrics(f"http://{credentials}{server.where}", timeout=0.2)
    try:
        client.cache_configs("ns", ["pod"], NOW)
    finally:
        client.close()


def test_an_answer_that_unfolds_without_end_is_not_taken_in(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_http, "LARGEST_ANSWER", 1_000_000)
    server.respond = bomb
    with pytest.raises(MetricsError, match="more than 1000000 bytes"):
        ask(server)


def test_an_answer_that_trickles_ends_in_time(server: Server) -> None:
    server.respond = trickle
    began = time.monotonic()
    with pytest.raises(MetricsError, match=r"longer than 0\.6 s"):
        ask(server)
    assert time.monotonic() - began < 3


def test_a_compressed_answer_is_understood(server: Server) -> None:
    server.respond = lambda handler: send(handler, gzip.compress(EMPTY), Content_Encoding="gzip")
    ask(server)


def test_credentials_in_the_url_are_sent_and_told_to_nobody(server: Server) -> None:
    credentials = "user:planted%2Fp%40ssword@"
    ask(server, credentials)
    expected = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    assert server.authorizations == [f"Basic {expected}"]

    def garbage(handler: BaseHTTPRequestHandler) -> None:
        send(handler, b"<html>")

    def refused(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(401)

    def hangs_up(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    for respond in (garbage, refused, hangs_up, trickle):
        server.respond = respond
        with pytest.raises(MetricsError) as caught:
            ask(server, credentials)
        assert server.where in str(caught.value), "where it was asked is told"
        assert "planted" not in str(caught.value)
