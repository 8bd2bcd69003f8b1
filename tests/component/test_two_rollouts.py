"""Two rollouts of one target through two routers: one at a time."""

from __future__ import annotations

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.ports import Object, RouterKey
from tests.site import NAMESPACE, Site, held, rollout

ROUTER = RouterKey(NAMESPACE, "llama-router")


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def other_router(name: str, target: str) -> Object:
    router = {"name": "another-router", "drainTimeout": "30s"}
    return rollout(name, target, "int8", traffic={"router": router})


def test_a_target_that_another_rollout_works_on_is_waited_for(site: Site) -> None:
    first = site.apply()
    site.turn(first)
    second = site.apply(other_router("llama-int8", "llama"))
    site.turn(second)
    assert held(site.status(second)) == "TargetBusy"
    assert "rollout 'llama-fp8' works on" in (site.status(second).verdict or "")
    assert site.traffic.weights == {}, "nothing was touched"


def test_no_rollout_goes_past_the_router_that_serves_its_target(site: Site) -> None:
    first = site.apply()
    site.until_settled(first)
    second = site.apply(other_router("pool-int8", "llama-fp8-pool"))
    for _ in range(5):
        site.turn(second, first)
    assert held(site.status(second)) == "ServedByAnotherRouter"
    assert "Name llama-router, or delete its Deployment" in (site.status(second).verdict or "")
    assert list(site.traffic.weights) == [ROUTER], "nothing was touched"
    site.edit_spec(second, traffic={"router": {"drainTimeout": "30s"}})
    assert site.until_settled(second, first).phase is Phase.PROMOTED
    assert site.lost == []


def test_of_two_that_begin_at_once_through_two_routers_the_older_goes_on(site: Site) -> None:
    younger = site.apply(other_router("llama-int8", "llama"))
    site.turn(younger)
    site.turn(younger)
    site.cluster.edit(
        names.KIND,
        NAMESPACE,
        younger.name,
        lambda o: o["metadata"].update(uid="zz"),
    )
    older = site.apply()
    raw = site.raw(younger)
    begun = {**site.raw(older), "status": {**raw["status"], "router": "llama-router"}}
    begun["status"]["canary"] = {**begun["status"]["canary"], "deployment": "llama-fp8-pool"}
    begun["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    site.cluster._objects[names.KIND, NAMESPACE, older.name] = begun
    site.until_phase(younger, Phase.ROLLED_BACK, older)
    assert "TargetBusy" in site.reasons(younger)
    assert site.status(younger).rejected_spec_hashes == ()
    assert "TargetBusy" not in site.reasons(older)
