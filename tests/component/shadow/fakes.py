"""Engines that do as they are told, and the service between them, in the test's own loop."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from kvquant.core.shadow_settings import ArmSettings, ShadowSettings
from kvquant.shadow.pii import Sanitizer
from kvquant.shadow.ports import Log
from kvquant.shadow.service import Service

Answering = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]


def completion(text: str, **more: Any) -> dict[str, Any]:
    """A completion as vLLM answers it."""
    choice = {"index": 0, "text": text, "finish_reason": "stop", **more}
    return {
        "object": "text_completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        "system_fingerprint": "kvq-test",
    }


@dataclass
class Engine:
    """A pod: it answers every prompt with one text, or does what is put in its place."""

    text: str = "The sky is blue."
    kv_usage: float = 0.1
    waiting: float = 0
    finished: float = 0
    in_work: float = 0
    port: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    instead: Answering | None = None
    metrics_status: int = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a generation request."""
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        if self.instead is not None:
            return await self.instead(body)
        return web.json_response(completion(self.text))

    async def models(self, _request: web.Request) -> web.Response:
        """Tell the model, as vLLM does."""
        return web.json_response({"data": [{"id": "m", "max_model_len": 4096}]})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Tell the load, as vLLM does."""
        finished = self.finished + len(self.asked)
        text = (
            f'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {self.kv_usage}\n'
            f'vllm:num_requests_running{{engine="0",model_name="m"}} {self.in_work}\n'
            f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {self.waiting}\n'
            f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {finished}\n'
        )
        return web.Response(text=text, status=self.metrics_status)


@dataclass
class Scoring(Engine):
    """A pod that tells ids and likelihoods, and may break off when it is asked for the latter."""

    nats: float = 1.0
    breaks_off: bool = False
    scored: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "prompt_logprobs" not in body:
            self.asked.append(body)
            ids = {"prompt_token_ids": [1, 2], "token_ids": [3, 4]}
            return web.json_response(completion(self.text, **ids))
        self.scored.append(body)
        if self.breaks_off:
            assert request.transport is not None
            request.transport.abort()
        told = [None, *({str(token): {"logprob": -self.nats}} for token in body["prompt"][1:])]
        return web.json_response(completion("", prompt_logprobs=told))


@asynccontextmanager
async def listening(engine: Engine, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[None]:
    """Let an engine listen."""
    application = web.Application(client_max_size=2**28)
    application.add_routes(
        [
            web.get("/metrics", engine.metrics),
            web.get("/v1/models", engine.models),
            web.post("/{rest:.*}", engine.answer),
        ]
    )
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        engine.port = runner.addresses[0][1]
        yield
    finally:
        await runner.cleanup()


async def status(code: int, text: str = "sorry") -> web.StreamResponse:
    """An error of an engine."""
    return web.json_response({"error": {"message": text}}, status=code)


async def hang(_body: dict[str, Any]) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


class KeptLog:
    """A log in memory, with or without room."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.has_room = True
        self.events: list[str] = []

    async def start(self) -> None:
        self.events.append("start")

    async def write(self, record: Mapping[str, object]) -> bool:
        if self.has_room:
            # What cannot be written as JSON must fail here as it would there.
            self.records.append(json.loads(json.dumps(record)))
        return self.has_room

    async def close(self) -> None:
        self.events.append("close")


@dataclass
class Running:
    """A service that listens, its arms, and a client that mirrors to it."""

    service: Service
    baseline: Engine
    canary: Engine
    log: KeptLog
    client: aiohttp.ClientSession

    async def mirror(
        self, body: object, path: str = "/v1/completions", headers: Mapping[str, str] = {}
    ) -> int:
        """Send a copy, as a router does; returns the status."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.service.port}{path}"
        async with self.client.post(url, data=io.BytesIO(data), headers=headers) as answer:
            return answer.status

    async def exposition(self) -> str:
        """What Prometheus reads."""
        url = f"http://127.0.0.1:{self.service.metrics_port}/metrics"
        async with self.client.get(url) as answer:
            return await answer.text()

    async def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        total = 0.0
        for line in (await self.exposition()).splitlines():
            if re.match(rf"{re.escape(name)}[{{ ]", line) and all(
                f'{label}="{wanted}"' in line for label, wanted in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    async def reaches(self, wanted: float, name: str, **labels: str) -> None:
        """Wait until a sum is as wanted."""
        async with asyncio.timeout(20):
            while (seen := await self.value(name, **labels)) != wanted:
                assert seen < wanted, f"{name}{labels} is {seen}, more than {wanted}"
                await asyncio.sleep(0.02)

    async def dropped(self, reason: str, count: int = 1) -> None:
        """Wait until so many were dropped for a reason."""
        await self.reaches(count, "kvquant_shadow_dropped_total", reason=reason)

    async def scored(self, count: int = 1, pair: str = "canary", signal: str = "answered") -> None:
        """Wait until so many pairs were judged by a signal."""
        await self.reaches(count, "kvquant_shadow_scored_total", pair=pair, signal=signal)

    async def harm(self, signal: str, pair: str = "canary") -> float:
        """The harm that was counted."""
        return await self.value("kvquant_shadow_harm_total", pair=pair, signal=signal)

    async def relief(self, signal: str, pair: str = "canary") -> float:
        """The relief that was counted."""
        return await self.value("kvquant_shadow_relief_total", pair=pair, signal=signal)


@asynccontextmanager
async def running(
    baseline: Engine | None = None,
    canary: Engine | None = None,
    *,
    second: Engine | None = None,
    sanitizer: Any = None,
    engine_key: str = "",
    **settings: Any,
) -> AsyncIterator[Running]:
    """A service between two engines.

    Args:
        baseline: The baseline's pod.
        canary: The canary's.
        second: Another pod of the baseline, at another address of the same port.
        sanitizer: In place of the real one.
        engine_key: Key of the engines.
        settings: What differs from the defaults.
    """
    baseline, canary = baseline or Engine(), canary or Engine()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(listening(baseline))
        await stack.enter_async_context(listening(canary))
        addresses = ["127.0.0.1"]
        if second is not None:
            await stack.enter_async_context(listening(second, "127.0.0.2", baseline.port))
            addresses.append("127.0.0.2")

        async def resolve(host: str, _port: int) -> list[str]:
            return addresses if host == "baseline" else ["127.0.0.1"]

        made = ShadowSettings(
            **{
                "namespace": "inference",
                "rollout": "llama-int8",
                "uid": "uid-1",
                "attempt": 2,
                "noise_percent": 0,
                **settings,
            },
            baseline=ArmSettings(
                host="baseline", port=baseline.port, deployment="llama", dtype="auto"
            ),
            canary=ArmSettings(
                host="canary", port=canary.port, deployment="llama-canary", dtype="int8"
            ),
        )
        log = KeptLog()
        kept: Log = log
        service = Service(
            made,
            "run-1",
            sanitizer or Sanitizer(b"k" * 32),
            kept,
            engine_key=engine_key,
            resolve=resolve,
        )
        ended, listens = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(service.run("127.0.0.1", 0, 0, ended, listens.set))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await listens.wait()
        try:
            yield Running(service, baseline, canary, log, client)
        finally:
            # First, so that the service does not wait for this client's idle connections.
            await client.close()
            ended.set()
            await task
