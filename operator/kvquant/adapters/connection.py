"""One HTTP connection to a Kubernetes API server: raw JSON in, raw JSON out, errors of ours.

The official client brings what is hard (credentials, exec plugins, TLS, pooling). Its typed models
stay out of the way, because they drop fields that they do not know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from kvquant import errors
from kvquant.adapters import bounded

TIMEOUTS = (5.0, 20.0)
"""Seconds to wait for a connection, and for an answer. A thread that waits cannot be cancelled, so
both are short; the second is longer than the API server's own patience with etcd (10 s)."""

LARGEST_ANSWER = 64 * 2**20
"""Bytes of the longest answer that is read. A page of 500 pods is a tenth of it; whatever sends
more would only fill the memory."""

LONGEST_ANSWER = 60.0
"""Seconds that an answer may take as a whole, however often a byte of it comes."""

LONGEST_LINE = 8 * 2**20
"""Bytes of the longest line of a stream. An object in etcd has 1.5 MiB at most."""

CONNECTIONS = 64
"""Connections that are kept for the next request; more are made when they are needed."""

# A watch that nothing comes from looks the same as one whose server is gone. The kernel tells after
# 25 s, instead of after the two hours that are its default.
_KEEPALIVE = {"idle": 10, "interval": 5, "count": 3}

LONGEST_MESSAGE = 2000
"""Characters of what the server says that are passed on."""

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

_RETRIES = urllib3.Retry(
    # The reconciler's next pass is the real retry. This one only covers a pooled connection that
    # the server closed just as it was used, which is no fault worth telling.
    total=1,
    allowed_methods={"GET"},
    respect_retry_after_header=False,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said.

    Attributes:
        status: HTTP status.
        document: The body; empty when it was no JSON object.
        text: The body as it came.
    """

    status: int
    document: dict[str, Any]
    text: str

    @property
    def message(self) -> str:
        """Say what the server said, in its own words."""
        said = self.document.get("message") or self.text.strip() or "no explanation"
        # It ends up in statuses and Events; a proxy's page of HTML would fill them.
        return f"{str(said)[:LONGEST_MESSAGE]} (HTTP {self.status})"

    @property
    def names_an_object(self) -> bool:
        """Whether a 404 speaks of an object, rather than of a kind that is not served."""
        details = self.document.get("details")
        return isinstance(details, dict) and bool(details.get("name"))


class Stream:
    """An answer that goes on for as long as the server likes, such as a watch: documents by line.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self.status = response.status

    def lines(self) -> Iterator[bytes]:
        """Yield each line as soon as it is there.

        Raises:
            errors.Unavailable: The stream broke, fell silent, or sent a line without end.
        """
        rest = b""
        try:
            for chunk in self._response.stream(2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                if len(rest) > LONGEST_LINE:
                    raise errors.Unavailable("the API server sends a line without end")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise errors.Unavailable(f"the stream of the API server broke: {error}") from error
        if rest:
            yield rest

    def whole(self) -> Answer:
        """Read what is left as one answer, as when the status is no success."""
        return _answer(self.status, b"\n".join(self.lines()))

    def abandon(self) -> None:
        """End the stream from another thread: whoever reads it finds its end."""
        # A stream that has ended already has no socket to shut.
        with suppress(ValueError, RuntimeError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Let go of the connection, which nothing else can use any more."""
        self._response.close()


class Connection:
    """A connection that many threads may share.

    Attributes:
        namespace: Namespace that the credentials or the kubeconfig's context default to.
        fence: Called before whatever is no read; it raises what keeps it from being sent.
    """

    fence: Callable[[], None] | None = None

    def __init__(
        self,
        api_client: client.ApiClient,
        namespace: str = "default",
        timeouts: tuple[float, float] = TIMEOUTS,
    ) -> None:
        self._client = api_client
        self._timeouts = timeouts
        self.namespace = namespace

    @classmethod
    def in_cluster(cls, timeouts: tuple[float, float] = TIMEOUTS) -> Connection:
        """Connect with the service account of the pod that this process runs in.

        Args:
            timeouts: Seconds to wait for a connection and for an answer.

        Raises:
            errors.ClusterError: This is no pod, or its service account token is not mounted.
        """
        settings = _settings()
        try:
            config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=settings
            )
        except config.ConfigException as error:
            raise errors.ClusterError(
                f"no in-cluster credentials ({error}): run inside a pod whose service account "
                "token is mounted, or name a kubeconfig"
            ) from error
        return cls(_client(settings), _pod_namespace(), timeouts)

    @classmethod
    def from_kubeconfig(
        cls,
        path: str | None = None,
        context: str | None = None,
        timeouts: tuple[float, float] = TIMEOUTS,
    ) -> Connection:
        """Connect as kubectl would.

        Args:
            path: File to read. Default: $KUBECONFIG, else ~/.kube/config.
            context: Context in it. Default: its current context.
            timeouts: Seconds to wait for a connection and for an answer.

        Raises:
            errors.ClusterError: The file or the context is missing or broken.
        """
        settings = _settings()
        try:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=path,
                context=context,
                client_configuration=settings,
                persist_config=False,
            )
            contexts, active = config.list_kube_config_contexts(  # type: ignore[no-untyped-call]
                config_file=path
            )
        except config.ConfigException as error:
            where = path or "$KUBECONFIG or ~/.kube/config"
            raise errors.ClusterError(
                f"the kubeconfig {where} cannot be used ({error}): name a readable file, and a "
                "context that `kubectl config get-contexts` lists"
            ) from error
        if context is not None:
            active = next(entry for entry in contexts if entry["name"] == context)
        namespace = active["context"].get("namespace") or "default"
        return cls(_client(settings), namespace, timeouts)

    def close(self) -> None:
        """Close the pooled connections."""
        self._client.close()  # type: ignore[no-untyped-call]

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        headers: Mapping[str, str] | None = None,
        patience: float | None = None,
    ) -> Answer:
        """Send one request and return the answer, whatever its status.

        What is no read passes `fence` first, whose error is raised.

        Args:
            method: HTTP method.
            path: Path on the API server.
            query: Query parameters.
            body: Document to send.
            content_type: How the body is to be understood.
            headers: More headers, for what stands behind the API server's proxy.
            patience: Seconds to wait for the answer; None: as for every other.

        Raises:
            errors.Unavailable: No answer came in time, or none at all.
        """
        timeouts = self._timeouts if patience is None else (self._timeouts[0], patience)
        response = self._send(method, path, query, body, content_type, timeouts, headers)
        try:
            data = bounded.read(response, LARGEST_ANSWER, patience or LONGEST_ANSWER)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise errors.Unavailable(
                f"no answer from the API server to {method} {path}: {error}"
            ) from error
        return _answer(response.status, data)

    def stream(self, path: str, query: Mapping[str, str], silence: float) -> Stream:
        """Send a GET whose answer goes on.

        Args:
            path: Path on the API server.
            query: Query parameters.
            silence: Seconds without a byte after which the stream counts as broken.

        Raises:
            errors.Unavailable: No answer came in time, or none at all.
        """
        return Stream(self._send("GET", path, query, None, JSON, (self._timeouts[0], silence)))

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        timeouts: tuple[float, float],
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        if self.fence is not None and method != "GET":
            self.fence()
        url_method, url, sent, document, _ = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": JSON, "Content-Type": content_type, **(headers or {})},
            body=dict(body) if body is not None else None,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._client.call_api(
                url_method, url, sent, document, _request_timeout=timeouts
            )
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise errors.Unavailable(
                f"no answer from the API server to {method} {path}: {error}"
            ) from error
        response: urllib3.BaseHTTPResponse = answer.response
        return response

    def expect(
        self,
        method: str,
        path: str,
        *,
        subject: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
    ) -> dict[str, Any]:
        """Send one request and return the document of a successful answer.

        Args:
            method: HTTP method.
            path: Path on the API server.
            subject: What the request is about, for the error's message.
            query: Query parameters.
            body: Document to send.
            content_type: How the body is to be understood.

        Raises:
            errors.ClusterError: The answer was no success; see `raise_for`.
        """
        answer = self.request(method, path, query=query, body=body, content_type=content_type)
        raise_for(answer, subject)
        return answer.document


def in_cluster_or_kubeconfig(timeouts: tuple[float, float] = TIMEOUTS) -> Connection:
    """Connect as a pod does inside a cluster, and as kubectl does anywhere else.

    $KUBECONFIG, where it is set, wins over the pod's service account.

    Args:
        timeouts: Seconds to wait for a connection and for an answer.

    Raises:
        errors.ClusterError: There are no usable credentials.
    """
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
    if in_pod:
        return Connection.in_cluster(timeouts)
    return Connection.from_kubeconfig(timeouts=timeouts)


def raise_for(answer: Answer, subject: str) -> None:
    """Raise our error for an answer that is no success.

    Raises:
        errors.Conflict: 409.
        errors.Unavailable: 408, 429 or 5xx.
        errors.Refused: Any other status that is no success.
    """
    status = answer.status
    if 200 <= status < 300:
        return
    text = f"{subject}: {answer.message}"
    if status == 409:
        raise errors.Conflict(text)
    if status in (408, 429) or status >= 500:
        raise errors.Unavailable(text)
    raise errors.Refused(text)


def _answer(status: int, data: bytes) -> Answer:
    text = data.decode("utf-8", errors="replace")
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        document = None
    return Answer(status, document if isinstance(document, dict) else {}, text)


def _settings() -> client.Configuration:
    settings = client.Configuration()
    settings.retries = _RETRIES
    settings.connection_pool_maxsize = CONNECTIONS
    settings.socket_options = tcp_keepalive_socket_options(**_KEEPALIVE)
    return settings


def _client(settings: client.Configuration) -> client.ApiClient:
    api_client = client.ApiClient(settings)
    api_client.user_agent = "kvquant"
    return api_client


def _pod_namespace() -> str:
    path = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip() or "default"
    except OSError:
        return "default"
