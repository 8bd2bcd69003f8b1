"""A rollout whose weights are set on an HTTPRoute of the user's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.errors import Refused
from kvquant.ports import Object
from tests.fakes.cluster import Fault
from tests.gateway import (
    BACKEND,
    OURS,
    ROUTE,
    GatewaySite,
    http_route,
    rule,
    service,
    through_gateway,
)
from tests.site import NAMESPACE, Harm, held, never_skips, steps_taken

OTHER = rule({**BACKEND, "name": "embeddings"}, filters=[{"type": "URLRewrite"}])


@pytest.fixture
def site() -> GatewaySite:
    it = GatewaySite()
    it.install()
    return it


def test_a_good_canary_gets_the_route_step_by_step(site: GatewaySite) -> None:
    before = site.route()
    ref = site.apply(through_gateway())
    status = site.until_settled(ref)
    assert status.phase is Phase.PROMOTED
    weights = steps_taken(site.traffic.history, "green")
    assert weights[-1] == 100
    assert never_skips(weights)
    assert site.lost == [], "no pool was sent to before its pods served"
    assert site.backends() == {"llama": 0, "llama-route-green": 100}
    assert site.route()["spec"]["parentRefs"] == before["spec"]["parentRefs"]
    assert ("Deployment", NAMESPACE, "llama-route") not in site.cluster._objects, "no router"


def test_the_canary_is_named_before_it_gets_anything(site: GatewaySite) -> None:
    """A Gateway knows its cluster then, when the first requests are to go there."""
    ref = site.apply(through_gateway())
    site.until_phase(ref, Phase.VERIFYING)
    site.turn(ref)
    assert site.backends() == {"llama": 100, "llama-route-green": 0}


def test_copies_are_asked_for_while_shadowing_and_not_after(site: GatewaySite) -> None:
    ref = site.apply(through_gateway(shadow={"percent": 7, "minPairs": 30, "soak": "5s"}))
    site.until(ref, lambda s: s.weights.mirror == 7)
    site.turn(ref)
    assert site.mirrored() == 7
    site.until(ref, lambda s: s.step == 1)
    site.turn(ref)
    assert site.mirrored() == 0
    assert "filters" not in site.route()["spec"]["rules"][0]


def test_a_rollback_leaves_the_rule_exactly_as_it_was() -> None:
    site = GatewaySite(driven=1)
    kept = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x"]}}]
    site.install(OTHER, rule(filters=kept, timeouts={"request": "15m"}))
    before = site.route()["spec"]
    site.harm["llama-fp8-pool"] = Harm(slow=0.9)
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.weights.canary > 0)
    site.turn(ref)
    assert site.backends(1) == {"llama-route-green": 10, "llama": 90}
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert site.route()["spec"] == before


def test_the_canary_is_marked_so_that_the_gateway_counts_it_alone(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 2)
    site.turn(ref)
    first, second = site.route()["spec"]["rules"][0]["backendRefs"]
    assert first == {**BACKEND, "weight": 75}
    assert second["name"] == "llama-route-green"
    assert second["filters"][0]["requestHeaderModifier"]["set"][0]["value"] == "canary"
    need = site.metrics.asked[-1]
    assert dict(need.clusters) == {
        f"httproute/{NAMESPACE}/llama/rule/0": "blue",
        f"httproute/{NAMESPACE}/llama/rule/0/backend/0": "blue",
        f"httproute/{NAMESPACE}/llama/rule/0/backend/1": "green",
    }


def test_the_next_rollout_starts_from_the_promoted_pool(site: GatewaySite) -> None:
    first = site.apply(through_gateway())
    site.until_settled(first)
    site.harm["second-pool"] = Harm(slow=0.9)
    second = site.apply(through_gateway("second", "llama-fp8-pool", kvCache={"dtype": "int8"}))
    site.until(second, lambda s: s.weights.canary > 0)
    site.turn(second)
    assert site.backends() == {"llama-route-blue": 10, "llama-route-green": 90}
    assert site.until_settled(second).phase is Phase.ROLLED_BACK
    assert site.backends() == {"llama": 0, "llama-route-green": 100}


def test_nothing_moves_before_every_gateway_has_taken_the_route(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 1)
    site.deaf = True
    site.now += timedelta(minutes=5)
    for _ in range(40):
        site.turn(ref)
    status = site.status(ref)
    assert (status.step, held(status)) == (1, "RouterNotReady")
    assert "older generation" in (status.verdict or "")
    site.deaf = False
    site.control()
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_an_edit_is_undone_and_nothing_else_of_it(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 2)
    site.turn(ref)

    def meddle(route: Object) -> None:
        route["spec"]["rules"][0].update(backendRefs=[dict(BACKEND)], timeouts={"request": "20m"})

    site.cluster.edit("HTTPRoute", NAMESPACE, ROUTE, meddle)
    site.turn(ref)
    assert site.backends() == {"llama-route-green": 25, "llama": 75}
    assert site.route()["spec"]["rules"][0]["timeouts"] == {"request": "20m"}
    assert site.status(ref).step == 2


def test_who_keeps_changing_the_backends_is_named_and_nothing_advances(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 2)

    def sync(route: Object) -> None:
        route["spec"]["rules"][0]["backendRefs"] = [dict(BACKEND)]
        route["metadata"]["managedFields"] = [
            {"manager": "argocd-controller", "fieldsV1": {"f:spec": {"f:rules": {}}}}
        ]

    for _ in range(5):
        site.turn(ref)
        site.cluster.edit("HTTPRoute", NAMESPACE, ROUTE, sync)
    site.turn(ref)
    status = site.status(ref)
    assert held(status) == "RouteConflict"
    assert "argocd-controller has changed the backends" in (status.verdict or "")
    site.annotate(ref, abort="now")
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK, "a conflict keeps nobody from that"


def test_the_kill_switch_takes_everything_from_the_canary_in_the_next_pass(
    site: GatewaySite,
) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 2)
    site.turn(ref)
    site.annotate(ref, killed="too hot")
    site.reconciler.reconcile(ref)
    site.reconciler.reconcile(ref)
    assert site.backends() == {"llama": 100, "llama-route-green": 0}


def test_a_rolled_back_route_belongs_to_its_owner_again(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 1)
    site.annotate(ref, abort="now")
    site.until_settled(ref)
    mine = {**BACKEND, "name": "another", "weight": 3}
    site.cluster.edit(
        "HTTPRoute",
        NAMESPACE,
        ROUTE,
        lambda route: route["spec"]["rules"][0].update(backendRefs=[mine]),
    )
    for _ in range(5):
        site.turn(ref)
    assert site.backends() == {"another": 3}


def test_the_route_of_a_promoted_pool_is_kept_with_it(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until_settled(ref)
    site.cluster.put(http_route())
    site.turn(ref)
    assert site.backends() == {"llama": 0, "llama-route-green": 100}, "its old backend has no pods"


def test_a_deleted_rollout_gives_the_route_back_first(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 2)
    site.turn(ref)
    site.delete(ref)
    assert site.backends() == {"llama": 1}
    assert site.lost == []


def test_a_route_that_vanishes_under_way_is_told_and_taken_up_again(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 2)
    route = site.route()
    site.cluster.vanish("HTTPRoute", NAMESPACE, ROUTE)
    site.turn(ref)
    site.turn(ref)
    assert held(site.status(ref)) == "RouteNotFound"
    site.cluster.put(route)
    site.turn(ref)
    assert site.backends() == {"llama-route-green": 25, "llama": 75}


def gone(site: GatewaySite) -> None:
    site.cluster.vanish("HTTPRoute", NAMESPACE, ROUTE)


def unserved(site: GatewaySite) -> None:
    site.cluster.faults.append(
        Fault(
            Refused("the cluster does not serve HTTPRoute: install the CRDs"),
            kind="HTTPRoute",
            times=99,
        )
    )


def replaced(*rules: Object) -> Callable[[GatewaySite], None]:
    def break_(site: GatewaySite) -> None:
        site.cluster.put(http_route(*rules))

    return break_


POOL_REF = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "llama"}
CASES: dict[str, tuple[Callable[[GatewaySite], None], str, str]] = {
    "no such route": (gone, "RouteNotFound", "there is no HTTPRoute 'llama' in namespace"),
    "no Gateway API": (unserved, "GatewayAPIRefused", "install the CRDs"),
    "a route to somewhere else": (
        replaced(OTHER),
        "RouteDoesNotServeTarget",
        "sends to a Service whose selector finds the target's pods",
    ),
    "a route to a pool": (
        replaced(rule(POOL_REF)),
        "RouteDoesNotServeTarget",
        "An InferencePool cannot be split yet",
    ),
    "a route to another namespace": (
        replaced(rule({**BACKEND, "namespace": "elsewhere"})),
        "RouteDoesNotServeTarget",
        "add it as the backendRef",
    ),
    "two rules to the target": (
        replaced(rule(), OTHER, rule()),
        "RouteAmbiguous",
        "spec.traffic.gatewayAPI.rule: rules 0, 2 of HTTPRoute llama",
    ),
    "a rule that is split already": (
        replaced(rule(BACKEND, {**BACKEND, "name": "embeddings"})),
        "RouteHasOtherBackends",
        "sends elsewhere, too (embeddings)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_route_that_cannot_be_driven_is_told_before_anything_is_touched(
    site: GatewaySite, case: str
) -> None:
    break_, reason, words = CASES[case]
    site.cluster.put(service("embeddings"))
    break_(site)
    ref = site.apply(through_gateway())
    site.turn(ref)
    status = site.status(ref)
    assert status.phase is Phase.PENDING
    stalled = status.condition("Held") or status.condition("Ready")
    assert stalled is not None
    assert stalled.reason == reason
    assert words in (status.verdict or "") + stalled.message
    written = {c.kind for c in site.cluster.calls if c.writes}
    assert written <= {names.KIND, "ConfigMap"}, "nothing but what is told of the rollout"


def test_the_rule_that_is_named_is_driven() -> None:
    site = GatewaySite(driven=2)
    site.install(rule(), OTHER, rule())
    gateway = {"httpRoute": ROUTE, "rule": 2}
    ref = site.apply(through_gateway(traffic={"gatewayAPI": gateway}, shadow={"percent": 0}))
    site.until(ref, lambda s: s.step == 1)
    site.turn(ref)
    assert site.backends(0) == {"llama": 1}
    assert site.backends(2) == {"llama-route-green": 10, "llama": 90}


@pytest.mark.parametrize("features", [("HTTPRouteRequestMirror",), ()], ids=["no", "not said"])
def test_a_gateway_that_cannot_copy_is_asked_for_none(features: tuple[str, ...]) -> None:
    site = GatewaySite()
    site.install(features=features)
    ref = site.apply(through_gateway())
    site.turn(ref)
    told = site.status(ref).verdict or ""
    assert "GatewayClass envoy does not say" in told
    assert "set spec.shadow.percent: 0" in told
    site.edit_spec(ref, shadow={"percent": 0})
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_gateway_that_may_not_be_seen_is_told(site: GatewaySite) -> None:
    refused = Refused("gateways is forbidden (HTTP 403)")
    site.cluster.faults.append(Fault(refused, kind="Gateway", times=99))
    ref = site.apply(through_gateway())
    site.turn(ref)
    assert "may not be seen (gateways is forbidden (HTTP 403))" in (site.status(ref).verdict or "")


def test_what_belongs_to_the_route_is_marked_as_held(site: GatewaySite) -> None:
    ref = site.apply(through_gateway())
    site.until(ref, lambda s: s.step == 1)
    config = site.cluster._objects["ConfigMap", NAMESPACE, OURS.name]
    assert config["metadata"]["annotations"][names.ANNOTATION_HOLDER].startswith("llama-fp8/")
    second = site.apply(through_gateway("second"))
    site.turn(second)
    assert "still drives" in (site.status(second).verdict or "")
