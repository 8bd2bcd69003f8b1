"""The chart in the middle of a rollout: upgraded, rolled back, taken away; and a leader's death."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from kvdemo.load import Load
from kvlocal import addons, chart, product
from kvlocal.cluster import Cluster
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from tests.e2e.stage import ROUTER, Stage, failures
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

STEPS = [{"weight": 50, "soak": "10m"}, {"weight": 100}]
FAILOVER = 10.0
"""Seconds from the death of a leader until another has acted, at most."""


@pytest.fixture
def _restored(cluster: Cluster) -> Iterator[None]:
    yield
    product.install(cluster)
    product.wait(cluster)


def replicas(cluster: Cluster, number: int) -> None:
    """Upgrade the release to so many operators, and wait until they are there."""
    chart.install(
        cluster, {"replicas": number, "prometheus": {"tickSeconds": addons.SCRAPE_SECONDS}}
    )
    product.wait(cluster)


def at_half(stage: Stage) -> Load:
    """Give half of the traffic to a good canary, which keeps it for as long as the test lasts."""
    stage.serve()
    stage.roll_out(
        "fp8",
        "fp8",
        steps=STEPS,
        traffic={"router": {"name": ROUTER, "replicas": 2, "drainTimeout": "20s"}},
    )
    load = stage.send()
    stage.until("fp8", lambda s: s.weights.canary == 50, 120, "half of the traffic should move")
    return load


def share_since(load: Load, begun: float, count: int = 120) -> float:
    """Return the canary's share of so many requests that began after a time."""
    wait_until(
        lambda: sum(o.began > begun for o in load.outcomes) >= count,
        60,
        "requests should be answered",
        0.2,
    )
    fresh = [o for o in load.outcomes if o.began > begun]
    return sum(o.from_canary for o in fresh) / len(fresh)


@pytest.mark.usefixtures("_restored")
def test_clients_notice_nothing_when_the_chart_is_upgraded_rolled_back_or_taken_away(
    stage: Stage,
) -> None:
    load = at_half(stage)
    before = stage.status("fp8")
    replicas(stage.cluster, 2)
    chart.helm(stage.cluster, "rollback", chart.RELEASE)
    product.wait(stage.cluster)
    assert abs(share_since(load, time.time()) - 0.5) < 0.2
    chart.helm(stage.cluster, "uninstall", chart.RELEASE)
    wait_until(lambda: not stage.operator_runs(), 60, "the operator should be gone", 0.2)
    # The rollouts outlive it, and so does what the routers were told.
    assert abs(share_since(load, time.time()) - 0.5) < 0.2
    after = stage.status("fp8")
    assert (after.phase, after.step, after.attempt) == (before.phase, before.step, before.attempt)
    product.install(stage.cluster)
    product.wait(stage.cluster)
    stage.ask("fp8", names.ANNOTATION_ABORT, "end-of-the-test")
    stage.until_settled("fp8", Phase.ROLLED_BACK)
    load.stop()
    assert not failures(load)
    assert stage.weights == [0, 50, 0]


@pytest.mark.usefixtures("_restored")
def test_a_kill_switch_pulled_when_the_leader_dies_is_heard_by_its_successor(stage: Stage) -> None:
    replicas(stage.cluster, 2)
    load = at_half(stage)
    (leader,) = stage.pods(product.NAMESPACE, **{names.LABEL_LEADER: "true"})
    assert stage.kill(leader) > 0
    died = time.time()
    stage.ask("fp8", names.ANNOTATION_KILLED, "the leader is dead")
    stage.until("fp8", lambda s: s.killed, 60, "another operator should hear the kill switch")
    committed = time.time()
    wait_until(
        lambda: sum(o.began > committed + 1 for o in load.outcomes) >= 100,
        60,
        "the baseline should answer",
        0.2,
    )
    load.stop()
    last = max(o.began for o in load.outcomes if o.from_canary)
    assert last - died <= FAILOVER
    assert not failures(load)
    # The dead one's container is back by now, waits, and gets no router.
    wait_until(
        lambda: len(stage.pods(product.NAMESPACE, **{names.LABEL_LEADER: "true"})) == 1,
        30,
        "one should lead",
    )
