"""What a Job of an evaluation, and its pod, say of the evaluation. Never a guess.

Only the summary of a container that ended well is a verdict on the canary. Everything else is a
failure of the evaluation itself, and says nothing of the canary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kvquant.core.evaluation_summary import VERSION, EvaluationSummary, Outcome
from kvquant.core.ownership import owners_of

Object = Mapping[str, Any]

LONGEST_WORDS = 300
"""Characters of a container's last words that are told."""

LOG = "`kubectl logs job/{job}` has the whole of it."

COMMON = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Why a container may wait without anything being wrong."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no verdict: a CamelCase reason and a sentence with the remedy."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class EvaluationView:
    """A run of the evaluation as far as decisions need it.

    Attributes:
        job: Name of its Job.
        started: Whether the container has ever run.
        trouble: Why it does not, in the words of scheduler and kubelet.
        summary: What it said at its end; None when it has not ended, or not well.
        failure: Why it will never say anything; None when it may, or has.
    """

    job: str
    started: bool = False
    trouble: str = ""
    summary: EvaluationSummary | None = None
    failure: Failure | None = None


def read(job: Object, pods: Sequence[Object]) -> EvaluationView:
    """Return what a run has come to.

    Args:
        job: The Job.
        pods: Pods with its label; those of another Job do not count.
    """
    name, uid = str(job["metadata"]["name"]), job["metadata"].get("uid")
    own = [pod for pod in pods if uid is not None and uid in owners_of(pod)]
    started = any(_started(pod) for pod in own)
    trouble = next((words for words in map(_trouble, own) if words), "")
    conditions = {
        str(one.get("type")): one
        for one in job.get("status", {}).get("conditions") or ()
        if one.get("status") == "True"
    }
    summary: EvaluationSummary | None = None
    failure: Failure | None = None
    if "Complete" in conditions:
        found = _summary(name, own)
        summary, failure = (found, None) if not isinstance(found, Failure) else (None, found)
    elif "Failed" in conditions:
        failure = _failure(name, conditions["Failed"], own, started, trouble)
    return EvaluationView(name, started, trouble, summary, failure)


def ended(job: Object) -> bool:
    """Tell whether a Job has ended, one way or the other."""
    return any(
        one.get("type") in ("Complete", "Failed") and one.get("status") == "True"
        for one in job.get("status", {}).get("conditions") or ()
    )


def _summary(job: str, pods: Sequence[Object]) -> EvaluationSummary | Failure:
    """Return the last words of the container that ended well, if they are what they should be."""
    words = [end["message"] for end in _ends(pods) if end.get("exitCode") == 0 and "message" in end]
    if not words:
        return Failure(
            "EvaluationInterrupted",
            f"Job {job} has ended, and its pod is gone with what it had to say.",
        )
    try:
        summary = EvaluationSummary.model_validate_json(words[-1])
    except ValidationError:
        return Failure("EvaluationUnreadable", _unreadable(job))
    hollow = summary.outcome is Outcome.PASS and min(summary.examples, summary.answered) < 1
    if summary.version != VERSION or hollow:
        return Failure("EvaluationUnreadable", _unreadable(job))
    return summary


def _unreadable(job: str) -> str:
    return (
        f"Job {job} has ended with a summary that this operator cannot read: its image must be of "
        f"the operator's own version (KVQUANT_EVALUATION_IMAGE). {LOG.format(job=job)}"
    )


def _failure(
    job: str, condition: Object, pods: Sequence[Object], started: bool, trouble: str
) -> Failure:
    """Return why a Job has failed."""
    if condition.get("reason") == "DeadlineExceeded":
        # With its time, a Job's pod is removed: what is gone has most likely run.
        return overdue(job, started or not pods, trouble)
    for pod in pods:
        status = pod.get("status", {})
        if _interrupted(status):
            why = ": ".join(filter(None, (status.get("reason"), status.get("message"))))
            return Failure(
                "EvaluationInterrupted",
                f"The pod of Job {job} was sent away before it was done"
                f"{f' ({_line(why)})' if why else ''}.",
            )
    ends = list(_ends(pods))
    if not ends:
        return Failure("EvaluationInterrupted", f"The pod of Job {job} is gone before it was done.")
    end = ends[-1]
    if end.get("reason") == "OOMKilled":
        return Failure(
            "EvaluationOutOfMemory",
            f"The evaluation (Job {job}) needs more memory than it has: take a smaller set, or "
            "lower spec.evaluation.concurrency.",
        )
    words = _line(end.get("message") or "").removeprefix("error: ")
    told = f": {words}" if words else ""
    return Failure(
        "EvaluationBroken",
        f"Job {job} ended with exit code {end.get('exitCode')}{told}. {LOG.format(job=job)}",
    )


def overdue(job: str, started: bool, trouble: str) -> Failure:
    """Return the failure of a run that took too long."""
    if not started:
        why = trouble or "no word of why"
        return Failure(
            "EvaluationNotStarted",
            f"The pod of Job {job} does not start: {why}. What it needs is named in "
            "spec.evaluation.dataset (volume, Secret) and in the operator's "
            "KVQUANT_EVALUATION_IMAGE.",
        )
    return Failure(
        "EvaluationDeadlineExceeded",
        f"Job {job} was not done in time: raise spec.evaluation.deadline or concurrency, or take a "
        "smaller set.",
    )


def _states(pods: Sequence[Object]) -> Iterator[Object]:
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses") or ():
            yield container.get("state") or {}


def _ends(pods: Sequence[Object]) -> Iterator[Object]:
    return (state["terminated"] for state in _states(pods) if state.get("terminated"))


def _started(pod: Object) -> bool:
    return any("running" in state or "terminated" in state for state in _states([pod]))


def _interrupted(status: Object) -> bool:
    """Tell whether somebody else has ended a pod: an eviction, a drain, a lost node."""
    disrupted = any(
        one.get("type") == "DisruptionTarget" and one.get("status") == "True"
        for one in status.get("conditions") or ()
    )
    return disrupted or (status.get("phase") == "Failed" and bool(status.get("reason")))


def _trouble(pod: Object) -> str:
    """Return why a pod does not run, in the words of scheduler and kubelet."""
    for state in _states([pod]):
        waiting = state.get("waiting") or {}
        if waiting.get("reason", "") not in COMMON:
            return _line(f"{waiting['reason']}: {waiting.get('message', '')}".strip(": "))
    for one in pod.get("status", {}).get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            return _line(f"not scheduled: {one.get('message') or one.get('reason', '')}")
    return ""


def _line(words: str) -> str:
    """Return words on one line, and no longer than people read."""
    line = " ".join(words.split()).rstrip(".")
    return line if len(line) <= LONGEST_WORDS else f"{line[: LONGEST_WORDS - 1]}…"
