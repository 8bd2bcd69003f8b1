"""Jobs of evaluations and their pods, as Kubernetes shows them, and what they say at their end."""

from __future__ import annotations

from typing import Any

from kvquant.api import names
from kvquant.core.evaluation_reading import EvaluationView, Failure
from kvquant.core.evaluation_summary import EvaluationSummary, MeasureSummary, Outcome

Object = dict[str, Any]
JOB = "llama-fp8-eval-1"


def summary(outcome: Outcome = Outcome.PASS, examples: int = 1200) -> EvaluationSummary:
    """Return what a run says that asked so many examples."""
    lost = outcome is Outcome.FAIL
    return EvaluationSummary(
        outcome=outcome,
        examples=examples,
        answered=max(0, examples - 10),
        message={
            Outcome.PASS: "The canary answers 1190 examples as well as the baseline.",
            Outcome.FAIL: "The canary loses citations: 4.1 % more of 1190 examples.",
            Outcome.INCONCLUSIVE: "12 examples are too few to tell.",
        }[outcome],
        measures=(
            MeasureSummary(
                name="citations",
                bucket="16-64KiB" if lost else "all",
                pairs=400,
                difference=0.041 if lost else 0.0,
                lower=0.027 if lost else -0.004,
                upper=0.055 if lost else 0.004,
                margin=0.02,
                outcome=outcome,
            ),
        ),
    )


def view(
    outcome: Outcome | None = None, failure: str | None = None, job: str = JOB, **fields: Any
) -> EvaluationView:
    """Return a run as it is seen: on its way, unless it has an outcome or a failure."""
    return EvaluationView(
        **{
            "job": job,
            "started": True,
            "summary": None if outcome is None else summary(outcome),
            "failure": None if failure is None else Failure(failure, f"It failed ({failure})."),
            **fields,
        }
    )


def job(name: str = JOB, *conditions: tuple[str, str], uid: str = "job-uid") -> Object:
    """Return a Job with these conditions: type and reason."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "inference", "uid": uid},
        "status": {
            "conditions": [
                {"type": type_, "status": "True", "reason": reason} for type_, reason in conditions
            ]
        },
    }


def pod(state: Object | None = None, *, uid: str = "job-uid", **status: Any) -> Object:
    """Return the pod of a Job, whose container is in a state."""
    return {
        "metadata": {
            "name": f"{JOB}-x7k2p",
            "labels": {names.LABEL_EVALUATION: JOB},
            "ownerReferences": [{"kind": "Job", "name": JOB, "uid": uid}],
        },
        "status": {
            "containerStatuses": [] if state is None else [{"name": "evaluation", "state": state}],
            **status,
        },
    }


def ended(message: str | None = None, code: int = 0, **fields: Any) -> Object:
    """Return the state of a container that has ended with these last words."""
    words = {} if message is None else {"message": message}
    return {"terminated": {"exitCode": code, **words, **fields}}
