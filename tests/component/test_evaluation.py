"""Rollouts with an example set, pass by pass: the Job comes and goes, and decides as it may."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, Status, Verdict
from kvquant.core.evaluation_summary import Outcome
from kvquant.errors import Refused
from kvquant.ports import Object
from kvquant.reconciler import Ref
from tests.fakes import evaluations
from tests.fakes.cluster import Fault
from tests.site import NAMESPACE, Site, held, rollout, steps_taken

SET = {"dataset": {"configMapName": "rag"}}


def config_map(**data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "rag", "namespace": NAMESPACE},
        "data": data or {"set.jsonl": '{"id": "1"}'},
    }


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    it.cluster.put(config_map())
    return it


def apply(site: Site, **evaluation: Any) -> Ref:
    return site.apply(rollout(evaluation={**SET, **evaluation}))


def jobs(site: Site) -> list[str]:
    return [job["metadata"]["name"] for job in site.cluster.objects("Job")]


def failed(site: Site, ref: Ref, failures: int) -> Status:
    """Run turns until so many runs in a row have failed themselves."""
    return site.until(ref, lambda s: s.evaluation is not None and s.evaluation.failures == failures)


def asking(site: Site, ref: Ref) -> str:
    """Run turns until the present run's Job is there, and return its name."""

    def there(status: Any) -> bool:
        return status.evaluation is not None and status.evaluation.job in jobs(site)

    status = site.until(ref, there)
    assert status.evaluation is not None
    assert status.evaluation.job is not None
    return status.evaluation.job


# Unhappy paths.


def test_a_canary_that_loses_citations_is_rolled_back_and_no_user_met_it(site: Site) -> None:
    site.said = evaluations.summary(Outcome.FAIL)
    ref = apply(site)
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert site.reasons(ref)[-2:] == ["EvaluationFailed", "RolledBack"]
    assert "Before any user met the canary: The canary loses citations" in (status.verdict or "")
    assert steps_taken(site.traffic.history, "green") == [0]
    assert not any(site.traffic.mirrored.values()), "nor was a request copied to it"
    assert status.evaluation is not None
    assert status.evaluation.measures[0].bucket == "16-64KiB"


def test_a_set_that_is_missing_is_named_and_waited_for(site: Site) -> None:
    site.cluster.vanish("ConfigMap", NAMESPACE, "rag")
    ref = apply(site)
    status = site.until(ref, lambda status: held(status) == "EvaluationDatasetMissing")
    assert "kubectl create configmap rag --from-file=set.jsonl" in (status.verdict or "")
    site.cluster.put(config_map(other="x"))
    status = site.until(ref, lambda status: "it has other" in (status.verdict or ""))
    assert jobs(site) == []
    site.cluster.put(config_map())
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_job_that_is_evicted_is_tried_again_and_never_held_against_the_canary(
    site: Site,
) -> None:
    site.said = None
    ref = apply(site)
    seen = []
    for failures in (1, 2, 3):
        job = asking(site, ref)
        seen.append(job)
        site.end_job(
            job, evaluations.ended(code=137), condition="Failed", phase="Failed", reason="Evicted"
        )
        status = failed(site, ref, failures)
        assert held(status) == "EvaluationInterrupted"
        if failures < 3:
            site.until(ref, lambda s: s.evaluation is not None and s.evaluation.verdict is None)
    for _ in range(100):
        site.turn(ref)
    status = site.status(ref)
    assert (status.phase, held(status)) == (Phase.EVALUATING, "EvaluationInterrupted")
    assert len(set(seen)) == 3
    assert sorted(jobs(site)) == sorted(seen), "not for ever"
    assert status.rejected_spec_hash is None
    site.said = evaluations.summary()
    site.annotate(ref, retry="r1")
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_an_image_that_cannot_be_pulled_is_told_at_once_and_its_job_is_removed(site: Site) -> None:
    site.said = None
    ref = apply(site)
    job = asking(site, ref)
    (pod,) = site.pods(job)
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    site.cluster.set_status(
        *("Pod", NAMESPACE, pod["metadata"]["name"]),
        {"containerStatuses": [{"name": "evaluation", "state": waiting}]},
    )
    status = site.until(ref, lambda status: held(status) == "EvaluationNotStarted")
    assert "ErrImagePull: no such image" in (status.verdict or "")
    site.until(ref, lambda s: s.evaluation is not None and s.evaluation.verdict is Verdict.ERROR)
    site.turn(ref)
    assert job not in jobs(site), "it would begin when nobody waits for it any more"


def test_a_job_that_may_not_be_made_is_told_in_the_api_servers_words(site: Site) -> None:
    site.cluster.faults.append(Fault(Refused("jobs is forbidden"), "apply", "Job", times=10**6))
    ref = apply(site)
    status = site.until(ref, lambda status: held(status) == "RefusedByAPIServer")
    assert "jobs is forbidden" in (status.verdict or "")
    site.cluster.faults.clear()
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_rights_of_an_older_release_hold_and_keep_nothing_from_being_rolled_back(
    site: Site,
) -> None:
    site.cluster.faults.append(Fault(Refused("jobs is forbidden"), "list", "Job", times=10**6))
    ref = apply(site)
    status = site.until(ref, lambda status: held(status) == "EvaluationRefused")
    assert "examples/install/operator.yaml" in (status.verdict or "")
    assert jobs(site) == []
    site.annotate(ref, abort="a1")
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK


def test_rights_that_are_taken_away_meanwhile_make_no_second_job(site: Site) -> None:
    site.asking = 60.0
    ref = apply(site)
    job = asking(site, ref)
    site.cluster.faults.append(Fault(Refused("jobs is forbidden"), "list", "Job", times=10**6))
    site.until(ref, lambda status: held(status) == "EvaluationRefused")
    before = len(site.cluster.calls)
    site.turn(ref)
    written = [c for c in site.cluster.calls[before:] if c.kind == "Job" and c.writes]
    assert written == []
    site.cluster.faults.clear()
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert jobs(site) == [job]


def test_somebody_who_deletes_the_job_has_it_made_again(site: Site) -> None:
    site.asking = 60.0
    ref = apply(site)
    job = asking(site, ref)
    site.cluster.vanish("Job", NAMESPACE, job)
    site.turn(ref)
    assert jobs(site) == [job]
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_job_of_another_rollout_by_the_same_labels_says_nothing(site: Site) -> None:
    site.said = None
    ref = apply(site)
    job = asking(site, ref)
    stranger = evaluations.job("stranger", ("Complete", ""), uid="stranger")
    stranger["metadata"]["labels"] = site.cluster.objects("Job")[0]["metadata"]["labels"]
    stranger["spec"] = site.cluster.objects("Job")[0]["spec"]
    site.cluster.put(stranger)
    pod = evaluations.pod(
        evaluations.ended(evaluations.summary().model_dump_json()), uid="stranger"
    )
    pod = {"apiVersion": "v1", "kind": "Pod", **pod}
    pod["metadata"] |= {
        "namespace": NAMESPACE,
        "labels": stranger["metadata"]["labels"],
        "annotations": {"test/deployment": "stranger"},
    }
    site.cluster.put(pod)
    site.end_job(job, evaluations.ended())
    status = failed(site, ref, 1)
    assert held(status) == "EvaluationInterrupted"


# What people and the cluster do meanwhile.


def test_the_kill_switch_stops_the_job_and_lifted_it_begins_anew(site: Site) -> None:
    site.said = None
    ref = apply(site)
    first = asking(site, ref)
    site.annotate(ref, killed="Ada")
    site.turn(ref)
    site.turn(ref)
    assert jobs(site) == []
    assert site.status(ref).killed
    site.annotate(ref, killed=None)
    site.said = evaluations.summary()
    assert asking(site, ref) != first
    assert site.until_settled(ref).phase is Phase.PROMOTED


@pytest.mark.parametrize("how", ["abort", "delete", "edit"])
def test_an_end_of_the_attempt_stops_its_job(site: Site, how: str) -> None:
    site.said = None
    ref = apply(site)
    first = asking(site, ref)
    if how == "abort":
        site.annotate(ref, abort="a1")
        status = site.until_settled(ref)
        assert status.phase is Phase.ROLLED_BACK
    elif how == "delete":
        site.cluster.delete(names.KIND, ref.namespace, ref.name)
        for _ in range(10):
            site.reconciler.finalize(ref)
            site.let_pass(2)
    else:
        site.edit_spec(ref, evaluation={**SET, "marginPercent": 3})
        site.until(ref, lambda status: status.attempt == 2)
    assert first not in jobs(site)
    assert site.lost == []


def test_a_pause_lets_the_job_end_and_nothing_follow(site: Site) -> None:
    ref = apply(site)
    asking(site, ref)
    site.annotate(ref, paused="Ada")
    site.until(ref, lambda s: s.evaluation is not None and s.evaluation.verdict is Verdict.PASS)
    for _ in range(10):
        site.turn(ref)
    assert (site.status(ref).phase, held(site.status(ref))) == (Phase.EVALUATING, "Paused")
    site.annotate(ref, paused=None)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_an_operator_that_begins_anew_goes_on_with_the_same_job(site: Site) -> None:
    ref = apply(site)
    job = asking(site, ref)
    site.restart()
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert jobs(site) == [job]


def test_a_new_attempt_asks_anew(site: Site) -> None:
    site.said = evaluations.summary(Outcome.FAIL)
    ref = apply(site)
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK
    (first,) = jobs(site)
    site.said = evaluations.summary()
    site.annotate(ref, retry="r1")
    site.until(ref, lambda status: status.attempt == 2)
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert len(jobs(site)) == 2
    assert first in jobs(site), "its log is kept until Kubernetes removes it"


# And when all is well.


def test_a_set_that_passes_leads_to_shadowing_and_on_to_promotion(site: Site) -> None:
    ref = apply(site)
    status = site.until_settled(ref)
    assert status.phase is Phase.PROMOTED
    assert [r for r in site.reasons(ref) if r in ("Evaluating", "Shadowing", "StepStarted")] == [
        *("Evaluating", "Shadowing"),
        *["StepStarted"] * 4,
    ]
    assert status.evaluation is not None
    assert (status.evaluation.verdict, status.evaluation.run) == (Verdict.PASS, 1)
    (job,) = site.cluster.objects("Job")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--baseline=llama-router-blue:8000" in arguments
    assert "--canary=llama-router-green:8000" in arguments
    (owner,) = job["metadata"]["ownerReferences"]
    assert owner["uid"] == site.raw(ref)["metadata"]["uid"]


def test_a_rollout_without_a_set_asks_nothing_of_jobs(site: Site) -> None:
    ref = site.apply()
    site.until_settled(ref)
    assert not [call for call in site.cluster.calls if call.kind == "Job"]
