"""Carry rollouts out of the simulated world (`tests.site`) to a real API server without a node.

What controllers and a kubelet would report is written by hand, as the simulation has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache

from kvquant.adapters.cluster import RESOURCES
from kvquant.adapters.connection import MERGE_PATCH, Connection
from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, Phase
from kvquant.core.manifests import template_hash
from kvquant.core.plan import spec_hash
from kvquant.ports import Object
from kvquant.reconciler import Ref
from tests.site import NAMESPACE, Harm, Site, rollout

KINDS = ("ServiceAccount", "ConfigMap", "Service", "Deployment", "Pod")
SERVER_KNOWS = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


@cache
def promoted(interval: str = "10s") -> Site:
    """Return a world with a rollout whose pool has taken over and whose window is closed."""
    site = _begun(interval)
    site.until_settled(REF)
    return site


@cache
def rolled_back(interval: str = "10s") -> Site:
    """Return a world with a rollout that was rolled back."""
    site = _begun(interval, lambda site: site.harm.update({"llama-fp8-pool": Harm(errors=0.5)}))
    site.until_settled(REF)
    return site


@cache
def holding(interval: str = "10s") -> Site:
    """Return a world with a rollout that waits at its first step for evidence."""
    site = _begun(interval)
    site.until(REF, lambda status: status.step == 1)
    site.rate = 0
    for _ in range(20):
        site.turn(REF)
    assert site.status(REF).phase is Phase.PROGRESSING
    return site


@cache
def waiting() -> Site:
    """Return a world with a rollout that cannot begin, because its target has no ready pod."""
    site = Site(now=EARLIER)
    site.deploy()
    for pod in site.pods("llama"):
        site.kill_engine(pod["metadata"]["name"], restarts=False)
    site.apply()
    for _ in range(3):
        site.turn(REF)
    assert site.status(REF).phase is Phase.PENDING
    return site


EARLIER = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""What an operator finds must not lie in its future."""

REF = Ref(NAMESPACE, "llama-fp8")


def transplant(connection: Connection, site: Site, namespace: str, name: str) -> Ref:
    """Create everything that the simulated world holds, `llama` being called otherwise.

    The rollout's own uid is the one that the real server gives, wherever it is named.
    """
    told = {"llama": name, f'"{NAMESPACE}"': f'"{namespace}"'}
    before, raw = site.raw(REF), _renamed(site.raw(REF), told)
    status = raw.pop("status")
    created = _create(connection, raw)
    told[before["metadata"]["uid"]] = created["metadata"]["uid"]
    # With another name in it, the spec has another hash; else it would count as edited.
    told[_hash(before)] = _hash(created)
    then = template_hash(site.deployment("llama"))
    for kind in KINDS:
        for obj in site.cluster.objects(kind):
            made = _create(connection, _renamed(obj, told))
            if kind == "Deployment" and made["metadata"]["name"] == name:
                # The same goes for the target's template, to which the real server adds defaults.
                told[then] = template_hash(made)
    connection.expect(
        "PUT",
        _path(created, "status"),
        subject="status",
        body={**created, "status": _renamed(status, told)},
    )
    return Ref(namespace, created["metadata"]["name"])


def make_namespace(connection: Connection, name: str) -> None:
    """Create a namespace, and the account without which no pod may be made in it."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    connection.expect("POST", "/api/v1/namespaces", subject=name, body=body)
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    _create(connection, {**account, "metadata": {"name": "default", "namespace": name}})


def _begun(interval: str, prepare: Callable[[Site], None] = lambda _: None) -> Site:
    site = Site(now=EARLIER)
    prepare(site)
    site.deploy()
    analysis = {"interval": interval, "minRequests": 60}
    site.apply(rollout(analysis=analysis))
    return site


def _hash(obj: Object) -> str:
    return spec_hash(KVQuantRollout.parse(obj).spec)


def _renamed(obj: Object, told: Mapping[str, str]) -> Object:
    text = json.dumps(obj)
    for old, new in told.items():
        text = text.replace(old, new)
    renamed: Object = json.loads(text)
    return renamed


def _create(connection: Connection, obj: Object) -> Object:
    metadata = {k: v for k, v in obj["metadata"].items() if k not in SERVER_KNOWS}
    status = obj.pop("status", None)
    if obj["kind"] == names.KIND:
        # Only an operator that runs keeps it; nothing else would ever take it off again.
        metadata.pop("finalizers", None)
    created = connection.expect(
        "POST",
        RESOURCES[obj["kind"]].path(metadata["namespace"]),
        subject=f"{obj['kind']} {metadata['name']}",
        body={**obj, "metadata": metadata},
    )
    if status:
        if obj["kind"] == "Deployment":
            # The real server holds the numbers to each other.
            ready = status.get("availableReplicas", 0)
            status |= {"replicas": ready, "readyReplicas": ready, "updatedReplicas": ready}
        created = connection.expect(
            "PATCH",
            _path(created, "status"),
            subject=f"status of {metadata['name']}",
            body={"status": status},
            content_type=MERGE_PATCH,
        )
    return created


def _path(obj: Object, subresource: str = "") -> str:
    metadata = obj["metadata"]
    return RESOURCES[obj["kind"]].path(metadata["namespace"], metadata["name"], subresource)
