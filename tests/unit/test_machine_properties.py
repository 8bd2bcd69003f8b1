"""Whatever is seen, asked, edited and lost, in any order: the invariants of a rollout hold."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvquant.api.v1alpha1 import (
    Adoption,
    AdoptionStage,
    EvaluationReport,
    KVQuantRollout,
    Phase,
    PodProof,
    Pool,
    Spec,
    Status,
    Verdict,
)
from kvquant.core.analysis import Report
from kvquant.core.evaluating import TRIES
from kvquant.core.evaluation_summary import Outcome
from kvquant.core.evidence import Evidence
from kvquant.core.gates import DRAIN_AT_LEAST
from kvquant.core.machine import RUNNING, decide
from kvquant.core.observation import (
    Candidate,
    Observation,
    PodView,
    Problem,
    Requests,
    RouterView,
    TargetView,
)
from kvquant.core.plan import Plan, spec_hash
from kvquant.core.shadow_reading import ShadowEvidence
from kvquant.core.shadow_settings import CITATIONS
from tests.fakes import schema
from tests.fakes.evaluations import view
from tests.fakes.metrics import arm
from tests.fakes.reports import report
from tests.fakes.shadows import pairs

BEGIN = datetime(2026, 11, 25, 12, tzinfo=UTC)
NEED = 60
LADDERS = [(10, 25, 50, 100), (50, 100), (100,), (1, 2, 99, 100)]
SILENCE = [None, *(report(Verdict.ERROR, step=step) for step in (0, 1))]
"""What an analysis may say that means nothing at all."""
REPORTS = [
    *SILENCE,
    *(
        report(verdict, step=step, baseline=baseline, canary=baseline / 2)
        for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)
        for step in (1, 2)
        for baseline in (40, 5000)
    ),
]
STANDING = [None, Evidence(BEGIN, arm(), arm()), Evidence(BEGIN, arm(active=3), arm(active=2))]
"""What routers may say of requests in flight."""
GOOD = Evidence(BEGIN, arm(), arm())


SHADOWS: list[dict[str, Any]] = [
    {"percent": 0},
    {"percent": 0, "matchLoad": True},
    {"percent": 5, "minPairs": 60, "soak": "1m"},
    {
        "percent": 50,
        "minPairs": 60,
        "soak": "1m",
        "decideWithin": "5m",
        "onInconclusive": "proceed",
    },
    {
        "percent": 5,
        "minPairs": 60,
        "soak": "1m",
        "decideWithin": "5m",
        "onInconclusive": "rollback",
    },
]
SET = {"dataset": {"configMapName": "rag"}, "deadline": "30m"}
EVALUATIONS: list[dict[str, Any] | None] = [
    None,
    SET,
    {**SET, "onInconclusive": "proceed"},
    {**SET, "onInconclusive": "rollback", "onError": "rollback"},
]
RUNS: list[dict[str, Any] | None] = [
    None,
    {},
    {"started": False, "trouble": "ErrImagePull"},
    *({"outcome": outcome} for outcome in Outcome),
    {"outcome": Outcome.FAIL, "job": "of-another-run"},
    {"outcome": Outcome.PASS, "job": "of-another-run"},
    {"failure": "EvaluationInterrupted"},
]
"""What a run of the evaluation may be seen as."""
ANSWERS = [None, ShadowEvidence(), pairs(40), pairs(400), pairs(400, **{CITATIONS: 0.4})]
"""What the shadow service may have counted."""


def spec(
    ladder: tuple[int, ...],
    old_pool: str = "ScaleToZero",
    shadow: dict[str, Any] = SHADOWS[2],
    evaluation: dict[str, Any] | None = None,
) -> Spec:
    return Spec.model_validate(
        {
            "targetRef": {"name": "llama"},
            "kvCache": {"dtype": "fp8"},
            "traffic": {"router": {"drainTimeout": "2m"}},
            "shadow": shadow,
            "evaluation": evaluation,
            "steps": [{"weight": weight, "soak": "1m"} for weight in ladder],
            "analysis": {"minRequests": NEED},
            "promotion": {"rollbackWindow": "5m", "oldPool": old_pool},
            "progressDeadline": "10m",
        }
    )


class RolloutMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.status = Status()
        self.asked = Requests()
        self.shadow = SHADOWS[2]
        self.evaluation: dict[str, Any] | None = None
        self.spec = spec(LADDERS[0])
        self.containers = 0
        self.pods: dict[str, PodView] = {}
        self.target = TargetView(replicas=4, template_hash="first", differs=NOT_ASKED)
        self.owned: dict[str, PodView] = {}

    @initialize(
        ladder=st.sampled_from(LADDERS),
        old_pool=st.sampled_from(["ScaleToZero", "Keep"]),
        shadow=st.sampled_from(SHADOWS),
        evaluation=st.sampled_from(EVALUATIONS),
        ahead=st.booleans(),
    )
    def begin(
        self,
        ladder: tuple[int, ...],
        old_pool: str,
        shadow: dict[str, Any],
        evaluation: dict[str, Any] | None,
        ahead: bool,
    ) -> None:
        self.shadow, self.evaluation = shadow, evaluation
        self.spec = spec(ladder, old_pool, shadow, evaluation)
        if ahead:
            # Chance alone seldom comes as far as what follows the proof.
            self.all_is_well_for_a_while(turns=6, seconds=1, run=None)

    # What happens in the world.

    @rule(seconds=st.sampled_from([0, 1, 20, 61, 130, 301, 601]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(seconds=st.sampled_from([-86_400, -601, -61, -1, 86_400]))
    def the_clock_is_set(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(field=st.sampled_from(["paused", "killed"]), on=st.booleans())
    def hold_or_kill(self, field: str, on: bool) -> None:
        change: dict[str, Any] = {field: "Ada" if on else None}
        self.asked = replace(self.asked, **change)

    @rule(field=st.sampled_from(["promote", "abort", "retry"]), token=st.sampled_from("abc"))
    def ask(self, field: str, token: str) -> None:
        change: dict[str, Any] = {field: token}
        self.asked = replace(self.asked, **change)

    @rule(ladder=st.sampled_from(LADDERS))
    def edit(self, ladder: tuple[int, ...]) -> None:
        self.spec = spec(ladder, self.spec.promotion.old_pool, self.shadow, self.evaluation)

    @rule(replicas=st.sampled_from([0, 1, 4, 9]))
    def the_owner_scales_the_target(self, replicas: int) -> None:
        self.target = replace(self.target, replicas=replicas)

    @rule(template=st.sampled_from(["first", "second"]))
    def the_owner_edits_the_target(self, template: str) -> None:
        self.target = replace(self.target, template_hash=template)

    @rule(adopts=st.booleans(), replicas=st.sampled_from([None, 4]))
    def the_target_adopts_the_dtype_or_not(self, adopts: bool, replicas: int | None) -> None:
        self.target = replace(self.target, differs=None if adopts else NOT_ASKED)
        if replicas is not None:
            # As the actor does for one that the operator scaled to zero.
            self.target = replace(self.target, replicas=replicas)

    @rule(data=st.data())
    def a_pod_of_the_target_dies_or_goes(self, data: st.DataObject) -> None:
        if not self.owned:
            return
        name = data.draw(st.sampled_from(sorted(self.owned)))
        fate = data.draw(st.sampled_from(["dies", "goes", "unready"]))
        if fate == "goes":
            del self.owned[name]
            return
        self.owned[name] = replace(self.owned[name], ready=False)
        if fate == "dies":
            self.containers += 1
            self.owned[name] = replace(self.owned[name], container_id=f"c{self.containers}")

    @rule(data=st.data())
    def a_pod_dies_or_goes(self, data: st.DataObject) -> None:
        if not self.pods:
            return
        name = data.draw(st.sampled_from(sorted(self.pods)))
        fate = data.draw(st.sampled_from(["dies", "goes", "unready"]))
        if fate == "goes":
            del self.pods[name]
        elif fate == "unready":
            self.pods[name] = replace(self.pods[name], ready=False)
        else:
            self.containers += 1
            self.pods[name] = replace(
                self.pods[name],
                ready=False,
                container_id=f"c{self.containers}",
                died_at=self.now,
                restarts=self.pods[name].restarts + 1,
                death="Completed, exit code 0",
            )

    # Looks at it.

    @rule(
        evidence=st.sampled_from(STANDING),
        found=st.sampled_from(REPORTS),
        mine=st.booleans(),
        wrong=st.sampled_from([False] * 9 + [True]),
        unmeasured=st.sampled_from([False, False, True]),
        follows=st.sampled_from([True, True, False]),
        obstacle=st.sampled_from([None] * 8 + ["refused", "taken"]),
        known=st.sampled_from(["right", "right", "nothing", "old"]),
        answers=st.sampled_from(ANSWERS),
        shadow_ready=st.sampled_from([True, True, False]),
        run=st.sampled_from(RUNS),
        has_set=st.sampled_from([True, True, False]),
    )
    def look(
        self,
        evidence: Evidence | None,
        found: Report | None,
        mine: bool,
        wrong: bool,
        unmeasured: bool,
        follows: bool,
        obstacle: str | None,
        known: str,
        answers: ShadowEvidence | None,
        shadow_ready: bool,
        run: dict[str, Any] | None,
        has_set: bool,
    ) -> None:
        verdict = Verdict.INCONCLUSIVE if unmeasured else Verdict.FAIL if wrong else Verdict.PASS
        if found is not None and mine:
            found = replace(found, step=self.status.step)
        self.turn(
            evidence,
            found,
            verdict,
            RouterView(2, 2, 2 if follows else 1),
            Problem("RefusedByAPIServer", "quota") if obstacle == "refused" else None,
            "other" if obstacle == "taken" else None,
            known,
            answers,
            shadow_ready,
            run,
            has_set,
        )

    @rule(
        turns=st.integers(1, 12),
        seconds=st.sampled_from([1, 30, 70]),
        run=st.sampled_from([*RUNS, *[RUNS[3]] * 3]),
    )
    def all_is_well_for_a_while(self, turns: int, seconds: int, run: dict[str, Any] | None) -> None:
        for _ in range(turns):
            self.controllers_act()
            # Every other pass may be judged by a step that is over by then.
            good = report(step=self.status.step, baseline=5000, canary=5000)
            self.turn(GOOD, good, Verdict.PASS, RouterView(2, 2, 2), None, None, run=run)
            self.now += timedelta(seconds=seconds)

    @rule()
    def controllers_act(self) -> None:
        wanted = self.status.canary.replicas if self.status.canary else 0
        while len(self.pods) > wanted:
            del self.pods[max(self.pods)]
        while len(self.pods) < wanted:
            self.containers += 1
            name = f"pool-{self.containers:04}"
            self.pods[name] = PodView(name, True, False, f"c{self.containers}", self.now)
        self.pods = {name: replace(pod, ready=True) for name, pod in self.pods.items()}
        while len(self.owned) > self.target.replicas:
            del self.owned[max(self.owned)]
        while len(self.owned) < self.target.replicas:
            self.containers += 1
            name = f"llama-{self.containers:04}"
            self.owned[name] = PodView(name, True, False, f"c{self.containers}", self.now)
        self.owned = {name: replace(pod, ready=True) for name, pod in self.owned.items()}

    def turn(
        self,
        evidence: Evidence | None,
        found: Report | None,
        verdict: Verdict,
        router: RouterView,
        problem: Problem | None,
        taken_by: str | None,
        known: str = "right",
        answers: ShadowEvidence | None = ANSWERS[3],
        shadow_ready: bool = True,
        run: dict[str, Any] | None = RUNS[3],
        has_set: bool = True,
    ) -> None:
        proven = {
            (p.pod, p.container_id) for p in self.status.regime_proof if p.verdict is Verdict.PASS
        }
        # What the actor does of the persisted status: only proven containers serve.
        pods = tuple(
            replace(pod, serving=(pod.name, pod.container_id) in proven)
            for pod in self.pods.values()
        )
        adoption = self.status.adoption if self.status.adopting else None
        owned = tuple(
            replace(pod, serving=(pod.name, pod.container_id) in _passed(adoption))
            for pod in self.owned.values()
        )
        if evidence is not None:
            arms = {
                name: replace(
                    getattr(evidence, name),
                    healthy={"right": _serving(its), "nothing": None, "old": 2}[known],
                )
                for name, its in (("canary", pods), ("baseline", owned))
            }
            evidence = replace(evidence, **arms)
        pending = self.status.phase is Phase.PENDING
        evaluating = self.status.phase is Phase.EVALUATING
        report = self.status.evaluation or EvaluationReport()
        seen = Observation(
            generation=7,
            spec_hash=spec_hash(self.spec),
            requests=self.asked,
            problem=problem,
            router_taken_by=taken_by,
            candidate=self.candidate() if pending and problem is None else None,
            target=None if pending else self.target,
            baseline_pods=(PodView("llama-1", True, True, "b1"),) if adoption is None else owned,
            canary_pods=pods,
            proofs=_proofs(pods, verdict),
            target_proofs=() if adoption is None else _proofs(owned, verdict),
            drives_router=taken_by is None,
            router=router,
            evidence=None if pending or evidence is None else replace(evidence, at=self.now),
            report=None if pending else found,
            shadow_ready=shadow_ready,
            shadow=answers if self.status.phase is Phase.SHADOWING else None,
            evaluation=(
                view(**{"job": report.job, **run})
                if evaluating and run is not None and report.job is not None
                else None
            ),
            next_job=f"eval-{self.status.attempt}-{report.run + 1}" if evaluating else None,
            evaluation_problem=None if has_set else Problem("EvaluationDatasetMissing", "none"),
        )
        before, plan = self.status, Plan.of(self.spec)
        after = decide(plan, before, seen, self.now).status
        check(plan, before, after, seen, self.now)
        if after.settled:
            again = decide(plan, after, seen, self.now + timedelta(seconds=5)).status
            if again.settled and not again.adopting:
                assert decide(plan, again, seen, self.now + timedelta(seconds=90)).status == again
        self.status = after

    def candidate(self) -> Candidate:
        hash_, replicas = self.target.template_hash, max(1, self.target.replicas)
        changes = {"template_hash": hash_, "replicas": replicas}
        return replace(CANDIDATE, baseline=CANDIDATE.baseline.model_copy(update=changes))

    # What holds always.

    @invariant()
    def the_weights_follow_from_the_status(self) -> None:
        status = self.status
        expected = 0
        if not status.killed and status.phase is Phase.PROMOTED:
            proving = status.adoption is None or status.adoption.stage is AdoptionStage.PROVING
            expected = 100 if proving else 0
        elif not status.killed and status.phase is Phase.PROGRESSING:
            # An edit takes effect at the next look only, so that the old plan counts until then.
            expected = status.weights.canary
            if spec_hash(self.spec) == status.spec_hash:
                expected = Plan.of(self.spec).weight(status.step)
        assert (status.weights.canary, status.weights.baseline) == (expected, 100 - expected)
        copies = status.phase is Phase.SHADOWING and self.shadow.get("percent") != 0
        if status.phase is Phase.PROGRESSING:
            assert status.baseline is not None
            copies = bool(self.shadow.get("matchLoad"))
            if spec_hash(self.spec) == status.spec_hash and not status.killed:
                most = Plan.of(self.spec).top_up(status.step, status.baseline.replicas)
                assert status.weights.mirror in (0, most)
        assert status.weights.mirror == 0 or (copies and not status.killed)

    @invariant()
    def the_status_survives_the_api_server(self) -> None:
        rollout = KVQuantRollout.model_validate(
            {"metadata": {"name": "r", "namespace": "n"}, "spec": self.spec, "status": self.status}
        )
        document = rollout.status_document()
        assert Status.model_validate(document) == self.status
        stored, faults = schema.admit(
            {
                "spec": self.spec.model_dump(by_alias=True, mode="json", exclude_none=True),
                "status": document,
            }
        )
        assert faults == []
        assert Status.model_validate(stored["status"]) == self.status


NOT_ASKED = Problem("NotAsked", "llama asks for auto.")


def _passed(adoption: Adoption | None) -> set[tuple[str, str]]:
    """Return the containers of the target that the actor lets into its slot."""
    proofs = () if adoption is None else adoption.regime_proof
    return {(p.pod, p.container_id) for p in proofs if p.verdict is Verdict.PASS}


def _serving(pods: tuple[PodView, ...]) -> int:
    return sum(1 for pod in pods if pod.ready and pod.serving)


def _proofs(pods: tuple[PodView, ...], verdict: Verdict) -> tuple[PodProof, ...]:
    """Return the proofs of the ready pods: a passed container stays proven."""
    return tuple(
        PodProof(
            pod=pod.name,
            container_id=pod.container_id,
            verdict=Verdict.PASS if pod.serving else verdict,
            capacity_tokens=1,
        )
        for pod in pods
        if pod.ready
    )


CANDIDATE = Candidate(
    engine="vllm",
    resolved_dtype="fp8",
    router="llama-router",
    baseline=Pool(deployment="llama", slot="blue", dtype="auto", replicas=4),
    canary_deployment="llama-fp8-pool",
    canary_slot="green",
)


def check(plan: Plan, before: Status, after: Status, seen: Observation, now: datetime) -> None:
    """Assert everything that must hold between two statuses."""
    _weights_rise_by_one_step_to_pods_that_are_proven(plan, before, after, seen, now)
    _the_example_set_is_answered_before_anything_else(plan, before, after, seen)
    _the_slot_was_empty(before, after, seen)
    _steps_are_earned(plan, before, after, seen, now)
    _silence_decides_nothing(before, after, seen)
    _the_way_back_is_always_open(before, after, seen)
    _traffic_leaves_before_pods(plan, before, after, seen, now)
    _nothing_is_sent_to_nobody(before, after, seen)
    _a_target_is_given_the_traffic_when_it_can_take_it(plan, before, after, seen, now)


def _weights_rise_by_one_step_to_pods_that_are_proven(
    plan: Plan, before: Status, after: Status, seen: Observation, now: datetime
) -> None:
    assert after.step in (0, before.step, before.step + 1)
    if after.killed:
        assert after.weights.canary == 0
    if after.weights.canary <= before.weights.canary:
        return
    if after.phase is Phase.PROMOTED:
        if before.handed_back:
            return  # What takes it back is looked at below.
        assert before.step == len(plan.steps), "the baseline's last share goes with the promotion"
        return
    assert after.phase is Phase.PROGRESSING
    assert after.step == before.step + 1
    assert after.weights.canary == plan.weight(after.step)
    assert after.canary is not None
    serving = [pod for pod in seen.canary_pods if pod.ready and pod.serving]
    assert len(serving) >= after.canary.replicas > 0
    assert seen.evidence is not None
    assert seen.evidence.canary.healthy is not None
    assert seen.evidence.canary.healthy >= after.canary.replicas
    assert seen.router.follows
    assert seen.router_taken_by is None
    assert not seen.requests.paused
    if before.next_step == after.step:
        return
    if not plan.shadow.percent:
        passed = after.evaluation is not None and after.evaluation.verdict is Verdict.PASS
        verified = plan.evaluation is None or passed
        assert before.phase is Phase.EVALUATING or (verified and before.phase is Phase.VERIFYING)
        return
    assert before.phase is Phase.SHADOWING
    if seen.requests.promote not in (None, before.handled.promote):
        return  # A person took the evidence upon themselves.
    shadow = after.shadow
    assert shadow is not None
    assert seen.shadow is not None
    assert seen.shadow_ready
    assert before.phase_started_at is not None
    waited = now - before.phase_started_at
    asked = plan.shadow.on_inconclusive == "proceed" and waited >= plan.shadow.decide_within
    assert asked or (shadow.verdict is Verdict.PASS and waited >= plan.shadow.soak)
    assert shadow.verdict is not Verdict.FAIL


def _the_example_set_is_answered_before_anything_else(
    plan: Plan, before: Status, after: Status, seen: Observation
) -> None:
    """Nothing but a pass, a person or the spec's own choice leads past it; only a fail, back."""
    report = after.evaluation
    if before.attempt == after.attempt and before.evaluation is not None:
        assert report is not None
        assert report.run in (before.evaluation.run, before.evaluation.run + 1)
        assert report.failures <= TRIES
    if after.phase is Phase.EVALUATING:
        assert (after.weights.canary, after.weights.mirror) == (0, 0)
    passed = [r is not None and r.verdict is Verdict.PASS for r in (before.evaluation, report)]
    if passed == [False, True]:
        assert report is not None
        assert seen.evaluation is not None
        assert seen.evaluation.job == report.job
        assert seen.evaluation.summary is not None
        assert seen.evaluation.summary.outcome is Outcome.PASS
    new = after.decisions[len(before.decisions) :] if before.decisions else after.decisions
    if "EvaluationFailed" in [decision.reason for decision in new]:
        assert before.phase is Phase.EVALUATING
        assert seen.evaluation is not None
        assert before.evaluation is not None
        assert seen.evaluation.job == before.evaluation.job
        assert seen.evaluation.summary is not None
        assert seen.evaluation.summary.outcome is Outcome.FAIL
        assert any(pod.ready for pod in seen.canary_pods), "it could answer"
    later = (Phase.SHADOWING, Phase.PROGRESSING)
    if plan.evaluation is None or after.phase not in later or before.phase in later:
        return
    assert report is not None
    assert not seen.requests.paused
    asked = seen.requests.promote not in (None, before.handled.promote)
    proceeds = plan.evaluation.on_inconclusive == "proceed"
    undecided = report.verdict is Verdict.INCONCLUSIVE and proceeds
    assert report.verdict is Verdict.PASS or asked or undecided
    if report.verdict is not Verdict.PASS:
        assert before.phase is Phase.EVALUATING


def _the_slot_was_empty(before: Status, after: Status, seen: Observation) -> None:
    """Pods that routers find later are the canary's own."""
    if (before.phase, after.phase) == (Phase.PROVISIONING, Phase.VERIFYING):
        assert seen.evidence is not None
        assert after.killed or seen.evidence.canary.healthy == 0


def _steps_are_earned(
    plan: Plan, before: Status, after: Status, seen: Observation, now: datetime
) -> None:
    passed = after.next_step is not None and before.next_step is None
    promoted = after.phase is Phase.PROMOTED and before.phase is not Phase.PROMOTED
    if not (passed or promoted):
        return
    assert before.phase is Phase.PROGRESSING
    if promoted:
        assert before.step == len(plan.steps)
    if seen.requests.promote not in (None, before.handled.promote):
        return  # A person took the evidence upon themselves.
    assert not seen.requests.paused
    assert before.step_started_at is not None
    assert now - before.step_started_at >= plan.steps[before.step - 1].soak
    assert seen.report is not None
    assert seen.report.verdict is Verdict.PASS
    assert seen.report.step == before.step, "the evidence was taken in this step"


def _silence_decides_nothing(before: Status, after: Status, seen: Observation) -> None:
    mute = seen.report is None or seen.report.verdict is Verdict.ERROR
    if not mute and seen.report is not None and seen.report.step == before.step:
        return
    new = after.decisions[len(before.decisions) :] if before.decisions else after.decisions
    assert "AnalysisFailed" not in [decision.reason for decision in new]
    if seen.shadow is None or not seen.shadow.sums:
        assert "QualityFailed" not in [decision.reason for decision in new]


def _the_way_back_is_always_open(before: Status, after: Status, seen: Observation) -> None:
    window = before.phase is Phase.PROMOTED and not before.settled
    if seen.requests.killed and not (before.phase is Phase.PROMOTED and before.settled):
        assert after.killed
        assert after.weights.canary == 0
    abort = seen.requests.abort not in (None, before.handled.abort)
    if (before.phase in RUNNING or window) and abort:
        assert after.phase is Phase.ROLLING_BACK
    if before.phase in RUNNING and seen.spec_hash != before.spec_hash:
        assert after.phase is Phase.ROLLING_BACK
    if before.phase in RUNNING and seen.target is not None and before.baseline is not None:
        same = seen.target.template_hash == before.baseline.template_hash
        assert same or after.phase is Phase.ROLLING_BACK
    verified = (Phase.VERIFYING, Phase.EVALUATING, Phase.SHADOWING, Phase.PROGRESSING)
    if before.phase in verified and any(proof.verdict is Verdict.FAIL for proof in seen.proofs):
        assert after.phase is Phase.ROLLING_BACK
    if after.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK):
        assert after.weights.canary == 0


def _traffic_leaves_before_pods(
    plan: Plan, before: Status, after: Status, seen: Observation, now: datetime
) -> None:
    if before.canary is None or after.canary is None or after.attempt != before.attempt:
        return
    assert before.baseline is not None
    assert after.baseline is not None
    assert before.phase_started_at is not None
    waited = now - before.phase_started_at
    timed_out = waited >= plan.drain_timeout
    if after.adopted and not before.adopted:
        return  # As below, for the pool that has handed over.
    if after.canary.replicas < before.canary.replicas:
        assert before.phase is Phase.ROLLING_BACK
        assert before.weights.canary == 0
        idle = seen.evidence is not None and seen.evidence.canary.active == 0
        never = before.step_started_at is None
        assert never or timed_out or (idle and waited >= DRAIN_AT_LEAST)
    followed = seen.target is not None and after.baseline.replicas == seen.target.replicas
    # What the owner did is only written down. A kill switch that is pulled in the rollback window
    # goes back to verifying first, where the target is followed again, whatever comes of it.
    if followed and (before.phase in RUNNING or (after.killed and not before.killed)):
        return
    if after.baseline.replicas < before.baseline.replicas:
        assert before.phase is Phase.PROMOTED
        assert before.weights.baseline == 0
        assert waited >= plan.rollback_window
        idle = seen.evidence is not None and seen.evidence.baseline.active == 0
        assert timed_out or idle
        assert not plan.keep_old_pool


def _nothing_is_sent_to_nobody(before: Status, after: Status, seen: Observation) -> None:
    if before.settled or before.weights.canary == 0:
        return
    proven = {p.pod for p in seen.proofs if p.verdict is Verdict.PASS}
    if not any(pod.ready and pod.name in proven for pod in seen.canary_pods):
        assert after.weights.canary == 0


def _a_target_is_given_the_traffic_when_it_can_take_it(
    plan: Plan, before: Status, after: Status, seen: Observation, now: datetime
) -> None:
    """Traffic goes to proven pods that routers find, and back to them; pods go after it."""
    if after.adoption is None and before.adoption is None:
        return
    assert (after.phase, after.settled) == (Phase.PROMOTED, True)
    assert not (before.adopted and not after.adopted), "it is done once"
    passed = {(p.pod, p.container_id) for p in seen.target_proofs if p.verdict is Verdict.PASS}
    able = [p for p in seen.baseline_pods if p.ready and (p.name, p.container_id) in passed]
    if after.handed_back and not before.handed_back:
        assert not after.adopted, "the pool is kept for the way back"
        assert seen.target is not None
        assert seen.target.differs is None
        assert seen.requests.killed is None
        assert seen.requests.paused is None
        assert seen.problem is None
        assert seen.drives_router
        assert seen.router.follows
        assert len(able) >= seen.target.replicas > 0
        assert set(able) == set(seen.baseline_pods), "nor does any other bear the label"
        assert all(pod.serving for pod in able)
        assert len(able) >= len(seen.canary_pods), "as much as serves now"
        assert seen.evidence is not None
        assert seen.evidence.baseline.healthy is not None
        assert seen.evidence.baseline.healthy >= len(able)
    proven = {p.pod for p in seen.proofs if p.verdict is Verdict.PASS}
    pool = [pod for pod in seen.canary_pods if pod.ready and pod.name in proven]
    if before.handed_back and not after.handed_back:
        assert pool or not seen.drives_router, "somebody can take it"
    if not before.handed_back or before.adopted:
        return
    if (seen.requests.killed or len(able) < len(pool)) and pool:
        assert not after.handed_back
    if after.adopted:
        assert before.adoption is not None
        assert before.weights.canary == 0
        assert seen.requests.killed is None
        assert seen.drives_router
        assert seen.router.follows
        assert able
        waited = now - before.adoption.since
        idle = seen.evidence is not None and seen.evidence.canary.active == 0
        assert waited >= plan.drain_timeout or (idle and waited >= DRAIN_AT_LEAST)


EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
"""How many examples `make fuzz` draws of this, the longest of the properties."""
RolloutMachine.TestCase.settings = settings(max_examples=EXAMPLES or 80, stateful_step_count=50)


class PromotedMachine(RolloutMachine):
    """The same world from the end of a promotion on, to which chance alone seldom comes."""

    @initialize(old_pool=st.sampled_from(["ScaleToZero", "Keep"]), proven=st.booleans())
    def begin(self, old_pool: str, proven: bool) -> None:
        self.shadow = SHADOWS[0]
        self.spec = spec((100,), old_pool, self.shadow)
        self.all_is_well_for_a_while(turns=20, seconds=70, run=None)
        assert self.status.settled
        assert self.status.phase is Phase.PROMOTED
        self.target = replace(self.target, differs=None)
        if proven:
            self.all_is_well_for_a_while(turns=9, seconds=2, run=None)
            assert self.status.adopting


PromotedMachine.TestCase.settings = RolloutMachine.TestCase.settings
# A failure is made small before it is told, which takes minutes.
TestRollout = pytest.mark.timeout(600 + EXAMPLES)(RolloutMachine.TestCase)
TestPromoted = pytest.mark.timeout(600 + EXAMPLES)(PromotedMachine.TestCase)
