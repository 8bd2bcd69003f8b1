"""What Prometheus remembers: a port for range queries, and the two ways to reach one."""

from __future__ import annotations

import base64
import http.client
import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from kvquant import errors
from kvquant.cli.errors import root_cause
from kvquant.core.counters import Series
from kvquant.core.queries import Window

RANGE_PATH = "/api/v1/query_range"

LONGEST_EXCERPT = 200


class History(Protocol):
    """Time series of the past. Raises only `MetricsError`."""

    @property
    def source(self) -> str:
        """Where the series come from, for people; never with credentials."""

    def series(self, query: str, window: Window) -> list[Series]:
        """Return the series of a query on the grid of a window."""


Transport = Callable[[str, Mapping[str, str]], tuple[int, str]]
"""Sends a GET to a path with a query; returns status and body. May raise `KVQuantError`s."""


class PrometheusHistory:
    """A Prometheus, or what speaks its language, over any transport."""

    def __init__(self, source: str, transport: Transport) -> None:
        """Wrap a transport.

        Args:
            source: Where it leads, for people.
            transport: Sends the requests.
        """
        self.source = source
        self._transport = transport

    def series(self, query: str, window: Window) -> list[Series]:
        """Return the series of a query on the grid of a window.

        Raises:
            MetricsError: No answer, or none that can be read.
        """
        parameters = {
            "query": query,
            "start": f"{window.start_ms / 1000:.3f}",
            "end": f"{window.end_ms / 1000:.3f}",
            "step": f"{window.step_ms}ms",
        }
        try:
            status, text = self._transport(RANGE_PATH, parameters)
        except errors.MetricsError:
            raise
        except errors.KVQuantError as error:
            raise errors.MetricsError(f"{self.source}: {error}") from error
        if status == 403:
            raise errors.MetricsError(
                f"{self.source} is forbidden ({_said(text)}): --prometheus-service needs the right "
                "to get services/proxy in that namespace (a Role for it: docs/cli.md); "
                "--prometheus URL needs none"
            )
        if status != 200:
            excerpt = _said(text)
            raise errors.MetricsError(f"{self.source} refused a query (HTTP {status}): {excerpt}")
        try:
            document = json.loads(text)
            if document["status"] != "success" or document["data"]["resultType"] != "matrix":
                raise ValueError("no matrix")
            return [_series(entry) for entry in document["data"]["result"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise errors.MetricsError(
                f"{self.source} does not speak like Prometheus ({type(error).__name__}: {error}): "
                "look whether the address names its API"
            ) from error


def by_url(url: str, timeout: float) -> PrometheusHistory:
    """Return the history of a Prometheus that this machine reaches.

    Args:
        url: Such as `http://localhost:9090`; may hold `user:password@`.
        timeout: Longest wait in seconds for one answer.

    Raises:
        ValueError: It is no http or https URL.
    """
    parts = urllib.parse.urlsplit(url.rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no URL such as http://prometheus.monitoring:9090")
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    root = f"{parts.scheme}://{host}{parts.path}"
    headers = {"Accept": "application/json"}
    if parts.username:
        user = urllib.parse.unquote(parts.username)
        secret = urllib.parse.unquote(parts.password or "")
        token = base64.b64encode(f"{user}:{secret}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"

    def get(path: str, query: Mapping[str, str]) -> tuple[int, str]:
        address = f"{root}{path}?{urllib.parse.urlencode(query)}"
        # The scheme was checked above: no file is ever opened.
        request = urllib.request.Request(address, headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise errors.MetricsError(
                f"no answer from Prometheus at {host}: {root_cause(error)}. From outside of the "
                "cluster, --prometheus-service NAMESPACE/SERVICE:PORT goes through the API server"
            ) from error

    return PrometheusHistory(root, get)


_SERVICE = re.compile(r"^([a-z0-9-]+)/([a-z0-9-]+)(?::([a-z0-9-]+))?$")


def by_service(service: str, fetch: Transport) -> PrometheusHistory:
    """Return the history of a Prometheus that the API server reaches.

    Args:
        service: `NAMESPACE/SERVICE:PORT`, the port by number or name; default 9090.
        fetch: Sends a GET to the API server.

    Raises:
        ValueError: The text names no service.
    """
    match = _SERVICE.match(service)
    if match is None:
        raise ValueError(f"{service!r} is no service such as monitoring/prometheus:9090")
    namespace, name, port = match[1], match[2], match[3] or "9090"
    root = f"/api/v1/namespaces/{namespace}/services/{name}:{port}/proxy"

    def get(path: str, query: Mapping[str, str]) -> tuple[int, str]:
        return fetch(root + path, query)

    return PrometheusHistory(f"service {namespace}/{name}:{port}", get)


def _series(entry: Any) -> Series:
    labels = {str(key): str(value) for key, value in entry["metric"].items()}
    points = [(round(float(at) * 1000) / 1000, float(value)) for at, value in entry["values"]]
    if any(not math.isfinite(at) for at, _ in points):
        raise ValueError("an instant is no number")
    return Series(labels, points)


def _said(text: str) -> str:
    """Return what a server said in its own words, shortened."""
    try:
        document = json.loads(text)
        said = str(document.get("error") or document.get("message") or text)
    except (ValueError, AttributeError):
        said = text
    return " ".join(said.split())[:LONGEST_EXCERPT] or "no explanation"
