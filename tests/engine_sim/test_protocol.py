"""The OpenAI API as clients of vLLM know it, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.engine_sim.running import Running, running

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SAID = [{"role": "user", "content": "What does a KV cache hold?"}]


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[Running]:
    flags = ("--served-model-name", "llama", "llama-alias", "--max-model-len", "1k")
    async with running(*flags, scale=20) as started:
        yield started


async def refused(engine: Running, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with engine.client.post(path, data=raw) as answer:
        assert answer.content_type == "application/json"
        error: dict[str, Any] = (await answer.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == answer.status
        return answer.status, error


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (COMPLETIONS, b"{", "the body is not JSON"),
        (COMPLETIONS, b"\xff\xfe\xfa", "the body is not JSON"),
        (COMPLETIONS, b"[" * 200_000, "the body is not JSON"),
        (COMPLETIONS, ["prompt"], "has to be a JSON object"),
        (COMPLETIONS, {}, "prompt: expected one text or one list of token ids"),
        (COMPLETIONS, {"prompt": ""}, "prompt: expected"),
        (COMPLETIONS, {"prompt": []}, "prompt: expected"),
        (COMPLETIONS, {"prompt": ["one", "two"]}, "prompt: expected"),
        (COMPLETIONS, {"prompt": [1, "two"]}, "prompt: expected"),
        (COMPLETIONS, {"prompt": [True]}, "prompt: expected"),
        (COMPLETIONS, {"prompt": "hi", "max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        (COMPLETIONS, {"prompt": "hi", "max_tokens": "9"}, "max_tokens must be at least 1"),
        (COMPLETIONS, {"prompt": "hi", "max_tokens": True}, "max_tokens must be at least 1"),
        (COMPLETIONS, {"prompt": "hi", "n": 2}, "one answer a request"),
        (COMPLETIONS, {"prompt": [5] * 1000}, "maximum context length is 1000 tokens"),
        (COMPLETIONS, {"prompt": [5] * 5000, "max_tokens": 1}, "contains 5000 input tokens"),
        (COMPLETIONS, {"prompt": "hi", "max_tokens": 1000}, "requested 1000 output tokens"),
        (CHAT, {}, "messages: expected a list of messages"),
        (CHAT, {"messages": []}, "messages: expected a list of messages"),
        (CHAT, {"messages": ["hi"]}, "each needs a role and a content"),
        (CHAT, {"messages": [{"content": "hi"}]}, "each needs a role and a content"),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 8000}]}, "maximum context length"),
        (CHAT, {"messages": SAID, "max_completion_tokens": -1}, "max_completion_tokens must be"),
    ],
)
async def test_a_wrong_body_is_answered_with_400_and_the_mistake(
    engine: Running, path: str, body: Any, said: str
) -> None:
    status, error = await refused(engine, path, body)
    assert (status, error["type"]) == (400, "BadRequestError")
    assert said in error["message"]
    assert await engine.value("vllm:num_requests_running") == 0


async def test_a_body_in_an_unknown_charset_is_answered_with_400(engine: Running) -> None:
    headers = {"Content-Type": "application/json; charset=klingon"}
    async with engine.client.post(COMPLETIONS, data=b"{}", headers=headers) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("model", ["gpt-4", "", None, ["llama"]])
async def test_a_model_that_is_not_served_is_answered_with_404(engine: Running, model: Any) -> None:
    status, error = await refused(engine, COMPLETIONS, {"prompt": "hi", "model": model})
    assert (status, error["type"], error["param"]) == (404, "NotFoundError", "model")


async def test_unknown_paths_and_methods_are_refused_in_json(engine: Running) -> None:
    assert (await refused(engine, "/v1/embeddings", {}))[0] == 404
    async with engine.client.get(COMPLETIONS) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert (await answer.json())["error"]["code"] == 405


async def test_a_request_that_can_never_fit_the_cache_is_refused_at_once() -> None:
    # A watermark keeps blocks free, so the cache holds less than the longest context.
    flags = ("--num-gpu-blocks-override", "10", "--max-model-len", "160", "--watermark", "0.5")
    async with running(*flags) as engine:
        status, error = await refused(engine, COMPLETIONS, {"prompt": [1] * 100, "max_tokens": 1})
        assert (status, error["param"]) == (400, "prompt")
        assert "need 7 KV blocks" in error["message"]
        await engine.complete(prompt=[1] * 79, max_tokens=1)


async def test_only_bearers_of_a_key_may_generate() -> None:
    async with running("--api-key", "one", "two") as engine:
        body = {"prompt": "hi", "max_tokens": 1}
        for header, wanted in (
            ({}, 401),
            ({"Authorization": "Bearer three"}, 401),
            ({"Authorization": "Bearer two"}, 200),
        ):
            async with engine.client.post(COMPLETIONS, json=body, headers=header) as answer:
                assert answer.status == wanted
        async with engine.client.get("/health") as answer:
            assert answer.status == 200


async def test_a_completion_counts_its_tokens_and_names_its_engine(engine: Running) -> None:
    answer = await engine.complete(prompt=[7] * 40, max_tokens=9, ignore_eos=True)
    assert answer["object"] == "text_completion"
    assert answer["usage"] == {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["text"].split()) == 9
    assert answer["model"] == "llama"
    assert answer["system_fingerprint"].startswith("vllm-0.25.1-")


async def test_a_completion_has_16_tokens_unless_told_otherwise(engine: Running) -> None:
    answer = await engine.complete(prompt="hi", ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 16


async def test_an_answer_is_the_same_for_the_same_prompt_and_ends_by_itself(
    engine: Running,
) -> None:
    one, two, other = [
        (await engine.complete(prompt=text, max_tokens=900))["choices"][0]
        for text in ("a question", "a question", "another question")
    ]
    assert one == two
    assert one["finish_reason"] == "stop"
    assert one["text"] != other["text"]


async def test_a_chat_answers_as_the_assistant(engine: Running) -> None:
    async with engine.client.post(CHAT, json={"messages": SAID, "model": "llama-alias"}) as answer:
        body = await answer.json()
    assert (body["object"], body["model"]) == ("chat.completion", "llama-alias")
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "stop"


async def events(engine: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with engine.client.post(path, json={**body, "stream": True}) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        lines = (await answer.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_stream_says_what_the_whole_answer_says() -> None:
    body = {"prompt": "a question", "max_tokens": 120, "ignore_eos": True}
    async with running(faults="*:decode_slowdown=15", scale=20) as engine:
        chunks = await events(engine, COMPLETIONS, body)
        whole = await engine.complete(**body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert len(chunks) > 2
    # As in vLLM, only the last chunk tells which engine it was.
    assert [chunk.get("system_fingerprint") for chunk in chunks] == [
        *([None] * (len(chunks) - 1)),
        whole["system_fingerprint"],
    ]


async def test_a_chat_stream_names_the_role_once_and_ends_with_the_usage(engine: Running) -> None:
    options = {"stream_options": {"include_usage": True}, "max_completion_tokens": 30}
    *chunks, last = await events(engine, CHAT, {"messages": SAID, **options})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert ["role" in delta for delta in deltas] == [True, *([False] * (len(deltas) - 1))]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 30)


async def test_in_real_time_a_stream_brings_each_token_by_itself() -> None:
    # Tokens that take long, so that a busy machine never gets two at once.
    async with running(faults="*:decode_slowdown=15") as engine:
        body = {"prompt": "hi", "max_tokens": 12, "ignore_eos": True}
        chunks = await events(engine, COMPLETIONS, body)
    assert len(chunks) == 12


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (("--fingerprint-mode", "custom", "--fingerprint-value", "kvq=fp8;r=7"), "kvq=fp8;r=7"),
        (("--fingerprint-mode", "none"), None),
    ],
)
async def test_the_fingerprint_is_the_chosen_one(flags: tuple[str, ...], shown: str | None) -> None:
    async with running(*flags) as engine:
        answer = await engine.complete(prompt="hi", max_tokens=1)
        assert answer["system_fingerprint"] == shown
        (chunk,) = await events(engine, COMPLETIONS, {"prompt": "hi", "max_tokens": 1})
        assert chunk["system_fingerprint"] == shown


async def test_the_fingerprint_differs_by_kv_dtype() -> None:
    prints = []
    for dtype in ("auto", "fp8", "fp8"):
        async with running("--kv-cache-dtype", dtype) as engine:
            answer = await engine.complete(prompt="hi", max_tokens=1)
            prints.append(answer["system_fingerprint"])
    assert prints[0] != prints[1] == prints[2]


async def test_the_small_endpoints_answer_as_vllms(engine: Running) -> None:
    async with engine.client.get("/version") as answer:
        assert await answer.json() == {"version": "0.25.1"}
    async with engine.client.get("/load") as answer:
        assert await answer.json() == {"server_load": 0}
    async with engine.client.get("/v1/models") as answer:
        models = (await answer.json())["data"]
    assert [(m["id"], m["max_model_len"]) for m in models] == [
        ("llama", 1000),
        ("llama-alias", 1000),
    ]
