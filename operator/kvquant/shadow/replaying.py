"""Asking a pod: one request, one answer or none, within a deadline."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from kvquant.core.shadow_settings import MARK_HEADER
from kvquant.shadow import throttle
from kvquant.shadow.pods import Choice
from kvquant.shadow.throttle import Load

CONNECT_WITHIN = 5.0
LONGEST_ANSWER = 64 * 2**20
"""Bytes of an answer that are read; a long prompt's log-probabilities are the longest ones."""

TIMEOUT, RESET, TOO_LONG, NO_POD = "timeout", "reset", "tooLong", "noPod"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of asking a pod.

    Attributes:
        status: HTTP status; 0: none arrived.
        document: The JSON of an answer with status 200.
        failure: Why there is no document, in a word; empty: there is one.
        seconds: How long it took.
        pod: Whom was asked.
    """

    status: int
    document: Any = None
    failure: str = ""
    seconds: float = 0.0
    pod: str = ""

    @property
    def refused(self) -> bool:
        """Whether the engine found fault with the request itself."""
        return 400 <= self.status < 500 and self.status not in (408, 429)


def client() -> aiohttp.ClientSession:
    """Return a client for the arms' pods.

    Each request has a connection of its own: an engine that closes an idle one in the moment when
    it is used again would look like a failed answer. Nothing is kept of what engines send along.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": "kvquant-shadow"},
    )


class Replayer:
    """Sends requests to the pods of an arm."""

    def __init__(
        self, client: aiohttp.ClientSession, clock: Callable[[], float], engine_key: str = ""
    ) -> None:
        """Make one.

        Args:
            client: What `client` returns.
            clock: Returns the present time in seconds.
            engine_key: API key of the engines; empty: they ask for none.
        """
        self._client, self._clock = client, clock
        self._headers = {MARK_HEADER: "1", "Content-Type": "application/json"}
        if engine_key:
            self._headers["Authorization"] = f"Bearer {engine_key}"

    async def ask(
        self,
        pods: Choice,
        path: str,
        body: Mapping[str, Any] | bytes,
        deadline: float,
        avoid: str = "",
        pod: str = "",
    ) -> Reply:
        """Ask a pod of an arm, and say what came of it; never raises for what an engine does.

        A pod to which no connection can be made has seen nothing of the request: another one is
        asked in its stead, once.

        Args:
            pods: The arm.
            path: The endpoint.
            body: The request.
            deadline: When to stop waiting, on the clock.
            avoid: A pod that should not be asked if there is another.
            pod: The pod to ask; empty: the one whose turn it is.
        """
        began = self._clock()
        first = pod or pods.pick({avoid})
        if first is None:
            return Reply(0, failure=NO_POD)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        target = first
        try:
            async with asyncio.timeout(max(0.0, deadline - began)):
                try:
                    reply = await self.post(target, path, data)
                except aiohttp.ClientConnectorError:
                    other = pods.pick({first})
                    if other is None or other == first:
                        raise
                    target = other
                    reply = await self.post(target, path, data)
        except TimeoutError:
            reply = Reply(0, failure=TIMEOUT)
        except (OSError, aiohttp.ClientError):
            # Its text may quote what was sent or answered: only the kind is told.
            reply = Reply(0, failure=RESET)
        return Reply(reply.status, reply.document, reply.failure, self._clock() - began, target)

    async def get(self, pod: str, path: str) -> Reply:
        """Read something from a pod.

        Raises:
            OSError: No connection, or it broke; so does `aiohttp.ClientError`.
        """
        async with self._client.get(
            f"{pod}{path}", headers=self._headers, allow_redirects=False
        ) as answer:
            return await _reply(answer)

    async def load(self, pod: str) -> Load | None:
        """Return how busy a pod is; None: it does not tell."""
        return await throttle.scrape(self._client, pod)

    async def post(self, pod: str, path: str, data: bytes) -> Reply:
        """Send a request to a pod.

        Raises:
            OSError: No connection, or it broke; so does `aiohttp.ClientError`.
        """
        async with self._client.post(
            f"{pod}{path}",
            # A stream, so that a body of many MiB goes out in pieces and the loop stays free.
            data=io.BytesIO(data),
            headers=self._headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN),
        ) as answer:
            return await _reply(answer)


async def _reply(answer: aiohttp.ClientResponse) -> Reply:
    if answer.status != 200:
        return failed(answer.status)
    parts, size = [], 0
    async for part in answer.content.iter_chunked(2**18):
        size += len(part)
        if size > LONGEST_ANSWER:
            return Reply(answer.status, failure=TOO_LONG)
        parts.append(part)
    return read(b"".join(parts))


def failed(status: int) -> Reply:
    """Return what came of asking when the engine answered with an error."""
    return Reply(status, failure=f"http{status // 100}xx")


def read(data: bytes | str) -> Reply:
    """Return what came of asking when the engine answered with status 200."""
    try:
        return Reply(200, json.loads(data))
    except (ValueError, RecursionError):
        return Reply(200, failure="notJson")
