"""The node loses its power in the middle of a step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kvquant.api.v1alpha1 import Phase
from tests.e2e.stage import LADDER, ROUTER, Stage
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(420)]


def test_a_rollout_goes_on_where_it_was_when_the_node_has_rebooted(stage: Stage) -> None:
    stage.serve()
    stage.roll_out("fp8", "fp8")
    load = stage.send()
    stage.until("fp8", lambda s: s.weights.canary == 40, 120, "the first step should begin")
    load.stop()
    before = stage.status("fp8")

    stage.cluster.reboot()

    after = stage.status("fp8")
    assert (after.step, after.weights, after.attempt) == (before.step, before.weights, 1)
    for deployment in (ROUTER, "llama", "fp8-pool"):
        wait_until(
            lambda name=deployment: stage.replicas_ready(name) > 0,  # type: ignore[misc]
            90,
            f"{deployment} should be back",
            0.2,
        )
    # Every engine restarted at once, in both arms alike: that speaks against neither. But the new
    # containers have to be proven before they serve again, and an operator that came back before
    # they did has taken the traffic from a pool without pods: then the steps start over.
    stage.send()
    status = stage.until_settled("fp8", Phase.PROMOTED, timeout=200)
    assert status.attempt == 1
    assert stage.weights[-1] == 100
    rises = [(a, b) for a, b in pairwise(stage.weights) if b > a]
    assert all(LADDER.index(b) == LADDER.index(a) + 1 for a, b in rises), stage.weights
