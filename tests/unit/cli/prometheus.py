"""Servers that stand where a Prometheus is expected: they speak HTTP and say what they are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kvquant.core.queries import Window
from tests.unit.cli.story import StoryHistory

Answer = Callable[[str, Mapping[str, str]], tuple[int, str]]
"""What is said to a GET of a path with a query."""


def matrix(result: list[Any]) -> str:
    data = {"resultType": "matrix", "result": result}
    return json.dumps({"status": "success", "data": data})


def telling(story: StoryHistory, change: Callable[[str], str] = str) -> Answer:
    """Answer range queries as a Prometheus would that kept the story's counters.

    Args:
        story: What it has scraped.
        change: Spoils a value on its way out.
    """

    def answer(_: str, query: Mapping[str, str]) -> tuple[int, str]:
        window = Window(
            round(float(query["start"]) * 1000),
            round(float(query["end"]) * 1000),
            int(query["step"].removesuffix("ms")),
        )
        found = [
            {
                "metric": dict(one.labels),
                "values": [[at, change(str(value))] for at, value in one.points],
            }
            for one in story.series(query["query"], window)
        ]
        return 200, matrix(found)

    return answer


@contextmanager
def serve(answer: Answer, asked: list[tuple[str, dict[str, str]]] | None = None) -> Iterator[str]:
    """Serve these answers on loopback; yields the URL.

    Args:
        answer: What to say.
        asked: Takes the path and headers of each request.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if asked is not None:
                asked.append((parts.path, dict(self.headers)))
            status, text = answer(parts.path, dict(parse_qsl(parts.query)))
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
