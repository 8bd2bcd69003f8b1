"""Which targets ask for the promoted dtype, and one look at a time what then holds."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Adoption, AdoptionStage, Phase, PodProof, Status, Verdict
from kvquant.core.adopting import differs
from kvquant.core.evidence import Evidence
from kvquant.core.machine import decide
from kvquant.core.observation import Observation, PodView, Problem, Requests, RouterView, TargetView
from kvquant.ports import Object
from tests.fakes.metrics import arm
from tests.site import engine_pool
from tests.unit.test_machine import NOW, PLAN, POD, PROOF, seen, status, why_held

OWN = PodView("llama-1", ready=True, serving=True, container_id="t1", started_at=NOW)
OWN_PROOF = PodProof(
    pod="llama-1", container_id="t1", verdict=Verdict.PASS, capacity_tokens=196_608
)
WRONG = OWN_PROOF.model_copy(update={"verdict": Verdict.FAIL, "message": "it ignored the flag."})


def at(stage: AdoptionStage, *, age: float = 60, **fields: Any) -> Status:
    """Return the status of an adoption that has been in a stage for some seconds."""
    adoption = Adoption(stage=stage, since=NOW - timedelta(seconds=age), regime_proof=(OWN_PROOF,))
    known: dict[str, Any] = {"settled": True, "regime_proof": (PROOF,), "adoption": adoption}
    before = status(Phase.PROMOTED, step=4, age=9999, **{**known, **fields})
    weights = before.weights.model_copy(update={"baseline": 100, "canary": 0})
    return before.model_copy(update={"weights": weights}) if before.handed_back else before


def look(**fields: Any) -> Observation:
    """Return an observation of a target of one pod that can take over, but for the given."""
    known: dict[str, Any] = {
        "target": TargetView(1, "second"),
        "baseline_pods": (OWN,),
        "target_proofs": (OWN_PROOF,),
    }
    return seen(**{**known, **fields})


def after(before: Status, **fields: Any) -> Status:
    return decide(PLAN, before, look(**fields), NOW).status


def _target(dtype: str = "fp8", **container: Any) -> Object:
    target = engine_pool(dtype=dtype)
    target["spec"]["template"]["spec"]["containers"][0].update(container)
    return target


def _without_labels() -> Object:
    target = _target()
    target["spec"]["selector"] = {"matchExpressions": []}
    return target


def _pool() -> Object:
    target = _target()
    target["metadata"]["labels"][names.LABEL_POOL] = "llama"
    return target


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (_target("auto"), "NotAsked"),
        (_target("fp8_e5m2"), "NotAsked"),
        (_target(args=["--model", "llama"]), "NotAsked"),
        (_target(command=["/start.sh"], args=[], image="mine"), "EngineNotRecognised"),
        (_target(args=["--kv-cache-dtype", "fp8", "--port", "http"]), "EnginePortUnknown"),
        (_without_labels(), "SelectorNotSupported"),
        (_pool(), "TargetIsPool"),
        (_target("fp8_e4m3"), None),
        (_target(args=["--kv-cache-dtype=fp8"]), None),
    ],
)
def test_what_a_target_lacks_is_named(target: Object, reason: str | None) -> None:
    before = copy.deepcopy(target)
    why = differs(target, None, "fp8")
    assert (None if why is None else why.reason) == reason
    assert target == before


def test_a_short_name_is_the_dtype_that_it_stands_for() -> None:
    assert differs(_target("int8"), None, "int8_per_token_head") is None


PROVING: list[tuple[dict[str, Any], str]] = [
    ({"target_proofs": (WRONG,)}, "RegimeProofFailed"),
    ({"target_proofs": ()}, "RegimeNotProven"),
    ({"target_proofs": (OWN_PROOF.model_copy(update={"container_id": "old"}),)}, "RegimeNotProven"),
    ({"target": TargetView(0, "second")}, "TargetScaledToZero"),
    ({"target": TargetView(2, "second")}, "TargetNotReady"),
    ({"baseline_pods": (replace(OWN, ready=False),)}, "TargetNotReady"),
    ({"baseline_pods": (replace(OWN, serving=False),)}, "RollingOut"),
    ({"baseline_pods": (OWN, replace(OWN, name="llama-0", ready=False))}, "RollingOut"),
    ({"target_proofs": (), "outdated": ("llama-1",)}, "RollingOut"),
    ({"canary_pods": (POD, replace(POD, name="pool-2", ready=False))}, "TargetTooSmall"),
    ({"router": RouterView(2, 2, 1)}, "RouterNotReady"),
    ({"evidence": None, "metrics_problem": "no answer"}, "MetricsUnavailable"),
    ({"evidence": Evidence(NOW, arm(healthy=0), arm())}, "RouterNotReady"),
    ({"problem": Problem("RefusedByAPIServer", "denied")}, "RefusedByAPIServer"),
    ({"requests": Requests(paused="Ada")}, "Paused"),
    ({"requests": Requests(killed="Ada")}, "Killed"),
]


@pytest.mark.parametrize(("fields", "reason"), PROVING)
def test_the_pool_serves_until_every_pod_of_the_target_can(
    fields: dict[str, Any], reason: str
) -> None:
    told = after(at(AdoptionStage.PROVING), **fields)
    assert (told.weights.canary, told.handed_back) == (100, False)
    condition = told.condition("Adopted")
    assert condition is not None
    assert (condition.status, condition.reason, why_held(told)) == ("False", reason, reason)
    assert after(told, **fields) == told, "and is written once"


def test_one_whose_router_is_taken_is_given_up_and_holds_nothing_still() -> None:
    told = after(at(AdoptionStage.PROVING), drives_router=False)
    assert (told.adoption, told.weights.canary) == (None, 100)
    condition = told.condition("Adopted")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "RouterTaken")
    back = after(at(AdoptionStage.HANDING_OVER), drives_router=False)
    assert (back.handed_back, back.weights.canary) == (False, 100)


def test_pods_that_routers_knew_before_they_were_verified_have_time_to_go() -> None:
    assert not after(at(AdoptionStage.PROVING, age=14)).handed_back
    told = after(at(AdoptionStage.PROVING, age=15))
    assert (told.weights.baseline, told.weights.canary) == (100, 0)
    assert told.canary is not None
    assert told.canary.replicas == 1, "the way back"


@pytest.mark.parametrize(
    ("age", "fields", "gone"),
    [
        (5, {}, False),
        (16, {}, True),
        (16, {"evidence": Evidence(NOW, arm(active=0), arm(active=3))}, False),
        (16, {"evidence": None, "metrics_problem": "no answer"}, False),
        (301, {"evidence": None, "metrics_problem": "no answer"}, True),
        (301, {"router": RouterView(2, 2, 1)}, False),
        (301, {"requests": Requests(paused="Ada")}, False),
        (301, {"problem": Problem("RefusedByAPIServer", "denied")}, False),
    ],
)
def test_the_pool_goes_when_it_is_drained_and_every_router_follows(
    age: float, fields: dict[str, Any], gone: bool
) -> None:
    told = after(at(AdoptionStage.HANDING_OVER, age=age), **fields)
    assert (told.adopted, told.weights.baseline) == (gone, 100)
    condition = told.condition("Adopted")
    assert condition is not None
    assert condition.status == ("True" if gone else "False")
    if gone:
        assert told.regime_proof == (OWN_PROOF,), "what serves is what is proven"


def test_one_that_has_adopted_stays_so_whatever_comes() -> None:
    done = after(at(AdoptionStage.HANDING_OVER))
    assert done.adopted
    for fields, _ in PROVING:
        told = after(done, **fields)
        assert told.adopted
        assert told.weights.baseline == 100
        assert told.regime_proof == (OWN_PROOF,)


def test_a_changed_spec_names_the_pool_that_serves_now() -> None:
    done = after(at(AdoptionStage.HANDING_OVER))
    changed = replace(look(), spec_hash="another")
    told = decide(PLAN, done, changed, NOW).status
    assert "targetRef.name: llama." in (told.verdict or "")
