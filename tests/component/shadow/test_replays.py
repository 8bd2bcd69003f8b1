"""The service between two engines: what is replayed, what is counted, what is kept."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from aiohttp import web

from kvquant.core.shadow_settings import GENERATION_PATHS
from tests.component.shadow.fakes import Engine, completion, hang, running, status

PROMPT = {"model": "m", "prompt": "What is the sky like [1]?", "max_tokens": 20}


async def test_a_pair_is_replayed_compared_counted_and_kept() -> None:
    async with running(Engine("It is blue [1]."), Engine("It is blue.")) as shadow:
        assert await shadow.mirror(PROMPT) == 202
        await shadow.scored()
        assert await shadow.harm("citations") == 1
        assert await shadow.harm("exact") == 1
        assert await shadow.harm("answered") == 0
        assert await shadow.value("kvquant_shadow_received_total", bucket="0-4KiB") == 1
        assert await shadow.value("kvquant_shadow_tokens_total", arm="canary") == 12
        assert await shadow.value("kvquant_shadow_answer_seconds_count", arm="baseline") == 1
        assert shadow.baseline.asked == shadow.canary.asked
        (asked,) = shadow.canary.asked
        assert (asked["temperature"], asked["max_tokens"], asked["stream"]) == (0, 20, False)
    (record,) = shadow.log.records
    assert record["schema_version"] == 1
    assert record["pairs"]["canary"]["signals"]["citations"] == 1
    assert record["arms"]["canary"]["answer"]["text"] == "It is blue."
    assert record["arms"]["canary"]["regime"]["dtype"] == "int8"
    assert record["rollout"]["attempt"] == 2
    assert shadow.log.events == ["start", "close"]


async def test_every_series_says_whose_it_is() -> None:
    async with running() as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored()
        samples = [line for line in (await shadow.exposition()).splitlines() if line[0] != "#"]
        assert samples
        for line in samples:
            assert 'rollout="uid-1"' in line
            assert 'attempt="2"' in line
            assert 'run="run-1"' in line


async def test_relief_is_counted_as_relief() -> None:
    async with running(Engine("It is blue."), Engine("It is blue [1].")) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored(signal="citations")
        assert await shadow.relief("citations") == 1
        assert await shadow.harm("citations") == 0
        assert await shadow.value("kvquant_shadow_squares_total", signal="citations") == 1


async def test_neither_credentials_nor_names_reach_an_engine() -> None:
    async with running() as shadow:
        body = {**PROMPT, "prompt": "Write to jane.doe@example.org", "user": "PLANTED"}
        secrets = {"Authorization": "Bearer PLANTED", "Cookie": "s=PLANTED", "X-User": "PLANTED"}
        await shadow.mirror(body, headers=secrets)
        await shadow.scored()
        for engine in (shadow.baseline, shadow.canary):
            seen = json.dumps([engine.asked, [dict(h) for h in engine.headers]])
            assert "PLANTED" not in seen
            assert "jane.doe" not in seen
            assert "<EMAIL_" in seen
            assert engine.headers[0]["x-kvquant-shadow"] == "1"
            assert "Authorization" not in engine.headers[0]
        assert await shadow.value("kvquant_shadow_personal_data_total", kind="EMAIL") == 1


async def test_engines_that_want_a_key_get_ours() -> None:
    async with running(engine_key="ours") as shadow:
        await shadow.mirror(PROMPT, headers={"Authorization": "Bearer PLANTED"})
        await shadow.scored()
        assert shadow.canary.headers[0]["Authorization"] == "Bearer ours"


async def test_a_share_of_the_pairs_is_noise_and_asks_another_pod() -> None:
    second = Engine("It is blue.")
    async with running(
        Engine("It is blue [1]."), Engine("x"), second=second, noise_percent=100
    ) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored(pair="noise")
        assert (len(shadow.baseline.asked), len(second.asked)) == (1, 1)
        lost_or_won = (
            await shadow.harm("citations", "noise"),
            await shadow.relief("citations", "noise"),
        )
        assert sorted(lost_or_won) == [0, 1]
    (record,) = shadow.log.records
    assert set(record["pairs"]) == {"canary", "noise"}
    assert set(record["arms"]) == {"baseline", "canary", "baselineAgain"}


@pytest.mark.parametrize("path", GENERATION_PATHS)
async def test_each_endpoint_is_replayed_at_its_own_address(path: str) -> None:
    body: dict[str, Any] = {
        "/v1/completions": {"prompt": "Hi"},
        "/v1/responses": {"input": "Hi"},
    }.get(path, {"messages": [{"role": "user", "content": "Hi"}]})
    answers: dict[str, Any] = {
        "/v1/completions": completion("Hello"),
        "/v1/chat/completions": {"choices": [{"message": {"content": "Hello"}}]},
        "/v1/responses": {
            "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}]
        },
        "/v1/messages": {"content": [{"type": "text", "text": "Hello"}]},
    }

    async def answer(_body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(answers[path])

    async with running(Engine(instead=answer), Engine(instead=answer)) as shadow:
        await shadow.mirror(body, path)
        await shadow.scored(signal="exact")
        assert await shadow.harm("exact") == 0
    assert shadow.log.records[0]["endpoint"] == path
    assert shadow.log.records[0]["arms"]["canary"]["answer"]["text"] == "Hello"


@pytest.mark.parametrize(
    ("path", "method"),
    [("/v1/models", "GET"), ("/v1/embeddings", "POST"), ("/", "POST"), ("/v1/completions", "GET")],
)
async def test_other_requests_are_counted_and_dropped(path: str, method: str) -> None:
    async with running() as shadow:
        url = f"http://127.0.0.1:{shadow.service.port}{path}"
        async with shadow.client.request(method, url) as answer:
            assert answer.status == 404
        await shadow.dropped("path")
        assert await shadow.value("kvquant_shadow_received_total") == 0


async def test_a_replay_that_comes_round_is_not_replayed_again() -> None:
    async with running() as shadow:
        await shadow.mirror(PROMPT, headers={"x-kvquant-shadow": "1"})
        await shadow.dropped("loop")
        assert not shadow.baseline.asked


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b"{", {}, "unreadable"),
        (b"[]", {}, "unreadable"),
        (b"\xff\xfe\xfd", {}, "unreadable"),
        (b"{}", {"Content-Encoding": "br"}, "encoding"),
        (b"{}", {"Content-Encoding": "gzip"}, "encoding"),
        (gzip.compress(b" " * 2_000_000), {"Content-Encoding": "gzip"}, "size"),
        (b" " * 1_000_001, {}, "size"),
        (json.dumps({"prompt": [1, 2, 3]}).encode(), {}, "tokens"),
    ],
)
async def test_what_cannot_be_replayed_is_dropped(
    body: bytes, headers: dict[str, str], reason: str
) -> None:
    async with running(max_body_bytes=1_000_000) as shadow:
        await shadow.mirror(body, headers=headers)
        await shadow.dropped(reason)
        assert not shadow.baseline.asked


async def test_a_compressed_request_is_replayed() -> None:
    async with running() as shadow:
        body = gzip.compress(json.dumps(PROMPT).encode())
        await shadow.mirror(body, headers={"Content-Encoding": "gzip"})
        await shadow.scored()
        assert shadow.canary.asked[0]["prompt"] == PROMPT["prompt"]


async def test_a_canary_that_fails_is_harm_and_a_baseline_that_fails_relief() -> None:
    async def broken(_body: dict[str, Any]) -> web.StreamResponse:
        return await status(500)

    async with running(Engine(), Engine(instead=broken)) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored()
        assert await shadow.harm("answered") == 1
        assert await shadow.value("kvquant_shadow_scored_total", signal="exact") == 0
        shadow.canary.instead, shadow.baseline.instead = None, broken
        await shadow.mirror(PROMPT)
        await shadow.scored(2)
        assert await shadow.relief("answered") == 1
        shadow.canary.instead = broken
        await shadow.mirror(PROMPT)
        await shadow.dropped("unanswered")


async def test_a_request_that_both_refuse_is_not_evidence() -> None:
    async def refuse(_body: dict[str, Any]) -> web.StreamResponse:
        return await status(400)

    async with running(Engine(instead=refuse), Engine(instead=refuse)) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.dropped("refused")
        shadow.baseline.instead = None
        await shadow.mirror(PROMPT)
        await shadow.scored()
        assert await shadow.harm("answered") == 1


@pytest.mark.parametrize("kind", ["hang", "reset", "rubbish", "error in 200"])
async def test_a_canary_may_fail_in_any_way(kind: str) -> None:
    async def reset(_body: dict[str, Any]) -> web.StreamResponse:
        raise ConnectionResetError

    async def rubbish(_body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text="<html>")

    async def error(_body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "PLANTED"}})

    ways = {"hang": hang, "reset": reset, "rubbish": rubbish, "error in 200": error}
    async with running(Engine(), Engine(instead=ways[kind]), deadline_seconds=1.0) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored()
        assert await shadow.harm("answered") == 1


async def test_a_canary_whose_port_is_shut_has_not_answered() -> None:
    async with running() as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored()
        arm = shadow.service._canary.pods
        object.__setattr__(arm._arm, "port", 1)  # nothing listens there
        await shadow.mirror(PROMPT)
        await shadow.scored(2)
        assert await shadow.harm("answered") == 1


async def test_a_full_log_is_counted_and_stops_nothing() -> None:
    async with running() as shadow:
        shadow.log.has_room = False
        await shadow.mirror(PROMPT)
        await shadow.scored()
        await shadow.reaches(1, "kvquant_shadow_unlogged_total", reason="full")


async def test_both_arms_are_asked_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def meet(_body: dict[str, Any]) -> web.StreamResponse:
        await both.wait()
        return web.json_response(completion("Met."))

    async with running(Engine(instead=meet), Engine(instead=meet)) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored(signal="exact")
