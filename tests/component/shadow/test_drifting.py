"""How likely an answer is, is asked of the canary first: a question may be one too many."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tests.component.shadow.fakes import Engine, Scoring, running

PROMPT = {"model": "m", "prompt": "Why?"}


async def test_the_difference_of_the_likelihoods_is_the_drift() -> None:
    baseline, canary = Scoring(nats=1.0), Scoring(nats=1.25)
    async with running(baseline, canary, noise_percent=100) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored(signal="drift")
        await shadow.scored(signal="drift", pair="noise")
        assert await shadow.harm("drift") == 0.25
        assert await shadow.harm("drift", pair="noise") == 0
    assert [len(canary.scored), len(baseline.scored)] == [1, 2]


async def test_a_canary_that_breaks_off_is_asked_once_and_the_baseline_never() -> None:
    baseline, canary = Scoring(), Scoring(breaks_off=True)
    async with running(baseline, canary, noise_percent=100) as shadow:
        for _ in range(4):
            await shadow.mirror(PROMPT)
        await shadow.scored(4)
        unscored = "kvquant_shadow_unscored_total"
        await shadow.reaches(1, unscored, pair="canary", reason="unanswered")
        await shadow.reaches(3, unscored, pair="canary", reason="unsafe")
        assert await shadow.value("kvquant_shadow_scored_total", signal="drift") == 0
    assert len(canary.scored) == 1
    assert not baseline.scored, "it has users"


async def test_after_one_that_went_well_a_break_is_no_reason_to_stop() -> None:
    baseline, canary = Scoring(), Scoring()
    async with running(baseline, canary) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored(signal="drift")
        canary.breaks_off = True
        await shadow.mirror(PROMPT)
        await shadow.reaches(1, "kvquant_shadow_unscored_total", reason="unanswered")
        canary.breaks_off = False
        await shadow.mirror(PROMPT)
        await shadow.scored(2, signal="drift")
    assert len(baseline.scored) == 2, "what the canary could not answer, the baseline is not asked"


async def test_while_the_canary_has_scored_nothing_the_baseline_is_not_compared_with_itself() -> (
    None
):
    async def broken(_body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=500)

    baseline = Scoring()
    async with running(baseline, Engine(instead=broken), noise_percent=100) as shadow:
        await shadow.mirror(PROMPT)
        await shadow.scored(pair="noise")
        await shadow.reaches(1, "kvquant_shadow_unscored_total", pair="noise", reason="unproven")
    assert not baseline.scored
