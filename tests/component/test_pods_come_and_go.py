"""Pods of either arm are drained, evicted, deleted and added: clients notice nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvquant.api.v1alpha1 import Phase
from kvquant.ports import Object, RouterKey
from kvquant.reconciler import Ref
from tests.site import NAMESPACE, Site, engine_pool, never_skips, steps_taken

ROUTER = RouterKey(NAMESPACE, "llama-router")


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def at_first_step(site: Site) -> Ref:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1 and status.analysis is not None)
    return ref


def change(site: Site, pod: str, how: Callable[[Object], None]) -> None:
    site.cluster.edit("Pod", NAMESPACE, pod, how)


def drained(site: Site, pod: str) -> None:
    """Let a pod be on its way out, as when its node is drained; its engine ends with code 0."""
    site.kill_engine(pod, restarts=False)
    leaving = {
        "deletionTimestamp": f"{site.now:%Y-%m-%dT%H:%M}:59Z",
        "deletionGracePeriodSeconds": 60,
    }
    change(site, pod, lambda obj: obj["metadata"].update(leaving))


def evicted(site: Site, pod: str) -> None:
    """Let the kubelet end a pod because its node is short of memory or disk; it stays listed."""

    def evict(obj: Object) -> None:
        (engine,) = obj["status"]["containerStatuses"]
        when = f"{site.now:%Y-%m-%dT%H:%M:%SZ}"
        engine["state"] = {"terminated": {"reason": "Error", "exitCode": 137, "finishedAt": when}}
        obj["status"].update(
            phase="Failed",
            reason="Evicted",
            message="The node was low on resource: ephemeral-storage.",
            conditions=[
                {"type": "Ready", "status": "False"},
                {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"},
            ],
        )

    change(site, pod, evict)


def preempted(site: Site, pod: str) -> None:
    """Let the scheduler make room for a pod that matters more; the deletion is still to come."""
    site.kill_engine(pod, restarts=False)
    disrupted = [
        {"type": "Ready", "status": "False"},
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
    ]
    change(site, pod, lambda obj: obj["status"].update(conditions=disrupted))


WAYS = {"drained": drained, "evicted": evicted, "preempted": preempted}


@pytest.mark.parametrize("way", WAYS)
def test_the_only_canary_pod_is_sent_away_and_the_steps_start_over_with_the_next(
    site: Site, way: str
) -> None:
    ref = at_first_step(site)
    (pod,) = (p["metadata"]["name"] for p in site.pods("llama-fp8-pool"))
    WAYS[way](site, pod)
    site.reconciler.reconcile(ref)
    site.reconciler.reconcile(ref)
    status = site.status(ref)
    assert (status.phase, status.step) == (Phase.VERIFYING, 0)
    assert "CanaryLost" in [d.reason for d in status.decisions]
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}, "before the pod is gone"
    site.cluster.vanish("Pod", NAMESPACE, pod)
    status = site.until_settled(ref)
    assert (status.phase, status.attempt) == (Phase.PROMOTED, 1)
    assert never_skips(steps_taken(site.traffic.history, "green"))
    assert site.lost == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arm", ["llama", "llama-fp8-pool"])
def test_one_of_several_pods_is_sent_away_and_nothing_happens(
    site: Site, way: str, arm: str
) -> None:
    site.deploy(engine_pool(replicas=4))
    site.let_pass(5)
    ref = site.apply()
    site.until(ref, lambda status: status.step == 3 and status.analysis is not None)
    pod = site.pods(arm)[0]["metadata"]["name"]
    WAYS[way](site, pod)
    for _ in range(2):
        site.turn(ref)
    assert site.status(ref).step == 3
    assert "restarts" not in (site.status(ref).verdict or "")
    site.cluster.vanish("Pod", NAMESPACE, pod)
    status = site.until_settled(ref)
    assert (status.phase, status.attempt) == (Phase.PROMOTED, 1)
    assert "CanaryLost" not in [d.reason for d in status.decisions]
    assert site.lost == []


def test_all_pods_of_a_promoted_pool_are_lost_while_the_old_pool_is_warm(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROMOTED)
    site.turn(ref)
    site.load_time = 60
    for pod in site.pods("llama-fp8-pool"):
        drained(site, pod["metadata"]["name"])
    site.reconciler.reconcile(ref)
    site.reconciler.reconcile(ref)
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}
    for pod in site.pods("llama-fp8-pool"):
        site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.load_time = 4
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert site.lost == []


def test_a_canary_that_never_comes_back_is_given_up_at_the_deadline(site: Site) -> None:
    ref = at_first_step(site)
    site.load_time = 1e9
    (pod,) = (p["metadata"]["name"] for p in site.pods("llama-fp8-pool"))
    evicted(site, pod)
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert "The node was low on resource" in status.decisions[-1].message
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}


def test_an_engine_that_keeps_dying_by_itself_is_no_eviction(site: Site) -> None:
    ref = at_first_step(site)
    for _ in range(3):
        site.kill_engine(site.pods("llama-fp8-pool")[0]["metadata"]["name"])
    site.turn(ref)
    assert site.status(ref).phase is Phase.ROLLING_BACK


def test_a_new_pod_serves_only_when_it_is_proven_too(site: Site) -> None:
    site.deploy(engine_pool(replicas=4))
    site.let_pass(5)
    ref = site.apply()
    site.until(ref, lambda status: status.step == 3)
    site.metrics.outage = "out"
    gone = site.pods("llama-fp8-pool")[0]["metadata"]["name"]
    site.cluster.vanish("Pod", NAMESPACE, gone)
    for _ in range(5):
        site.turn(ref)
    wanted = site.deployment("llama-fp8-pool")["spec"]["replicas"]
    assert len(site.pods("llama-fp8-pool")) == wanted
    assert len(site.serving("llama-router", "green")) == wanted - 1
    site.metrics.outage = None
    for _ in range(3):
        site.turn(ref)
    assert len(site.serving("llama-router", "green")) == wanted
    assert site.until_settled(ref).phase is Phase.PROMOTED
