"""An example set as a gate: the Job on a real node, what it decides, and what it leaves alone."""

from __future__ import annotations

import json
import random

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, Status, Verdict
from tests.e2e.stage import Stage, cause_of, failures

pytestmark = [pytest.mark.node, pytest.mark.timeout(420)]

WORDS = ("river", "stone", "the", "of", "a", "light", "carries", "winter", "and", "slow", "blue")
PASSAGE = 40
"""Words of a passage that bears a number."""
SET = {"dataset": {"configMapName": "examples"}, "concurrency": 8, "deadline": "5m"}


def cited(count: int, words: int, seed: int = 1) -> str:
    """Return a set of prompts made of numbered passages, the first of which is to be cited."""
    chance = random.Random(seed)
    lines = []
    for number in range(count):
        text = [chance.choice(WORDS) for _ in range(words)]
        for marker, at in enumerate(range(0, words, PASSAGE), 1):
            text[at] = f"[{marker}] {text[at]}"
        body = {"model": "llama-3-8b", "prompt": " ".join(text), "max_tokens": 24}
        lines.append(json.dumps({"id": f"e-{number}", "endpoint": "/v1/completions", "body": body}))
    return "\n".join(lines)


def keep(stage: Stage, examples: str) -> None:
    """Put a set where the rollouts of a test look for it."""
    stage.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "examples", "namespace": stage.namespace},
            "data": {"set.jsonl": examples},
        }
    )


def asked(status: Status) -> bool:
    return status.evaluation is not None and status.evaluation.job is not None


def test_a_canary_that_loses_citations_of_the_set_never_meets_a_user(stage: Stage) -> None:
    stage.serve(
        replicas=2, faults="int4_per_token_head:drop_citations=1,drop_citations_beyond=1000"
    )
    keep(stage, cited(40, words=1600))
    stage.roll_out("int4", "int4", evaluation=SET)
    load = stage.send()
    status = stage.until_settled("int4", Phase.ROLLED_BACK)
    cause = cause_of(status)
    assert cause.reason == "EvaluationFailed", cause.message
    assert "citation" in cause.message
    assert status.evaluation is not None
    assert (status.evaluation.verdict, status.evaluation.examples) == (Verdict.FAIL, 40)
    assert stage.weights == [0], "no user met it"
    assert "EvaluationFailed" in stage.events("int4")
    load.stop()
    assert not failures(load)
    assert not any(outcome.from_canary for outcome in load.outcomes)


def test_a_harmless_canary_passes_though_the_operator_dies_meanwhile(stage: Stage) -> None:
    stage.serve(replicas=2)
    keep(stage, cited(120, words=200))
    stage.roll_out("fp8", "fp8", evaluation={**SET, "marginPercent": 10, "driftPercent": 20})
    load = stage.send()
    first = stage.until("fp8", asked, 180, "a run should be asked for").evaluation
    assert first is not None
    assert stage.kill_operator()
    stage.operator_is_back()
    status = stage.until("fp8", lambda s: s.step == 1, 240, "the set should pass")
    report = status.evaluation
    assert report is not None
    assert (report.verdict, report.run, report.job) == (Verdict.PASS, 1, first.job)
    assert report.examples == 120
    assert report.job is not None
    job = stage.port.get("Job", stage.namespace, report.job)
    assert job is not None, "it is kept for its log"
    (pod,) = stage.pods(**{names.LABEL_EVALUATION: report.job})
    assert pod["status"]["phase"] == "Succeeded"
    assert "120/120" in stage.cluster.kubectl("logs", f"job/{report.job}", "-n", stage.namespace)
    load.stop()
    assert not failures(load)


def test_a_set_with_a_mistake_holds_with_its_line_and_a_person_goes_on(stage: Stage) -> None:
    stage.serve()
    keep(stage, cited(3, words=50) + "\n{not json\n")
    stage.roll_out("fp8", "fp8", evaluation=SET)
    status = stage.until(
        "fp8",
        lambda s: s.evaluation is not None and s.evaluation.verdict is Verdict.ERROR,
        180,
        "the program should refuse the set",
    )
    assert status.evaluation is not None
    assert status.evaluation.reason == "EvaluationBroken"
    assert "set.jsonl, line 4" in status.evaluation.message
    assert status.phase is Phase.EVALUATING
    assert status.rejected_spec_hash is None
    stage.ask("fp8", names.ANNOTATION_PROMOTE, "on-my-own")
    stage.send()
    stage.until("fp8", lambda s: s.step == 1, 120, "it should go on without the set")


@pytest.mark.full
def test_a_job_in_the_way_of_a_kill_switch_is_stopped_and_leaves_nothing(stage: Stage) -> None:
    stage.serve()
    keep(stage, cited(400, words=300))
    stage.roll_out("fp8", "fp8", evaluation={**SET, "concurrency": 1, "deadline": "30m"})
    status = stage.until("fp8", asked, 180, "a run should be asked for")
    assert status.evaluation is not None
    first = status.evaluation.job
    stage.ask("fp8", names.ANNOTATION_KILLED, "Ada")
    stage.until("fp8", lambda s: s.killed, 30, "the kill switch should hold")
    stage.until(
        "fp8",
        lambda _: not stage.port.list("Job", stage.namespace, {names.LABEL_ROLLOUT: "fp8"}),
        60,
        "the Job should be gone",
    )
    stage.ask("fp8", names.ANNOTATION_KILLED, None)
    status = stage.until(
        "fp8",
        lambda s: asked(s) and s.evaluation is not None and s.evaluation.job != first,
        120,
        "another run should be asked for",
    )
    stage.ask("fp8", names.ANNOTATION_ABORT, "enough")
    stage.until_settled("fp8", Phase.ROLLED_BACK)
    assert not stage.port.list("Job", stage.namespace, {names.LABEL_ROLLOUT: "fp8"})
