"""Floods, hangs, long bodies, busy baselines: what is not taken, and not waited for."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from kvquant.shadow import receiving
from kvquant.shadow.pii import Cleaned
from kvquant.shadow.share import BURST, SLACK
from tests.component.shadow.fakes import Engine, Running, completion, hang, running

PROMPT = {"model": "m", "prompt": "Hello", "max_tokens": 20}


class FindsNothing:
    """A search that takes no time, so that the way of the bytes is what is tested."""

    def body(self, body: Any, /) -> Cleaned:
        return Cleaned(body, {})


async def holds(shadow: Running, wanted: Callable[[int], bool]) -> None:
    """Wait until the bodies under way hold as much as wanted."""
    async with asyncio.timeout(10):
        while not wanted(shadow.service._receiver.arriving):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)


async def test_a_flood_is_answered_at_once_and_the_newest_are_dropped() -> None:
    async with running(
        Engine(instead=hang), Engine(instead=hang), queue_requests=5, concurrency=2
    ) as shadow:
        await asyncio.gather(*(shadow.mirror({**PROMPT, "prompt": f"{n}"}) for n in range(7)))
        began = time.monotonic()
        statuses = await asyncio.gather(*(shadow.mirror(PROMPT) for _ in range(200)))
        assert set(statuses) == {202}
        assert time.monotonic() - began < 10
        await shadow.dropped("queue", 200)
        assert await shadow.value("kvquant_shadow_received_total") == 207
        assert await shadow.value("kvquant_shadow_queue_requests") == 5
        assert await shadow.value("kvquant_shadow_in_flight") == 2
        prompts = {asked["prompt"] for asked in shadow.baseline.asked}
        assert len(prompts) == 2
        assert "Hello" not in prompts


async def test_bodies_that_arrive_take_the_room_of_the_queue() -> None:
    async with running(
        Engine(instead=hang), Engine(instead=hang), queue_bytes=300_000, concurrency=1
    ) as shadow:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", shadow.service.port)
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 250000\r\n\r\n"
            writer.write(head.encode() + b" " * 240_000)
            await writer.drain()
            await holds(shadow, lambda held: held > 200_000)
            # The one that is still under way holds the room; what comes now is read and forgotten.
            assert await shadow.mirror(b" " * 100_000) == 202
            await shadow.dropped("queue")
            assert shadow.service._receiver.arriving <= 250_000
            writer.close()
            await writer.wait_closed()
            await shadow.dropped("incomplete")
            await holds(shadow, lambda held: held == 0)
            await reader.read()


async def test_a_body_that_does_not_arrive_is_given_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(receiving, "BODY_WITHIN", 0.2)
    async with running() as shadow:
        _, writer = await asyncio.open_connection("127.0.0.1", shadow.service.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await shadow.dropped("incomplete")
        writer.close()


async def test_a_body_of_24_mib_is_replayed_whole() -> None:
    prompt = "word " * (24 * 2**20 // 5)
    async with running(sanitizer=FindsNothing(), score_prompt_tokens=0) as shadow:
        assert await shadow.mirror({**PROMPT, "prompt": prompt}) == 202
        await shadow.scored()
        assert shadow.canary.asked[0]["prompt"] == prompt
        assert await shadow.value("kvquant_shadow_received_total", bucket="1MiB+") == 1
        assert (
            await shadow.value("kvquant_shadow_scored_total", bucket="1MiB+", signal="exact") == 1
        )


async def test_the_service_answers_while_it_searches_for_personal_data() -> None:
    searching, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow:
        def body(self, _body: Any, /) -> Any:
            loop.call_soon_threadsafe(searching.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
            raise RuntimeError("PLANTED")

    async with running(sanitizer=Slow()) as shadow:
        await shadow.mirror(PROMPT)
        await searching.wait()
        assert await shadow.mirror(PROMPT) == 202
        go_on.set()
        await shadow.dropped("withheld:error", 2)
        assert not shadow.baseline.asked


async def test_a_search_that_does_not_end_costs_only_its_own_request() -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Stuck:
        def body(self, _body: Any, /) -> Any:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(20)
            return None

    async with running(sanitizer=Stuck(), deadline_seconds=0.6) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.dropped("deadline")
        release.set()


async def test_withheld_requests_are_counted_by_their_reason() -> None:
    class WithheldError(Exception):
        def __init__(self, reason: str) -> None:
            super().__init__("PLANTED")
            self.reason = reason

    class Withholding:
        reasons = ["timeout", "jane.doe@example.org"]

        def body(self, _body: Any, /) -> Any:
            raise WithheldError(self.reasons.pop(0))

    async with running(sanitizer=Withholding()) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.dropped("withheld:timeout")
        await shadow.mirror(PROMPT)
        await shadow.dropped("withheld:error")
        assert "example.org" not in await shadow.exposition()


async def test_nothing_is_replayed_while_the_baseline_is_busy() -> None:
    busy = Engine(kv_usage=0.9)
    async with running(busy, deadline_seconds=60) as shadow:
        await shadow.reaches(1, "kvquant_shadow_throttled")
        await shadow.mirror(PROMPT)
        assert await shadow.value("kvquant_shadow_queue_requests") == 1
        busy.kv_usage, busy.waiting = 0.1, 1
        await asyncio.sleep(2.5)  # past one more scrape, which must not let it go
        assert not busy.asked
        busy.waiting = 0
        await shadow.scored()
        assert await shadow.value("kvquant_shadow_throttled") == 0


async def test_a_baseline_that_cannot_be_measured_counts_as_busy_and_requests_expire() -> None:
    async with running(Engine(metrics_status=500), deadline_seconds=1.0) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.dropped("deadline")
        assert not shadow.baseline.asked
        assert await shadow.value("kvquant_shadow_queue_requests") == 0


async def test_one_busy_pod_of_many_is_enough() -> None:
    async with running(second=Engine(waiting=3), deadline_seconds=1.0) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.dropped("deadline")
        assert not shadow.baseline.asked


async def test_two_hanging_arms_hold_only_their_own_deadline() -> None:
    async with running(
        Engine(instead=hang), Engine(instead=hang), deadline_seconds=0.6, concurrency=1
    ) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.dropped("unanswered")
        shadow.baseline.instead = shadow.canary.instead = None
        await shadow.mirror(PROMPT)
        await shadow.scored()


async def test_tokens_per_second_are_kept_to() -> None:
    async def long(_body: dict[str, Any]) -> web.StreamResponse:
        answer = completion("x")
        answer["usage"] = {"prompt_tokens": 500, "completion_tokens": 500}
        return web.json_response(answer)

    async with running(
        Engine(instead=long), Engine(instead=long), tokens_per_second=1000, concurrency=1
    ) as shadow:
        began = time.monotonic()
        for number in range(4):
            await shadow.mirror({**PROMPT, "prompt": f"{number}"})
        await shadow.scored(4)
        # One second's worth is there at once; three thousand tokens more take three seconds, less
        # what the last one may overdraw.
        assert time.monotonic() - began > 1.9


async def test_a_pod_that_is_gone_is_replaced_by_another_one() -> None:
    second = Engine()
    async with running(second=second) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored()
        with socket.create_server(("127.0.0.3", 0)):
            pass
        pods = shadow.service._baseline.pods
        pods._addresses = ("127.0.0.3", "127.0.0.2")  # the first one does not listen there
        for number in range(3):
            await shadow.mirror({**PROMPT, "prompt": f"{number}"})
        await shadow.scored(4)
        assert await shadow.relief("answered") == 0


async def test_it_is_healthy_and_shows_nothing_else() -> None:
    async with running() as shadow:
        base = f"http://127.0.0.1:{shadow.service.metrics_port}"
        for path, status in (("/healthz", 200), ("/metrics", 200), ("/v1/completions", 404)):
            async with shadow.client.get(base + path) as answer:
                assert answer.status == status


async def test_a_mistake_of_ours_costs_one_pair_and_tells_no_text(caplog: Any) -> None:
    async with running() as shadow:

        async def broken(_record: object) -> bool:
            raise ValueError(json.dumps(_record))

        shadow.log.write = broken  # type: ignore[method-assign, assignment]
        await shadow.mirror({**PROMPT, "prompt": "PLANTED"})
        await shadow.dropped("error")
        assert "ValueError" in caplog.text
        assert "PLANTED" not in caplog.text
        del shadow.log.write
        await shadow.mirror(PROMPT)
        await shadow.scored(2)


async def test_who_floods_it_gets_no_more_than_the_share_of_the_clients(monkeypatch: Any) -> None:
    monkeypatch.setattr("kvquant.shadow.throttle.SCRAPE_SECONDS", 0.05)
    baseline = Engine()
    async with running(baseline, percent=10, queue_requests=1000) as shadow:
        for _ in range(100):
            await shadow.mirror(PROMPT)
        # What may begin after a quiet time, and then nothing while clients ask nothing.
        await shadow.scored(int(BURST))
        await shadow.reaches(1, "kvquant_shadow_throttled")
        baseline.finished = 80
        await shadow.scored(int(BURST + 80 * 0.1 * SLACK))
        await shadow.reaches(1, "kvquant_shadow_throttled")
