"""What an operator answers while it waits to lead: that it is alive."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class StandBy:
    """Answers the liveness probe in kopf's place, which is started only by the leader."""

    def __init__(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("", port), _Alive)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> StandBy:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, name="standby", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and leave the port to kopf."""
        self._server.shutdown()
        self._server.server_close()


class _Alive(BaseHTTPRequestHandler):
    timeout = 5.0

    def do_GET(self) -> None:
        """Say that this process is alive."""
        body = b"standing by\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name for it
        """Say nothing of the kubelet's looks."""
