"""The demo's client and its table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from kvdemo.load import Load, Outcome, Recipe, percentile
from kvdemo.table import render, rows
from kvdemo.watch import Stage
from tests.waiting import wait_until


class Server:
    """Answers as an engine does, or as a test says."""

    def __init__(self) -> None:
        self.broken = False
        self.url = ""

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.broken:
            return web.Response(status=503, text="no healthy upstream")
        if not body["stream"]:
            return web.json_response({"system_fingerprint": "kvq-abc", "choices": []})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"data: {json.dumps({'system_fingerprint': 'vllm-0'})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.add_routes([web.post("/v1/completions", server.complete)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


async def _collect(load: Load, count: int) -> list[Outcome]:
    import asyncio

    load.start()
    await asyncio.to_thread(
        wait_until, lambda: len(load.outcomes) >= count, 20, "requests should end"
    )
    await asyncio.to_thread(load.stop)
    return load.outcomes


async def test_answers_and_the_pool_they_came_from_are_counted(server: Server) -> None:
    outcomes = await _collect(Load(server.url, Recipe(rate=200)), 40)
    assert not [o for o in outcomes if o.problem]
    assert {o.fingerprint for o in outcomes} == {"kvq-abc", "vllm-0"}
    assert {o.from_canary for o in outcomes} == {True, False}


async def test_errors_are_outcomes_with_their_cause(server: Server) -> None:
    server.broken = True
    outcomes = await _collect(Load(server.url, Recipe(rate=200)), 5)
    assert all("HTTP 503: no healthy upstream" in o.problem for o in outcomes)


async def test_a_server_that_is_not_there_is_an_outcome_too() -> None:
    outcomes = await _collect(Load("http://127.0.0.1:9", Recipe(rate=200)), 5)
    assert all("Connect" in o.problem for o in outcomes)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.99, None), ([1.0], 0.99, 1.0), (range(100), 0.5, 50), (range(100), 0.99, 99)],
)
def test_percentiles(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_a_request_counts_in_the_stage_in_which_it_was_sent() -> None:
    stages = [Stage(0, "a", "step 1/2", 10, "kvq-1"), Stage(10, "a", "step 2/2", 100, "kvq-1")]
    outcomes = [
        Outcome(1, 30.0, "", "kvq-of-an-earlier-rollout"),
        Outcome(9.9, 0.1, "HTTP 500"),
        Outcome(10, 0.2, "", "kvq-1"),
        Outcome(11, 0.2, "", "kvq-1"),
    ]
    first, second = rows(stages, outcomes)
    assert first[2:] == ("10 %", "2", "0 %", "1", "30.00 s", "30.00 s")
    assert second[2:6] == ("100 %", "2", "100 %", "0")
    text = render([first, second])
    assert len({len(line) for line in text.splitlines()}) == 1
