"""Phase Evaluating: a Job asks both pools an example set, and its verdict decides.

A run ends with a verdict on the canary, or fails itself. The latter says nothing of the canary: it
is tried again a few times, and then waits for a person. What stops a run from outside (a kill
switch, an alert, a canary whose last pod goes) makes it void, and the next one begins anew.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kvquant.api.v1alpha1 import EvaluationMeasure, EvaluationReport, Verdict
from kvquant.core.evaluation_manifests import GRACE, START_WITHIN
from kvquant.core.evaluation_reading import EvaluationView, Failure, overdue
from kvquant.core.evaluation_summary import EvaluationSummary
from kvquant.core.gates import (
    fails_to_start,
    nobody_proven,
    obstacle,
    pods_serve,
    proofs,
)
from kvquant.core.moves import leave_evaluation, roll_back, withdraw
from kvquant.core.plan import PlannedEvaluation
from kvquant.core.turn import Turn, is_new

TRIES = 3
"""Runs in a row that may fail themselves."""

WAITS = (timedelta(minutes=1), timedelta(minutes=5))
"""Time after each but the last of them until the next begins."""


def evaluating(turn: Turn) -> None:
    """Wait for the verdict on the example set: what comes next, or the way back."""
    turn.requeue_after = turn.plan.interval
    plan = turn.plan.evaluation
    assert plan is not None, "another spec would have ended the attempt"  # noqa: S101
    if proofs(turn) or fails_to_start(turn):
        return
    if nobody_proven(turn):
        withdraw(turn)
        return
    report = _heard(turn, plan)
    turn.set(evaluation=report)
    if report.verdict is Verdict.FAIL:
        roll_back(turn, "EvaluationFailed", f"Before any user met the canary: {report.message}")
        return
    if turn.status.alerts and report.job is not None and report.verdict is None:
        # What the Job asks costs what production may need. It begins anew when the alert is over.
        report = void(report)
        turn.set(evaluation=report)
        turn.requeue_after = timedelta(0)
    if (why := obstacle(turn)) is not None:
        turn.hold(*why)
        return
    token = turn.seen.requests.promote
    if is_new(token, turn.status.handled.promote):
        turn.handle(promote=token)
        _go_on(turn, f"On request ({token}), without the verdict on the example set.")
    elif _asked_again(turn, report):
        turn.handle(retry=turn.seen.requests.retry)
        report = EvaluationReport(run=report.run)
        turn.set(evaluation=report)
        _begin(turn, report)
    elif report.verdict is Verdict.PASS:
        _go_on(turn, report.message)
    elif report.verdict is Verdict.INCONCLUSIVE:
        _undecided(turn, plan, report)
    elif report.verdict is Verdict.ERROR:
        _failed(turn, plan, report)
    elif report.job is None:
        _begin(turn, report)
    else:
        turn.hold(*_running(turn, plan, report))


def void(report: EvaluationReport) -> EvaluationReport:
    """Return what is left of a run that was stopped from outside: its number, and the failures."""
    return EvaluationReport(run=report.run, failures=report.failures)


def _go_on(turn: Turn, reason: str) -> None:
    if pods_serve(turn):
        leave_evaluation(turn, reason)


def _begin(turn: Turn, report: EvaluationReport) -> None:
    """Ask for the Job of the next run; the next pass makes it."""
    seen = turn.seen
    if seen.evaluation_problem is not None:
        turn.hold(seen.evaluation_problem.reason, seen.evaluation_problem.message)
        return
    if seen.next_job is None or not pods_serve(turn):
        return
    begun = EvaluationReport(
        run=report.run + 1, job=seen.next_job, started_at=turn.now, failures=report.failures
    )
    turn.set(evaluation=begun)
    turn.requeue_after = timedelta(0)


def _asked_again(turn: Turn, report: EvaluationReport) -> bool:
    """Tell whether a person wants a set that has not decided to be asked once more."""
    again = report.verdict in (Verdict.ERROR, Verdict.INCONCLUSIVE)
    return again and is_new(turn.seen.requests.retry, turn.status.handled.retry)


def _undecided(turn: Turn, plan: PlannedEvaluation, report: EvaluationReport) -> None:
    choice = "The example set does not decide, for which spec.evaluation.onInconclusive"
    if plan.on_inconclusive == "rollback":
        roll_back(turn, "Inconclusive", f"{choice} rolls back. {report.message}")
    elif plan.on_inconclusive == "proceed":
        _go_on(turn, f"{choice} proceeds. {report.message}")
    else:
        turn.hold(
            "EvaluationInconclusive",
            f"{report.message} Promote goes on without it, retry asks the set again, and a larger "
            "set decides more.",
        )


def _failed(turn: Turn, plan: PlannedEvaluation, report: EvaluationReport) -> None:
    """Try a run that failed itself again, after a while; not for ever."""
    reason = report.reason or "EvaluationBroken"
    if report.failures >= TRIES:
        told = f"{report.message} It failed {report.failures} times, which says nothing of the"
        if plan.on_error == "rollback":
            roll_back(
                turn,
                "EvaluationError",
                f"{told} canary; spec.evaluation.onError rolls back.",
            )
        else:
            turn.hold(
                reason,
                f"{told} canary: mend it, and `kubectl kvquant retry` asks the set again; promote "
                "goes on without it.",
            )
        return
    due = (report.ended_at or turn.now) + WAITS[min(report.failures, len(WAITS)) - 1]
    if turn.now >= due:
        _begin(turn, report)
        return
    turn.requeue_after = min(turn.requeue_after, due - turn.now)
    turn.hold(
        reason,
        f"{report.message} It is tried again at {_clock(due)} ({report.failures} of {TRIES} "
        "failed).",
    )


def _running(turn: Turn, plan: PlannedEvaluation, report: EvaluationReport) -> tuple[str, str]:
    view, problem = _view(turn, report), turn.seen.evaluation_problem
    if view is None and problem is not None:
        return problem.reason, problem.message
    if view is not None and view.trouble and not view.started:
        return "EvaluationNotStarted", overdue(
            view.job, started=False, trouble=view.trouble
        ).message
    return (
        "Evaluating",
        f"Job {report.job} asks both pools the example set since {_clock(report.started_at)}, for "
        f"{plan.deadline} at most.",
    )


def _view(turn: Turn, report: EvaluationReport) -> EvaluationView | None:
    """Return what is seen of the present run, and of no other."""
    view = turn.seen.evaluation
    return view if view is not None and view.job == report.job else None


def _heard(turn: Turn, plan: PlannedEvaluation) -> EvaluationReport:
    """Return the report with what the present run has come to."""
    report = turn.status.evaluation or EvaluationReport()
    view = _view(turn, report)
    if report.verdict is not None or view is None:
        return report
    if view.summary is not None:
        return _told(turn, report, view.summary)
    failure = view.failure
    lasted = turn.now - (report.started_at or turn.now)
    limit = plan.deadline + START_WITHIN + 2 * GRACE if view.started else START_WITHIN
    if failure is None and lasted > limit:
        failure = overdue(view.job, started=view.started, trouble=view.trouble)
    return report if failure is None else _broken(turn, report, failure)


def _told(turn: Turn, report: EvaluationReport, summary: EvaluationSummary) -> EvaluationReport:
    return report.model_copy(
        update={
            "ended_at": turn.now,
            "verdict": Verdict(summary.outcome.value),
            "message": summary.message,
            "examples": summary.examples,
            "answered": summary.answered,
            "failures": 0,
            "measures": tuple(
                EvaluationMeasure(
                    name=one.name,
                    bucket=one.bucket,
                    pairs=one.pairs,
                    difference=_number(one.difference),
                    lower=_number(one.lower),
                    upper=_number(one.upper),
                    margin=_number(one.margin),
                    verdict=Verdict(one.outcome.value),
                )
                for one in summary.measures[:16]
            ),
        }
    )


def _broken(turn: Turn, report: EvaluationReport, failure: Failure) -> EvaluationReport:
    return report.model_copy(
        update={
            "ended_at": turn.now,
            "verdict": Verdict.ERROR,
            "reason": failure.reason,
            "message": failure.message[:1024],
            "failures": report.failures + 1,
        }
    )


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _clock(instant: datetime | None) -> str:
    return "-" if instant is None else f"{instant.astimezone(UTC):%H:%M:%S} UTC"
