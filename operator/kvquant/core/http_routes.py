"""What the operator changes of an HTTPRoute of the user's, and what it reads from one.

The rules of an HTTPRoute are one field for server-side apply, so that whoever writes one writes all
of them. Everything in them but the backendRefs of the rule that is driven, and our own filter, is
taken over as it stands.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from kvquant.api import names
from kvquant.api.v1alpha1 import GatewayRule, Status, Traffic
from kvquant.core.observation import RouterView
from kvquant.core.shadow_settings import PORT
from kvquant.errors import TemplateError

Object = dict[str, Any]
_T = TypeVar("_T")

API_VERSION = "gateway.networking.k8s.io/v1"
MIRROR_FEATURE = "HTTPRouteRequestPercentageMirror"
"""By this name a GatewayClass tells that it can copy a share of the requests."""
MIRRORS_WITHOUT_SAYING = frozenset({"gateway.envoyproxy.io/gatewayclass-controller"})
"""Controllers that pass the conformance test of that feature and leave `supportedFeatures` empty:
Envoy Gateway, from 1.5 to 1.9 at least."""

ARM_HEADER = "x-kvquant-arm"
"""Request header that the canary's requests bear. Envoy Gateway gives a backend whose requests are
changed an upstream cluster of its own, and with it metrics of its own."""

FIGHT, FIGHT_WITHIN = 3, timedelta(minutes=10)
"""So often within that time is somebody else's change of the rules no accident any more."""

_FIELD = "spec.traffic.gatewayAPI"


@dataclass(frozen=True, slots=True)
class Split:
    """How one rule is to send its requests.

    Attributes:
        canary: Service of the canary's pods.
        port: Its port.
        slot: Slot that the canary fills; the baseline fills the other one.
        weight: Share of the requests that go to the canary, in per cent.
        named: Whether the rule names the canary, with a weight of 0, too; else it is as it was.
        shadow: Service to which copies go.
        mirror: Share of the requests of which a copy goes there, in per cent.
    """

    canary: str
    port: int
    slot: str
    weight: int
    named: bool
    shadow: str
    mirror: int = 0


def rule_of(route: Object, serves: Callable[[str], bool], asked: int | None) -> GatewayRule:
    """Return the rule that sends to the target.

    Args:
        route: The HTTPRoute.
        serves: Tells whether a Service of the route's namespace leads to the target's pods.
        asked: The rule that the spec names, counted from 0.

    Raises:
        TemplateError: There is none, or more than one, or it sends elsewhere, too.
    """
    name, rules = route["metadata"]["name"], route["spec"].get("rules") or []
    if asked is not None and asked >= len(rules):
        raise TemplateError(
            "RouteRuleNotFound",
            f"{_FIELD}.rule: HTTPRoute {name} has {len(rules)} rules, counted from 0; there is no "
            f"rule {asked}.",
        )
    found = [
        index
        for index, rule in enumerate(rules)
        if any(_leads(route, ref, serves) for ref in rule.get("backendRefs") or ())
        and asked in (None, index)
    ]
    if not found:
        pools = [ref for rule in rules for ref in rule.get("backendRefs") or () if _is_pool(ref)]
        which = "no rule of" if asked is None else f"rule {asked} of"
        raise TemplateError(
            "RouteDoesNotServeTarget",
            f"{_FIELD}.httpRoute: {which} HTTPRoute {name} sends to a Service whose selector finds "
            "the target's pods: add it as the backendRef, or name the route that does."
            + (" An InferencePool cannot be split yet; name a Service." if pools else ""),
        )
    if len(found) > 1:
        raise TemplateError(
            "RouteAmbiguous",
            f"{_FIELD}.rule: rules {', '.join(map(str, found))} of HTTPRoute {name} send to the "
            "target: say which one is split, and let the others send elsewhere.",
        )
    (index,) = found
    backends = rules[index]["backendRefs"]
    # What gets nothing, as the pool before a promotion, is no other backend.
    live = [ref for ref in backends if ref.get("weight", 1) > 0]
    if len(live) != 1 or not _leads(route, live[0], serves):
        others = sorted(ref["name"] for ref in live if not _leads(route, ref, serves))
        raise TemplateError(
            "RouteHasOtherBackends",
            f"{_FIELD}.httpRoute: rule {index} of HTTPRoute {name} sends elsewhere, too "
            f"({', '.join(others) or 'the same Service twice'}): leave one backendRef in it.",
        )
    backend, before = (json.dumps(one, sort_keys=True) for one in (live[0], backends))
    return GatewayRule(index=index, backend=backend, before=before)


def with_split(route: Object, rule: GatewayRule, split: Split) -> list[Object]:
    """Return the route's rules with the split in them.

    Raises:
        TemplateError: The rule is gone, or the status speaks nonsense of it.
    """
    rules: list[Object] = copy.deepcopy(route["spec"].get("rules") or [])
    if rule.index >= len(rules):
        raise TemplateError(
            "RouteRuleNotFound",
            f"HTTPRoute {route['metadata']['name']} has lost its rule {rule.index}, which this "
            "rollout drives: put it back.",
        )
    driven = rules[rule.index]
    driven["backendRefs"] = _backends(rule, split)
    filters = [one for one in driven.get("filters") or () if not _copies_to(one, split.shadow)]
    if split.mirror:
        mirror = {"backendRef": _service(split.shadow, PORT), "percent": split.mirror}
        filters.append({"type": "RequestMirror", "requestMirror": mirror})
    if filters:
        driven["filters"] = filters
    else:
        driven.pop("filters", None)
    return rules


def _backends(rule: GatewayRule, split: Split) -> list[Object]:
    """Return where the rule sends.

    Each slot has its place in the list for the whole attempt, whether it gets anything or not. By
    its place Envoy Gateway names a backend's upstream cluster; clusters come and go a moment later
    or earlier than the routes that send to them, which must then send nothing there.
    """
    if not split.named:
        return _kept(rule.before, list)
    mark = {"name": ARM_HEADER, "value": "canary"}
    # All defaults are spelled out, so that what the API server keeps is what was sent.
    canary = {
        **_service(split.canary, split.port),
        "weight": split.weight,
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [mark]}}],
    }
    baseline = {**_kept(rule.backend, dict), "weight": 100 - split.weight}
    return [canary if slot == split.slot else baseline for slot in names.SLOTS]


def _kept(text: str, type_: type[_T]) -> _T:
    """Return what the status keeps as JSON.

    Raises:
        TemplateError: Somebody has changed it.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, type_):
        raise TemplateError(
            "StatusDamaged",
            "status.gateway is not what the operator has written: set the route's backendRefs by "
            "hand, and delete the rollout.",
        )
    return found


def is_ours(route: Object, rule: GatewayRule, split: Split) -> bool:
    """Tell whether the rule names the canary or asks for copies."""
    rules = route["spec"].get("rules") or []
    if rule.index >= len(rules):
        return False
    driven = rules[rule.index]
    named = any(ref.get("name") == split.canary for ref in driven.get("backendRefs") or ())
    return named or any(_copies_to(one, split.shadow) for one in driven.get("filters") or ())


def clusters(namespace: str, traffic: Traffic, status: Status) -> tuple[tuple[str, str], ...]:
    """Return which of Envoy Gateway's upstream clusters are which slot; none with another router.

    A backend that is alone in its rule, and changes nothing of its requests, has the rule's own
    cluster; else each has one by its place.
    """
    asked, rule = traffic.gateway_api, status.gateway
    if asked is None or rule is None or status.baseline is None or status.canary is None:
        return ()
    whole = f"httproute/{namespace}/{asked.http_route}/rule/{rule.index}"
    places = ((f"{whole}/backend/{place}", slot) for place, slot in enumerate(names.SLOTS))
    return ((whole, status.baseline.slot), *places)


def view(route: Object | None) -> RouterView:
    """Return how far the route's parents have taken it, as it is now."""
    if route is None:
        return RouterView(trouble="The HTTPRoute is gone.")
    name, generation = route["metadata"]["name"], route["metadata"].get("generation", 0)
    parents = route["spec"].get("parentRefs") or []
    reports = (route.get("status") or {}).get("parents") or []
    trouble: list[str] = []
    if len(reports) < max(1, len(parents)):
        trouble.append(f"{len(reports)} of {len(parents)} Gateways have reported on it")
    taken = 0
    for report in reports:
        conditions = {one["type"]: one for one in report.get("conditions") or ()}
        wrong = [
            why
            for type_ in ("Accepted", "ResolvedRefs")
            if (why := _why_not(type_, conditions.get(type_), generation))
        ]
        taken += not wrong
        trouble += [f"{report.get('parentRef', {}).get('name')}: {why}" for why in wrong]
    told = f"HTTPRoute {name} has not been taken by all of its parents: {'; '.join(trouble)}."
    return RouterView(len(parents), len(reports), taken, told if trouble else "")


def others(route: Object) -> list[str]:
    """Return which field managers besides us have written the route's rules."""
    found = set()
    for entry in route["metadata"].get("managedFields") or ():
        spec = (entry.get("fieldsV1") or {}).get("f:spec") or {}
        if "f:rules" in spec and entry.get("manager") != names.FIELD_MANAGER:
            found.add(str(entry.get("manager") or "somebody"))
    return sorted(found)


def fights(route: Object, undone: Sequence[datetime], now: datetime) -> str | None:
    """Return that somebody else keeps writing the rules; None while nobody does.

    Args:
        route: The HTTPRoute as it was found.
        undone: When somebody else's change was undone.
        now: The present instant.
    """
    lately = [at for at in undone if now - at <= FIGHT_WITHIN]
    if len(lately) < FIGHT:
        return None
    who = " and ".join(others(route)) or "somebody else"
    return (
        f"HTTPRoute {route['metadata']['name']}: {who} has changed the backends of rules that this "
        f"rollout drives, {len(lately)} times in {int(FIGHT_WITHIN.total_seconds() // 60)} "
        "minutes. Each time it was undone, and requests went astray meanwhile. Let it leave "
        "spec.rules alone (docs/gateway-api.md says how), or abort the rollout."
    )


def lacks_mirror(gateway_class: Object) -> bool:
    """Tell whether a GatewayClass is not known to copy a share of the requests.

    What it says itself counts. Envoy Gateway can, and says nothing of what it can.
    """
    told = (gateway_class.get("status") or {}).get("supportedFeatures") or []
    if not told:
        controller = (gateway_class.get("spec") or {}).get("controllerName")
        return controller not in MIRRORS_WITHOUT_SAYING
    # The first versions of the API have plain strings there.
    return MIRROR_FEATURE not in [f.get("name") if isinstance(f, dict) else f for f in told]


def _why_not(type_: str, condition: Object | None, generation: int) -> str:
    if condition is None:
        return f"{type_} is not reported"
    if condition.get("observedGeneration", generation) < generation:
        return f"{type_} is reported of an older generation"
    if condition.get("status") != "True":
        return f"{type_}={condition.get('status')} ({condition.get('reason')}): " + str(
            condition.get("message") or ""
        )
    return ""


def _service(name: str, port: int) -> Object:
    return {"group": "", "kind": "Service", "name": name, "port": port}


def _leads(route: Object, ref: Object, serves: Callable[[str], bool]) -> bool:
    own = ref.get("namespace") in (None, route["metadata"]["namespace"])
    service = ref.get("kind", "Service") == "Service" and ref.get("group", "") == ""
    return own and service and serves(ref["name"])


def _is_pool(ref: Object) -> bool:
    return ref.get("kind") == "InferencePool"


def _copies_to(one: Object, shadow: str) -> bool:
    mirrored = (one.get("requestMirror") or {}).get("backendRef") or {}
    return one.get("type") == "RequestMirror" and mirrored.get("name") == shadow
