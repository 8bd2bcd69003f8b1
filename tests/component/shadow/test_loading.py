"""Copies that give the canary load: it alone is asked, as much as its queue and the share allow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.component.shadow.fakes import Engine, completion, hang, running, status

PROMPT: dict[str, Any] = {"model": "m", "prompt": "What is the sky like?", "max_tokens": 700}
LOAD: dict[str, Any] = {"load_only": True, "max_answer_tokens": 8192, "noise_percent": 0}


async def test_the_canary_alone_is_asked_for_as_much_as_the_client_and_nothing_is_kept() -> None:
    async with running(**LOAD) as shadow:
        body = {**PROMPT, "prompt": "Write to jane.doe@example.org", "user": "PLANTED"}
        assert await shadow.mirror(body, headers={"Authorization": "Bearer PLANTED"}) == 202
        await shadow.reaches(1, "kvquant_shadow_answer_seconds_count", arm="canary")
        (asked,) = shadow.canary.asked
        assert asked["max_tokens"] == 700
        assert shadow.baseline.asked == []
        seen = json.dumps([asked, dict(shadow.canary.headers[0])])
        assert "PLANTED" not in seen
        assert "jane.doe" not in seen
        assert shadow.canary.headers[0]["x-kvquant-shadow"] == "1"
        assert await shadow.value("kvquant_shadow_scored_total") == 0
    assert shadow.log.records == []


async def test_a_long_answer_is_cut_off_where_the_client_named_no_limit() -> None:
    async with running(**LOAD) as shadow:
        await shadow.mirror({"model": "m", "prompt": "Tell me everything."})
        await shadow.reaches(1, "kvquant_shadow_answer_seconds_count", arm="canary")
        assert shadow.canary.asked[0]["max_tokens"] == 8192


@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        (Engine(instead=lambda _: status(500, "no")), "load-http5xx"),
        (Engine(instead=hang), "load-timeout"),
    ],
)
async def test_what_the_canary_does_not_answer_is_counted(canary: Engine, reason: str) -> None:
    async with running(None, canary, **LOAD, deadline_seconds=1.0) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.dropped(reason)


async def test_what_cannot_be_cleaned_is_no_load_either() -> None:
    async with running(**LOAD) as shadow:
        await shadow.mirror({"model": "m", "prompt": [1, 2, 3]})
        await shadow.dropped("tokens")
        assert shadow.canary.asked == []


async def test_a_full_cache_and_a_busy_baseline_are_no_reason_to_stop_and_a_queue_is() -> None:
    full = Engine(kv_usage=1.0, waiting=2)
    async with running(
        Engine(kv_usage=1.0, waiting=50), full, **LOAD, canary_waiting=8, deadline_seconds=4.0
    ) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.reaches(1, "kvquant_shadow_answer_seconds_count", arm="canary")
        full.waiting = 9
        await shadow.reaches(1, "kvquant_shadow_throttled")
        await shadow.mirror(PROMPT)
        await shadow.dropped("deadline")
        assert len(full.asked) == 1


async def test_a_flood_is_held_to_the_share_of_what_the_baseline_answers() -> None:
    baseline = Engine(finished=100, instead=lambda _: status(200, "x"))
    async with running(baseline, **LOAD, percent=10.0, deadline_seconds=60.0) as shadow:
        for _ in range(40):
            await shadow.mirror({**PROMPT, "prompt": completion("x")["object"]})
        await shadow.reaches(1, "kvquant_shadow_throttled")
        assert len(shadow.canary.asked) <= 16
