"""Taking mirrored requests: read, answer at once, remember or forget. Nobody waits for more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from kvquant.core.shadow_settings import GENERATION_PATHS, MARK_HEADER, ShadowSettings, bucket_of
from kvquant.shadow.metrics import Metrics
from kvquant.shadow.queue import Job, WaitingJobs

logger = logging.getLogger(__name__)

BODY_WITHIN = 30.0
"""Seconds in which a body must have arrived."""
_CHUNK = 2**16


class Receiver:
    """The endpoint of mirrored requests.

    Of the headers only Content-Encoding and our own mark are looked at: neither credentials nor
    cookies are ever read.
    """

    def __init__(
        self,
        settings: ShadowSettings,
        queue: WaitingJobs,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._queue, self._metrics = settings, queue, metrics
        self._clock = clock
        self.arriving = 0  # bytes of bodies that are under way

    def server(self) -> web.Server:
        """Return what answers."""
        # What is behind an encoding is looked at with care, and not while it arrives.
        return web.Server(self._answer, access_log=None, auto_decompress=False)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            status = await self._received(request)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            self._metrics.dropped("incomplete")
            status = 408
        except Exception as error:
            logger.warning("a mirrored request could not be taken: %s", type(error).__name__)
            self._metrics.dropped("error")
            status = 500
        answer = web.Response(status=status)
        if status != 202:
            # What was sent is perhaps not read to its end.
            answer.force_close()
        return answer

    async def _received(self, request: web.BaseRequest) -> int:
        if request.method != "POST" or request.path not in GENERATION_PATHS:
            self._metrics.dropped("path")
            return 404
        if MARK_HEADER in request.headers:
            # Our own replay, sent round by somebody's mirror: it would never end.
            self._metrics.dropped("loop")
            return 202
        if (request.content_length or 0) > self._settings.max_body_bytes:
            self._metrics.dropped("size")
            return 413
        async with asyncio.timeout(BODY_WITHIN):
            size, body = await self._read(request)
        if size > self._settings.max_body_bytes:
            self._metrics.dropped("size")
            return 413
        bucket = bucket_of(size)
        self._metrics.received(bucket)
        now = self._clock()
        if body is None or not self._queue.offer(
            Job(
                path=request.path,
                body=body,
                encoding=request.headers.get("Content-Encoding", ""),
                bucket=bucket,
                arrived=now,
                deadline=now + self._settings.deadline_seconds,
                # An arm that is asked at the last moment would look as if it could not answer.
                dispatch_by=now + self._settings.deadline_seconds / 2,
            )
        ):
            self._metrics.dropped("queue")
        self._metrics.queued(len(self._queue))
        return 202

    async def _read(self, request: web.BaseRequest) -> tuple[int, bytes | None]:
        """Return the size of a body, and the body; None: there is no room for it.

        Bodies that arrive take the same room as those that wait, so that a flood of connections
        fills no more memory than a full queue.
        """
        parts: list[bytes] | None = []
        size = held = 0
        try:
            async for part in request.content.iter_chunked(_CHUNK):
                size += len(part)
                if size > self._settings.max_body_bytes:
                    return size, None
                if parts is None:
                    continue
                if not self._queue.has_room(self.arriving + len(part)):
                    parts = None
                    self.arriving -= held
                    held = 0
                    continue
                parts.append(part)
                held += len(part)
                self.arriving += len(part)
            return size, None if parts is None else b"".join(parts)
        finally:
            self.arriving -= held
