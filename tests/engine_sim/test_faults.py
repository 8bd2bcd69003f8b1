"""Every fault of KVSIM_FAULTS does what it says, and only to the dtype it names."""

from __future__ import annotations

import asyncio
import json

import pytest

from engine_sim.faults import NAMES, Faults, parse
from tests.engine_sim.running import IMAGE, Running, running, sample, tiny

FP8 = ("--kv-cache-dtype", "fp8")
BODY = {"prompt": [1] * 200, "max_tokens": 50, "ignore_eos": True}


async def times(*words: str, faults: str = "") -> tuple[float, float]:
    """Virtual seconds of prefill and decode of one request."""
    async with running(*words, faults=faults, scale=20) as engine:
        await engine.complete(**BODY)
        text = await engine.metrics()
    parts = ("prefill", "decode")
    first, rest = (20 * sample(text, f"vllm:request_{part}_time_seconds_sum") for part in parts)
    return first, rest


async def test_decode_slowdown_multiplies_the_time_of_every_later_token() -> None:
    _, plain = await times(*FP8)
    _, slow = await times(*FP8, faults="fp8:decode_slowdown=3")
    assert slow == pytest.approx(3 * plain)


async def test_prefill_slowdown_multiplies_the_time_to_the_first_token_alone() -> None:
    first, rest = await times(*FP8)
    slow_first, same_rest = await times(*FP8, faults="fp8:prefill_slowdown=10")
    assert slow_first > 5 * first
    assert same_rest == pytest.approx(rest)


async def test_a_fault_of_another_dtype_changes_nothing() -> None:
    named = "int8_per_token_head:decode_slowdown=3,error_rate=1,fail_start,hang_after=0"
    assert await times(*FP8, faults=named) == pytest.approx(await times(*FP8))


def test_faults_of_all_matching_parts_add_up_and_the_last_word_counts() -> None:
    text = " *:error_rate=0.5 ; fp8:decode_slowdown=2, ignore_dtype; auto:hang_after=1 ;; "
    assert parse(text, "fp8") == Faults(error_rate=0.5, decode_slowdown=2.0, ignore_dtype=True)
    assert parse(text + "fp8:error_rate=0", "fp8").error_rate == 0
    assert parse("", "fp8") == Faults()


async def test_ignore_dtype_shows_the_plain_capacity_under_the_asked_label() -> None:
    async with running(*FP8, faults="fp8:ignore_dtype", scale=20) as engine:
        text = await engine.metrics()
    asked = {"cache_dtype": "fp8", "kv_cache_size_tokens": "49152", "num_gpu_blocks": "3072"}
    assert sample(text, "vllm:cache_config_info", **asked) == 1
    assert await times(*FP8, faults="fp8:ignore_dtype") == pytest.approx(await times())


async def test_error_rate_answers_that_share_with_500_and_serves_the_rest() -> None:
    statuses = []
    async with running(*FP8, faults="fp8:error_rate=0.3", scale=100) as engine:
        for _ in range(100):
            body = {"prompt": "hi", "max_tokens": 1}
            async with engine.client.post("/v1/completions", json=body) as answer:
                statuses.append(answer.status)
        text = await engine.metrics()
    assert set(statuses) == {200, 500}
    assert 15 <= statuses.count(500) <= 45
    assert sample(text, "http_requests_total", status="5xx") == statuses.count(500)
    assert sample(text, "vllm:request_success_total", finished_reason="length") == (
        statuses.count(200)
    )


async def test_a_hung_engine_takes_requests_and_never_answers_them() -> None:
    async with running(*FP8, faults="fp8:hang_after=2", scale=100) as engine:
        for _ in range(2):
            await engine.complete(**BODY)
        hung = asyncio.ensure_future(engine.complete(**BODY))
        await engine.reaches("vllm:num_requests_running", lambda value: value == 1)
        # An engine at this scale needs five milliseconds for the request.
        done, _ = await asyncio.wait([hung], timeout=0.5)
        assert not done
        async with engine.client.get("/health") as answer:
            assert answer.status == 200  # As a hung vLLM: liveness cannot see it.
        assert await engine.value("vllm:generation_tokens_total") == 100
        hung.cancel()
        await asyncio.gather(hung, return_exceptions=True)
        await engine.reaches("vllm:num_requests_running", lambda value: value == 0)


async def dying(engine: Running, prompt: list[int]) -> tuple[int, list[str]]:
    """Send a unary and a streamed request; the status of one, the events of the other."""
    body = {"prompt": prompt, "max_tokens": 400, "ignore_eos": True}
    stream = engine.client.post("/v1/completions", json={**body, "stream": True})
    async with stream as streamed:
        assert streamed.status == 200
        async with engine.client.post("/v1/completions", json=body) as unary:
            status = unary.status
        text = await streamed.text()
    return status, text.split("\n\n")


@pytest.mark.parametrize(
    ("fault", "flags"),
    [
        ("exit_after=2", ()),
        ("exit_at_kv_usage=0.9", tiny(60)),
        ("exit_at_prompt_tokens=300", ()),
    ],
)
async def test_a_dying_engine_fails_its_requests_as_vllm_does(
    fault: str, flags: tuple[str, ...]
) -> None:
    async with running(*FP8, *flags, faults=f"fp8:{fault}", scale=3) as engine:
        longer = [1] * 310 if "prompt" in fault else [1] * 200
        status, events = await dying(engine, longer)
        assert status == 500
        # The stream had begun: it stays 200 and says at its end what happened.
        error, done, _ = events[-3:]
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == 500
        assert done == "data: [DONE]"
        async with engine.client.get("/health") as answer:
            assert answer.status == 503
        async with engine.client.post("/v1/completions", json=BODY) as answer:
            assert answer.status == 500
            assert "EngineCore encountered an issue" in await answer.text()
        assert await engine.value("vllm:request_success_total", finished_reason="length") == 0
        await asyncio.wait_for(engine.server.stopped.wait(), 5)


@pytest.mark.parametrize(
    ("fault", "flags"),
    [
        ("exit_after=3", ()),
        ("exit_at_kv_usage=0.9", tiny(600)),
        ("exit_at_prompt_tokens=300", ()),
    ],
)
async def test_an_engine_lives_until_its_fault_is_due(fault: str, flags: tuple[str, ...]) -> None:
    async with running(*FP8, *flags, faults=f"fp8:{fault}", scale=100) as engine:
        for _ in range(2):
            await engine.complete(**BODY)
        async with engine.client.get("/health") as answer:
            assert answer.status == 200


async def test_a_memory_fault_without_any_limit_is_not_injected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine_sim.memory.LIMIT_FILES", ("/nowhere",))
    async with running(*FP8, faults="fp8:oom_after=1", scale=100) as engine:
        await engine.complete(**BODY)
    assert "the fault was not injected" in caplog.text


def test_the_readme_documents_each_fault_with_an_example_that_parses() -> None:
    lines = (IMAGE / "README.md").read_text().splitlines()
    for name in NAMES:
        examples = [line.split("`")[-2] for line in lines if line.startswith(f"| `{name}` ")]
        assert len(examples) == 1, name
        given = examples[0].removeprefix("KVSIM_FAULTS=")
        dtype = given.partition(":")[0].replace("*", "fp8")
        assert parse(given, dtype) != Faults(), examples[0]
