"""What is made of an HTTPRoute, and read from one; what a rollout does with it is tested beside."""

from __future__ import annotations

import copy
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api import names
from kvquant.api.v1alpha1 import GatewayRule
from kvquant.core.envoy_bootstrap import LATENCY_BOUNDS_MS
from kvquant.core.http_routes import (
    FIGHT,
    MIRROR_FEATURE,
    Split,
    fights,
    is_ours,
    lacks_mirror,
    rule_of,
    view,
    with_split,
)
from kvquant.errors import TemplateError
from tests.conftest import REPOSITORY
from tests.gateway import BACKEND, http_route, rule

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
DRIVEN = rule_of(http_route(), lambda name: name == "llama", None)


def split(weight: int, mirror: int = 0, *, named: bool = True, slot: str = "green") -> Split:
    shadow = "llama-route-shadow"
    return Split(f"llama-route-{slot}", 8000, slot, weight, named, shadow, mirror)


@given(weight=st.integers(0, 100), mirror=st.integers(0, 50), slot=st.sampled_from(names.SLOTS))
def test_what_is_split_comes_back_as_it_was(weight: int, mirror: int, slot: str) -> None:
    """Whatever the weights on the way were, a rollback leaves no trace."""
    route = http_route(rule(filters=[{"type": "URLRewrite"}]))
    before = copy.deepcopy(route)
    split_ = split(weight, mirror, slot=slot)
    there = {**route, "spec": {"rules": with_split(route, DRIVEN, split_)}}
    assert route == before, "what was read is not written into"
    refs = there["spec"]["rules"][0]["backendRefs"]
    assert sum(ref["weight"] for ref in refs) == 100
    place = names.SLOTS.index(slot)
    assert refs[place]["name"] == f"llama-route-{slot}", "by its place its metrics are found"
    assert is_ours(there, DRIVEN, split_)
    back = with_split(there, DRIVEN, split(0, named=False))
    assert back == before["spec"]["rules"]
    assert not is_ours({**route, "spec": {"rules": back}}, DRIVEN, split_)


@given(first=st.integers(0, 100), then=st.integers(0, 100))
def test_the_same_split_again_changes_nothing(first: int, then: int) -> None:
    route = http_route()
    once = {**route, "spec": {"rules": with_split(route, DRIVEN, split(first, 5))}}
    assert with_split(once, DRIVEN, split(first, 5)) == once["spec"]["rules"]
    direct = with_split(route, DRIVEN, split(then))
    assert with_split(once, DRIVEN, split(then)) == direct, "the way there does not matter"


def test_a_pool_that_gets_nothing_any_more_is_no_other_backend() -> None:
    promoted = {**BACKEND, "name": "llama-route-green", "weight": 100}
    route = http_route(rule({**BACKEND, "weight": 0}, promoted))
    driven = rule_of(route, lambda name: name == "llama-route-green", None)
    there = {**route, "spec": {"rules": with_split(route, driven, split(40, slot="blue"))}}
    refs = there["spec"]["rules"][0]["backendRefs"]
    assert [(r["name"], r["weight"]) for r in refs] == [
        ("llama-route-blue", 40),
        ("llama-route-green", 60),
    ]
    back = with_split(there, driven, split(0, named=False, slot="blue"))
    assert back == route["spec"]["rules"]


def test_a_rule_that_is_gone_is_told() -> None:
    with pytest.raises(TemplateError, match="has lost its rule 3"):
        with_split(http_route(), GatewayRule(index=3, backend="{}", before="[]"), split(10))


@pytest.mark.parametrize("kept", ["", "nonsense", "3", "null"])
def test_a_status_that_somebody_has_changed_is_told(kept: str) -> None:
    damaged = GatewayRule(index=0, backend=kept, before=kept)
    for split_ in (split(10), split(0, named=False)):
        with pytest.raises(TemplateError, match="is not what the operator has written"):
            with_split(http_route(), damaged, split_)


def test_a_rule_that_does_not_exist_is_told() -> None:
    with pytest.raises(TemplateError, match="has 1 rules, counted from 0; there is no rule 4"):
        rule_of(http_route(), lambda name: True, 4)


def reported(*reports: dict[str, Any], parents: int = 1) -> dict[str, Any]:
    route = http_route(parentRefs=[{"name": f"gateway-{n}"} for n in range(parents)])
    route["metadata"]["generation"] = 7
    route["status"] = {"parents": list(reports)}
    return route


def report(accepted: str = "True", resolved: str = "True", seen: int = 7) -> dict[str, Any]:
    conditions = [
        {"type": "Accepted", "status": accepted, "observedGeneration": seen},
        {
            "type": "ResolvedRefs",
            "status": resolved,
            "observedGeneration": seen,
            "reason": "BackendNotFound",
            "message": "Service llama-route-green not found",
        },
    ]
    return {"parentRef": {"name": "gateway-0"}, "conditions": conditions}


def test_a_route_is_followed_when_every_parent_has_taken_this_generation() -> None:
    assert view(reported(report())).follows
    assert view(reported(report(), report(), parents=2)).follows


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (reported(), "0 of 1 Gateways have reported on it"),
        (reported(report(seen=6)), "Accepted is reported of an older generation"),
        (reported(report("False")), "Accepted=False"),
        (reported(report(resolved="False")), "Service llama-route-green not found"),
        (reported({"parentRef": {"name": "gateway-0"}}), "Accepted is not reported"),
        (None, "is gone"),
    ],
)
def test_why_a_route_is_not_followed_is_told(route: dict[str, Any] | None, words: str) -> None:
    seen = view(route)
    assert not seen.follows
    assert words in seen.trouble


def test_a_parent_that_has_not_reported_is_waited_for() -> None:
    seen = view(reported(report(), parents=2))
    assert not seen.follows
    assert "1 of 2 Gateways have reported" in seen.trouble


def test_a_few_changes_are_no_fight_and_old_ones_count_no_more() -> None:
    route = http_route()
    route["metadata"]["managedFields"] = [
        {"manager": "kvquant-operator", "fieldsV1": {"f:spec": {"f:rules": {}}}},
        {"manager": "flux", "fieldsV1": {"f:spec": {"f:rules": {}}}},
        {"manager": "envoy-gateway", "fieldsV1": {"f:status": {}}},
    ]
    often = [NOW - timedelta(minutes=minute) for minute in range(FIGHT)]
    assert fights(route, often[1:], NOW) is None
    assert fights(route, often, NOW + timedelta(minutes=10)) is None
    told = fights(route, often, NOW)
    assert told is not None
    assert ": flux has changed the backends" in told


def test_envoy_gateway_can_copy_though_it_does_not_say_so() -> None:
    """What a class says itself counts more than its controller's name."""
    envoy = {"spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"}}
    assert not lacks_mirror(envoy)
    assert lacks_mirror({**envoy, "status": {"supportedFeatures": [{"name": "Gateway"}]}})
    assert lacks_mirror({"spec": {"controllerName": "example.com/another"}})
    assert not lacks_mirror({"status": {"supportedFeatures": [MIRROR_FEATURE]}})


def test_a_backend_without_a_weight_gets_it_back() -> None:
    bare = {key: value for key, value in BACKEND.items() if key != "weight"}
    route = http_route(rule(bare))
    driven = rule_of(route, lambda name: True, None)
    there = {**route, "spec": {"rules": with_split(route, driven, split(30))}}
    assert with_split(there, driven, split(0, named=False)) == route["spec"]["rules"]


def test_the_buckets_of_the_docs_are_those_of_the_built_in_router() -> None:
    text = (REPOSITORY / "docs" / "gateway-api.md").read_text()
    (told,) = re.findall(r"buckets: \[([^\]]+)\]", text)
    assert tuple(int(bound) for bound in told.split(",")) == LATENCY_BOUNDS_MS
