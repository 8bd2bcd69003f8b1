"""The saturation probe against the simulated engine: it catches what breaks only while full."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from engine_sim import quality
from engine_sim.quality import Quality
from kvquant.core.shadow_settings import SATURATED, SATURATED_ANSWERED, ArmSettings
from kvquant.shadow import probe_prompts, probing, replaying
from kvquant.shadow.answers import Answer
from kvquant.shadow.pods import Pods
from kvquant.shadow.probe_prompts import Probe
from kvquant.shadow.probing import Prober, Round
from kvquant.shadow.replaying import Replayer
from tests.component.shadow.fakes import Engine, listening, status
from tests.component.shadow.fakes import running as serving
from tests.engine_sim.running import running, tiny

SMALL = (*tiny(400), "--max-num-seqs", "8")
"""A pool that a few requests fill, as a demo has."""
STRICT_PROMPTS = probing.PROMPTS * 3 // 5


@asynccontextmanager
async def prober(port: int) -> AsyncIterator[tuple[Prober, Pods]]:
    """A prober, and the pods of a canary of one."""

    async def resolve(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    pods = Pods(ArmSettings(host="canary", port=port, deployment="c", dtype="fp8"), resolve)
    await pods.refresh()
    async with replaying.client() as client:
        yield Prober(Replayer(client, time.monotonic), time.monotonic), pods


async def probed(port: int, seed: int = 1) -> Round:
    async with prober(port) as (one, pods):
        return await one.round(pods, seed)


def total(found: Round, signal: str) -> tuple[int, float]:
    """How many pairs have a signal, and the sum of their differences."""
    values = [pair[signal] for pair in found.pairs if signal in pair]
    return len(values), sum(values)


async def test_json_that_breaks_only_while_the_cache_is_full_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(quality.BY_DTYPE, "fp8", Quality(break_saturated=1.0))
    async with running(*SMALL, "--kv-cache-dtype", "fp8", scale=10) as canary:
        found = await probed(canary.port)
    count, harm = total(found, SATURATED)
    assert not found.why_not
    assert count >= STRICT_PROMPTS
    assert harm >= STRICT_PROMPTS / 2, "those that are answered before the queue forms are sound"
    assert total(found, SATURATED_ANSWERED) == (probing.PROMPTS, 0)


async def test_a_sound_canary_is_filled_and_passes() -> None:
    async with running(*SMALL, "--kv-cache-dtype", "fp8", scale=10) as canary:
        found = await probed(canary.port)
        await canary.reaches("vllm:num_requests_running", lambda value: value == 0)
    count, harm = total(found, SATURATED)
    assert not found.why_not
    assert count >= STRICT_PROMPTS
    assert harm == 0
    assert total(found, SATURATED_ANSWERED) == (probing.PROMPTS, 0)


def full(engine: Engine) -> Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]:
    """Let an engine say that requests wait once a filler has come, and then fail."""

    async def answer(body: dict[str, Any]) -> web.StreamResponse:
        if body.get("ignore_eos"):
            engine.waiting = 1
        if engine.waiting:
            return await status(500)
        return web.json_response({"choices": [{"message": {"content": "{}"}}]})

    return answer


async def test_a_canary_that_breaks_down_is_told_for_each_prompt() -> None:
    engine = Engine()
    engine.instead = full(engine)
    async with listening(engine):
        found = await probed(engine.port)
    assert total(found, SATURATED_ANSWERED) == (probing.PROMPTS, probing.PROMPTS)
    assert total(found, SATURATED) == (0, 0)


@pytest.mark.parametrize("code", [429, 503])
async def test_a_canary_that_sheds_load_says_so_and_does_no_harm(code: int) -> None:
    engine = Engine()

    async def answer(body: dict[str, Any]) -> web.StreamResponse:
        if body.get("ignore_eos"):
            engine.waiting = 1
        if engine.waiting:
            return await status(code)
        return web.json_response({"choices": [{"message": {"content": "{}"}}]})

    engine.instead = answer
    async with listening(engine):
        found = await probed(engine.port)
    assert found.pairs == ()


async def test_a_canary_with_requests_of_others_is_left_alone() -> None:
    engine = Engine(in_work=1)
    async with listening(engine):
        found = await probed(engine.port)
    assert "others" in found.why_not
    assert engine.asked == []


async def test_a_canary_that_cannot_be_filled_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probing, "FILL_SECONDS", 0.5)
    engine = Engine()

    async def answer(_body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"choices": [{"message": {"content": "{}"}, "text": "x"}]})

    engine.instead = answer
    async with listening(engine):
        found = await probed(engine.port)
    assert "do not fill" in found.why_not
    assert found.pairs == ()


async def test_replays_wait_for_the_probe_and_the_baseline_is_not_asked_by_it() -> None:
    canary = Engine()
    canary.instead = full(canary)
    async with serving(Engine(), canary, saturation_probe=True) as shadow:
        await shadow.scored(probing.PROMPTS, signal=SATURATED_ANSWERED)
        assert await shadow.harm(SATURATED_ANSWERED) == probing.PROMPTS
        assert shadow.baseline.asked == []
        canary.waiting, canary.instead = 0, None
        await shadow.mirror({"model": "m", "prompt": "Hi"})
        await shadow.scored()
        assert len(shadow.baseline.asked) == 1


async def test_without_a_probe_the_canary_is_asked_what_users_asked_and_no_more() -> None:
    async with serving() as shadow:
        await shadow.mirror({"model": "m", "prompt": "Hi"})
        await shadow.scored()
        assert [body["prompt"] for body in shadow.canary.asked] == ["Hi"]


def test_the_same_seed_gives_the_same_prompts_and_another_one_others() -> None:
    assert probe_prompts.prompts(3, 10, 4096) == probe_prompts.prompts(3, 10, 4096)
    assert not set(probe_prompts.prompts(3, 10, 4096)) & set(probe_prompts.prompts(4, 10, 4096))


GOOD = '{"city": "x", "population": 3, "coastal": true, "names": ["a", "b"]}'


@pytest.mark.parametrize(
    ("kind", "text", "right"),
    [
        (probe_prompts.STRICT, GOOD, True),
        (probe_prompts.STRICT, GOOD[:-3], False),
        (probe_prompts.STRICT, f"```json\n{GOOD}\n```", False),
        (probe_prompts.STRICT, '{"city": "x"}', False),
        (probe_prompts.PLAIN, f"```json\n{GOOD}\n```", True),
        (probe_prompts.PLAIN, f"```json\n{GOOD[:-1]}\n```", False),
        (probe_prompts.PLAIN, "", False),
    ],
)
def test_json_is_right_when_it_is_whole_and_fits(kind: str, text: str, right: bool) -> None:
    assert Probe(kind, "").right(Answer(text)) is right


def test_a_needle_is_right_when_its_code_is_told_and_stands_in_a_prompt_that_fits() -> None:
    (needle,) = (p for p in probe_prompts.prompts(1, 5, 400) if p.kind == probe_prompts.NEEDLE)
    assert needle.text.count(needle.code) == 1
    assert len(needle.text.split()) < 150
    assert needle.right(Answer(f"It is {needle.code}."))
    assert not needle.right(Answer("It is 000."))


@pytest.mark.parametrize("dtype", ["fp8", "int8_per_token_head"])
async def test_the_pool_of_the_demo_is_filled_well_within_a_minute(dtype: str) -> None:
    """With the demo's slow int8, too, every prompt is answered in time."""
    faults = "int8_per_token_head:decode_slowdown=3"
    began = time.monotonic()
    async with running("--kv-cache-dtype", dtype, faults=faults, scale=4) as canary:
        found = await probed(canary.port)
    assert not found.why_not
    assert total(found, SATURATED)[0] >= STRICT_PROMPTS - 2
    assert total(found, SATURATED_ANSWERED) == (probing.PROMPTS, 0)
    assert time.monotonic() - began < 45
