"""An API server on a bad day: a proxy that answers some requests itself, and others late.

It stands between an operator and a real API server and passes headers on, so that whoever asks is
who asks. It knows nothing of Kubernetes but which requests change something.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp
from aiohttp import web
from yarl import URL

STARTS_WITHIN = 10.0

_HOP_BY_HOP = {"connection", "host", "keep-alive", "transfer-encoding", "upgrade"}
_LARGEST_BODY = 8 * 2**20
_REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True, slots=True)
class Odds:
    """How often what goes wrong, as chances from 0 to 1 of one request.

    Attributes:
        conflict: 409, of requests that change something; nothing is changed.
        throttled: 429 with Retry-After; nothing is changed.
        broken: 500; nothing is changed.
        lost: 500, of requests that change something; the change is made all the same.
        slow: The request is passed on only after a while.
        delay: Seconds of that while, at least and at most.
    """

    conflict: float = 0.0
    throttled: float = 0.0
    broken: float = 0.0
    lost: float = 0.0
    slow: float = 0.0
    delay: tuple[float, float] = (1.0, 3.0)


CALM = Odds()
ONCE = ("lost", "409", "slow", "429", "500")
"""One of each kind."""


@dataclass(slots=True)
class FaultProxy:
    """The proxy, served from a thread with its own event loop while the `with` block runs.

    Attributes:
        upstream: URL of the API server.
        trust: How to verify it, and who to be where no token is passed on.
        host: Address at which it listens; loopback unless pods have to reach it.
        port: Port of that address.
        odds: What goes wrong from now on; a test may change it at any time.
        owed: What goes wrong with the next requests whatever the odds, in any order: chance alone
            would leave out a kind in one run of many.
        chance: Source of the chances.
        done: Number of requests by what was done to them: `passed`, `slow`, `lost`, `409`, ...
    """

    upstream: str
    trust: ssl.SSLContext
    host: str = "127.0.0.1"
    port: int = 0
    odds: Odds = CALM
    owed: list[str] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(11))
    done: Counter[str] = field(default_factory=Counter)
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None
    _thread: threading.Thread | None = None
    _listens: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        if not self._listens.wait(STARTS_WITHIN) or self._failure is not None:
            raise AssertionError(f"no proxy: {self._failure!r}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STARTS_WITHIN)

    @property
    def injected(self) -> Mapping[str, int]:
        """Number of faults by kind."""
        return {what: times for what, times in self.done.items() if what != "passed"}

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            self._listens.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connector = aiohttp.TCPConnector(ssl=self.trust, limit=0)
        # Watches go on for as long as both sides like.
        patience = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(
            connector=connector, timeout=patience, auto_decompress=False
        ) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._answer(session, request)

            app = web.Application(client_max_size=_LARGEST_BODY)
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
            await runner.setup()
            try:
                site = web.TCPSite(runner, self.host, 0)
                await site.start()
                self.port = runner.addresses[0][1]
                self._listens.set()
                await self._stop.wait()
            finally:
                await runner.cleanup()

    async def _answer(
        self, session: aiohttp.ClientSession, request: web.Request
    ) -> web.StreamResponse:
        odds, writes = self.odds, request.method in WRITES
        body = await request.read()
        owed = self._take(writes=writes)
        if owed == "slow" or self.chance.random() < odds.slow:
            self.done["slow"] += 1
            await asyncio.sleep(self.chance.uniform(*odds.delay))
        status = int(owed) if owed.isdigit() else None
        if not owed:
            status = self._status(odds, writes=writes)
        if status is not None:
            self.done[str(status)] += 1
            return _refusal(status)
        lost = owed == "lost" or (writes and self.chance.random() < odds.lost)
        self.done["lost" if lost else "passed"] += 1
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        try:
            async with session.request(
                request.method,
                URL(f"{self.upstream}{request.raw_path}", encoded=True),
                headers=headers,
                data=body or None,
                allow_redirects=False,
            ) as answer:
                if lost:
                    await answer.read()
                    return _refusal(500)
                return await _pass_on(request, answer)
        except aiohttp.ClientError as error:
            return web.json_response({"message": f"no answer: {error}"}, status=502)

    def _take(self, *, writes: bool) -> str:
        """Return what is owed to a request; empty: nothing."""
        for kind in self.owed:
            if writes or kind not in ("lost", "409"):
                self.owed.remove(kind)
                return kind
        return ""

    def _status(self, odds: Odds, *, writes: bool) -> int | None:
        """Throw the dice: the status to answer with, or None to let the API server answer."""
        thrown = self.chance.random()
        for status, chance in (
            (409, odds.conflict if writes else 0.0),
            (429, odds.throttled),
            (500, odds.broken),
        ):
            if thrown < chance:
                return status
            thrown -= chance
        return None


async def _pass_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


def _refusal(status: int) -> web.Response:
    """Return an answer as the API server gives it."""
    document = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "injected by a test",
        "reason": _REASONS[status],
        "code": status,
    }
    headers = {"Retry-After": "1"} if status == 429 else {}
    return web.json_response(document, status=status, headers=headers)
