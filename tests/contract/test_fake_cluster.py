"""What the fake cluster offers to tests beyond the port: faults, a log, the world's own acts."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.errors import Conflict, Unavailable
from tests.fakes.cluster import Call, FakeCluster, Fault


def configmap(name: str = "router", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "ns"},
        "data": data,
    }


def test_a_fault_strikes_the_calls_that_it_names_and_no_other() -> None:
    cluster = FakeCluster()
    cluster.faults.append(Fault(Unavailable("down"), verb="apply", kind="ConfigMap", skip=1))

    cluster.apply(configmap("first"))
    assert cluster.get("ConfigMap", "ns", "second") is None
    with pytest.raises(Unavailable):
        cluster.apply(configmap("second"))
    cluster.apply(configmap("third"))

    assert [obj["metadata"]["name"] for obj in cluster.objects("ConfigMap")] == ["first", "third"]


def test_a_late_fault_loses_the_answer_and_not_the_effect() -> None:
    cluster = FakeCluster()
    cluster.faults.append(Fault(Unavailable("timed out"), late=True))
    with pytest.raises(Unavailable):
        cluster.apply(configmap(weights="90/10"))
    assert [obj["data"] for obj in cluster.objects("ConfigMap")] == [{"weights": "90/10"}]


def test_the_log_holds_the_ports_calls_and_tells_writes_apart() -> None:
    cluster = FakeCluster()
    cluster.put(configmap())
    cluster.get("ConfigMap", "ns", "router")
    cluster.patch("ConfigMap", "ns", "router", {"data": {"a": "1"}})

    assert cluster.calls == [
        Call("get", "ConfigMap", "ns", "router"),
        Call("patch", "ConfigMap", "ns", "router"),
    ]
    assert [call.verb for call in cluster.calls if call.writes] == ["patch"]


def test_a_controllers_report_makes_a_version_that_was_read_before_stale() -> None:
    cluster = FakeCluster()
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "llama", "namespace": "ns"},
        "spec": {"replicas": 2},
    }
    read = cluster.apply(deployment)
    cluster.set_status("Deployment", "ns", "llama", {"readyReplicas": 2})

    stored = cluster.get("Deployment", "ns", "llama")
    assert stored is not None
    assert stored["status"] == {"readyReplicas": 2}
    assert stored["metadata"]["generation"] == 1
    with pytest.raises(Conflict):
        cluster.replace_status(read)


def test_vanish_ignores_finalizers() -> None:
    cluster = FakeCluster()
    held = configmap()
    held["metadata"]["finalizers"] = ["somebody/holds"]
    cluster.put(held)
    cluster.delete("ConfigMap", "ns", "router")
    assert cluster.get("ConfigMap", "ns", "router") is not None
    cluster.vanish("ConfigMap", "ns", "router")
    assert cluster.get("ConfigMap", "ns", "router") is None
