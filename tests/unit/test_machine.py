"""One decision at a time: each phase's ways out, unhappy ones first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kvquant.api.v1alpha1 import (
    AlertReport,
    DecisionKind,
    HandledRequests,
    Phase,
    PodProof,
    Pool,
    Spec,
    Status,
    Verdict,
    Weights,
)
from kvquant.core.evidence import Evidence
from kvquant.core.machine import decide
from kvquant.core.observation import (
    Candidate,
    Observation,
    PodView,
    Problem,
    Requests,
    RouterView,
)
from kvquant.core.plan import Plan, spec_hash
from kvquant.core.turn import DECISIONS_KEPT, Decision, Turn
from tests.fakes.metrics import arm
from tests.fakes.reports import report

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SPEC = Spec.model_validate(
    {"targetRef": {"name": "llama"}, "kvCache": {"dtype": "fp8"}, "traffic": {"router": {}}}
)
PLAN = Plan.of(SPEC)
FOLLOWING = RouterView(available=2, connected=2, applied=2)
POD = PodView("pool-1", ready=True, serving=True, container_id="c1", started_at=NOW)
PROOF = PodProof(pod="pool-1", container_id="c1", verdict=Verdict.PASS, capacity_tokens=196_608)
GOOD = Evidence(NOW, arm(), arm())
BASELINE = Pool(deployment="llama", slot="blue", dtype="auto", replicas=2)
CANDIDATE = Candidate("vllm", "fp8", "llama-router", BASELINE, "llama-fp8-pool", "green")


def status(phase: Phase, *, age: float = 60, step: int = 0, **fields: Any) -> Status:
    """Return the status of an attempt that has been in a phase, and a step, for some seconds."""
    begun = NOW - timedelta(seconds=age)
    weight = {Phase.PROGRESSING: PLAN.weight(step), Phase.PROMOTED: 100}.get(phase, 0)
    known: dict[str, Any] = {
        "phase": phase,
        "phase_started_at": begun,
        "attempt": 1,
        "spec_hash": spec_hash(SPEC),
        "resolved_dtype": "fp8",
        "router": "llama-router",
        "baseline": BASELINE,
        "canary": Pool(deployment="llama-fp8-pool", slot="green", dtype="fp8", replicas=1),
        "step": step,
        "total_steps": 4,
        "step_started_at": begun if step else None,
        "weights": Weights(baseline=100 - weight, canary=weight),
    }
    return Status(**{**known, **fields})


def seen(**fields: Any) -> Observation:
    """Return an observation in which nothing is wrong, but for the given."""
    known: dict[str, Any] = {
        "baseline_pods": (PodView("llama-1", ready=True, serving=False),),
        "canary_pods": (POD,),
        "proofs": (PROOF,),
        "router": FOLLOWING,
        "evidence": GOOD,
        "report": report(),
    }
    return Observation(generation=3, spec_hash=spec_hash(SPEC), **{**known, **fields})


EMPTY_SLOT = Evidence(NOW, arm(), arm(healthy=0))
"""What the routers show until the canary's pods have been proven."""


def turn(before: Status, **fields: Any) -> Decision:
    if before.phase is Phase.PROVISIONING:
        fields = {"evidence": EMPTY_SLOT, **fields}
    return decide(PLAN, before, seen(**fields), NOW)


def why_held(after: Status) -> str | None:
    condition = after.condition("Held")
    return condition.reason if condition is not None and condition.status == "True" else None


# Pending.


def test_a_problem_keeps_it_pending_and_stalled() -> None:
    problem = Problem("TargetNotFound", "spec.targetRef.name: there is no Deployment 'llama'.")
    decision = turn(Status(), problem=problem)
    assert (decision.status.phase, why_held(decision.status)) == (Phase.PENDING, "TargetNotFound")
    assert [a.reason for a in decision.announcements] == ["TargetNotFound"]
    again = decide(PLAN, decision.status, seen(problem=problem), NOW + timedelta(seconds=15))
    assert again.announcements == (), "told once"
    assert again.status == decision.status, "and written once"


@pytest.mark.parametrize("asked", [Requests(paused="Ada"), Requests(killed="Ada")])
def test_it_does_not_begin_while_paused_or_killed(asked: Requests) -> None:
    after = turn(Status(), candidate=CANDIDATE, requests=asked).status
    assert (after.phase, after.attempt) == (Phase.PENDING, 0)


def test_it_begins_with_everything_that_the_attempt_needs_and_no_traffic() -> None:
    asked = Requests(promote="old", abort="old")
    decision = turn(Status(), candidate=CANDIDATE, requests=asked)
    after = decision.status
    assert (after.phase, after.attempt, after.spec_hash) == (
        Phase.PROVISIONING,
        1,
        spec_hash(SPEC),
    )
    assert after.weights == Weights(baseline=100, canary=0)
    assert after.canary == Pool(deployment="llama-fp8-pool", slot="green", dtype="fp8", replicas=1)
    assert after.handled == HandledRequests(promote="old", abort="old")
    assert decision.requeue_after == timedelta(0), "what was persisted is acted upon at once"


# Provisioning and verifying.


def test_an_engine_that_keeps_dying_ends_the_attempt_and_names_the_exit_code() -> None:
    dying = replace(POD, ready=False, restarts=3, death="Completed, exit code 0")
    after = turn(status(Phase.PROVISIONING), canary_pods=(dying,)).status
    assert after.phase is Phase.ROLLING_BACK
    assert "pool-1 ended before it served (Completed, exit code 0; 3 restarts)" in (
        after.decisions[-1].message
    )


def test_an_engine_that_keeps_dying_of_its_traffic_is_not_said_to_have_never_served() -> None:
    dying = replace(POD, ready=False, restarts=3, death="Completed, exit code 0")
    withdrawn = status(Phase.VERIFYING).model_copy(update={"canary_since": NOW})
    (*_, cause) = turn(withdrawn, canary_pods=(dying,)).status.decisions
    assert cause.reason == "EngineKeepsDying"
    assert "pool-1 (Completed, exit code 0; 3 restarts)" in cause.message


def test_an_engine_that_refuses_the_dtype_is_not_started_three_times() -> None:
    refusing = replace(POD, ready=False, death="Error, exit code 1: no backend", hopeless=True)
    decision = turn(status(Phase.PROVISIONING), canary_pods=(refusing,))
    assert decision.status.decisions[-1].reason == "EngineFailsToStart"
    assert "no backend; 0 restarts" in decision.status.decisions[-1].message


def test_a_pod_that_cannot_be_scheduled_is_told_in_the_schedulers_words() -> None:
    waiting = replace(POD, ready=False, trouble="not scheduled: 0/3 nodes: no free GPU")
    after = turn(status(Phase.PROVISIONING), canary_pods=(waiting,)).status
    assert why_held(after) == "CanaryNotReady"
    assert "no free GPU" in (after.verdict or "")


def test_the_deadline_ends_an_attempt_with_the_last_reason_to_wait() -> None:
    late = status(Phase.PROVISIONING, age=1801)
    after = turn(late, canary_pods=()).status
    assert (after.phase, after.decisions[-1].reason) == (
        Phase.ROLLING_BACK,
        "ProgressDeadlineExceeded",
    )
    assert "0 of 1 canary pods are ready" in after.decisions[-1].message


def test_ready_pods_and_following_routers_are_verified_next() -> None:
    assert turn(status(Phase.PROVISIONING)).status.phase is Phase.VERIFYING
    lagging = RouterView(available=2, connected=2, applied=1)
    assert turn(status(Phase.PROVISIONING), router=lagging).status.phase is Phase.PROVISIONING


@pytest.mark.parametrize(
    ("healthy", "reason"), [(None, "MetricsUnavailable"), (2.0, "RouterNotReady")]
)
def test_a_slot_that_still_holds_an_earlier_pool_is_waited_for(
    healthy: float | None, reason: str
) -> None:
    sample = replace(arm(), healthy=healthy)
    after = turn(status(Phase.PROVISIONING), evidence=Evidence(NOW, arm(), sample)).status
    assert (after.phase, why_held(after)) == (Phase.PROVISIONING, reason)


def test_routers_that_are_ready_but_not_connected_do_not_follow() -> None:
    half = RouterView(available=2, connected=1, applied=1)
    assert turn(status(Phase.VERIFYING), router=half).status.phase is Phase.VERIFYING
    assert turn(status(Phase.VERIFYING), router=RouterView()).status.phase is Phase.VERIFYING


def test_a_wrong_pod_is_rolled_back_before_any_traffic() -> None:
    wrong = PROOF.model_copy(update={"verdict": Verdict.FAIL, "message": "it ignored the flag."})
    after = turn(status(Phase.VERIFYING), proofs=(wrong,), requests=Requests(paused="x")).status
    assert (after.phase, after.decisions[-1].reason) == (Phase.ROLLING_BACK, "RegimeProofFailed")
    assert "pool-1: it ignored the flag." in after.decisions[-1].message


def test_a_proven_pod_gets_copies_only_once_it_bears_the_label() -> None:
    unlabelled = turn(status(Phase.VERIFYING), canary_pods=(replace(POD, serving=False),)).status
    assert (unlabelled.phase, unlabelled.weights.canary) == (Phase.VERIFYING, 0)
    assert unlabelled.regime_proof == (PROOF,), "which the actor labels by"
    after = turn(unlabelled).status
    assert (after.phase, after.step, after.weights.mirror) == (Phase.SHADOWING, 0, 5)


@pytest.mark.parametrize(
    ("healthy", "reason"), [(None, "MetricsUnavailable"), (0.0, "RouterNotReady")]
)
def test_a_pod_that_routers_do_not_find_healthy_gets_no_copies(
    healthy: float | None, reason: str
) -> None:
    unknown = Evidence(NOW, arm(), replace(arm(), healthy=healthy))
    after = turn(status(Phase.VERIFYING), evidence=unknown).status
    assert (after.phase, after.weights.canary) == (Phase.VERIFYING, 0)
    assert after.decisions[-1].reason == reason
    known = turn(after, evidence=Evidence(NOW, arm(), replace(arm(), healthy=1.0))).status
    assert known.weights.mirror == PLAN.shadow.percent


def test_a_step_tops_the_canary_up_unless_it_is_killed_or_an_alert_fires() -> None:
    spec = SPEC.model_copy(update={"shadow": SPEC.shadow.model_copy(update={"match_load": True})})
    plan = Plan.of(spec)
    turned = Turn(plan, seen(), NOW, status(Phase.PROGRESSING, step=1))
    turned.commit_weights()
    assert turned.status.weights == Weights(baseline=90, canary=10, mirror=35)
    alert = AlertReport.model_construct(name="KVCacheFull", fingerprint="f", since=NOW)
    quiet = Turn(plan, seen(), NOW, turned.status.model_copy(update={"alerts": (alert,)}))
    quiet.commit_weights()
    assert quiet.status.weights == Weights(baseline=90, canary=10, mirror=0)
    turned.set(killed=True)
    turned.commit_weights()
    assert turned.status.weights == Weights(baseline=100, canary=0, mirror=0)
    turned.set(killed=False)
    turned.enter(Phase.ROLLING_BACK)
    assert turned.status.weights.mirror == 0


def test_an_outage_of_prometheus_is_no_reason_to_give_up() -> None:
    late = NOW + timedelta(hours=9)
    out = seen(evidence=None, metrics_problem="it does not answer")
    waiting = decide(PLAN, status(Phase.VERIFYING), out, late).status
    assert waiting.phase is Phase.VERIFYING
    assert "it does not answer" in (waiting.verdict or "")


def test_the_end_of_a_pause_starts_the_deadline_anew() -> None:
    paused = turn(status(Phase.VERIFYING), requests=Requests(paused="Ada")).status
    later = NOW + timedelta(hours=9)
    after = decide(PLAN, paused, seen(canary_pods=()), later).status
    assert (after.phase, after.phase_started_at) == (Phase.VERIFYING, later)


# Progressing.


@pytest.mark.parametrize(
    ("fields", "age", "reason"),
    [
        ({"evidence": None, "metrics_problem": "did not answer"}, 9999, "MetricsUnavailable"),
        ({"report": None}, 9999, "MetricsUnavailable"),
        ({"report": report(Verdict.ERROR)}, 9999, "MetricsUnavailable"),
        ({"report": report(Verdict.INCONCLUSIVE)}, 9999, "InsufficientEvidence"),
        ({"report": report(step=2, canary=1)}, 9999, "InsufficientEvidence"),
        ({"report": report(baseline=99_000)}, 9999, "TrafficNotArrived"),
        ({"router": RouterView(2, 2, 1)}, 9999, "RouterNotReady"),
        ({"requests": Requests(paused="Ada")}, 9999, "Paused"),
        ({"problem": Problem("RefusedByAPIServer", "quota")}, 9999, "RefusedByAPIServer"),
        ({}, 899, "Soaking"),
    ],
)
def test_a_step_stays_and_says_why(fields: dict[str, Any], age: float, reason: str) -> None:
    after = turn(status(Phase.PROGRESSING, step=1, age=age), **fields).status
    assert (after.step, after.next_step, after.weights.canary) == (1, None, 10)
    assert why_held(after) == reason


def test_an_outage_is_told_in_prometheus_own_words() -> None:
    problem = "Prometheus at p:9090 did not answer within 10 s"
    outage = {"evidence": None, "report": None, "metrics_problem": problem}
    after = turn(status(Phase.PROGRESSING, step=1), **outage).status
    assert problem in (after.verdict or "")


def test_one_death_is_no_verdict_and_is_named_when_there_is_one() -> None:
    dead = replace(POD, ready=False, restarts=1, died_at=NOW, death="Completed, exit code 0")
    other = replace(POD, name="pool-2")
    step = status(Phase.PROGRESSING, step=1)
    pods = (dead, other)
    proofs = (PROOF, PROOF.model_copy(update={"pod": "pool-2"}))
    assert turn(step, canary_pods=pods, proofs=proofs).status.phase is Phase.PROGRESSING
    bad = report(Verdict.FAIL)
    after = turn(step, canary_pods=pods, proofs=proofs, report=bad).status
    assert (after.phase, after.weights.canary) == (Phase.ROLLING_BACK, 0)
    assert "Ended: pool-1 (Completed, exit code 0)." in after.decisions[-1].message


@pytest.mark.parametrize(
    ("died", "restarts", "reason"),
    [(0, 3, "EngineKeepsDying"), (0, 2, None), (61, 3, None)],
)
def test_a_crash_loop_rolls_back_without_metrics(
    died: float, restarts: int, reason: str | None
) -> None:
    at = NOW - timedelta(seconds=died)
    dead = replace(POD, restarts=restarts, died_at=at, death="Completed, exit code 0")
    outage = {"evidence": None, "report": None, "metrics_problem": "it does not answer"}
    after = turn(status(Phase.PROGRESSING, step=1, age=60), canary_pods=(dead,), **outage).status
    if reason is None:
        assert after.phase is Phase.PROGRESSING
    else:
        assert (after.phase, after.decisions[-1].reason) == (Phase.ROLLING_BACK, reason)
        assert "pool-1 (Completed, exit code 0; 3 restarts)" in after.decisions[-1].message


def test_who_tolerates_no_death_at_all_can_say_so() -> None:
    asked = {"analysis": {"oomRetries": {"maxRestarts": 0}}}
    strict = Plan.of(Spec.model_validate({**SPEC.model_dump(by_alias=True), **asked}))
    dead = replace(POD, restarts=1, died_at=NOW, death="OOMKilled, exit code 137")
    step = status(Phase.PROGRESSING, step=1)
    after = decide(strict, step, seen(canary_pods=(dead,)), NOW).status
    assert after.decisions[-1].reason == "EngineKeepsDying"
    theirs = replace(dead, name="llama-1")
    both = seen(canary_pods=(dead,), baseline_pods=(theirs,))
    assert decide(strict, step, both, NOW).status.phase is Phase.PROGRESSING


@pytest.mark.parametrize(
    ("choice", "age", "phase", "next_step"),
    [
        ("hold", 9999, Phase.PROGRESSING, None),
        ("proceed", 3599, Phase.PROGRESSING, None),
        ("proceed", 3600, Phase.PROGRESSING, 2),
        ("rollback", 3599, Phase.PROGRESSING, None),
        ("rollback", 3600, Phase.ROLLING_BACK, None),
    ],
)
def test_what_the_spec_says_is_done_about_a_step_that_is_never_decided(
    choice: str, age: float, phase: Phase, next_step: int | None
) -> None:
    steps = [
        {"weight": w, "soak": "1m", "onInconclusive": choice, "decideWithin": "1h"}
        for w in (10, 25, 50, 100)
    ]
    plan = Plan.of(Spec.model_validate({**SPEC.model_dump(by_alias=True), "steps": steps}))
    undecided = seen(report=report(Verdict.INCONCLUSIVE))
    step = status(Phase.PROGRESSING, step=1, age=age, baseline=BASELINE)
    after = decide(plan, step, undecided, NOW).status
    assert (after.phase, after.next_step) == (phase, next_step)
    if (phase, next_step) != (Phase.PROGRESSING, None):
        assert "onInconclusive" in after.decisions[-1].message


@pytest.mark.parametrize("choice", ["proceed", "rollback"])
def test_an_outage_is_never_taken_for_an_undecided_step(choice: str) -> None:
    steps = [{"weight": 100, "soak": "1m", "onInconclusive": choice, "decideWithin": "1h"}]
    plan = Plan.of(Spec.model_validate({**SPEC.model_dump(by_alias=True), "steps": steps}))
    out = seen(evidence=None, report=None, metrics_problem="it does not answer")
    after = decide(plan, status(Phase.PROGRESSING, step=1, age=9999), out, NOW).status
    assert (after.phase, after.next_step) == (Phase.PROGRESSING, None)
    assert why_held(after) == "MetricsUnavailable"


def test_a_passed_step_asks_for_the_next_ones_pods_before_its_traffic() -> None:
    bigger = {"baseline": BASELINE.model_copy(update={"replicas": 8})}
    decision = turn(status(Phase.PROGRESSING, step=1, age=900, **bigger))
    after = decision.status
    assert (after.step, after.next_step, after.weights.canary) == (1, 2, 10)
    assert after.canary is not None
    assert after.canary.replicas > 1
    waiting = turn(after).status
    assert (waiting.step, why_held(waiting)) == (1, "CanaryNotReady")
    pods = tuple(replace(POD, name=f"pool-{i}") for i in range(after.canary.replicas))
    moved = turn(waiting, canary_pods=pods).status
    assert (moved.step, moved.next_step, moved.weights.canary) == (2, None, 25)
    assert moved.step_started_at == NOW


def test_what_an_advance_rested_on_is_on_record() -> None:
    after = turn(status(Phase.PROGRESSING, step=1, age=900)).status
    record = after.decisions[-1]
    assert (record.kind, record.reason) == (DecisionKind.PROVISION, "StepPassed")
    assert "300 canary and 2,700 baseline requests" in record.message


def test_harm_while_the_next_pods_start_rolls_back() -> None:
    bad = report(Verdict.FAIL)
    after = turn(status(Phase.PROGRESSING, step=1, next_step=2), report=bad).status
    assert (after.phase, after.next_step) == (Phase.ROLLING_BACK, None)


def test_another_rollouts_traffic_is_never_judged() -> None:
    after = turn(status(Phase.PROGRESSING, step=1, age=900), router_taken_by="other").status
    assert (after.phase, after.decisions[-1].reason) == (Phase.ROLLING_BACK, "RouterBusy")
    assert after.rejected_spec_hash is None, "the spec is not to blame"


def test_the_last_step_leaves_the_baseline_a_share_to_be_compared_with() -> None:
    last = status(Phase.PROGRESSING, step=4, age=1800)
    assert last.weights == Weights(baseline=5, canary=95)
    after = turn(last, report=report(step=4, baseline=150, canary=3000)).status
    assert (after.phase, after.weights.canary) == (Phase.PROMOTED, 100)
    splits = [(span.step, span.weight) for span in after.traffic]
    assert splits == [(4, 100)], "what was committed before is not known here"


# Promoted.


def test_an_abort_in_the_rollback_window_goes_all_the_way_back() -> None:
    after = turn(status(Phase.PROMOTED, step=4), requests=Requests(abort="1")).status
    assert (after.phase, after.weights) == (
        Phase.ROLLING_BACK,
        Weights(baseline=100, canary=0),
    )


def test_the_window_is_told_as_an_instant_and_costs_no_writes() -> None:
    first = turn(status(Phase.PROMOTED, step=4)).status
    assert first.verdict == "Promoted; the rollback window closes at 12:59:00 UTC."
    assert decide(PLAN, first, seen(), NOW + timedelta(minutes=5)).status == first


def test_the_old_pool_goes_after_the_window_when_it_is_drained() -> None:
    closed = status(Phase.PROMOTED, step=4, age=3600)
    assert turn(closed).status.settled, "the drain's time is over as well"
    slow = replace(PLAN, drain_timeout=timedelta(hours=3))
    busy = seen(evidence=Evidence(NOW, arm(active=2), arm()))
    assert not decide(slow, closed, busy, NOW).status.settled
    idle = seen(evidence=Evidence(NOW, arm(), arm(active=9)))
    after = decide(slow, closed, idle, NOW).status
    assert after.settled
    assert after.baseline is not None
    assert after.baseline.replicas == 0
    kept = decide(replace(slow, keep_old_pool=True), closed, idle, NOW).status
    assert kept.baseline == BASELINE


@pytest.mark.parametrize(
    "fields", [{"problem": Problem("RefusedByAPIServer", "quota")}, {"router_taken_by": "other"}]
)
def test_the_old_pool_stays_while_routers_may_not_know(fields: dict[str, Any]) -> None:
    after = turn(status(Phase.PROMOTED, step=4, age=3600), **fields).status
    assert not after.settled
    assert "The old pool keeps its pods" in (after.verdict or "")


def test_two_reasons_to_wait_at_the_end_are_recorded_once() -> None:
    ended = status(Phase.PROMOTED, step=4, settled=True, spec_hash="another")
    refused = turn(ended, requests=Requests(killed="Ada")).status
    assert why_held(refused) == "KillRefused"
    again = decide(PLAN, refused, seen(requests=Requests(killed="Ada")), NOW + timedelta(hours=1))
    assert again.status == refused


# Rolling back and rolled back.


@pytest.mark.parametrize(
    ("age", "active", "gone"),
    [(5, 0, False), (16, 3, False), (16, 0, True), (16, None, False), (301, 3, True)],
)
def test_pods_stay_until_drained_or_out_of_time(
    age: float, active: float | None, gone: bool
) -> None:
    sample = replace(arm(), active=active)
    after = turn(
        status(Phase.ROLLING_BACK, age=age, step=2), evidence=Evidence(NOW, arm(), sample)
    ).status
    assert after.canary is not None
    assert (after.canary.replicas == 0) is gone
    assert (after.phase is Phase.ROLLED_BACK) is gone


def test_a_rejected_spec_stays_rejected_until_retry_or_another_spec() -> None:
    ended = status(Phase.ROLLED_BACK, settled=True, rejected_spec_hash=spec_hash(SPEC))
    assert turn(ended).status.phase is Phase.ROLLED_BACK
    assert turn(ended, requests=Requests(retry="1")).status.phase is Phase.PENDING
    handled = ended.model_copy(update={"handled": HandledRequests(retry="1")})
    assert turn(handled, requests=Requests(retry="1")).status.phase is Phase.ROLLED_BACK
    other = ended.model_copy(update={"rejected_spec_hash": "another"})
    assert turn(other).status.phase is Phase.PENDING


# The record.


def test_waits_do_not_push_out_what_was_done() -> None:
    now, current = NOW, turn(Status(), candidate=CANDIDATE).status
    current = decide(PLAN, current, seen(evidence=EMPTY_SLOT), now).status
    for i in range(3 * DECISIONS_KEPT):
        now += timedelta(seconds=1)
        proofs = (PROOF.model_copy(update={"verdict": Verdict.INCONCLUSIVE}),)
        pods = (replace(POD, serving=False),)
        flapping = seen(canary_pods=pods if i % 2 else (), proofs=proofs if i % 2 else ())
        current = decide(PLAN, current, flapping, now).status
    assert len(current.decisions) == DECISIONS_KEPT
    assert [d.reason for d in current.decisions[:2]] == ["Started", "Verifying"]
