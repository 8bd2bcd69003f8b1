"""Reads from watches against a real API server: killed under them, and in the steady state."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kvlocal.apiserver import ApiServer
from kvquant.acting import Actor
from kvquant.adapters import listwatch
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.adapters.watching import WatchedCluster
from kvquant.api.v1alpha1 import Phase
from kvquant.config import OperatorConfig
from kvquant.errors import Unavailable
from kvquant.ports import Object
from kvquant.reconciler import Reconciler, Ref
from kvquant.waking import Waker
from tests.fakes.metrics import FakeMetrics
from tests.fakes.traffic import FakeTraffic
from tests.transplant import holding, make_namespace, promoted, rolled_back, transplant
from tests.waiting import wait_until

pytestmark = pytest.mark.apiserver


def configmap(namespace: str, **data: str) -> Object:
    metadata = {"name": "router", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


# The server goes away.


def test_a_server_that_is_killed_and_comes_back_is_followed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listwatch, "BEARABLE_BREAK", 0.5)
    monkeypatch.setattr(listwatch, "LONGEST_BACKOFF", 1.0)
    with ApiServer(tmp_path) as server:
        connection = Connection.from_kubeconfig(str(server.kubeconfig), timeouts=(1.0, 5.0))
        direct, watched = KubernetesCluster(connection), WatchedCluster(connection)
        wait_until(lambda: direct.apply(configmap("default", a="1")), 10, "the namespace is there")
        wait_until(lambda: _data(watched) == {"a": "1"}, 5, "read")
        server.kill_server()

        def refused() -> bool:
            try:
                _data(watched)
            except Unavailable:
                return True
            return False

        wait_until(refused, 10, "nothing old is believed for longer than a moment")
        server.start_server()
        direct.apply(configmap("default", a="2"))
        wait_until(lambda: _data(watched) == {"a": "2"}, 5, "by the watch, or directly until then")
        wait_until(lambda: _asks_nothing(connection, watched, monkeypatch), 20, "the watch is back")
        direct.apply(configmap("default", a="3"))
        wait_until(lambda: _data(watched) == {"a": "3"}, 5, "and tells")
        watched.close()
        connection.close()


def _data(cluster: WatchedCluster) -> object:
    found = cluster.get("ConfigMap", "default", "router")
    return None if found is None else found["data"]


def _asks_nothing(
    connection: Connection, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> bool:
    with monkeypatch.context() as patch:
        asked: list[str] = []
        request = connection.request

        def noting(method: str, path: str, **kwargs: Any) -> Any:
            asked.append(path)
            return request(method, path, **kwargs)

        patch.setattr(connection, "request", noting)
        cluster.get("ConfigMap", "default", "router")
    return asked == []


# The steady state.


class Counted:
    """A whole operator but kopf, and every request that it sends except watches."""

    def __init__(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[str] = []
        send = connection._send

        def noting(method: str, path: str, *arguments: Any) -> Any:
            if not (arguments[0] or {}).get("watch"):
                self.requests.append(f"{method} {path}")
            return send(method, path, *arguments)

        monkeypatch.setattr(connection, "_send", noting)
        self.cluster = WatchedCluster(connection, "Strict")
        traffic = FakeTraffic()
        actor = Actor(self.cluster, traffic, OperatorConfig(), "-----BEGIN CERTIFICATE-----")
        self.reconciler = Reconciler(
            self.cluster, FakeMetrics(), traffic, lambda: datetime.now(UTC), actor
        )
        self.woken: set[Ref] = set()
        self.cluster.changed = Waker(self.cluster.rollouts, actor.doubt, self.woken.add)

    def passes(self, *refs: Ref) -> list[str]:
        """Run a pass over each and return what was asked of the API server meanwhile."""
        before = len(self.requests)
        for ref in refs:
            assert not self.reconciler.reconcile(ref).done
        return self.requests[before:]


@pytest.fixture
def counted(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted(connection, monkeypatch)
    yield counted
    counted.cluster.close()


@pytest.fixture
def refs(connection: Connection) -> list[Ref]:
    namespace = f"steady-{uuid.uuid4().hex[:8]}"
    make_namespace(connection, namespace)
    sites = {"pro": promoted(), "back": rolled_back(), "hold": holding()}
    return [transplant(connection, site, namespace, name) for name, site in sites.items()]


def test_in_the_steady_state_passes_send_no_request(counted: Counted, refs: list[Ref]) -> None:
    wait_until(lambda: counted.passes(*refs) == [], 30, "passes come to rest", interval=0.2)
    for _ in range(20):
        assert counted.passes(*refs) == []
    phases = [counted.reconciler.reconcile(ref).after for ref in refs]
    assert [status and status.phase for status in phases] == [
        Phase.PROMOTED,
        Phase.ROLLED_BACK,
        Phase.PROGRESSING,
    ]


@pytest.mark.parametrize(
    ("kind", "name", "edit"),
    [
        ("Service", "hold-router-green", {"spec": {"selector": {"app": "hold"}}}),
        ("ConfigMap", "hold-router", {"data": {"envoy.json": "{}"}}),
        ("Deployment", "hold-router", {"spec": {"replicas": 7}}),
        ("Deployment", "hold-fp8-pool", {"spec": {"replicas": 7}}),
        ("ServiceAccount", "hold-router", {"automountServiceAccountToken": True}),
        ("PodDisruptionBudget", "hold-router", {"spec": {"maxUnavailable": 9}}),
    ],
)
def test_a_hand_edit_wakes_the_rollout_and_is_undone_by_its_next_pass(
    counted: Counted, refs: list[Ref], connection: Connection, kind: str, name: str, edit: Object
) -> None:
    ref = refs[-1]
    wait_until(lambda: counted.passes(ref) == [], 30, "passes come to rest", interval=0.2)
    direct = KubernetesCluster(connection)
    before = direct.get(kind, ref.namespace, name)
    assert before is not None
    counted.woken.clear()
    after = direct.patch(kind, ref.namespace, name, edit)
    assert _decided(after) != _decided(before)
    wait_until(lambda: counted.woken == {ref}, 5, "it is woken")
    asked = counted.passes(ref)
    assert [line.split()[0] for line in asked] == ["PATCH"], "one write and no read"
    undone = direct.get(kind, ref.namespace, name)
    assert undone is not None
    assert _decided(undone) == _decided(before)
    wait_until(lambda: counted.passes(ref) == [], 30, "and rests again", interval=0.2)


def _decided(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}
