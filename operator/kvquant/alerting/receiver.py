"""The webhook receiver of Alertmanager: `POST /alerts` on a port of its own.

A notification is answered with 200 only when every rollout that it concerns has it in its status:
Alertmanager sends it again otherwise, so that no alert is lost with an operator that is killed.
Floods cost little: requests, connections, sizes and waits are bounded, and what was told before
wakes nobody.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable
from datetime import datetime

from aiohttp import web

from kvquant import telemetry
from kvquant.alerting.access import Access
from kvquant.alerting.board import AlertBoard, Receipt
from kvquant.alerting.payload import Notification, PayloadError
from kvquant.config import ConfigError

logger = logging.getLogger(__name__)

PATH = "/alerts"

LARGEST_BODY = 2**20
"""Bytes of the longest notification."""

CONNECTIONS = 128
"""Connections at a time; the oldest gives way to the next."""

AT_ONCE = 16
"""Notifications in work at a time."""

RATE, BURST = 20.0, 60.0
"""Notifications a second that are taken in the long run, and at once."""

HANDSHAKE_WITHIN = 10.0
"""Seconds in which a client must have agreed on TLS."""

BODY_WITHIN = 10.0
"""Seconds in which a body must have arrived."""

STORED_WITHIN = 5.0
"""Seconds to wait until the rollouts that are concerned have stored what was told."""

LOOK = 0.01
"""Seconds between looks whether they have."""

TOLD_EVERY = 30.0
"""Seconds between two log lines on requests that are refused."""

ROTATE = 30.0
"""Seconds between looks whether the certificate was changed."""


class AlertReceiver:
    """Listens in a thread of its own from `start` to `stop`."""

    def __init__(
        self,
        board: AlertBoard,
        access: Access,
        port: int,
        clock: Callable[[], datetime],
        host: str = "0.0.0.0",  # noqa: S104 - a pod's address is not known beforehand
    ) -> None:
        """Make a receiver that does not listen yet.

        Args:
            board: Where alerts are told.
            access: Who may tell them.
            port: Port to listen at; 0: any that is free.
            clock: Returns the present instant.
            host: Address to listen at.
        """
        self._board = board
        self._access = access
        self._host, self.port = host, port
        self._clock = clock
        self._in_work = 0
        self._allowance = _Allowance(RATE, BURST)
        self._logged_at = -TOLD_EVERY
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: The certificate cannot be used, or the port cannot be had.
        """
        context = self._access.context()
        if (unheard := self._access.problem()) is not None:
            logger.warning("Nobody can tell of alerts: %s", unheard)
        listening = threading.Event()
        problem: list[OSError] = []

        async def serve() -> None:
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            try:
                await self._serve(context, listening.set, self._end)
            except OSError as error:
                problem.append(error)
                listening.set()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(serve()), name="alert-receiver", daemon=True
        )
        self._thread.start()
        listening.wait()
        if problem:
            raise ConfigError(f"KVQUANT_ALERTS_PORT={self.port}: {problem[0]}") from problem[0]

    def stop(self) -> None:
        """Listen no more."""
        if self._loop is not None and self._end is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(STORED_WITHIN)

    async def _serve(
        self, context: ssl.SSLContext | None, listens: Callable[[], None], end: asyncio.Event
    ) -> None:
        server = web.Server(self._answer, access_log=None)

        def connect() -> asyncio.Protocol:
            open_ones = server.connections
            if len(open_ones) >= CONNECTIONS:
                open_ones[0].force_close()
            return server()

        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            connect,
            self._host,
            self.port,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_WITHIN if context is not None else None,
        )
        self.port = listener.sockets[0].getsockname()[1]
        listens()
        try:
            while not end.is_set():
                try:
                    await asyncio.wait_for(end.wait(), ROTATE)
                except TimeoutError:
                    self._renew(context)
        finally:
            listener.close()
            await server.shutdown(1.0)

    def _renew(self, context: ssl.SSLContext | None) -> None:
        if context is None:
            return
        try:
            self._access.load(context)
        except OSError as error:
            # A certificate that is just being replaced; the old one serves meanwhile.
            logger.warning("The receiver's certificate cannot be read again: %s", error)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._checked(request)
        except Exception:
            logger.exception("A notification of alerts was not understood")
            answer = _told(500, "internal error: see the operator's log")
        telemetry.ALERT_NOTIFICATIONS.labels(str(answer.status)).inc()
        if answer.status >= 400:
            # What was sent is perhaps not read to its end.
            answer.force_close()
            self._log(request, answer)
        return answer

    async def _checked(self, request: web.BaseRequest) -> web.Response:
        if request.path != PATH:
            return _told(404, f"there is only {PATH}")
        certified = bool(request.transport and request.transport.get_extra_info("peercert"))
        refusal = self._access.refusal(request.headers.get("Authorization"), certified=certified)
        if refusal is not None:
            return _told(401, refusal, {"WWW-Authenticate": "Bearer"})
        if request.method != "POST":
            return _told(405, "notifications are posted", {"Allow": "POST"})
        # With 5xx, Alertmanager tries again; with 4xx it would not.
        if self._in_work >= AT_ONCE or not self._allowance.take():
            return _told(503, "too many notifications: try again", {"Retry-After": "1"})
        self._in_work += 1
        try:
            return await self._received(request)
        finally:
            self._in_work -= 1

    async def _received(self, request: web.BaseRequest) -> web.Response:
        try:
            async with asyncio.timeout(BODY_WITHIN):
                body = await _body(request)
        except TimeoutError:
            return _told(408, f"the body has not arrived within {BODY_WITHIN:g} s")
        if body is None:
            return _told(413, f"the body has more than {LARGEST_BODY} bytes: set max_alerts")
        try:
            notification = Notification.parse(body)
        except PayloadError as error:
            return _told(400, f"no notification of version 4: {error}")
        if notification.truncated_alerts:
            logger.warning(
                "Alertmanager has left out %d alerts of a group: set max_alerts to 0",
                notification.truncated_alerts,
            )
        receipt = self._board.tell(notification.notes(self._clock()))
        if not await self._stored(receipt):
            return _told(503, "not every rollout has stored it yet: try again")
        return _told(200, f"{len(notification.alerts)} alerts, {len(receipt)} rollouts concerned")

    async def _stored(self, receipt: Receipt) -> bool:
        until = time.monotonic() + STORED_WITHIN
        while not self._board.taken(receipt):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK)
        return True

    def _log(self, request: web.BaseRequest, answer: web.Response) -> None:
        now = time.monotonic()
        if now - self._logged_at >= TOLD_EVERY:
            self._logged_at = now
            logger.warning(
                "A notification of alerts from %s was answered with %d: %s",
                request.remote,
                answer.status,
                answer.text,
            )


class _Allowance:
    """A bucket that fills at a rate, and from which each request takes one."""

    def __init__(self, rate: float, most: float) -> None:
        self._rate, self._most = rate, most
        self._left, self._at = most, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


async def _body(request: web.BaseRequest) -> bytes | None:
    """Return the body; None when it is too long."""
    if (request.content_length or 0) > LARGEST_BODY:
        return None
    parts: list[bytes] = []
    size = 0
    async for part in request.content.iter_chunked(2**16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_BODY:
            return None
    return b"".join(parts)


def _told(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=headers)
