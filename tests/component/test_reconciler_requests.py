"""What people ask for in the middle of a rollout: kill, pause, abort, another spec, deletion."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import DecisionKind, Phase, Status
from kvquant.errors import Refused
from kvquant.ports import RouterKey
from kvquant.reconciler import Ref
from tests.fakes.cluster import Fault
from tests.site import NAMESPACE, STEPS, Harm, Site, held, never_skips, rollout, steps_taken

ROUTER = RouterKey(NAMESPACE, "llama-router")

PLACES: dict[str, Callable[[Status], bool]] = {
    "pending": lambda s: True,
    "provisioning": lambda s: s.phase is Phase.PROVISIONING,
    "verifying": lambda s: s.phase is Phase.VERIFYING,
    "first step": lambda s: s.step == 1 and s.analysis is not None,
    "between steps": lambda s: s.next_step == 3,
    "last step": lambda s: s.step == 4 and s.analysis is not None,
    "promoted": lambda s: s.phase is Phase.PROMOTED,
    "rolled back": lambda s: s.phase is Phase.ROLLED_BACK,
    "settled": lambda s: s.settled and s.phase is Phase.PROMOTED,
}
MOVING = [place for place in PLACES if place not in ("pending", "rolled back", "settled")]


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def brought_to(site: Site, place: str) -> Ref:
    """Return a rollout that has come to a place of its life; with no clients, without a shadow."""
    if place == "rolled back":
        site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = site.apply(None if site.rate else rollout(shadow={"percent": 0}))
    site.until(ref, PLACES[place])
    return ref


def canary_weights(site: Site) -> list[int]:
    return steps_taken(site.traffic.history, "green")


# The kill switch.


@pytest.mark.parametrize("place", MOVING)
def test_a_kill_takes_all_traffic_from_the_canary_within_a_pass(site: Site, place: str) -> None:
    ref = brought_to(site, place)
    site.metrics.outage = "Prometheus is out as well"
    site.annotate(ref, killed="by Ada: customers complain", paused="true")
    site.turn(ref)
    status = site.status(ref)
    assert (status.killed, status.weights.canary) == (True, 0)
    site.turn(ref)
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}
    killed = status.condition("Killed")
    assert killed is not None
    assert "by Ada" in killed.message


def test_a_killed_rollout_keeps_its_pods_and_starts_over_at_the_first_step(site: Site) -> None:
    ref = brought_to(site, "last step")
    site.annotate(ref, killed="true")
    for _ in range(60):
        site.turn(ref)
    assert site.traffic.weights[ROUTER]["green"] == 0
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 2
    site.annotate(ref, killed=None)
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert canary_weights(site) == [0, 10, 25, 50, 95, 0, 10, 25, 50, 95, 100]
    assert site.lost == []


def test_the_cluster_wide_switch_kills_what_it_is_told_and_nothing_begins(site: Site) -> None:
    ref = site.apply()
    why = "whole cluster: incident 7 (by Ada)"
    for _ in range(5):
        site.reconciler.reconcile(ref, why)
        site.let_pass(1)
    assert site.status(ref).phase is Phase.PENDING
    site.until(ref, lambda status: status.step == 1)
    site.reconciler.reconcile(ref, why)
    assert site.status(ref).weights.canary == 0
    assert why in next(
        d.message for d in reversed(site.status(ref).decisions) if d.kind is DecisionKind.KILL
    )


def test_the_cluster_wide_switch_is_a_configmap_with_a_name_and_a_reason(site: Site) -> None:
    assert site.reconciler.kill_switch("kvquant-system") is None
    switch = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.KILL_SWITCH_CONFIGMAP, "namespace": "kvquant-system"},
        "data": {"killed": "false"},
    }
    site.cluster.put(switch)
    assert site.reconciler.kill_switch("kvquant-system") is None
    site.cluster.put({**switch, "data": {"killed": "true", "by": "Ada", "reason": "incident 7"}})
    told = site.reconciler.kill_switch("kvquant-system")
    assert told == "whole cluster: incident 7 (by Ada)"
    site.cluster.put({**switch, "data": {"killed": "true"}})
    told = site.reconciler.kill_switch("kvquant-system")
    assert told == "whole cluster: no reason given (by unknown)"


def test_a_kill_without_a_baseline_left_is_refused_and_says_what_to_do(site: Site) -> None:
    ref = brought_to(site, "settled")
    site.annotate(ref, killed="true")
    for _ in range(3):
        site.turn(ref)
    status = site.status(ref)
    assert not status.killed
    assert site.traffic.weights[ROUTER] == {"blue": 0, "green": 100}
    assert "Start a rollout back to the old dtype" in (status.verdict or "")


# Pause and promote.


def test_a_paused_rollout_stays_where_it_is_and_is_still_rolled_back(site: Site) -> None:
    ref = brought_to(site, "first step")
    site.annotate(ref, paused="Ada has lunch")
    for _ in range(40):
        site.turn(ref)
    assert site.status(ref).step == 1
    assert site.status(ref).verdict == "Paused: Ada has lunch"
    site.harm["llama-fp8-pool"] = Harm(errors=0.9)
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK


def test_a_long_pause_does_not_use_up_the_progress_deadline(site: Site) -> None:
    ref = brought_to(site, "between steps")
    site.annotate(ref, paused="over night")
    site.turn(ref)
    site.let_pass(8 * 3600)
    site.load_time = 20  # the pods of the next step are not there yet
    for pod in site.pods("llama-fp8-pool")[1:]:
        site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.annotate(ref, paused="false")
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_promotion_goes_one_step_without_more_evidence_and_counts_once(site: Site) -> None:
    site.rate = 0
    ref = brought_to(site, "first step")
    site.annotate(ref, promote="1")
    site.until(ref, lambda status: status.step == 2)
    for _ in range(40):
        site.turn(ref)
    assert site.status(ref).step == 2
    assert "on request (1)" in next(
        d.message for d in site.status(ref).decisions if d.reason == "StepPassed"
    )


def test_a_promotion_asked_for_before_a_step_does_not_speak_of_its_evidence(site: Site) -> None:
    site.rate = 0
    ref = brought_to(site, "verifying")
    site.annotate(ref, promote="1")
    for _ in range(60):
        site.turn(ref)
    assert site.status(ref).step == 1


def test_steps_promoted_without_samples_leave_the_last_one_to_its_own_evidence(site: Site) -> None:
    site.rate = 0
    ref = brought_to(site, "first step")
    for token in "123":
        site.annotate(ref, promote=token)
        before = site.status(ref).step
        for _ in range(20):
            site.turn(ref)
        assert site.status(ref).step == before + 1
    for _ in range(20):
        site.turn(ref)
    assert (site.status(ref).step, held(site.status(ref))) == (4, "InsufficientEvidence")
    site.rate = 40
    # The baseline was never as busy as the canary is now: there is nothing to compare with.
    for _ in range(60):
        site.turn(ref)
    assert site.status(ref).step == 4
    assert "no baseline pod ever had the load of a canary pod" in (site.status(ref).verdict or "")


def test_a_promotion_does_not_help_a_canary_that_fails(site: Site) -> None:
    ref = brought_to(site, "first step")
    site.harm["llama-fp8-pool"] = Harm(slow=0.9)
    site.turn(ref)
    site.turn(ref)
    site.annotate(ref, promote="1")
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK


# Abort and another spec.


@pytest.mark.parametrize("place", MOVING)
def test_an_abort_rolls_back_and_needs_no_prometheus(site: Site, place: str) -> None:
    ref = brought_to(site, place)
    site.metrics.outage = "out"
    site.annotate(ref, abort="Ada-1", paused="true")
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert "Ada-1" in status.decisions[-1].message
    assert site.traffic.weights.get(ROUTER, {"green": 0})["green"] == 0
    assert site.deployment("llama")["spec"]["replicas"] == 2
    assert site.lost == []


def test_a_second_abort_does_not_make_the_drain_longer(site: Site) -> None:
    ref = site.apply(rollout(traffic={"router": {"drainTimeout": "1h"}}))
    site.until(ref, lambda status: status.step == 1)
    site.turn(ref)
    site.annotate(ref, abort="1")
    site.until_phase(ref, Phase.ROLLING_BACK)
    site.annotate(ref, abort="2")
    begun = site.now
    site.until_phase(ref, Phase.ROLLED_BACK)
    assert (site.now - begun).total_seconds() < 60


def test_another_spec_midway_goes_back_and_starts_over_by_itself(site: Site) -> None:
    ref = brought_to(site, "last step")
    site.edit_spec(ref, steps=[{"weight": 50, "soak": "5s"}, {"weight": 100, "soak": "5s"}])
    site.until(ref, lambda status: status.attempt == 2)
    status = site.until_settled(ref)
    assert (status.phase, status.step_label) == (Phase.PROMOTED, "2/2")
    assert canary_weights(site) == [0, 10, 25, 50, 95, 0, 50, 95, 100]
    assert site.lost == []


def test_another_spec_and_back_again_starts_over_too(site: Site) -> None:
    ref = brought_to(site, "first step")
    site.edit_spec(ref, steps=[{"weight": 100, "soak": "5s"}])
    site.until_phase(ref, Phase.ROLLING_BACK)
    site.edit_spec(ref, steps=STEPS)
    site.until(ref, lambda status: status.attempt == 2)


def test_another_spec_after_the_end_of_a_promotion_says_what_to_do(site: Site) -> None:
    ref = brought_to(site, "settled")
    site.edit_spec(ref, kvCache={"dtype": "int8"})
    for _ in range(3):
        site.turn(ref)
    assert "targetRef.name: llama-fp8-pool" in (site.status(ref).verdict or "")
    assert site.traffic.weights[ROUTER] == {"blue": 0, "green": 100}


def test_another_spec_within_the_rollback_window_is_told_and_tried_after_an_abort(
    site: Site,
) -> None:
    ref = site.apply(rollout(promotion={"rollbackWindow": "2h"}))
    site.until_phase(ref, Phase.PROMOTED)
    site.edit_spec(ref, kvCache={"dtype": "int8"})
    for _ in range(3):
        site.turn(ref)
    status = site.status(ref)
    assert "abort before the rollback window closes at" in (status.verdict or "")
    assert site.traffic.weights[ROUTER] == {"blue": 0, "green": 100}
    assert status.decisions[-1].reason == "SpecChangedAfterPromotion"
    site.annotate(ref, abort="1")
    site.until(ref, lambda status: status.attempt == 2)
    assert site.status(ref).resolved_dtype == "int8_per_token_head"
    assert site.lost == []


def test_a_shorter_rollback_window_takes_effect_after_the_promotion(site: Site) -> None:
    ref = site.apply(rollout(promotion={"rollbackWindow": "900h"}))
    site.until_phase(ref, Phase.PROMOTED)
    site.edit_spec(ref, promotion={"rollbackWindow": "0s", "oldPool": "Keep"})
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert site.deployment("llama")["spec"]["replicas"] == 2, "as the new spec says"


def test_every_rejected_spec_is_remembered_not_only_the_last(site: Site) -> None:
    fp8, int8 = {"dtype": "fp8"}, {"dtype": "int8"}
    site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = site.apply()
    site.until_settled(ref)
    site.edit_spec(ref, kvCache=int8)
    site.until(ref, lambda status: status.attempt == 2)
    site.until_settled(ref)
    site.edit_spec(ref, kvCache=fp8)
    for _ in range(10):
        site.turn(ref)
    status = site.status(ref)
    assert (status.phase, status.attempt) == (Phase.ROLLED_BACK, 2)
    assert status.decisions[-1].reason == "SpecRejectedBefore"
    assert "kubectl kvquant retry" in (status.verdict or "")
    site.harm.clear()
    site.annotate(ref, retry="1")
    site.until(ref, lambda status: status.attempt == 3)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_rejected_spec_does_not_slip_in_while_another_waits_to_begin(site: Site) -> None:
    site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = site.apply()
    site.until_settled(ref)
    site.edit_spec(ref, kvCache={"dtype": "auto"})  # which the target runs already
    site.until_phase(ref, Phase.PENDING)
    site.turn(ref)
    site.edit_spec(ref, kvCache={"dtype": "fp8"})
    for _ in range(5):
        site.turn(ref)
    assert (site.status(ref).phase, site.status(ref).attempt) == (Phase.PENDING, 1)
    assert site.status(ref).decisions[-1].reason == "SpecRejectedBefore"
    site.annotate(ref, retry="1")
    site.until(ref, lambda status: status.attempt == 2)


# Deletion.


@pytest.mark.parametrize("place", PLACES)
def test_a_deleted_rollout_leaves_one_pool_that_serves_everything(site: Site, place: str) -> None:
    ref = brought_to(site, place)
    promoted = place in ("promoted", "settled")
    site.delete(ref)
    site.let_pass(5)
    site.let_pass(5)
    canary = [] if not promoted else site.pods("llama-fp8-pool")
    assert site.pods("llama-fp8-pool") == canary
    assert len(site.pods("llama-fp8-pool" if promoted else "llama")) == 2
    assert never_skips(canary_weights(site))
    if site.traffic.history:
        weights = site.traffic.history[-1][1]
        assert weights["green"] == (100 if promoted else 0)
        config = site.cluster.get("ConfigMap", NAMESPACE, "llama-router")
        assert config is not None
        assert config["metadata"]["annotations"][names.ANNOTATION_SETTLED] == "true"
    assert site.lost == []


def test_traffic_leaves_before_the_pods_of_a_deleted_rollout(site: Site) -> None:
    ref = brought_to(site, "last step")
    site.cluster.delete(names.KIND, ref.namespace, ref.name)
    site.reconciler.finalize(ref)
    assert site.status(ref).phase is Phase.ROLLING_BACK
    assert len(site.pods("llama-fp8-pool")) == 2
    site.reconciler.finalize(ref)
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}
    assert len(site.pods("llama-fp8-pool")) == 2, "not drained yet"


def test_new_pods_of_a_promoted_pool_serve_after_its_rollout_is_gone(site: Site) -> None:
    ref = brought_to(site, "settled")
    assert site.reconciler.finalize(ref).done
    site.cluster.vanish(names.KIND, ref.namespace, ref.name)
    for pod in site.pods("llama-fp8-pool"):
        site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.let_pass(5)
    site.let_pass(5)
    assert len(site.serving("llama-router", "green")) == 2
    second = site.apply(rollout("llama-int8", "llama-fp8-pool", "int8"))
    site.until(second, lambda status: status.step == 1)
    assert len(site.serving("llama-router", "green")) == 2
    assert site.until_settled(second).phase is Phase.PROMOTED


def test_deleting_a_rollout_that_has_ended_leaves_the_routers_next_holder_alone(
    site: Site,
) -> None:
    first = brought_to(site, "settled")
    second = site.apply(rollout("llama-int8", "llama-fp8-pool", "int8"))
    site.until(second, lambda status: status.step == 1, first)
    site.turn(second)
    assert site.reconciler.finalize(first).done
    assert site.traffic.forgotten == []
    config = site.cluster.get("ConfigMap", NAMESPACE, "llama-router")
    assert config is not None
    assert config["metadata"]["annotations"][names.ANNOTATION_SETTLED] == "false"


def test_a_namespace_that_is_being_removed_is_not_held_up(site: Site) -> None:
    ref = brought_to(site, "last step")
    terminating = Refused("forbidden: namespace inference is being terminated")
    site.cluster.faults.append(Fault(terminating, verb="apply", times=10**6))
    for kind in ("ConfigMap", "Service", "Deployment", "Pod"):
        for obj in site.cluster.objects(kind):
            site.cluster.vanish(kind, NAMESPACE, obj["metadata"]["name"])
    for _ in range(60):
        if site.reconciler.finalize(ref).done:
            return
        site.now += timedelta(seconds=5)
    raise AssertionError("the finalizer would keep the namespace for ever")
