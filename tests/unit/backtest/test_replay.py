"""What would have been decided, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Settings
from kvquant.core.analysis.samples import Arm, Tick
from kvquant.core.backtest.question import HistoricStep, spans, steps
from kvquant.core.backtest.replay import Outcome, Replay
from tests.recordings import pair

SETTINGS = Settings(time_scale=12, min_seconds=240)


def bare(ticks: Iterable[Tick]) -> Iterable[Tick]:
    """Yield the ticks without what was in effect, as Prometheus knows them."""
    for tick in ticks:
        yield replace(tick, step=0, weight=0.0, next_weight=None, next_replicas=None)


def replayed(name: str, text: str, start: float | None = None) -> Outcome:
    recorded = pair(name)
    begin = datetime.fromtimestamp(recorded.steps[0][0] if start is None else start, UTC)
    replay = Replay(SETTINGS, spans(steps(text), begin))
    for tick in bare(recorded.ticks()):
        replay.take(tick)
    return replay.outcome()


def test_nothing_taken_in_is_no_verdict() -> None:
    start = datetime(2026, 11, 25, tzinfo=UTC)
    found = Replay(SETTINGS, spans([HistoricStep(50)], start)).outcome()
    assert (found.verdict, found.decided_at, found.report) == (Verdict.ERROR, None, None)


def test_a_past_that_ends_before_the_first_step_is_no_verdict() -> None:
    found = replayed("auto-int8-calm", "50", start=pair("auto-int8-calm").end + 1)
    assert (found.verdict, found.steps) == (Verdict.ERROR, ())


def test_arms_that_nobody_scraped_are_no_verdict() -> None:
    start = datetime(2026, 11, 25, tzinfo=UTC)
    replay = Replay(SETTINGS, spans([HistoricStep(50)], start))
    for second in range(0, 600, 15):
        replay.take(Tick(start.timestamp() + second, 0, 0.0, Arm(), Arm()))
    assert replay.outcome().verdict is Verdict.ERROR


def test_harm_ends_it_at_once() -> None:
    found = replayed("auto-int8-calm", "25:100s,50")
    assert found.verdict is Verdict.FAIL
    assert found.decided_at is not None
    assert [step.verdict for step in found.steps] == [Verdict.FAIL]
    recorded = pair("auto-int8-calm")
    assert recorded.steps[0][0] < found.decided_at < recorded.end
    assert found.report is not None
    assert found.message == found.report.message


def test_a_step_that_never_passed_holds_the_rollout_there() -> None:
    found = replayed("auto-auto-ladder", "10:60s,25:60s,50")
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.message.startswith("Held at step 1. Not enough evidence yet")
    assert [step.step for step in found.steps] == [1, 2, 3]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step pass that has ended two requests, whatever they were like."""

    def passes(report: object, *_: object, **__: object) -> object:
        enough = (report.canary_requests or 0) >= 2  # type: ignore[attr-defined]
        verdict = Verdict.PASS if enough else Verdict.INCONCLUSIVE
        return replace(report, verdict=verdict, message="so")  # type: ignore[type-var]

    monkeypatch.setattr("kvquant.core.analysis.engine.passes", passes)


@pytest.mark.usefixtures("quick")
def test_it_is_promoted_when_its_last_step_could_have_been_left() -> None:
    found = replayed("auto-auto-ladder", "10:60s,25:60s,50")
    assert (found.verdict, found.message) == (Verdict.PASS, "so")
    begin = pair("auto-auto-ladder").steps[0][0]
    ends = [step.decided_at for step in found.steps]
    assert found.decided_at == ends[-1]
    assert all(at is not None for at in ends)
    assert begin < (ends[0] or 0) < begin + 60 < (ends[1] or 0) < begin + 120 < (ends[2] or 0)


@pytest.mark.usefixtures("quick")
def test_steps_that_the_past_did_not_reach_are_not_passed() -> None:
    found = replayed("auto-auto-ladder", "10:60s,25:60s,50:60m,100")
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.message == "The history ends in step 3 of 4, which passed."
