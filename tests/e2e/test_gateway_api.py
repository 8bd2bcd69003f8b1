"""Whole rollouts through a real Envoy Gateway, under live load."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from kvlocal import gateways
from kvlocal.cluster import Cluster
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from tests.e2e.stage import SHADOWED, Stage, blamed, cause_of, failures, holds
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

TRAFFIC = {"gatewayAPI": {"httpRoute": "llama", "drainTimeout": "20s"}}


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[None]:
    """Envoy Gateway on the node, for these alone."""
    gateways.install_envoy_gateway(cluster)
    yield
    gateways.remove_envoy_gateway(cluster)


@pytest.fixture
def edge(stage: Stage, gateway: None) -> Iterator[Stage]:
    """A namespace whose clients come through a Gateway."""
    stage.open_gateway()
    yield stage
    # Its proxy would stay a while, and take what the next test needs.
    stage.cluster.kubectl("delete", "gateway/edge", "-n", stage.namespace, "--wait=false")


@pytest.mark.full
def test_a_good_canary_is_promoted_and_the_next_bad_one_rolled_back(edge: Stage) -> None:
    edge.serve(replicas=2, faults="int8_per_token_head:decode_slowdown=3")
    load = edge.send(gateway="edge")
    edge.roll_out("fp8", "fp8", traffic=TRAFFIC, shadow=SHADOWED)
    promoted = edge.until_settled("fp8", Phase.PROMOTED)
    assert edge.weights == [0, 40, 80, 100], "no step is skipped, and none is taken back"
    assert holds(promoted, "RegimeVerified")
    assert promoted.shadow is not None, "the Gateway has copied requests"
    assert promoted.shadow.pairs >= SHADOWED["minPairs"]
    assert any(o.from_canary for o in load.outcomes)
    assert edge.backends() == {"llama": 0, "llama-route-green": 100}
    wait_until(lambda: edge.replicas_asked("llama") == 0, 20, "the old pool should be retired")

    edge.weights.clear()
    edge.roll_out("int8", "int8", target="fp8-pool", traffic=TRAFFIC)
    rolled_back = edge.until_settled("int8", Phase.ROLLED_BACK)
    cause = cause_of(rolled_back)
    assert cause.reason == "AnalysisFailed"
    assert blamed(rolled_back) == {"p99"}, cause.message
    assert edge.backends() == {"llama": 0, "llama-route-green": 100}
    load.stop()
    assert not failures(load), "the client notices nothing of either rollout"


def test_drift_is_undone_and_the_kill_switch_takes_the_canary_away(edge: Stage) -> None:
    edge.serve()
    load = edge.send(gateway="edge")
    before = edge.route()["spec"]
    steps = [{"weight": 50, "soak": "10m"}, {"weight": 100}]
    edge.roll_out("fp8", "fp8", traffic=TRAFFIC, steps=steps)
    edge.until("fp8", lambda s: s.weights.canary == 50, 120, "half of the traffic should move")
    split = {"llama-route-green": 50, "llama": 50}
    wait_until(lambda: edge.backends() == split, 10, "the route should be split", 0.1)

    # What its owner applies again, as a pipeline does that knows nothing of the rollout.
    edge.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(edge.http_route()))
    wait_until(lambda: edge.backends() == split, 10, "the split should be put back", 0.1)
    assert edge.status("fp8").step == 1

    edge.ask("fp8", names.ANNOTATION_KILLED, "a drill")
    nothing = {"llama": 100, "llama-route-green": 0}
    wait_until(lambda: edge.backends() == nothing, 5, "the canary should get nothing", 0.05)
    killed_at = time.time()
    left = edge.until("fp8", lambda s: s.weights.canary == 0, 5, "nothing should be committed")
    assert left.killed
    edge.ask("fp8", names.ANNOTATION_ABORT, "end-of-the-test")
    edge.until_settled("fp8", Phase.ROLLED_BACK)
    assert edge.route()["spec"] == before
    load.stop()
    late = [o for o in load.outcomes if o.from_canary and o.began > killed_at + 1]
    assert not late, "a weight of 0 is none at all"
    # Whoever takes a backend out of a route in one stroke costs the requests that are on their way
    # to it: Envoy Gateway takes its cluster away a moment before the routes that send there.
    lost = failures(load)
    assert len(lost) <= len(load.outcomes) / 100, lost
