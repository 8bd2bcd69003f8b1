"""A target that adopts the promoted dtype in Git: proven, given the traffic back, and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import AdoptionStage, Phase, Status
from kvquant.ports import Object, RouterKey
from kvquant.reconciler import Ref
from tests.component.test_autoscaler import autoscaler, bounds, stored
from tests.component.test_reconciler_faults import SHORT, pass_killed_everywhere
from tests.gateway import GatewaySite, through_gateway
from tests.site import NAMESPACE, Site, held, rollout

ROUTER = RouterKey(NAMESPACE, "llama-router")
ON_POOL, ON_TARGET = {"blue": 0, "green": 100}, {"blue": 100, "green": 0}


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


@pytest.fixture
def ref(site: Site) -> Ref:
    """A rollout whose pool serves, and whose target has no pods any more."""
    ref = site.apply()
    site.until_settled(ref)
    site.lost.clear()
    return ref


def edit(site: Site, change: Callable[[Object], None], name: str = "llama") -> None:
    site.cluster.edit("Deployment", NAMESPACE, name, change)


def adopt(site: Site, dtype: str = "fp8", **spec: Any) -> None:
    """Change the target's dtype, as a sync from Git does."""

    def change(deployment: Object) -> None:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container["args"] = ["--model", "llama", "--kv-cache-dtype", dtype]
        deployment["spec"].update(spec)

    edit(site, change)


def stage(site: Site, ref: Ref) -> AdoptionStage | None:
    adoption = site.status(ref).adoption
    return None if adoption is None else adoption.stage


def is_at(wanted: AdoptionStage) -> Callable[[Status], bool]:
    return lambda status: status.adoption is not None and status.adoption.stage is wanted


HANDING_OVER, ADOPTED = is_at(AdoptionStage.HANDING_OVER), is_at(AdoptionStage.ADOPTED)


def why(site: Site, ref: Ref) -> str:
    """Return the reason of the condition `Adopted`, which is False."""
    condition = site.status(ref).condition("Adopted")
    assert condition is not None
    assert condition.status == "False"
    return condition.reason


def run(site: Site, ref: Ref, *others: Ref, turns: int = 20) -> None:
    for _ in range(turns):
        site.turn(ref, *others)


def nothing_has_moved(site: Site) -> bool:
    pool = site.pods("llama-fp8-pool")
    return site.traffic.weights[ROUTER] == ON_POOL and len(pool) == 2 and site.lost == []


# What does not get the traffic.


@pytest.mark.parametrize("dtype", ["auto", "int8", "int8_per_token_head"])
def test_a_target_of_another_dtype_gets_nothing_and_is_told_what_to_do(
    site: Site, ref: Ref, dtype: str
) -> None:
    adopt(site, dtype, replicas=2)
    run(site, ref, turns=5)
    assert why(site, ref) == "NotAsked"
    condition = site.status(ref).condition("Adopted")
    assert condition is not None
    assert f"llama asks for {dtype}" in condition.message
    assert nothing_has_moved(site)
    version = site.raw(ref)["metadata"]["resourceVersion"]
    run(site, ref, turns=5)
    assert site.raw(ref)["metadata"]["resourceVersion"] == version, "and costs no writes"


def test_a_target_that_nobody_can_read_gets_nothing_and_the_reason_is_told(
    site: Site, ref: Ref
) -> None:
    def hide(deployment: Object) -> None:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container.update(command=["sh", "-c", "vllm serve llama --kv-cache-dtype fp8"])

    edit(site, hide)
    run(site, ref, turns=5)
    assert why(site, ref) == "EngineInShellLine"
    assert nothing_has_moved(site)


def test_a_target_whose_engine_ignores_the_dtype_gets_nothing(site: Site, ref: Ref) -> None:
    site.ignoring.add("llama")
    adopt(site)
    run(site, ref)
    assert (why(site, ref), held(site.status(ref))) == ("RegimeProofFailed", "RegimeProofFailed")
    assert "0.50" in (site.status(ref).verdict or ""), "half as many tokens as the pool's pods"
    assert site.serving("llama-router", "blue") == []
    assert nothing_has_moved(site)
    assert site.status(ref).phase is Phase.PROMOTED


def test_pods_that_start_meanwhile_in_the_pool_are_not_held_against_such_a_target(
    site: Site, ref: Ref
) -> None:
    site.ignoring.add("llama")
    adopt(site)
    run(site, ref)
    (one, _) = site.pods("llama-fp8-pool")
    site.cluster.vanish("Pod", NAMESPACE, one["metadata"]["name"])
    site.control()
    run(site, ref)
    assert len(site.serving("llama-router", "green")) == 2


@pytest.mark.parametrize("how", ["annotation", "whole cluster"])
def test_a_killed_rollout_hands_nothing_over_until_the_switch_is_lifted(
    site: Site, ref: Ref, how: str
) -> None:
    adopt(site)
    if how == "annotation":
        site.annotate(ref, killed="by Ada")
    for _ in range(20):
        site.reconciler.reconcile(ref, "incident 7" if how != "annotation" else None)
        site.let_pass(2)
    assert why(site, ref) == "Killed"
    assert nothing_has_moved(site)
    site.annotate(ref, killed=None)
    site.until(ref, ADOPTED)


def test_a_paused_rollout_proves_and_does_not_move(site: Site, ref: Ref) -> None:
    site.annotate(ref, paused="Ada has lunch")
    adopt(site)
    run(site, ref)
    assert (stage(site, ref), why(site, ref)) == (AdoptionStage.PROVING, "Paused")
    assert nothing_has_moved(site)
    site.annotate(ref, paused=None)
    site.until(ref, ADOPTED)


def test_too_few_pods_are_not_given_the_traffic_of_more(site: Site, ref: Ref) -> None:
    adopt(site, replicas=1)
    run(site, ref)
    assert why(site, ref) == "TargetTooSmall"
    assert nothing_has_moved(site)
    edit(site, lambda d: d["spec"].update(replicas=2))
    site.until(ref, ADOPTED)


def test_pods_that_never_become_ready_get_nothing(site: Site, ref: Ref) -> None:
    site.load_time = 1e9
    adopt(site)
    run(site, ref)
    assert why(site, ref) == "TargetNotReady"
    assert nothing_has_moved(site)


def test_nothing_moves_while_prometheus_or_the_routers_say_nothing(site: Site, ref: Ref) -> None:
    site.metrics.outage = "Prometheus at p:9090 did not answer"
    adopt(site)
    run(site, ref)
    assert "did not answer" in (site.status(ref).verdict or "")
    assert nothing_has_moved(site)
    site.metrics.outage = None
    site.traffic.deaf.add(ROUTER)
    run(site, ref)
    assert why(site, ref) == "RouterNotReady"
    assert nothing_has_moved(site)
    site.traffic.deaf.clear()
    site.until(ref, ADOPTED)


def test_a_router_that_another_rollout_drives_is_left_alone(site: Site, ref: Ref) -> None:
    other = site.apply(rollout("llama-int8", "llama-fp8-pool", "int8"))
    site.until(other, lambda status: status.step == 1, ref)
    site.turn(other, ref)
    adopt(site, replicas=2)
    weights = site.traffic.weights[ROUTER]
    run(site, ref, other, turns=3)
    assert why(site, ref) == "RouterTaken"
    assert site.traffic.weights[ROUTER] == weights
    assert site.until_settled(other, ref).phase is Phase.PROMOTED
    assert site.lost == []


def test_a_pool_of_another_rollout_is_not_taken_from_it(site: Site, ref: Ref) -> None:
    other = site.apply(rollout("llama-int8", "llama-fp8-pool", "int8"))
    site.until_settled(other, ref)

    def change(deployment: Object) -> None:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container["args"] = ["--model", "llama", "--kv-cache-dtype", "int8_per_token_head"]
        deployment["spec"].update(replicas=2)

    edit(site, change, "llama-fp8-pool")
    run(site, other, ref)
    assert why(site, other) == "TargetIsPool"
    site.reconciler.finalize(ref)
    site.cluster.vanish(names.KIND, ref.namespace, ref.name)
    site.until(other, ADOPTED)
    assert site.lost == []


# The way back, until the pool is gone.


def unready(site: Site) -> None:
    site.kill_engine(site.pods("llama")[0]["metadata"]["name"], restarts=False)


GIVES_WAY: dict[str, Callable[[Site, Ref], None]] = {
    "a pod dies": lambda site, ref: unready(site),
    "scaled down": lambda site, ref: edit(site, lambda d: d["spec"].update(replicas=1)),
    "scaled to zero": lambda site, ref: edit(site, lambda d: d["spec"].update(replicas=0)),
    "another dtype": lambda site, ref: adopt(site, "auto"),
    "deleted": lambda site, ref: site.cluster.vanish("Deployment", NAMESPACE, "llama"),
    "killed": lambda site, ref: site.annotate(ref, killed="by Ada"),
}


@pytest.mark.parametrize("how", GIVES_WAY)
def test_a_target_that_gives_way_loses_the_traffic_to_the_pool(
    site: Site, ref: Ref, how: str
) -> None:
    adopt(site)
    site.until(ref, HANDING_OVER)
    site.turn(ref)
    assert site.traffic.weights[ROUTER] == ON_TARGET
    GIVES_WAY[how](site, ref)
    site.metrics.outage = "Prometheus is out as well"
    site.reconciler.reconcile(ref)
    site.reconciler.reconcile(ref)
    assert site.traffic.weights[ROUTER] == ON_POOL
    run(site, ref)
    assert "AdoptionTakenBack" in site.reasons(ref)
    assert nothing_has_moved(site)
    site.metrics.outage = None
    if how == "killed":
        site.annotate(ref, killed=None)
        site.until(ref, ADOPTED)


def test_a_target_that_gives_way_keeps_the_traffic_that_the_pool_could_not_take(
    site: Site, ref: Ref
) -> None:
    adopt(site)
    site.until(ref, HANDING_OVER)
    site.turn(ref)
    for pod in site.pods("llama-fp8-pool"):
        site.kill_engine(pod["metadata"]["name"], restarts=False)
    unready(site)
    run(site, ref)
    assert (stage(site, ref), why(site, ref)) == (AdoptionStage.HANDING_OVER, "TargetNotReady")
    assert len(site.deployment("llama-fp8-pool")) > 0, "nor is the pool removed"
    assert site.lost == []


def test_an_outage_of_prometheus_takes_nothing_back(site: Site, ref: Ref) -> None:
    adopt(site)
    site.until(ref, HANDING_OVER)
    site.metrics.outage = "out"
    run(site, ref, turns=3)
    assert site.traffic.weights[ROUTER] == ON_TARGET
    assert "AdoptionTakenBack" not in site.reasons(ref)


def test_the_pool_stays_while_a_router_does_not_follow(site: Site, ref: Ref) -> None:
    adopt(site)
    site.until(ref, HANDING_OVER)
    site.traffic.deaf.add(ROUTER)
    run(site, ref, turns=60)
    assert (stage(site, ref), why(site, ref)) == (AdoptionStage.HANDING_OVER, "RouterNotReady")
    assert len(site.pods("llama-fp8-pool")) == 2
    site.traffic.deaf.clear()
    site.until(ref, ADOPTED)


def test_a_pod_that_starts_in_the_meantime_gets_no_request_before_its_proof(
    site: Site, ref: Ref
) -> None:
    adopt(site)
    site.until(ref, HANDING_OVER)
    site.turn(ref)
    proven = site.serving("llama-router", "blue")
    site.ignoring.add("llama")
    edit(site, lambda d: d["spec"].update(replicas=3))
    site.let_pass(5)
    site.let_pass(5)
    assert site.deployment("llama")["status"]["availableReplicas"] == 3
    assert site.serving("llama-router", "blue") == proven
    run(site, ref, turns=3)
    assert why(site, ref) == "RegimeProofFailed"
    assert site.serving("llama-router", "blue") == proven


def test_no_rollout_takes_the_router_while_it_is_handed_over(site: Site, ref: Ref) -> None:
    adopt(site)
    site.until(ref, HANDING_OVER)
    site.turn(ref)
    other = site.apply(rollout("llama-int8", "llama-fp8-pool", "int8"))
    site.turn(other, ref)
    assert held(site.status(other)) == "RouterBusy"
    site.until(ref, ADOPTED, other)
    run(site, ref, other, turns=5)
    assert held(site.status(other)) == "TargetNotFound", "its target is gone with the pool"
    assert site.lost == []


# Who sets the number of pods.


def test_the_pods_that_were_taken_are_given_back_once(site: Site, ref: Ref) -> None:
    assert site.deployment("llama")["spec"]["replicas"] == 0
    site.load_time = 1e9
    adopt(site)
    run(site, ref, turns=4)
    assert site.deployment("llama")["spec"]["replicas"] == 2
    edit(site, lambda d: d["spec"].update(replicas=0))
    site.restart()
    run(site, ref, turns=4)
    assert site.deployment("llama")["spec"]["replicas"] == 0, "its owner is not overruled"
    assert why(site, ref) == "TargetScaledToZero"


def test_as_many_pods_are_given_back_as_serve_now(site: Site, ref: Ref) -> None:
    edit(site, lambda d: d["spec"].update(replicas=5), "llama-fp8-pool")
    run(site, ref, turns=4)
    adopt(site)
    site.until(ref, ADOPTED)
    assert len(site.serving("llama-router", "blue")) == 5


@pytest.mark.parametrize("who", ["scaled by its owner", "zero by its owner"])
def test_an_owner_who_sets_the_number_is_not_overruled(site: Site, ref: Ref, who: str) -> None:
    if who == "zero by its owner":
        marks = {names.ANNOTATION_RETIRED_BY: "another/uid"}
        edit(site, lambda d: d["metadata"].update(annotations=marks))
        adopt(site)
    else:
        adopt(site, replicas=3)
    run(site, ref, turns=5)
    assert site.deployment("llama")["spec"]["replicas"] == (0 if who == "zero by its owner" else 3)


def test_a_manifest_that_replaces_the_target_is_not_scaled_to_zero_again(
    site: Site, ref: Ref
) -> None:
    def replace(deployment: Object) -> None:
        deployment["metadata"].pop("annotations", None)

    adopt(site, replicas=2)
    edit(site, replace)
    site.turn(ref)
    assert site.deployment("llama")["spec"]["replicas"] == 2
    site.until(ref, ADOPTED)


def test_a_target_that_adopts_within_the_rollback_window_keeps_its_pods(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROMOTED)
    adopt(site)
    for pod in site.pods("llama"):
        site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.until(ref, lambda status: status.settled)
    assert site.deployment("llama")["spec"]["replicas"] == 2
    site.until(ref, ADOPTED)
    assert site.deployment("llama")["spec"]["replicas"] == 2
    assert site.lost == []


def test_pods_of_the_template_before_are_waited_for(site: Site) -> None:
    ref = site.apply(rollout(promotion={"rollbackWindow": "40s", "oldPool": "Keep"}))
    site.until_settled(ref)
    adopt(site)
    old, _ = site.pods("llama")
    site.cluster.vanish("Pod", NAMESPACE, old["metadata"]["name"])
    site.control()
    run(site, ref)
    assert why(site, ref) == "RollingOut"
    assert nothing_has_moved(site)
    for pod in site.pods("llama"):
        if pod["metadata"]["annotations"]["test/dtype"] == "auto":
            site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.until(ref, ADOPTED)
    assert site.lost == []


@pytest.mark.parametrize("end", ["adopted", "given up"])
def test_the_autoscaler_is_held_still_until_the_target_serves(site: Site, end: str) -> None:
    site.cluster.put(autoscaler())
    ref = site.apply()
    site.until_settled(ref)
    assert bounds(stored(site)) == (2, 8)
    adopt(site)
    site.until(ref, HANDING_OVER)
    assert bounds(stored(site)) == (2, 2)
    if end == "adopted":
        site.until(ref, ADOPTED)
    else:
        adopt(site, "auto")
        site.until(ref, lambda status: status.adoption is None)
    run(site, ref, turns=2)
    assert bounds(stored(site)) == (2, 8)
    assert names.ANNOTATION_PINNED not in stored(site)["metadata"]["annotations"]


# What becomes of one that is proven.


def test_an_adopted_target_serves_and_the_pool_is_removed(site: Site, ref: Ref) -> None:
    adopt(site)
    told = []
    for _ in range(40):
        told += [(one.reason, one.type) for one in site.turn(ref).announcements]
    status = site.status(ref)
    assert site.reasons(ref)[-3:] == ["AdoptionStarted", "HandingOver", "Adopted"]
    assert ("Adopted", "Normal") in told
    adopted = status.condition("Adopted")
    assert adopted is not None
    assert adopted.status == "True"
    assert (status.phase, status.settled) == (Phase.PROMOTED, True)
    assert "may be deleted" in (status.verdict or "")
    assert [c.status for c in status.conditions if c.type in ("Ready", "RegimeVerified")] == [
        "True",
        "True",
    ]
    assert site.traffic.weights[ROUTER] == ON_TARGET
    assert site.pods("llama-fp8-pool") == []
    assert site.cluster.get("Deployment", NAMESPACE, "llama-fp8-pool") is None
    assert len(site.serving("llama-router", "blue")) == 2
    assert site.lost == []
    version = site.raw(ref)["metadata"]["resourceVersion"]
    site.cluster.calls.clear()
    run(site, ref, turns=5)
    assert site.raw(ref)["metadata"]["resourceVersion"] == version
    assert [call for call in site.cluster.calls if call.writes] == []


def test_new_pods_of_an_adopted_target_serve_without_anybody(site: Site, ref: Ref) -> None:
    adopt(site)
    site.until(ref, ADOPTED)
    run(site, ref, turns=2)
    edit(site, lambda d: d["spec"].update(replicas=4))
    site.let_pass(5)
    site.let_pass(5)
    assert len(site.serving("llama-router", "blue")) == 4


def test_the_next_rollout_begins_with_the_target(site: Site, ref: Ref) -> None:
    adopt(site)
    site.until(ref, ADOPTED)
    run(site, ref, turns=2)
    second = site.apply(rollout("llama-int8", "llama", "int8"))
    assert site.until_settled(second, ref).phase is Phase.PROMOTED
    assert len(site.pods("llama-int8-pool")) == 2
    assert site.lost == []


PLACES: dict[str, Callable[[Status], bool]] = {
    "proving": is_at(AdoptionStage.PROVING),
    "handing over": HANDING_OVER,
    "adopted": ADOPTED,
}


@pytest.mark.parametrize("acted", [0, 1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_deleted_rollout_leaves_one_pool_that_serves_everything(
    site: Site, ref: Ref, place: str, acted: int
) -> None:
    adopt(site)
    site.until(ref, PLACES[place])
    run(site, ref, turns=acted)
    site.delete(ref)
    site.cluster.vanish(names.KIND, ref.namespace, ref.name)
    weights = site.traffic.history[-1][1]
    serving, name = ("blue", "llama") if weights == ON_TARGET else ("green", "llama-fp8-pool")
    assert place == "proving" or name == "llama"
    if name == "llama":
        assert site.cluster.get("Deployment", NAMESPACE, "llama-fp8-pool") is None
    for pod in site.pods(name):
        site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.let_pass(5)
    site.let_pass(5)
    assert len(site.serving("llama-router", serving)) == 2, "its new pods serve with nobody there"
    config = site.cluster.get("ConfigMap", NAMESPACE, "llama-router")
    assert config is not None
    marks = config["metadata"]["annotations"]
    assert marks[names.ANNOTATION_SERVING_POOL] == name
    assert marks[names.ANNOTATION_SETTLED] == "true"
    site.traffic.weights.clear()
    assert site.lost == []


def test_a_deletion_comes_to_an_end_where_no_router_follows(site: Site, ref: Ref) -> None:
    adopt(site)
    site.until(ref, HANDING_OVER)
    site.turn(ref)
    site.traffic.deaf.add(ROUTER)
    for _ in range(60):
        result = site.reconciler.finalize(ref)
        if result.done:
            break
        site.let_pass(5)
    assert result.done
    assert len(site.pods("llama-fp8-pool")) == 2, "a router may still send to it"
    assert site.lost == []


@pytest.mark.parametrize("place", PLACES)
def test_an_operator_that_begins_anew_goes_on(site: Site, ref: Ref, place: str) -> None:
    adopt(site)
    site.until(ref, PLACES[place])
    site.restart()
    site.until(ref, ADOPTED)
    run(site, ref, turns=3)
    assert site.traffic.weights[ROUTER] == ON_TARGET
    assert site.reasons(ref).count("HandingOver") == 1
    assert site.lost == []


@pytest.mark.parametrize("late", [False, True])
def test_killed_at_every_call_of_every_pass_it_ends_the_same(late: bool) -> None:
    site = Site()
    site.deploy()
    ref = site.apply(rollout(**SHORT))
    site.until_settled(ref)
    adopt(site)
    for _ in range(60):
        if site.status(ref).adopted:
            break
        result = pass_killed_everywhere(site, lambda process: process.reconcile(ref), late)
        site.let_pass(max(0.5, min(5.0, result.requeue_after)))
    pass_killed_everywhere(site, lambda process: process.reconcile(ref), late)
    assert site.reasons(ref)[-3:] == ["AdoptionStarted", "HandingOver", "Adopted"]
    assert site.reasons(ref).count("HandingOver") == 1
    assert site.traffic.weights[ROUTER] == ON_TARGET
    assert site.cluster.get("Deployment", NAMESPACE, "llama-fp8-pool") is None
    assert len(site.serving("llama-router", "blue")) == 2
    assert site.lost == []


def test_a_route_is_its_owners_again_with_the_adoption() -> None:
    site = GatewaySite()
    site.install()
    before = site.route()["spec"]
    ref = site.apply(through_gateway())
    site.until_settled(ref)
    assert site.backends() == {"llama": 0, "llama-route-green": 100}
    adopt(site)
    site.until(ref, lambda s: s.handed_back)
    site.turn(ref)
    assert site.backends() == {"llama": 100, "llama-route-green": 0}
    site.until(ref, lambda s: s.adopted)
    site.turn(ref)
    assert site.route()["spec"] == before
    assert site.lost == []
