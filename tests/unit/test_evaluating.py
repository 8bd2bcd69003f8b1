"""Phase Evaluating: each way out of it, unhappy ones first."""

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
    EvaluationReport,
    Phase,
    PodProof,
    Status,
    Verdict,
    Weights,
)
from kvquant.core.evaluating import TRIES, WAITS
from kvquant.core.evaluation_manifests import GRACE, START_WITHIN
from kvquant.core.evaluation_reading import EvaluationView
from kvquant.core.evaluation_summary import Outcome
from kvquant.core.machine import decide
from kvquant.core.observation import PodView, Problem, Requests, RouterView
from kvquant.core.plan import PlannedEvaluation
from kvquant.core.turn import Decision
from tests.fakes.evaluations import JOB, view
from tests.unit.test_machine import NOW, PLAN, POD, seen, status, why_held

HOUR = timedelta(hours=1)
EVALUATION = PlannedEvaluation(deadline=HOUR)
EVALUATED = replace(PLAN, evaluation=EVALUATION)
NOBODY = Weights(baseline=100, canary=0, mirror=0)
NEXT = "llama-fp8-eval-2"


def report(age: timedelta = timedelta(minutes=1), **fields: Any) -> EvaluationReport:
    """Return a run that is on its way, unless the fields say otherwise."""
    return EvaluationReport(**{"run": 1, "job": JOB, "started_at": NOW - age, **fields})


def failed(failures: int, age: timedelta = timedelta(hours=9)) -> EvaluationReport:
    """Return a run that failed itself, as so many before it."""
    return report(
        verdict=Verdict.ERROR,
        reason="EvaluationInterrupted",
        message="Evicted.",
        failures=failures,
        ended_at=NOW - age,
    )


def evaluated(
    run: EvaluationView | None = None,
    *,
    before: EvaluationReport | None = None,
    asked: PlannedEvaluation = EVALUATION,
    **fields: Any,
) -> Decision:
    """Return what becomes of a rollout that is evaluating, when its run is seen like this."""
    return decide(
        replace(PLAN, evaluation=asked),
        status(Phase.EVALUATING, evaluation=before or report()),
        seen(**{"evaluation": run, "next_job": NEXT, **fields}),
        NOW,
    )


def of(decision: Decision | Status) -> EvaluationReport:
    found = decision.status if isinstance(decision, Decision) else decision
    assert found.evaluation is not None
    return found.evaluation


def alert() -> AlertReport:
    return AlertReport(
        name="Slow",
        fingerprint="f",
        since=NOW,
        heard_at=NOW,
        learned=AlertSource.WEBHOOK,
        policy=AlertPolicy.ROLLBACK,
    )


# In and on.


def test_it_begins_once_every_pod_is_proven_and_moves_nobody() -> None:
    decision = decide(EVALUATED, status(Phase.VERIFYING), seen(), NOW)
    after = decision.status
    assert (after.phase, after.weights, after.step) == (Phase.EVALUATING, NOBODY, 0)
    assert after.decisions[-1].kind is DecisionKind.EVALUATE
    assert decision.requeue_after == timedelta(0)


def test_a_rollout_without_a_set_knows_no_such_phase() -> None:
    assert decide(PLAN, status(Phase.VERIFYING), seen(), NOW).status.phase is Phase.SHADOWING


def test_a_run_is_asked_for_by_name_before_it_is_made() -> None:
    decision = evaluated(before=EvaluationReport())
    assert of(decision) == EvaluationReport(run=1, job=NEXT, started_at=NOW)
    assert decision.requeue_after == timedelta(0), "the next pass makes the Job"
    assert decision.status.phase is Phase.EVALUATING


def test_a_pass_leads_to_shadowing() -> None:
    after = evaluated(view(Outcome.PASS)).status
    assert (after.phase, after.weights.canary) == (Phase.SHADOWING, 0)
    assert "as well as the baseline" in after.decisions[-1].message
    assert (of(after).verdict, of(after).examples, of(after).answered) == (Verdict.PASS, 1200, 1190)
    (measure,) = of(after).measures
    assert (measure.name, measure.lower, measure.margin) == ("citations", "-0.004", "0.02")


def test_a_pass_leads_to_the_first_step_of_a_rollout_without_shadowing() -> None:
    plan = replace(EVALUATED, shadow=replace(PLAN.shadow, percent=0))
    before = status(Phase.EVALUATING, evaluation=report())
    after = decide(plan, before, seen(evaluation=view(Outcome.PASS)), NOW).status
    assert (after.phase, after.step, after.weights.canary) == (Phase.PROGRESSING, 1, 10)


def test_what_has_passed_in_this_attempt_is_not_asked_again() -> None:
    before = status(Phase.VERIFYING, evaluation=report(verdict=Verdict.PASS))
    assert decide(EVALUATED, before, seen(), NOW).status.phase is Phase.SHADOWING


# Verdicts against it.


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"requests": Requests(paused="Ada")},
        {"requests": Requests(promote="p1")},
        {"problem": Problem("TargetNotFound", "gone")},
        {"router": RouterView(available=2, connected=2, applied=1)},
    ],
)
def test_a_fail_ends_it_before_any_user_met_the_canary(fields: dict[str, Any]) -> None:
    after = evaluated(view(Outcome.FAIL), **fields).status
    assert (after.phase, after.weights) == (Phase.ROLLING_BACK, NOBODY)
    last = after.decisions[-1]
    assert (last.kind, last.reason) == (DecisionKind.ROLL_BACK, "EvaluationFailed")
    assert "Before any user met the canary: The canary loses citations" in last.message
    assert after.rejected_spec_hash == after.spec_hash
    assert all(d.weight == 0 for d in after.decisions)


@pytest.mark.parametrize(
    ("choice", "phase"),
    [
        ("hold", Phase.EVALUATING),
        ("proceed", Phase.SHADOWING),
        ("rollback", Phase.ROLLING_BACK),
    ],
)
def test_what_becomes_of_a_set_that_does_not_decide_is_the_users_choice(
    choice: str, phase: Phase
) -> None:
    after = evaluated(
        view(Outcome.INCONCLUSIVE), asked=replace(EVALUATION, on_inconclusive=choice)
    ).status
    assert after.phase is phase
    assert of(after).verdict is Verdict.INCONCLUSIVE
    if choice == "hold":
        assert why_held(after) == "EvaluationInconclusive"
        again = decide(EVALUATED, after, seen(next_job=NEXT), NOW + HOUR).status
        assert of(again).run == 1, "nobody asked for another run"


# What is no verdict.


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("Evaluating", {"run": None}),
        ("Evaluating", {"run": view()}),
        ("Evaluating", {"run": view(Outcome.FAIL, job="of-another-run")}),
        ("Evaluating", {"run": view(failure="EvaluationBroken", job="of-another-run")}),
        ("EvaluationNotStarted", {"run": view(started=False, trouble="ErrImagePull: no such")}),
        ("Paused", {"run": view(Outcome.PASS), "requests": Requests(paused="Ada")}),
        ("TargetNotFound", {"run": view(), "problem": Problem("TargetNotFound", "gone")}),
        ("RouterNotReady", {"run": view(Outcome.PASS), "router": RouterView(2, 2, 1)}),
        (
            "CanaryNotReady",
            {"run": view(Outcome.PASS), "canary_pods": (replace(POD, serving=False),)},
        ),
    ],
)
def test_what_keeps_it_from_going_on_is_told(reason: str, fields: dict[str, Any]) -> None:
    after = evaluated(**fields).status
    assert (after.phase, why_held(after), after.weights) == (Phase.EVALUATING, reason, NOBODY)


def test_a_set_that_is_not_there_is_waited_for_without_a_run() -> None:
    missing = Problem("EvaluationDatasetMissing", "there is no ConfigMap 'rag'")
    after = evaluated(before=EvaluationReport(), evaluation_problem=missing).status
    assert why_held(after) == "EvaluationDatasetMissing"
    assert of(after) == EvaluationReport(), "no run was begun, and none has failed"


def test_a_verdict_counts_though_the_set_is_gone_by_then() -> None:
    missing = Problem("EvaluationDatasetMissing", "there is no ConfigMap 'rag'")
    after = evaluated(view(Outcome.PASS), evaluation_problem=missing).status
    assert after.phase is Phase.SHADOWING


@pytest.mark.parametrize(
    ("run", "age", "reason"),
    [
        (view(failure="EvaluationInterrupted"), timedelta(minutes=1), "EvaluationInterrupted"),
        (view(started=False), START_WITHIN + timedelta(seconds=1), "EvaluationNotStarted"),
        (view(), HOUR + START_WITHIN + 3 * GRACE, "EvaluationDeadlineExceeded"),
    ],
)
def test_a_run_that_fails_itself_is_neither_passed_nor_held_against_the_canary(
    run: EvaluationView, age: timedelta, reason: str
) -> None:
    after = evaluated(run, before=report(age)).status
    assert (after.phase, why_held(after)) == (Phase.EVALUATING, reason)
    assert (of(after).verdict, of(after).reason, of(after).failures) == (Verdict.ERROR, reason, 1)
    assert after.rejected_spec_hash is None


def test_a_failed_run_is_tried_again_after_a_while_and_not_for_ever() -> None:
    for failures, wait in enumerate(WAITS, 1):
        soon = evaluated(before=failed(failures, wait - timedelta(seconds=5)))
        assert of(soon).run == 1
        assert soon.requeue_after == timedelta(seconds=5)
        assert "tried again at 12:00:05 UTC" in (soon.status.verdict or "")
        due = evaluated(before=failed(failures, wait))
        assert of(due) == EvaluationReport(run=2, job=NEXT, started_at=NOW, failures=failures)
    never = evaluated(before=failed(TRIES))
    assert (of(never).run, why_held(never.status)) == (1, "EvaluationInterrupted")
    held = never.status.condition("Held")
    assert held is not None
    assert "kubectl kvquant retry" in held.message


def test_a_verdict_forgets_the_failures_before_it() -> None:
    after = evaluated(view(Outcome.INCONCLUSIVE), before=report(failures=2)).status
    assert of(after).failures == 0


def test_an_evaluation_that_keeps_failing_rolls_back_where_the_spec_says_so() -> None:
    asked = replace(EVALUATION, on_error="rollback")
    assert evaluated(before=failed(1), asked=asked).status.phase is Phase.EVALUATING
    after = evaluated(before=failed(TRIES), asked=asked).status
    assert after.phase is Phase.ROLLING_BACK
    assert after.decisions[-1].reason == "EvaluationError"
    assert "says nothing of the canary" in after.decisions[-1].message


@pytest.mark.parametrize(
    "before",
    [failed(TRIES), report(verdict=Verdict.INCONCLUSIVE, message="too few")],
)
def test_retry_asks_the_set_again_and_promote_does_without(before: EvaluationReport) -> None:
    again = evaluated(before=before, requests=Requests(retry="r1")).status
    assert of(again) == EvaluationReport(run=2, job=NEXT, started_at=NOW)
    assert again.handled.retry == "r1"
    on = evaluated(before=before, requests=Requests(promote="p1")).status
    assert (on.phase, on.handled.promote) == (Phase.SHADOWING, "p1")
    assert of(on).verdict is not Verdict.PASS


def test_promote_skips_the_set_and_not_the_shadowing_after_it() -> None:
    after = evaluated(view(), requests=Requests(promote="p1")).status
    assert after.phase is Phase.SHADOWING
    later = decide(EVALUATED, after, seen(requests=Requests(promote="p1")), NOW).status
    assert later.phase is Phase.SHADOWING


# From outside.


def test_the_kill_switch_ends_the_run_at_once_and_the_next_begins_anew() -> None:
    decision = evaluated(view(), requests=Requests(killed="Ada"))
    assert (decision.status.phase, decision.status.weights) == (Phase.VERIFYING, NOBODY)
    assert decision.requeue_after == timedelta(0), "the Job is stopped now and not in a while"
    lifted = decide(EVALUATED, decision.status, seen(), NOW).status
    lifted = decide(EVALUATED, lifted, seen(), NOW).status
    assert (lifted.phase, of(lifted)) == (Phase.EVALUATING, EvaluationReport(run=1))


def test_an_abort_rolls_back_and_stops_the_job() -> None:
    decision = evaluated(view(), requests=Requests(abort="a1"))
    assert decision.status.phase is Phase.ROLLING_BACK
    assert decision.requeue_after == timedelta(0)


def test_an_alert_stops_the_run_which_begins_anew_when_it_is_over() -> None:
    before = status(Phase.EVALUATING, evaluation=report(), alerts=(alert(),))
    decision = decide(EVALUATED, before, seen(evaluation=view(), next_job=NEXT), NOW)
    assert why_held(decision.status) == "AlertFiring"
    assert of(decision) == EvaluationReport(run=1)
    assert decision.requeue_after == timedelta(0)
    over = decision.status.model_copy(update={"alerts": ()})
    again = decide(EVALUATED, over, seen(next_job=NEXT), NOW).status
    assert (of(again).run, of(again).job, of(again).failures) == (2, NEXT, 0)


def test_an_alert_voids_no_verdict() -> None:
    before = status(Phase.EVALUATING, evaluation=report(), alerts=(alert(),))
    after = decide(EVALUATED, before, seen(evaluation=view(Outcome.PASS)), NOW).status
    assert (why_held(after), of(after).verdict) == ("AlertFiring", Verdict.PASS)


@pytest.mark.parametrize("pods", [(), (replace(POD, ready=False),)])
def test_a_canary_whose_last_pod_goes_is_not_blamed_for_what_it_could_not_answer(
    pods: tuple[PodView, ...],
) -> None:
    after = evaluated(view(Outcome.FAIL), canary_pods=pods).status
    assert after.phase is Phase.VERIFYING
    assert after.decisions[-1].reason == "CanaryLost"
    back = decide(EVALUATED, after, seen(), NOW).status
    assert (back.phase, of(back)) == (Phase.EVALUATING, EvaluationReport(run=1))


def test_an_engine_that_keeps_dying_of_the_set_rolls_back() -> None:
    dying = replace(POD, restarts=3, died_at=NOW, death="Error, exit code 1")
    after = evaluated(view(), canary_pods=(dying,)).status
    assert after.phase is Phase.ROLLING_BACK
    assert after.decisions[-1].reason == "EngineFailsToStart"


def test_a_pod_proven_wrong_rolls_back() -> None:
    wrong = PodProof(pod="pool-1", container_id="c1", verdict=Verdict.FAIL, message="bf16")
    assert evaluated(view(), proofs=(wrong,)).status.phase is Phase.ROLLING_BACK


def test_looking_again_writes_nothing_new() -> None:
    first = evaluated(view()).status
    again = decide(EVALUATED, first, seen(evaluation=view(), next_job=NEXT), NOW + GRACE).status
    assert again == first
