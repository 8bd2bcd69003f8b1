"""The metrics carry vLLM's own names, labels and buckets, and count what happened."""

from __future__ import annotations

import asyncio
import re

import pytest

from engine_sim.recording import scrapes
from tests.engine_sim.running import RECORDINGS, Running, running, sample, tiny

RECORDED = ("auto", "fp8", "int8_per_token_head")
_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{(?P<labels>.*)\})? \S+$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def series(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every sample's name and labels; the model's name apart, since no two engines share it."""
    found = set()
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and match["name"].startswith(("vllm:", "http_")):
            labels = dict(_LABEL.findall(match["labels"] or ""))
            labels.pop("model_name", None)
            found.add((match["name"], tuple(sorted(labels.items()))))
    return found


def kinds(text: str) -> dict[str, str]:
    """The type of each of vLLM's metric families."""
    return dict(re.findall(r"^# TYPE (vllm:\S+) (\w+)$", text, re.MULTILINE))


@pytest.mark.parametrize("dtype", RECORDED)
async def test_names_labels_and_buckets_are_those_of_the_recording(dtype: str) -> None:
    recorded = scrapes(RECORDINGS / f"{dtype}.metrics.gz")[-1][1]
    async with running("--kv-cache-dtype", dtype, scale=100) as engine:
        await engine.complete(prompt="hi", max_tokens=2)
        simulated = await engine.metrics()
    # The whole of vllm:cache_config_info is compared too: its labels are the configuration.
    assert series(simulated) == series(recorded)
    assert kinds(simulated) == kinds(recorded)
    assert len(kinds(recorded)) > 30


async def test_what_was_served_is_counted() -> None:
    async with running("--served-model-name", "llama", scale=20) as engine:
        await engine.complete(prompt=[1] * 1500, max_tokens=40, ignore_eos=True)
        await engine.complete(prompt="a question", max_tokens=900)
        text = await engine.metrics()
    labels = {"model_name": "llama", "engine": "0"}
    assert sample(text, "vllm:request_success_total", finished_reason="length", **labels) == 1
    assert sample(text, "vllm:request_success_total", finished_reason="stop", **labels) == 1
    assert sample(text, "vllm:prompt_tokens_total", **labels) == 1503
    generated = sample(text, "vllm:generation_tokens_total", **labels)
    assert generated > 40
    assert sample(text, "vllm:request_generation_tokens_sum") == generated
    assert sample(text, "vllm:request_prompt_tokens_bucket", le="2000.0") == 2
    assert sample(text, "vllm:request_prompt_tokens_bucket", le="1000.0") == 1
    assert sample(text, "vllm:inter_token_latency_seconds_count") == generated - 2
    assert sample(text, "vllm:time_to_first_token_seconds_count") == 2
    assert sample(text, "vllm:iteration_tokens_total_sum") == generated + 1503
    assert sample(text, "http_requests_total", handler="/v1/completions", status="2xx") == 2
    parts = ("queue", "prefill", "decode")
    whole = sum(sample(text, f"vllm:request_{part}_time_seconds_sum") for part in parts)
    assert sample(text, "vllm:e2e_request_latency_seconds_sum") == pytest.approx(whole)


async def test_refused_requests_are_counted_by_http_alone() -> None:
    async with running() as engine:
        async with engine.client.post("/v1/completions", data=b"{") as answer:
            assert answer.status == 400
        text = await engine.metrics()
    assert sample(text, "http_requests_total", status="4xx") == 1
    assert sample(text, "vllm:e2e_request_latency_seconds_count") == 0


async def decode_seconds(engine: Running) -> float:
    await engine.complete(prompt=[1] * 100, max_tokens=101, ignore_eos=True)
    return await engine.value("vllm:request_decode_time_seconds_sum")


async def test_a_time_scale_divides_every_time_that_is_reported() -> None:
    async with running() as engine:
        real = await decode_seconds(engine)
    async with running(scale=10) as engine:
        quick = await decode_seconds(engine)
    assert real == pytest.approx(10 * quick)
    # An H200 takes about five milliseconds for a token of an 8B model, one request at a time.
    assert 0.3 < real < 0.7


async def test_running_waiting_and_usage_show_the_present() -> None:
    async with running(*tiny(100), "--max-num-seqs", "2") as engine:
        body = {"prompt": [1] * 300, "max_tokens": 200, "ignore_eos": True}
        asked = [asyncio.ensure_future(engine.complete(**body)) for _ in range(3)]
        await engine.reaches("vllm:num_requests_running", lambda value: value == 2)
        text = await engine.metrics()
        assert sample(text, "vllm:num_requests_waiting") == 1
        assert sample(text, "vllm:num_requests_waiting_by_reason", reason="capacity") == 1
        # Two prompts of 300 tokens fill 19 blocks each of the 100.
        assert 0.38 <= sample(text, "vllm:kv_cache_usage_perc") <= 0.64
        await asyncio.gather(*asked)
        text = await engine.metrics()
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert sample(text, f"vllm:{name}") == 0
