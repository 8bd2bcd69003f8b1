"""HTTP to Prometheus: bounded, with few and short retries, and with a Secret's credentials."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from kvquant.adapters import bounded
from kvquant.adapters.prometheus_secret import Credentials, MountedSecret

LARGEST_ANSWER = 64 * 2**20
"""Bytes of the longest answer that is read, decompressed: the buckets of some ten thousand pods."""

CONNECTIONS = 32
"""Most connections that are kept; rollouts ask from threads of their own."""

# One more try is for a connection that broke or a proxy that reloads. A slow answer is not asked
# for again, because the next look at the evidence does that anyway. A server that says when to
# come back is not obeyed: it would decide how long a rollback takes. Queries change nothing, so
# that a POST may be sent again, too.
_RETRY = Retry(
    total=1,
    read=False,
    allowed_methods=None,
    status_forcelist=(502, 503, 504),
    backoff_factor=0.2,
    raise_on_status=False,
    respect_retry_after_header=False,
)


class PartialAnswerError(Exception):
    """The answer has warnings, as when a store behind a federating query layer was missing."""


class AccessRefusedError(Exception):
    """The server wants other credentials.

    Attributes:
        status: 401, or 403.
        files: Names of the Secret's files whose contents were sent.
    """

    def __init__(self, status: int, files: tuple[str, ...]) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.files = files


class RedirectedError(Exception):
    """The server sends us elsewhere, as to a page where people log in. Nothing is sent there."""


def session(url: str) -> tuple[requests.Session, str]:
    """Return a session for an address, and the address without credentials.

    A user and a password in the address are sent, and told to nobody.
    """
    made = requests.Session()
    bare, credentials = _without_credentials(url.rstrip("/"))
    if credentials is not None:
        made.auth = credentials
    made.hooks["response"].append(_refuse)
    return made, bare


class BoundedAdapter(HTTPAdapter):
    """Reads answers whole, but not more of them than can be borne."""

    def __init__(self, timeout: float, secret: MountedSecret) -> None:
        """Make an adapter whose answers may take three times the time-out as a whole."""
        super().__init__(pool_maxsize=CONNECTIONS, max_retries=_RETRY)
        self._within = 3 * timeout
        self._secret = secret

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Send a request with the credentials of this moment.

        Raises:
            MetricsError: The Secret's files cannot be used.
            AccessRefusedError: The server wants other ones.
            requests.RequestException: There was no answer, or one without bounds.
        """
        credentials = self._secret.credentials()
        prepared = _prepared(request, credentials)
        response = super().send(prepared, *args, **_trusting(kwargs, credentials))
        try:
            body = bounded.read(response.raw, LARGEST_ANSWER, self._within)
        except bounded.UnboundedAnswerError as error:
            raise requests.exceptions.ContentDecodingError(str(error)) from error
        except urllib3.exceptions.ReadTimeoutError as error:
            raise requests.ReadTimeout(str(error)) from error
        except urllib3.exceptions.HTTPError as error:
            raise requests.ConnectionError(error) from error
        if response.status_code in (401, 403):
            raise AccessRefusedError(response.status_code, credentials.files)
        response._content = body
        response._content_consumed = True
        return response


def _prepared(
    request: requests.PreparedRequest, credentials: Credentials
) -> requests.PreparedRequest:
    """Return the request as it goes out; the one that the session keeps bears no credentials."""
    out = request.copy()
    parts = urlsplit(str(out.url))
    if out.method == "POST" and parts.query and not out.body:
        # The client leaves what it asks in the address, which may only be so long.
        out.url = urlunsplit(parts._replace(query=""))
        out.body = parts.query.encode()
        out.headers["Content-Type"] = "application/x-www-form-urlencoded"
        out.headers["Content-Length"] = str(len(out.body))
    out.headers.update(credentials.headers)
    return out


def _trusting(kwargs: dict[str, Any], credentials: Credentials) -> dict[str, Any]:
    if credentials.authority is not None:
        kwargs["verify"] = credentials.authority
    if credentials.client is not None:
        kwargs["cert"] = credentials.client
    return kwargs


def _without_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, (unquote(parts.username), unquote(parts.password or ""))


def _refuse(response: requests.Response, *_: Any, **__: Any) -> None:
    """Refuse what cannot be relied on. The client would drop warnings; a hook sees them."""
    if response.is_redirect:
        raise RedirectedError(urlsplit(response.headers["location"]).netloc or "another path")
    if not response.ok or b'"warnings"' not in response.content:
        return
    try:
        body = response.json()
    except ValueError:
        return
    warnings = body.get("warnings") if isinstance(body, dict) else None
    if warnings:
        raise PartialAnswerError("; ".join(str(warning) for warning in warnings)[:300])
