"""The HTTP server: vLLM's endpoints over the simulated engine."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from . import ENGINE_VERSION, errors, memory, protocol, scoring
from .blocks import BlockPool
from .dialects import MESSAGES, RESPONSES, Dialect
from .driver import WAKE_SECONDS, Driver, EngineDeadError, Ticket
from .engine import Engine
from .errors import ApiError
from .exposition import Exposition, HttpStats
from .protocol import StreamWriter
from .quality import SATURATED_USAGE, Moment
from .request import Call, read
from .scheduler import Scheduler
from .settings import Settings
from .stats import Stats

LOG = logging.getLogger("vllm")
DEATH_SECONDS = 0.3
"""From the engine core's death to the end of the process, as measured on real vLLM."""
_MAX_BODY = 64 << 20
_REPORT_SECONDS = 10.0
_UNCOUNTED = frozenset({"/metrics", "/health", "/ping", "/version", "/load"})
_GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
_COUNTED = frozenset({*_GENERATING, "/v1/models"})


class Server:
    """One engine and its endpoints. Make it inside a running loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stopped = asyncio.Event()
        self._random = random.Random(settings.seed)
        scheduler = Scheduler(BlockPool(settings.blocks, settings.block_size), settings.limits)
        self._stats = Stats(
            settings.max_model_len,
            settings.time_scale,
            prefix_caching=settings.options.enable_prefix_caching,
        )
        coalesce = WAKE_SECONDS * settings.time_scale
        self._engine = Engine(scheduler, settings.cost, coalesce)
        self._driver = Driver(
            self._engine, self._stats, settings.faults, settings.time_scale, self._on_death
        )
        self._http = HttpStats()
        self._registry = CollectorRegistry()
        self._registry.register(Exposition(settings, scheduler, self._stats, self._http))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._tasks: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """Return the application with every endpoint."""
        application = web.Application(client_max_size=_MAX_BODY, middlewares=[self._middleware])
        application.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/responses", self._responses),
                web.post("/v1/messages", self._messages),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.post("/ping", self._health),
                web.get("/load", self._load),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
            ]
        )
        return application

    def runner(self) -> web.AppRunner:
        """Return what serves the application.

        A client that leaves has to cancel its handler, so that its request is aborted.
        """
        return web.AppRunner(
            self.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )

    async def drained(self) -> None:
        """Wait until no request is in flight."""
        await self._driver.idle.wait()

    def start_reports(self) -> None:
        """Log throughput every ten seconds, as vLLM does."""
        self._spawn(self._report())

    async def close(self) -> None:
        """Stop what runs in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @web.middleware
    async def _middleware(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        began = time.monotonic()
        try:
            self._authorize(request)
            response = await handler(request)
        except ApiError as error:
            response = web.json_response(error.body(), status=error.status)
        except web.HTTPException as error:
            wrong = ApiError(error.status, error.reason, error.text or error.reason)
            response = web.json_response(wrong.body(), status=error.status)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        if request.path not in _UNCOUNTED:
            self._http.record(
                request.path if request.path in _COUNTED else "none",
                request.method,
                response.status,
                time.monotonic() - began,
                response.content_length or 0,
                request.content_length or 0,
            )
        return response

    def _authorize(self, request: web.Request) -> None:
        keys = self.settings.options.api_key
        if not keys or not request.path.startswith("/v1"):
            return
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in keys:
            raise ApiError(401, "Unauthorized", "Unauthorized")

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True, dialect=RESPONSES)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True, dialect=MESSAGES)

    async def _generate(
        self, request: web.Request, *, chat: bool, dialect: Dialect | None = None
    ) -> web.StreamResponse:
        try:
            body = await request.json()
        except (ValueError, LookupError, RecursionError) as error:
            message = f"the body is not JSON: {error}"
            raise ApiError(400, "BadRequestError", message) from None
        asked = dialect.to_chat(body) if dialect else body
        call = read(asked, self.settings, self.moment(), chat=chat)
        if self._random.random() < self.settings.faults.error_rate:
            raise ApiError(500, "InternalServerError", "injected by KVSIM_FAULTS error_rate")
        try:
            ticket = self._driver.submit(call.sequence, every_token=call.stream)
        except EngineDeadError:
            raise errors.dead() from None
        except ValueError as error:
            raise ApiError(400, "BadRequestError", str(error), "prompt") from None
        self._maybe_blow_up()
        try:
            if call.stream:
                return await self._stream(request, call, ticket)
            return await self._unary(call, ticket, dialect)
        finally:
            # Reached too when the client left: its blocks are free at once.
            self._driver.abort(ticket)

    async def _unary(
        self, call: Call, ticket: Ticket, dialect: Dialect | None
    ) -> web.StreamResponse:
        try:
            await ticket.take()
        except EngineDeadError:
            raise errors.dead() from None
        if dialect:
            return web.json_response(dialect.told(call))
        told = None
        if call.prompt_logprobs is not None:
            quality, seeds = self.settings.quality, (call.dtype_seed, call.batch_seed)
            told = await scoring.score(call.prompt_ids, quality, *seeds, call.prompt_logprobs)
        text = protocol.whole(call, self.settings.fingerprint, told)
        return web.json_response(text=text)

    def moment(self) -> Moment:
        """Return what an answer given now depends on besides the request."""
        full = self._engine.scheduler.pool.usage > SATURATED_USAGE
        return Moment(self.settings.place, self._driver.accepted, full or self._engine.backlog)

    async def _stream(self, request: web.Request, call: Call, ticket: Ticket) -> web.StreamResponse:
        writer = StreamWriter(call, self.settings.fingerprint)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
            }
        )
        try:
            await response.prepare(request)
            finished = False
            while not finished:
                try:
                    tokens, finished = await ticket.take()
                except EngineDeadError:
                    await response.write(writer.broken(errors.dead()).encode())
                    return response
                event = writer.tokens(tokens, finished=finished)
                await response.write((event + writer.end() if finished else event).encode())
        except ConnectionResetError:
            LOG.debug("client of %s left", call.request_id)
        return response

    async def _models(self, _request: web.Request) -> web.Response:
        created = int(time.time())
        models = [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "vllm",
                "root": self.settings.options.model,
                "parent": None,
                "max_model_len": self.settings.max_model_len,
            }
            for name in self.settings.models
        ]
        return web.json_response({"object": "list", "data": models})

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self._driver.cause_of_death else 200)

    async def _load(self, _request: web.Request) -> web.Response:
        return web.json_response({"server_load": self._driver.in_flight})

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": ENGINE_VERSION})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    def _maybe_blow_up(self) -> None:
        wanted = self.settings.faults.oom_after
        if wanted is None or self._driver.accepted != max(1, wanted):
            return
        try:
            limit = memory.limit_bytes(self.settings.oom_bytes)
        except memory.NoLimitError:
            LOG.exception("the fault was not injected")
            return
        LOG.warning("taking memory up to %d bytes because of KVSIM_FAULTS oom_after", limit)
        self._spawn(memory.blow_up(limit))

    def _on_death(self, cause: str) -> None:
        LOG.error("%s", cause)
        LOG.error("AsyncLLM output_handler failed: EngineDeadError")
        asyncio.get_running_loop().call_later(DEATH_SECONDS, self.stopped.set)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _report(self) -> None:
        scheduler = self._engine.scheduler
        prompts = answers = 0
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            new_prompts = self._stats.prompt_tokens - prompts
            new_answers = self._stats.generation_tokens - answers
            prompts, answers = self._stats.prompt_tokens, self._stats.generation_tokens
            if not (new_prompts or new_answers or scheduler.busy):
                continue
            LOG.info(
                "Engine 000: Avg prompt throughput: %.1f tokens/s, Avg generation throughput: "
                "%.1f tokens/s, Running: %d reqs, Waiting: %d reqs, Preemptions: %d, "
                "GPU KV cache usage: %.1f%%",
                new_prompts / _REPORT_SECONDS,
                new_answers / _REPORT_SECONDS,
                len(scheduler.running),
                len(scheduler.waiting),
                self._stats.preemptions,
                100 * scheduler.pool.usage,
            )
