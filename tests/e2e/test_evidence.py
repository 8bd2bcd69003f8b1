"""What the analysis makes of little evidence, of gaps in it and of engines at their limit."""

from __future__ import annotations

import re
import time

import pytest

from kvdemo.load import percentile
from kvquant.api.v1alpha1 import DecisionKind, Phase, Status
from tests.e2e.stage import (
    LADDER,
    Stage,
    blamed,
    cause_of,
    failures,
    holds,
    moves,
    once,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

OUTAGE = 20.0
"""Seconds without Prometheus, where everything is 15 times quicker: five minutes of production."""

LEAST = 16.0
"""Seconds of evidence that a step needs here, for the same reason."""

STEPS = [{"weight": 40, "soak": "25s"}, {"weight": 100, "soak": "5s"}]
"""The first one lasts long enough for what is to happen in it."""


def test_while_prometheus_is_away_nothing_moves_and_an_empty_one_lets_it_go_on(
    stage: Stage,
) -> None:
    stage.serve()
    stage.roll_out("fp8", "fp8", steps=STEPS)
    load = stage.send()
    before = stage.until("fp8", lambda s: counted(s) > 0, 120, "evidence should be counted")
    assert before.weights.canary == 40
    stage.stop_prometheus()
    try:
        stage.until(
            "fp8", lambda s: holds(s, "Held", "MetricsUnavailable"), 40, "the rollout should hold"
        )
        # Well beyond the soak: time alone is no evidence.
        since = time.monotonic()
        later = stage.until(
            "fp8", lambda _: time.monotonic() > since + OUTAGE, OUTAGE + 10, "time should pass"
        )
    finally:
        stage.start_prometheus()
    assert (later.step, later.weights) == (before.step, before.weights)
    assert holds(later, "Held", "MetricsUnavailable")
    after = stage.until(
        "fp8",
        lambda s: s.step > 1 or not holds(s, "Held", "MetricsUnavailable"),
        60,
        "the evidence should be read again",
    )
    assert after.step > 1 or counted(after) >= counted(before), "what was counted still counts"
    promoted = stage.until_settled("fp8", Phase.PROMOTED)
    load.stop()

    assert stage.weights == LADDER
    assert moves(promoted) == once(steps=2)
    assert not failures(load)


def test_an_operator_that_is_killed_in_mid_step_decides_as_if_it_had_not_been(
    stage: Stage,
) -> None:
    stage.serve(faults="int8_per_token_head:decode_slowdown=3")
    stage.roll_out("fp8", "fp8", steps=STEPS)
    load = stage.send()
    stage.until("fp8", lambda s: s.weights.canary == 40, 90, "the first step should begin")
    stage.until("fp8", lambda s: counted(s) > 0, 60, "evidence should be counted")
    wait_until(
        lambda: sum(o.from_canary for o in load.outcomes) >= 120,
        60,
        "most of the evidence should be there",
        0.1,
    )
    before = stage.status("fp8")
    assert before.step == 1
    assert stage.kill_operator()
    stage.operator_is_back()
    back = time.time()
    after = stage.until("fp8", lambda s: s.step > 1, 120, "the first step should pass")
    passed = next(d for d in after.decisions if d.kind is DecisionKind.PROVISION)
    assert passed.at.timestamp() - back < LEAST, "it has not collected its evidence anew"
    told = re.search(r"after ([\d,]+) canary", passed.message)
    assert told is not None
    assert int(told[1].replace(",", "")) >= counted(before)
    promoted = stage.until_settled("fp8", Phase.PROMOTED)
    assert stage.weights == LADDER
    assert moves(promoted) == once(steps=2)

    stage.weights.clear()
    stage.roll_out("int8", "int8", target="fp8-pool", steps=STEPS)
    stage.until("int8", lambda s: s.weights.canary == 40, 90, "the first step should begin")
    assert stage.kill_operator()
    rolled_back = stage.until_settled("int8", Phase.ROLLED_BACK)
    load.stop()
    assert cause_of(rolled_back).reason == "AnalysisFailed"
    assert blamed(rolled_back) == {"p99"}, cause_of(rolled_back).message
    assert stage.weights == [0, 40, 0]
    assert not failures(load)


def test_with_few_requests_it_tells_how_long_the_evidence_will_take(stage: Stage) -> None:
    stage.serve()
    stage.roll_out("fp8", "fp8")
    load = stage.send(rate=2)
    told = stage.until(
        "fp8",
        lambda s: s.analysis is not None and s.analysis.eta_seconds is not None,
        120,
        "the time to go should be told",
    )
    assert told.analysis is not None
    assert told.analysis.eta_seconds is not None
    assert told.analysis.eta_seconds > 10
    held = told.condition("Held")
    assert held is not None
    assert held.reason == "InsufficientEvidence"
    assert "requests" in held.message
    assert held.message.endswith("to go at the present rate.")
    load.stop()
    assert not failures(load)


@pytest.mark.full
def test_an_equal_canary_at_its_limit_is_never_blamed_for_its_queue(stage: Stage) -> None:
    # Eight at a time, each of which takes 0.75 s: ten requests a second are an engine's limit.
    stage.serve(faults="*:decode_slowdown=10", at_once=8)
    steps = [{"weight": 50, "soak": "10m"}, {"weight": 100}]
    stage.roll_out("fp8", "fp8", steps=steps)
    stage.until("fp8", lambda s: s.weights.canary == 50, 90, "the first step should begin")
    load = stage.send(rate=21)
    since = time.monotonic()
    status = stage.until(
        "fp8",
        lambda s: s.phase is not Phase.PROGRESSING or time.monotonic() > since + 120,
        150,
        "two minutes should pass, half an hour of production",
    )
    load.stop()
    assert status.phase is Phase.PROGRESSING, cause_of(status).message
    assert counted(status) > 100, "it was looked at"
    for canary in (True, False):
        took = percentile((o.seconds for o in load.outcomes if o.from_canary is canary), 0.9)
        assert took is not None
        assert took > 1.2, "the engines were at their limit"
    assert not failures(load)


def counted(status: Status) -> int:
    """Return the canary's requests that count as evidence in the latest look."""
    return (status.analysis.canary_requests or 0) if status.analysis is not None else 0
