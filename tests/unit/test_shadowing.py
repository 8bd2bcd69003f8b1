"""Phase Shadowing: what is copied and when, and each way out of it, unhappy ones first."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kvquant.api.v1alpha1 import (
    AlertPolicy,
    AlertReport,
    AlertSource,
    DecisionKind,
    Phase,
    PodProof,
    Verdict,
    Weights,
)
from kvquant.core.machine import decide
from kvquant.core.observation import PodView, Problem, Requests, RouterView
from kvquant.core.shadow_settings import CITATIONS
from kvquant.core.turn import Decision
from tests.fakes.shadows import pairs
from tests.unit.test_machine import NOW, PLAN, POD, PROOF, seen, status, turn, why_held

COPYING = Weights(baseline=100, canary=0, mirror=5)
LONG = PLAN.shadow.soak.total_seconds() + 1


def shadowed(*, age: float = LONG, **fields: Any) -> Decision:
    """Return what becomes of a rollout that has been shadowing for so many seconds."""
    known: dict[str, Any] = {"shadow": pairs(400), "shadow_ready": True}
    before = status(Phase.SHADOWING, age=age, weights=COPYING)
    return decide(PLAN, before, seen(**{**known, **fields}), NOW)


def alert(policy: AlertPolicy = AlertPolicy.ROLLBACK) -> AlertReport:
    return AlertReport(
        name="Slow",
        fingerprint="f",
        since=NOW,
        heard_at=NOW,
        learned=AlertSource.WEBHOOK,
        policy=policy,
    )


def test_copying_begins_once_every_pod_is_proven() -> None:
    decision = turn(status(Phase.VERIFYING))
    after = decision.status
    assert (after.phase, after.weights, after.step) == (Phase.SHADOWING, COPYING, 0)
    assert after.decisions[-1].kind is DecisionKind.SHADOW
    assert decision.requeue_after == timedelta(0)


def test_a_rollout_that_asks_for_no_shadow_begins_with_its_steps() -> None:
    plan = replace(PLAN, shadow=replace(PLAN.shadow, percent=0))
    after = decide(plan, status(Phase.VERIFYING), seen(), NOW).status
    assert (after.phase, after.step, after.weights.mirror) == (Phase.PROGRESSING, 1, 0)


def test_good_answers_begin_the_steps_and_end_the_copying() -> None:
    decision = shadowed()
    after = decision.status
    assert (after.phase, after.step) == (Phase.PROGRESSING, 1)
    assert after.weights == Weights(baseline=90, canary=10)
    assert "400 pairs of answers" in after.decisions[-1].message
    assert after.shadow is not None
    assert after.shadow.verdict is Verdict.PASS


def test_spoilt_answers_end_it_before_any_user_met_the_canary() -> None:
    after = shadowed(shadow=pairs(400, **{CITATIONS: 0.4})).status
    assert after.phase is Phase.ROLLING_BACK
    assert after.weights == Weights(baseline=100, canary=0)
    assert after.decisions[-1].reason == "QualityFailed"
    assert "citations" in after.decisions[-1].message
    assert after.rejected_spec_hash is not None
    assert all(d.weight == 0 for d in after.decisions)


def test_spoilt_answers_end_it_even_while_paused_or_without_the_shadow_service() -> None:
    bad = pairs(400, **{CITATIONS: 0.4})
    for fields in ({"requests": Requests(paused="Ada")}, {"shadow_ready": False}):
        assert shadowed(shadow=bad, **fields).status.phase is Phase.ROLLING_BACK


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("InsufficientEvidence", {"shadow": pairs(20)}),
        ("MetricsUnavailable", {"shadow": None}),
        ("ShadowNotReady", {"shadow_ready": False, "shadow_trouble": "ErrImagePull"}),
        ("MetricsUnavailable", {"shadow": None, "metrics_problem": "Prometheus is away"}),
        ("Paused", {"requests": Requests(paused="Ada")}),
        ("RouterNotReady", {"router": RouterView(available=2, connected=2, applied=1)}),
        ("TargetNotFound", {"problem": Problem("TargetNotFound", "gone")}),
        ("CanaryNotReady", {"canary_pods": (replace(POD, serving=False),)}),
        ("Soaking", {"age": 10}),
    ],
)
def test_what_keeps_the_first_step_from_beginning_is_told(
    reason: str, fields: dict[str, Any]
) -> None:
    after = shadowed(**fields).status
    assert (after.phase, why_held(after)) == (Phase.SHADOWING, reason)
    assert after.weights == COPYING, "what is missing may come with further copies"


def test_nothing_is_copied_while_an_alert_fires() -> None:
    before = status(Phase.SHADOWING, age=LONG, weights=COPYING, alerts=(alert(),))
    known = seen(shadow=pairs(400), shadow_ready=True)
    after = decide(PLAN, before, known, NOW).status
    assert (after.phase, why_held(after)) == (Phase.SHADOWING, "AlertFiring")
    assert after.weights == Weights(baseline=100, canary=0)
    over = decide(PLAN, after.model_copy(update={"alerts": ()}), seen(shadow_ready=True), NOW)
    assert over.status.weights == COPYING


def test_the_kill_switch_ends_the_copying_at_once() -> None:
    after = shadowed(requests=Requests(killed="Ada")).status
    assert (after.phase, after.weights) == (Phase.VERIFYING, Weights(baseline=100, canary=0))
    assert after.killed


def test_an_abort_rolls_back() -> None:
    assert shadowed(requests=Requests(abort="a1")).status.phase is Phase.ROLLING_BACK


def test_promote_does_without_more_pairs() -> None:
    after = shadowed(shadow=pairs(3), requests=Requests(promote="p1")).status
    assert (after.phase, after.step, after.handled.promote) == (Phase.PROGRESSING, 1, "p1")


@pytest.mark.parametrize(
    ("choice", "phase"),
    [
        ("hold", Phase.SHADOWING),
        ("proceed", Phase.PROGRESSING),
        ("rollback", Phase.ROLLING_BACK),
    ],
)
def test_what_becomes_of_answers_that_do_not_decide_is_the_users_choice(
    choice: str, phase: Phase
) -> None:
    shadow = replace(PLAN.shadow, on_inconclusive=choice)
    plan = replace(PLAN, shadow=shadow)
    for age, expected in (
        (shadow.decide_within.total_seconds() - 1, Phase.SHADOWING),
        (shadow.decide_within.total_seconds() + 1, phase),
    ):
        before = status(Phase.SHADOWING, age=age, weights=COPYING)
        known = seen(shadow=pairs(20), shadow_ready=True)
        assert decide(plan, before, known, NOW).status.phase is expected


@pytest.mark.parametrize("problem", ["away", None])
@pytest.mark.parametrize("choice", ["proceed", "rollback"])
def test_missing_metrics_are_never_what_on_inconclusive_speaks_of(
    choice: str, problem: str | None
) -> None:
    plan = replace(PLAN, shadow=replace(PLAN.shadow, on_inconclusive=choice))
    before = status(Phase.SHADOWING, age=10**6, weights=COPYING)
    known = seen(shadow=None, shadow_ready=True, metrics_problem=problem)
    after = decide(plan, before, known, NOW).status
    assert (after.phase, why_held(after)) == (Phase.SHADOWING, "MetricsUnavailable")


def test_a_canary_whose_last_pod_is_gone_gets_no_copies() -> None:
    after = shadowed(canary_pods=()).status
    assert (after.phase, after.weights.mirror) == (Phase.VERIFYING, 0)


def test_a_crash_loop_under_copies_rolls_back() -> None:
    dying = PodView("pool-1", ready=True, serving=True, container_id="c1", restarts=3, died_at=NOW)
    after = shadowed(canary_pods=(dying,)).status
    assert after.phase is Phase.ROLLING_BACK
    assert after.decisions[-1].reason == "EngineFailsToStart"


def test_a_pod_proven_wrong_rolls_back() -> None:
    wrong = PodProof(pod="pool-1", container_id="c1", verdict=Verdict.FAIL, message="bf16")
    assert shadowed(proofs=(wrong,)).status.phase is Phase.ROLLING_BACK
    assert shadowed(proofs=(PROOF,)).status.phase is Phase.PROGRESSING


def test_the_same_verdict_is_written_once_a_minute() -> None:
    first = shadowed(shadow=pairs(20)).status
    second = decide(PLAN, first, seen(shadow=pairs(25), shadow_ready=True), NOW).status
    assert second.shadow == first.shadow
    later = NOW + timedelta(seconds=61)
    third = decide(PLAN, second, seen(shadow=pairs(25), shadow_ready=True), later).status
    assert third.shadow is not None
    assert third.shadow.pairs == 25
