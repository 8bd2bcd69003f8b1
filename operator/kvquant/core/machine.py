"""The state machine of a rollout: `decide(plan, status, seen, now)`, a value in, a value out.

Read `decide` first, then one function per phase. What always holds:

- the weights are committed by `Turn.commit_weights` and come from the state alone;
- the step rises by one at a time, and only out of `moves.advance`;
- only a verdict of PASS, or a person who says promote, lets a step advance; only FAIL rolls back;
- rollback comes before everything else: pause, holds and a Prometheus outage do not stop it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kvquant.api.v1alpha1 import (
    AnalysisReport,
    DecisionKind,
    HandledRequests,
    Phase,
    Pool,
    Status,
    Verdict,
)
from kvquant.core import alarm
from kvquant.core.adopting import adopting
from kvquant.core.baseline import follow_replicas
from kvquant.core.conditions import describe
from kvquant.core.evaluating import evaluating
from kvquant.core.gates import (
    deadline,
    drained,
    ended,
    fails_to_start,
    keeps_dying,
    nobody_serves,
    pods_serve,
    proofs,
    router_trouble,
    slot_is_empty,
    trouble,
)
from kvquant.core.judgement import same_verdict, silence, told
from kvquant.core.moves import (
    REJECTED_BEFORE,
    advance,
    forgive,
    leave_verification,
    prepare_next,
    promote,
    rejected,
    roll_back,
    withdraw,
)
from kvquant.core.observation import Observation
from kvquant.core.overtaken import overtaken
from kvquant.core.plan import Plan, replicas_for
from kvquant.core.shadowing import shadowing
from kvquant.core.turn import SIGN_OF_LIFE, UNDECIDED, Decision, Turn, is_new

RUNNING = frozenset(
    {Phase.PROVISIONING, Phase.VERIFYING, Phase.EVALUATING, Phase.SHADOWING, Phase.PROGRESSING}
)
"""Phases in which an attempt is on its way."""

ENOUGH_TO_MISS = 30.0
"""Expected canary requests from which their absence means something: with a Poisson mean of 30,
less than half of it comes by chance once in five hundred times."""

WATCHFUL = timedelta(seconds=2)
"""Time between looks while pods or routers are expected to change."""

PATIENT = timedelta(seconds=15)
"""Time between looks while only people or the cluster can change anything."""

IDLE = timedelta(seconds=60)
"""Time between looks at a rollout that has ended; they undo drift."""


def decide(plan: Plan, status: Status, seen: Observation, now: datetime) -> Decision:
    """Return what the status becomes in the light of what was seen.

    Args:
        plan: The plan of the present spec.
        status: What was persisted last.
        seen: The world in this pass.
        now: The present instant.
    """
    turn = Turn(plan, seen, now, status)
    turn.set(observed_generation=seen.generation)
    _kill_switch(turn)
    _resume(turn)
    alarm.hear(turn)
    running = turn.status.phase in RUNNING
    if running and is_new(seen.requests.abort, status.handled.abort):
        turn.handle(abort=seen.requests.abort)
        roll_back(turn, "AbortRequested", f"Aborted on request ({seen.requests.abort}).")
    elif running and (void := overtaken(turn)) is not None:
        roll_back(turn, *void)
    elif (alert := alarm.raised(turn)) is not None:
        roll_back(turn, alarm.REASON, alert)
    else:
        if running:
            follow_replicas(turn)
        _PHASES[turn.status.phase](turn)
    if status.phase is Phase.EVALUATING and turn.status.phase is not Phase.EVALUATING:
        # The next pass stops its Job, which asks both pools as long as it is there.
        turn.requeue_after = timedelta(0)
    describe(turn)
    return Decision(turn.status, tuple(turn.announcements), turn.requeue_after)


def _kill_switch(turn: Turn) -> None:
    pulled, status = turn.seen.requests.killed, turn.status
    if pulled and not status.killed:
        if status.adopting:
            # There is a way back, which `adopting` takes.
            return
        if status.phase is Phase.PROMOTED and status.settled:
            turn.hold(
                "KillRefused",
                "The rollback window is closed and the old pool is gone: there is no baseline "
                "to send the requests to. Start a rollout back to the old dtype instead.",
            )
            return
        turn.set(killed=True)
        if status.phase in (
            Phase.EVALUATING,
            Phase.SHADOWING,
            Phase.PROGRESSING,
            Phase.PROMOTED,
        ):
            # A lifted kill switch starts over at the first step, because no weight may be
            # reached without the steps before it.
            turn.enter(Phase.VERIFYING, step=0, next_step=None, promoted_at=None)
        turn.commit_weights()
        turn.record(DecisionKind.KILL, "Killed", f"Kill switch: {pulled}. Baseline serves 100 %.")
    elif not pulled and status.killed:
        turn.set(killed=False, phase_started_at=turn.now)
        turn.record(
            DecisionKind.UNKILL, "Unkilled", "The kill switch was lifted; the steps start over."
        )


def _resume(turn: Turn) -> None:
    """Let the time of a pause not count against the progress deadline."""
    before = turn.status.condition("Paused")
    ended = before is not None and before.status == "True" and not turn.seen.requests.paused
    if ended and turn.status.phase in RUNNING - {Phase.EVALUATING, Phase.SHADOWING}:
        turn.set(phase_started_at=turn.now)


def _pending(turn: Turn) -> None:
    seen = turn.seen
    if seen.problem is not None or seen.candidate is None:
        turn.requeue_after = PATIENT
        if seen.problem is not None:
            turn.hold(seen.problem.reason, seen.problem.message)
        return
    if is_new(seen.requests.retry, turn.status.handled.retry):
        forgive(turn)
    if seen.spec_hash in rejected(turn.status):
        turn.hold(*REJECTED_BEFORE)
        return
    if turn.status.killed or seen.requests.paused:
        turn.hold("NotStarted", "The rollout does not begin while it is killed or paused.")
        return
    if alarm.holds(turn):
        return
    candidate = seen.candidate
    replicas = replicas_for(turn.plan.steps[0].weight, candidate.baseline.replicas)
    canary = Pool(
        deployment=candidate.canary_deployment,
        slot=candidate.canary_slot,
        dtype=candidate.resolved_dtype,
        replicas=replicas,
    )
    fresh = Status(
        observed_generation=seen.generation,
        attempt=turn.status.attempt + 1,
        spec_hash=seen.spec_hash,
        conditions=turn.status.conditions,
        engine=candidate.engine,
        resolved_dtype=candidate.resolved_dtype,
        router=candidate.router,
        gateway=candidate.gateway,
        baseline=candidate.baseline,
        canary=canary,
        total_steps=len(turn.plan.steps),
        decisions=turn.status.decisions,
        alerts=turn.status.alerts,
        rejected_spec_hashes=turn.status.rejected_spec_hashes,
        # What was asked before the attempt began does not speak of this attempt.
        handled=HandledRequests(
            promote=seen.requests.promote, abort=seen.requests.abort, retry=seen.requests.retry
        ),
    )
    turn.status = fresh
    turn.enter(Phase.PROVISIONING)
    turn.record(
        DecisionKind.START,
        "Started",
        f"Attempt {fresh.attempt}: {candidate.baseline.deployment} "
        f"({candidate.baseline.dtype}, {candidate.baseline.replicas} pods) against "
        f"{canary.deployment} ({canary.dtype}), through router {candidate.router}.",
    )
    turn.requeue_after = timedelta(0)


def _provisioning(turn: Turn) -> None:
    turn.requeue_after = WATCHFUL
    if fails_to_start(turn):
        return
    if turn.seen.problem is not None:
        turn.hold(turn.seen.problem.reason, turn.seen.problem.message)
        deadline(turn)
        return
    wanted = turn.canary.replicas
    ready = [pod for pod in turn.seen.canary_pods if pod.ready]
    if len(ready) < wanted:
        why = trouble(turn.seen.canary_pods) or "waiting for their model to load"
        turn.hold("CanaryNotReady", f"{len(ready)} of {wanted} canary pods are ready: {why}")
    elif not turn.seen.router.follows:
        turn.hold("RouterNotReady", router_trouble(turn))
    elif slot_is_empty(turn):
        turn.enter(Phase.VERIFYING)
        turn.record(
            DecisionKind.VERIFY,
            "Verifying",
            f"{len(ready)} canary pods are ready; proving that their KV cache is "
            f"{turn.status.resolved_dtype} before any traffic.",
        )
        return
    deadline(turn)


def _verifying(turn: Turn) -> None:
    turn.requeue_after = WATCHFUL
    if proofs(turn) or fails_to_start(turn):
        return
    if turn.status.killed:
        turn.requeue_after = PATIENT
        turn.hold("Killed", "The kill switch holds: every request goes to the baseline.")
    elif turn.status.alerts:
        alarm.holds(turn)
    elif not pods_serve(turn):
        deadline(turn)
    elif turn.seen.requests.paused:
        turn.hold("Paused", f"Paused: {turn.seen.requests.paused}")
    elif not alarm.holds(turn):
        leave_verification(turn, "Every canary pod has passed the regime proof.")


def _progressing(turn: Turn) -> None:
    turn.requeue_after = turn.plan.interval
    if proofs(turn):
        return
    report = _worth_writing(turn, _analyse(turn))
    turn.set(analysis=report)
    if report.verdict is Verdict.FAIL:
        roll_back(turn, "AnalysisFailed", f"{report.message} {ended(turn)}".strip())
        return
    if keeps_dying(turn):
        return
    if nobody_serves(turn):
        withdraw(turn)
        return
    if turn.plan.shadow.match_load:
        # Whether the canary is given load depends on the alerts, too.
        turn.commit_weights()
    if turn.status.next_step is not None:
        turn.requeue_after = WATCHFUL
        if turn.seen.requests.paused:
            turn.hold("Paused", f"Paused: {turn.seen.requests.paused}")
        elif alarm.holds(turn):
            return
        elif pods_serve(turn):
            advance(turn, f"Step {turn.status.step} passed, and every canary pod serves.")
        else:
            deadline(turn)
        return
    token = turn.seen.requests.promote
    asked = is_new(token, turn.status.handled.promote)
    why_not = _why_not_advance(turn, report.verdict, report.message)
    unasked = _undecided(turn) if why_not is not None and why_not[0] == UNDECIDED else "hold"
    if not asked and unasked == "rollback":
        roll_back(turn, "Inconclusive", f"{_undecided_for(turn)} rolls back. {report.message}")
        return
    if why_not is not None and not asked and unasked != "proceed":
        turn.hold(*why_not)
        return
    if asked:
        turn.handle(promote=token)
        reason = f"on request ({token}), without waiting for more evidence"
    elif why_not is not None:
        reason = f"{_undecided_for(turn)} proceeds. {report.message}"
    else:
        reason = report.message
    if turn.status.step == len(turn.plan.steps):
        promote(turn, reason)
    else:
        prepare_next(turn, reason)


def _why_not_advance(turn: Turn, verdict: Verdict, message: str) -> tuple[str, str] | None:
    """Return why the step stays, as reason and sentence; None when nothing speaks against going."""
    step = turn.plan.steps[turn.status.step - 1]
    if turn.seen.requests.paused:
        return "Paused", f"Paused: {turn.seen.requests.paused}"
    if turn.seen.problem is not None:
        return turn.seen.problem.reason, turn.seen.problem.message
    if (alert := alarm.why_not(turn)) is not None:
        return alert
    if not turn.seen.router.follows:
        return "RouterNotReady", router_trouble(turn)
    if verdict is Verdict.ERROR:
        return "MetricsUnavailable", message
    if _traffic_is_missing(turn):
        return (
            "TrafficNotArrived",
            f"The canary should get {turn.status.weights.canary} % of the requests of "
            f"{turn.status.router} and gets less than half of that.",
        )
    if verdict is not Verdict.PASS:
        return UNDECIDED, message
    left = step.soak - turn.since_step()
    if left > timedelta(0):
        turn.requeue_after = min(turn.requeue_after, max(left, timedelta(seconds=1)))
        return "Soaking", f"{message} Soak: {int(left.total_seconds())} s left."
    return None


def _traffic_is_missing(turn: Turn) -> bool:
    """Tell whether the canary gets less than half of the share that it should in this step."""
    report = turn.seen.report
    if report is None or report.step != turn.status.step:
        return False
    arrived = (report.baseline_requests or 0.0) + (report.canary_requests or 0.0)
    expected = arrived * turn.status.weights.canary / 100
    return expected >= ENOUGH_TO_MISS and (report.canary_requests or 0.0) < expected / 2


def _undecided(turn: Turn) -> str:
    """Return what the spec wants done about a step whose evidence does not decide."""
    step = turn.plan.steps[turn.status.step - 1]
    return step.on_inconclusive if turn.since_step() >= step.decide_within else "hold"


def _undecided_for(turn: Turn) -> str:
    step = turn.plan.steps[turn.status.step - 1]
    return f"Not decided within {step.decide_within}, for which the spec's onInconclusive"


def _promoted(turn: Turn) -> None:
    abort = turn.seen.requests.abort
    if turn.status.settled:
        turn.requeue_after = IDLE
        serving = turn.baseline if turn.status.handed_back else turn.canary
        # A refused kill is told first; two reasons in turn would be a new decision each time.
        if turn.held is None and turn.seen.spec_hash != turn.status.spec_hash:
            turn.hold(
                "SpecChangedAfterPromotion",
                "This rollout has ended in promotion. To change the dtype again, make a new "
                f"KVQuantRollout with targetRef.name: {serving.deployment}.",
            )
        if not turn.status.adopted:
            proofs(turn, may_fail=False)
            adopting(turn)
        return
    if is_new(abort, turn.status.handled.abort):
        turn.handle(abort=abort)
        roll_back(turn, "AbortRequested", f"Aborted within the rollback window ({abort}).")
        return
    if proofs(turn):
        return
    if nobody_serves(turn):
        withdraw(turn)
        return
    left = turn.plan.rollback_window - turn.since_phase()
    if left > timedelta(0):
        turn.requeue_after = min(PATIENT, left)
        # An instant and no countdown, because each new text is a write.
        closes = (turn.now + left).astimezone(UTC)
        if turn.seen.spec_hash != turn.status.spec_hash:
            turn.hold(
                "SpecChangedAfterPromotion",
                f"{turn.canary.deployment} is promoted: of the new spec only `promotion` takes "
                "effect. To try the rest on the old pool, abort before the rollback window closes "
                f"at {closes:%H:%M:%S} UTC.",
            )
            return
        turn.set(verdict=f"Promoted; the rollback window closes at {closes:%H:%M:%S} UTC.")
        return
    if turn.seen.problem is not None or turn.seen.router_taken_by is not None:
        turn.requeue_after = PATIENT
        turn.hold("RouterNotReady", "The old pool keeps its pods: " + _obstacle(turn))
        return
    if alarm.holds(turn):
        return
    if not drained(turn, of_canary=False):
        turn.requeue_after = WATCHFUL
        return
    baseline = turn.baseline
    target = turn.seen.target
    # A target that has adopted the dtype meanwhile needs its pods for what comes next.
    kept = turn.plan.keep_old_pool or (target is not None and target.differs is None)
    replicas = baseline.replicas if kept else 0
    turn.set(
        settled=True,
        baseline=baseline.model_copy(update={"replicas": replicas}),
        retired_replicas=baseline.replicas,
    )
    fate = "keeps its pods" if kept else "is scaled to zero"
    turn.record(
        DecisionKind.SETTLE,
        "RollbackWindowClosed",
        f"The rollback window is closed: {baseline.deployment} {fate}.",
    )
    # The next pass frees the router, for which another rollout may wait.
    turn.requeue_after = timedelta(0)


def _rolling_back(turn: Turn) -> None:
    turn.requeue_after = WATCHFUL
    if not drained(turn, of_canary=True):
        return
    canary = turn.canary
    cause = next(
        (d for d in reversed(turn.status.decisions) if d.kind is DecisionKind.ROLL_BACK), None
    )
    turn.enter(
        Phase.ROLLED_BACK,
        settled=True,
        canary=canary.model_copy(update={"replicas": 0}),
    )
    turn.record(
        DecisionKind.SETTLE,
        "RolledBack",
        f"Rolled back: {cause.message if cause else 'see the decisions'}",
    )
    turn.requeue_after = timedelta(0)


def _rolled_back(turn: Turn) -> None:
    turn.requeue_after = IDLE
    retry = turn.seen.requests.retry
    if is_new(retry, turn.status.handled.retry):
        turn.handle(retry=retry)
        forgive(turn)
    if turn.seen.spec_hash in rejected(turn.status):
        if turn.seen.spec_hash != turn.status.spec_hash:
            turn.hold(*REJECTED_BEFORE)
    else:
        turn.set(settled=False, analysis=None, shadow=None, regime_proof=())
        turn.enter(Phase.PENDING, step=0, step_started_at=None)
        turn.requeue_after = timedelta(0)


def _analyse(turn: Turn) -> AnalysisReport:
    report, problem = turn.seen.report, turn.seen.metrics_problem
    if report is None or problem is not None:
        return silence(problem or "Nothing was measured yet.", turn.now)
    if report.step != turn.status.step:
        return AnalysisReport(
            at=turn.now,
            verdict=Verdict.INCONCLUSIVE,
            message="Not enough evidence yet: the step has only just begun.",
        )
    return told(report)


def _worth_writing(turn: Turn, report: AnalysisReport) -> AnalysisReport:
    """Return the report before when it says the same and is not old: spares writes."""
    before = turn.status.analysis
    if before is None or turn.now - before.at >= SIGN_OF_LIFE:
        return report
    if before.eta_seconds is None and report.eta_seconds is not None:
        # From now on it is known how long it will take, which is what people wait to hear.
        return report
    return before if same_verdict(before, report) else report


def _obstacle(turn: Turn) -> str:
    if turn.seen.problem is not None:
        return turn.seen.problem.message
    return f"rollout {turn.seen.router_taken_by!r} drives the router."


_PHASES = {
    Phase.PENDING: _pending,
    Phase.PROVISIONING: _provisioning,
    Phase.VERIFYING: _verifying,
    Phase.EVALUATING: evaluating,
    Phase.SHADOWING: shadowing,
    Phase.PROGRESSING: _progressing,
    Phase.PROMOTED: _promoted,
    Phase.ROLLING_BACK: _rolling_back,
    Phase.ROLLED_BACK: _rolled_back,
}
