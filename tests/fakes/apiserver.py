"""`FakeCluster` behind HTTP, with lists and watches that go wrong on demand.

The real API server is used wherever it can be made to show a fault; this one is for what it cannot
be made to do, such as forgetting a version at a given moment or falling silent.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from kvquant.adapters.cluster import RESOURCES
from kvquant.adapters.connection import APPLY_PATCH, Connection
from kvquant.errors import ClusterError, Conflict, Refused
from kvquant.ports import Object
from tests.fakes.cluster import FakeCluster, Key

KIND_OF = {resource.plural: kind for kind, resource in RESOURCES.items()}


class RememberingCluster(FakeCluster):
    """Keeps every state of every object, as the API server does for watches."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[int, str, Object]] = []
        self.version = 0

    def _versioned(self, obj: Object) -> Object:
        new = "resourceVersion" not in obj["metadata"]
        obj = super()._versioned(obj)
        self.version = int(obj["metadata"]["resourceVersion"])
        self.history.append((self.version, "ADDED" if new else "MODIFIED", obj))
        return obj

    def _remove(self, key: Key) -> None:
        obj = self._objects.get(key)
        super()._remove(key)
        if obj is not None:
            self.version = next(self._versions)
            metadata = {**obj["metadata"], "resourceVersion": str(self.version)}
            self.history.append((self.version, "DELETED", {**obj, "metadata": metadata}))


class LoopbackApi:
    """The server.

    Attributes:
        cluster: Its objects; a test changes them as others would.
        requests: Method and path of every request but watches.
        watches: Versions from which watches were asked for, in their order.
        list_delay: Seconds that a list takes.
        refuse_watches: Status of the answer to a watch; None lets it through.
        muted: Watches bring nothing, bookmarks neither.
        forgets_before: Watches from older versions are told, by an event, that they are gone.
        say: Lines that each watch is sent first, and only once.
    """

    def __init__(self, directory: Path) -> None:
        self.cluster = RememberingCluster()
        self.requests: list[str] = []
        self.watches: list[str] = []
        self.list_delay = 0.0
        self.refuse_watches: int | None = None
        self.muted = False
        self.forgets_before = 0
        self.say: list[bytes] = []
        self.ends_at_once = False
        self._round = 0
        self._closing = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                outer._answer(self)

            do_GET = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Stay silent."""

        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.02,))
        self._thread.start()
        server = f"http://127.0.0.1:{self._httpd.server_address[1]}"
        kubeconfig = {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        }
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig))
        self.connection = Connection.from_kubeconfig(str(path), timeouts=(1.0, 2.0))

    def end_watches(self) -> None:
        """Close every watch that is open."""
        self._round += 1

    @contextmanager
    def asked(self) -> Iterator[list[str]]:
        """Collect the requests, but watches, that come inside the block."""
        before = len(self.requests)
        found: list[str] = []
        yield found
        found += self.requests[before:]

    def close(self) -> None:
        self._closing = True
        self.connection.close()
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = dict(parse_qsl(url.query))
        parts = url.path.split("/namespaces/")[1].split("/")
        namespace, kind, name = parts[0], KIND_OF[parts[1]], "/".join(parts[2:3])
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else {}
        if query.get("watch"):
            self.watches.append(query["resourceVersion"])
            self._watch(handler, kind, namespace, int(query["resourceVersion"]))
            return
        self.requests.append(f"{handler.command} {url.path}")
        try:
            status, document = self._do(handler, kind, namespace, name, body, query)
        except ClusterError as error:
            status = {Conflict: 409, Refused: 422}.get(type(error), 503)
            document = {"message": str(error), "details": {"name": name}}
        _send(handler, status, document)

    def _do(
        self,
        handler: BaseHTTPRequestHandler,
        kind: str,
        namespace: str,
        name: str,
        body: Object,
        query: Mapping[str, str],
    ) -> tuple[int, Object]:
        verb = handler.command
        if verb == "PUT":
            return 200, self.cluster.replace_status(body)
        if verb == "PATCH" and handler.headers["Content-Type"] == APPLY_PATCH:
            return 200, self.cluster.apply(body)
        if verb == "PATCH":
            return 200, self.cluster.patch(kind, namespace, name, body)
        if verb == "DELETE":
            self.cluster.delete(kind, namespace, name)
            return 200, {}
        if name:
            found = self.cluster.get(kind, namespace, name)
            gone = {"message": "not found", "details": {"name": name}}
            return (404, gone) if found is None else (200, found)
        labels = dict(p.split("=") for p in query.get("labelSelector", "").split(",") if p)
        items = self.cluster.list(kind, namespace, labels)
        metadata = {"resourceVersion": str(self.cluster.version)}
        time.sleep(self.list_delay)
        return 200, {"metadata": metadata, "items": items}

    def _watch(
        self, handler: BaseHTTPRequestHandler, kind: str, namespace: str, version: int
    ) -> None:
        if self.refuse_watches is not None:
            _send(handler, self.refuse_watches, {"message": "no watch for you"})
            return
        # Before the first byte: who has read it may end this watch at once.
        mine, forgotten = self._round, version < self.forgets_before
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()
        try:
            while self.say:
                _chunk(handler, self.say.pop(0))
            if forgotten:
                gone = {"code": 410, "message": "too old"}
                _chunk(handler, _event("ERROR", gone))
            while not (self._closing or forgotten or self.ends_at_once or self._round != mine):
                for at, type_, obj in self.cluster.history[:]:
                    ours = obj["kind"] == kind and obj["metadata"]["namespace"] == namespace
                    if at > version and not self.muted:
                        version = at
                        if ours:
                            _chunk(handler, _event(type_, obj))
                time.sleep(0.002)
            _chunk(handler, b"")
        except OSError:
            handler.close_connection = True


def _event(type_: str, obj: Object) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


def _chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    handler.wfile.flush()


def _send(handler: BaseHTTPRequestHandler, status: int, document: Object) -> None:
    body = json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
