"""Phase Shadowing: both pools answer copies of requests, until the answers decide."""

from __future__ import annotations

from datetime import timedelta

from kvquant.api.v1alpha1 import ShadowReport, Verdict
from kvquant.core.gates import (
    fails_to_start,
    nobody_serves,
    obstacle,
    pods_serve,
    proofs,
)
from kvquant.core.moves import advance, roll_back, withdraw
from kvquant.core.quality import judge
from kvquant.core.turn import SIGN_OF_LIFE, UNDECIDED, Turn, is_new


def shadowing(turn: Turn) -> None:
    """Wait for the verdict on the answers: the first step, or the way back."""
    turn.requeue_after = turn.plan.interval
    if proofs(turn) or fails_to_start(turn):
        return
    if nobody_serves(turn):
        withdraw(turn)
        return
    # Whether anything is copied depends on the alerts, too.
    turn.commit_weights()
    report = _judged(turn)
    turn.set(shadow=report)
    if report is not None and report.verdict is Verdict.FAIL:
        roll_back(turn, "QualityFailed", f"Before any user met the canary: {report.message}")
        return
    if (why := obstacle(turn)) is not None:
        turn.hold(*why)
        return
    token = turn.seen.requests.promote
    if is_new(token, turn.status.handled.promote):
        reason = f"On request ({token}), without waiting for more pairs."
    elif (why_not := _why_not(turn, report)) is None:
        assert report is not None  # noqa: S101 - without one there is a reason not to go on
        reason = report.message
    else:
        choice = _undecided(turn) if why_not[0] == UNDECIDED else "hold"
        within = f"Not decided within {turn.plan.shadow.decide_within}, for which onInconclusive"
        if choice == "rollback":
            roll_back(turn, "Inconclusive", f"{within} rolls back. {why_not[1]}")
            return
        if choice == "hold":
            turn.hold(*why_not)
            return
        reason = f"{within} proceeds. {why_not[1]}"
    if pods_serve(turn):
        advance(turn, reason)


def _why_not(turn: Turn, report: ShadowReport | None) -> tuple[str, str] | None:
    """Return what the answers lack for the first step to begin; None when it may."""
    seen = turn.seen
    if seen.metrics_problem is not None:
        return "MetricsUnavailable", seen.metrics_problem
    if not seen.shadow_ready:
        why = seen.shadow_trouble or "waiting for its pod"
        return "ShadowNotReady", f"The shadow service is not ready: {why}"
    if report is None or seen.shadow is None:
        # Not having looked is no answer: it leaves nothing undecided for the spec to choose on.
        return "MetricsUnavailable", "What the shadow service counted was not read yet."
    if report.verdict is not Verdict.PASS:
        return UNDECIDED, report.message
    left = turn.plan.shadow.soak - turn.since_phase()
    if left > timedelta(0):
        turn.requeue_after = min(turn.requeue_after, max(left, timedelta(seconds=1)))
        return "Soaking", f"{report.message} Soak: {int(left.total_seconds())} s left."
    return None


def _undecided(turn: Turn) -> str:
    """Return what the spec wants done about answers that do not decide."""
    shadow = turn.plan.shadow
    return shadow.on_inconclusive if turn.since_phase() >= shadow.decide_within else "hold"


def _judged(turn: Turn) -> ShadowReport | None:
    """Return the verdict; the one before when it says the same and is not old: spares writes."""
    before, evidence = turn.status.shadow, turn.seen.shadow
    if evidence is None or turn.seen.metrics_problem is not None:
        return before
    report = judge(
        evidence,
        turn.plan.shadow,
        turn.plan.quality_budget,
        turn.now,
        turn.since_phase().total_seconds(),
    )
    if before is None or turn.now - before.at >= SIGN_OF_LIFE or _news(before, report):
        return report
    return before


def _news(before: ShadowReport, report: ShadowReport) -> bool:
    said = [(one.verdict, [s.verdict for s in one.signals]) for one in (before, report)]
    return said[0] != said[1] or (before.pairs == 0 and report.pairs > 0)
