"""What a Job and its pod say: only a summary of a container that ended well is a verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvquant.core.evaluation_reading import LONGEST_WORDS, ended, read
from kvquant.core.evaluation_summary import Outcome
from tests.fakes import evaluations
from tests.fakes.evaluations import JOB, job, pod, summary

COMPLETE = ("Complete", "CompletionsReached")
BROKEN = ("Failed", "BackoffLimitExceeded")
LATE = ("Failed", "DeadlineExceeded")
GOOD = summary().model_dump_json()
EVICTED: dict[str, Any] = {
    "phase": "Failed",
    "reason": "Evicted",
    "message": "The node was low on memory.",
}
DRAINED: dict[str, Any] = {
    "phase": "Failed",
    "conditions": [{"type": "DisruptionTarget", "status": "True"}],
}


def reason(found: Any) -> str | None:
    return None if found.failure is None else found.failure.reason


@pytest.mark.parametrize("outcome", Outcome)
def test_the_last_words_of_a_container_that_ended_well_are_the_verdict(outcome: Outcome) -> None:
    said = summary(outcome)
    found = read(job(JOB, COMPLETE), [pod(evaluations.ended(said.model_dump_json()))])
    assert found.summary == said
    assert found.failure is None


@pytest.mark.parametrize(
    "words",
    [
        "",
        "Pass",
        GOOD[:-20],
        json.dumps({**json.loads(GOOD), "version": 2}),
        json.dumps({**json.loads(GOOD), "outcome": "Great"}),
        json.dumps({**json.loads(GOOD), "surprise": 1}),
        summary(Outcome.PASS, examples=0).model_dump_json(),
        summary(Outcome.PASS, examples=10).model_dump_json(),
    ],
)
def test_words_that_are_no_whole_summary_never_pass(words: str) -> None:
    found = read(job(JOB, COMPLETE), [pod(evaluations.ended(words))])
    assert found.summary is None
    assert reason(found) == "EvaluationUnreadable"
    assert found.failure is not None
    assert "KVQUANT_EVALUATION_IMAGE" in found.failure.message


@pytest.mark.parametrize(
    ("expected", "told", "condition", "pods"),
    [
        ("EvaluationInterrupted", "is gone", COMPLETE, []),
        ("EvaluationInterrupted", "is gone", COMPLETE, [pod(evaluations.ended(GOOD), uid="old")]),
        ("EvaluationInterrupted", "is gone", COMPLETE, [pod(evaluations.ended())]),
        ("EvaluationInterrupted", "is gone", COMPLETE, [pod(evaluations.ended(GOOD, 3))]),
        ("EvaluationInterrupted", "is gone", BROKEN, []),
        ("EvaluationInterrupted", "Evicted: The node was low", BROKEN, [pod(**EVICTED)]),
        (
            "EvaluationInterrupted",
            "sent away",
            BROKEN,
            [pod(evaluations.ended(code=143), **DRAINED)],
        ),
        (
            "EvaluationOutOfMemory",
            "lower spec.evaluation.concurrency",
            BROKEN,
            [pod(evaluations.ended(code=137, reason="OOMKilled"))],
        ),
        (
            "EvaluationBroken",
            "exit code 1: line 7: no such field. `kubectl logs job/",
            BROKEN,
            [pod(evaluations.ended("error: line 7: no such field.\n", 1))],
        ),
        # A good summary of a program that then failed is no verdict.
        ("EvaluationBroken", "exit code 3", BROKEN, [pod(evaluations.ended(GOOD, 3))]),
        (
            "EvaluationDeadlineExceeded",
            "raise spec.evaluation.deadline",
            LATE,
            [pod(evaluations.ended(code=143))],
        ),
        ("EvaluationDeadlineExceeded", "not done in time", LATE, []),
        ("EvaluationNotStarted", "no word of why", LATE, [pod()]),
        (
            "EvaluationNotStarted",
            "ImagePullBackOff: no such image",
            LATE,
            [pod({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})],
        ),
    ],
)
def test_a_run_that_failed_itself_says_why_and_what_helps(
    expected: str, told: str, condition: tuple[str, str], pods: list[dict[str, Any]]
) -> None:
    found = read(job(JOB, condition), pods)
    assert found.summary is None
    assert reason(found) == expected
    assert found.failure is not None
    assert told in found.failure.message
    assert JOB in found.failure.message


def test_last_words_are_told_on_one_line_and_cut() -> None:
    words = "error: " + "all\nkinds of\tthings " * 200
    found = read(job(JOB, BROKEN), [pod(evaluations.ended(words, 1))])
    assert found.failure is not None
    assert "\n" not in found.failure.message
    assert len(found.failure.message) < LONGEST_WORDS + 200


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        ("", {}),
        ("", {"state": {"waiting": {"reason": "ContainerCreating"}}}),
        (
            'CreateContainerConfigError: secret "bucket" not found',
            {
                "state": {
                    "waiting": {
                        "reason": "CreateContainerConfigError",
                        "message": 'secret "bucket" not found',
                    }
                }
            },
        ),
        (
            'not scheduled: persistentvolumeclaim "sets" not found',
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "message": 'persistentvolumeclaim "sets" not found.',
                    }
                ]
            },
        ),
    ],
)
def test_a_pod_that_does_not_start_says_why_in_the_words_of_kubernetes(
    trouble: str, status: dict[str, Any]
) -> None:
    found = read(job(), [pod(**status)])
    assert (found.trouble, found.started) == (trouble, False)
    assert (found.summary, found.failure) == (None, None), "it may yet start"


def test_a_run_on_its_way_says_nothing_yet() -> None:
    found = read(job(), [pod({"running": {}})])
    assert (found.started, found.summary, found.failure) == (True, None, None)
    # The container's end is known before the Job's.
    found = read(job(), [pod(evaluations.ended(GOOD))])
    assert (found.started, found.summary, found.failure) == (True, None, None)


def test_a_job_has_ended_when_it_says_so() -> None:
    assert [ended(job(JOB, one)) for one in (COMPLETE, BROKEN, ("Suspended", ""))] == [
        True,
        True,
        False,
    ]
    assert not ended({"metadata": {}})
