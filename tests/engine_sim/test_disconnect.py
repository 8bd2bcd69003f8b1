"""A client that leaves frees its blocks at once, wherever its request was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.engine_sim.running import Running, running, sample, tiny

# Slow enough that no request ends by itself while a test looks on.
SLOW = "*:decode_slowdown=20"
LONG = {"prompt": [1] * 160, "max_tokens": 800, "ignore_eos": True}


async def nothing_is_left(engine: Running) -> None:
    await engine.reaches("vllm:kv_cache_usage_perc", lambda value: value == 0)
    text = await engine.metrics()
    assert sample(text, "vllm:num_requests_running") == 0
    assert sample(text, "vllm:num_requests_waiting") == 0
    async with engine.client.get("/load") as answer:
        assert (await answer.json())["server_load"] == 0
    # As in vLLM, nothing tells that they were aborted.
    assert sample(text, "vllm:request_success_total", finished_reason="abort") == 0
    assert sample(text, "vllm:e2e_request_latency_seconds_count") == 0


@pytest.mark.parametrize("options", [{}, {"stream": True}], ids=["unary", "stream"])
async def test_a_client_that_leaves_frees_its_blocks(options: dict[str, Any]) -> None:
    async with running(*tiny(100), faults=SLOW) as engine:
        body = {**LONG, **options}
        asked = asyncio.ensure_future(read(engine, body))
        await engine.reaches("vllm:generation_tokens_total", lambda value: value >= 1)
        assert await engine.value("vllm:kv_cache_usage_perc") > 0
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await nothing_is_left(engine)


async def test_a_client_that_leaves_while_it_waits_is_forgotten() -> None:
    async with running(*tiny(100), "--max-num-seqs", "1", faults=SLOW) as engine:
        first = asyncio.ensure_future(read(engine, LONG))
        await engine.reaches("vllm:num_requests_running", lambda value: value == 1)
        second = asyncio.ensure_future(read(engine, LONG))
        await engine.reaches("vllm:num_requests_waiting", lambda value: value == 1)
        second.cancel()
        await engine.reaches("vllm:num_requests_waiting", lambda value: value == 0)
        assert await engine.value("vllm:num_requests_running") == 1
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await nothing_is_left(engine)


async def test_what_a_leaver_frees_lets_the_next_one_in() -> None:
    async with running(*tiny(61), faults=SLOW) as engine:
        holder = asyncio.ensure_future(
            read(engine, {**LONG, "prompt": [1] * 900, "max_tokens": 70})
        )
        await engine.reaches("vllm:num_requests_running", lambda value: value == 1)
        body = {"prompt": [1] * 160, "max_tokens": 1}
        next_one = asyncio.ensure_future(engine.complete(**body))
        await engine.reaches("vllm:num_requests_waiting", lambda value: value == 1)
        assert not next_one.done()
        holder.cancel()
        answer = await asyncio.wait_for(next_one, 10)
        assert answer["usage"]["completion_tokens"] == 1
        await asyncio.gather(holder, return_exceptions=True)


async def read(engine: Running, body: dict[str, Any]) -> None:
    async with engine.client.post("/v1/completions", json=body) as answer:
        async for _ in answer.content:
            pass
