"""Two operators on one API server: one decides, and the other soon does when it is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvlocal.apiserver import free_ports
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.api import names
from tests import manifests
from tests.apiserver.conftest import Kubectl
from tests.waiting import wait_until

pytestmark = pytest.mark.apiserver

HOME = "kvquant-system"
FAILOVER = 10.0
"""Seconds from the death of a leader until its successor has decided something, at most."""
NO_FINALIZERS = ("-p", '{"metadata":{"finalizers":[]}}')
VERSION = "jsonpath={.metadata.resourceVersion}"


@dataclass
class Replica:
    """One operator process."""

    process: subprocess.Popen[bytes]
    metrics: int
    health: int
    log: Path

    def leads(self) -> bool:
        text = self._get(self.metrics, "/metrics")
        return re.search(r"^kvquant_leader 1\.0$", text, re.MULTILINE) is not None

    def is_alive(self) -> bool:
        return bool(self._get(self.health, "/healthz"))

    @staticmethod
    def _get(port: int, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""


@dataclass
class Fleet:
    """Both replicas and the namespace that they look after."""

    replicas: list[Replica]
    cluster: KubernetesCluster
    kubectl: Kubectl
    namespace: str

    def leader(self) -> tuple[Replica, Replica]:
        """Return the leader and the other, once there is one."""
        wait_until(lambda: sum(r.leads() for r in self.replicas) == 1, 60, "one should lead", 0.1)
        first, second = self.replicas
        return (first, second) if first.leads() else (second, first)

    def make(self, name: str) -> None:
        rollout: dict[str, Any] = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "targetRef": {"kind": "Deployment", "name": f"{name}-is-not-there"},
                "kvCache": {"dtype": "fp8"},
                "traffic": {"router": {}},
            },
        }
        self.kubectl.ok("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(rollout))

    def decided(self, name: str, within: float) -> None:
        """Wait until an operator has said something of a rollout."""

        def told() -> bool:
            found = self.cluster.get(names.KIND, self.namespace, name)
            return f"{name}-is-not-there" in str((found or {}).get("status", {}))

        wait_until(told, within, f"{name} should be looked after", 0.05)


@pytest.fixture
def fleet(
    kubectl: Kubectl, kubeconfig: Path, connection: Connection, namespace: str, tmp_path: Path
) -> Iterator[Callable[..., Fleet]]:
    """Starts two operators, which agree on a leader or have namespaces of their own."""
    install = manifests.EXAMPLES / "install" / "operator.yaml"
    kubectl.ok("apply", "--server-side", "--force-conflicts", "-f", str(install))
    kubectl("delete", "lease", "kvquant-operator", "-n", HOME, "--ignore-not-found")
    document = yaml.safe_load(kubeconfig.read_text())
    token = kubectl.ok("create", "token", "kvquant-operator", "-n", HOME).strip()
    document["users"][0]["user"] = {"token": token}
    credentials = tmp_path / "kubeconfig"
    credentials.write_text(yaml.safe_dump(document))
    replicas: list[Replica] = []
    namespaces = {namespace}

    def start(lease: str = "5", watched: tuple[str, str] = (namespace, namespace)) -> Fleet:
        nobody, *ports = free_ports(7)
        namespaces.update(watched)
        for number in range(2):
            xds, metrics, health = ports[3 * number : 3 * number + 3]
            environment = {
                **os.environ,
                "KUBECONFIG": str(credentials),
                "KVQUANT_NAMESPACE": HOME,
                "KVQUANT_WATCH_NAMESPACES": watched[number],
                "KVQUANT_PROMETHEUS_URL": f"http://127.0.0.1:{nobody}",
                "KVQUANT_XDS_PORT": str(xds),
                "KVQUANT_METRICS_PORT": str(metrics),
                "KVQUANT_HEALTH_PORT": str(health),
                "KVQUANT_LEASE_SECONDS": lease,
            }
            log = tmp_path / f"log-{number}"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "kvquant"], env=environment, stdout=file, stderr=file
                )
            replicas.append(Replica(process, metrics, health, log))
        return Fleet(replicas, KubernetesCluster(connection), kubectl, namespace)

    try:
        yield start
    finally:
        for replica in replicas:
            if replica.process.poll() is None:
                replica.process.send_signal(signal.SIGCONT)
                replica.process.kill()
            replica.process.wait(20)
        kubectl("delete", "secret", "kvquant-xds-tls", "-n", HOME, "--ignore-not-found")
        # Nobody is left to let a rollout go.
        for watched in namespaces:
            for rollout in KubernetesCluster(connection).list(names.KIND, watched, {}):
                name = rollout["metadata"]["name"]
                kubectl("patch", "kvqr", name, "-n", watched, "--type=merge", *NO_FINALIZERS)


@pytest.fixture
def pair(fleet: Callable[..., Fleet]) -> Fleet:
    """Two replicas, of which one leads."""
    return fleet()


def test_the_one_that_waits_is_alive_and_takes_over_when_the_leader_is_killed(
    pair: Fleet,
) -> None:
    leader, other = pair.leader()
    pair.make("first")
    pair.decided("first", 30)
    wait_until(other.is_alive, 30, "the follower should say that it is alive")
    leader.process.kill()
    killed = time.monotonic()
    pair.make("second")
    pair.decided("second", 30)
    assert time.monotonic() - killed <= FAILOVER
    assert other.leads()
    wait_until(other.is_alive, 30, "the new leader should say that it is alive")


def test_a_leader_that_is_told_to_go_hands_over_at_once(pair: Fleet) -> None:
    leader, _ = pair.leader()
    pair.make("first")
    pair.decided("first", 30)
    leader.process.terminate()
    assert leader.process.wait(20) == 0
    gone = time.monotonic()
    pair.make("second")
    pair.decided("second", 30)
    # Well before the Lease would have ended by itself.
    assert time.monotonic() - gone < 5


def test_one_that_was_frozen_while_another_took_over_ends_without_a_word_to_anybody(
    pair: Fleet,
) -> None:
    leader, other = pair.leader()
    leader.process.send_signal(signal.SIGSTOP)
    wait_until(other.leads, 30, "the follower should take over", 0.1)
    pair.make("meanwhile")
    pair.decided("meanwhile", 30)
    before = pair.kubectl.ok("get", "kvqr", "meanwhile", "-n", pair.namespace, "-o", VERSION)
    leader.process.send_signal(signal.SIGCONT)
    assert leader.process.wait(20) == 1
    assert "Another operator has taken the Lease" in leader.log.read_text()
    after = pair.kubectl.ok("get", "kvqr", "meanwhile", "-n", pair.namespace, "-o", VERSION)
    assert before == after
    assert other.leads()


def test_one_that_waits_goes_when_it_is_told_to(pair: Fleet) -> None:
    _, other = pair.leader()
    wait_until(other.is_alive, 30, "the follower should say that it is alive")
    other.process.terminate()
    assert other.process.wait(10) == 0


def test_two_shards_keep_to_their_own_namespaces(
    fleet: Callable[..., Fleet], kubectl: Kubectl, namespace: str
) -> None:
    other = f"{namespace}-b"
    kubectl.ok("create", "namespace", other)
    try:
        shards = fleet(lease="0", watched=(namespace, other))
        wait_until(lambda: all(r.leads() for r in shards.replicas), 60, "both should lead", 0.1)
        there = replace(shards, namespace=other)
        for shard, name in ((shards, "here"), (there, "there")):
            shard.make(name)
            shard.decided(name, 30)
        first, _ = shards.replicas
        first.process.kill()
        first.process.wait(10)
        shards.make("nobodys")
        there.make("still")
        there.decided("still", 30)
        left = shards.cluster.get(names.KIND, namespace, "nobodys")
        assert left is not None
        assert "status" not in left, "the other shard does not reach over"
    finally:
        kubectl("delete", "namespace", other, "--wait=false")
