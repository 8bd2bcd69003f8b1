"""The local cluster itself: it can be had twice, survives a crash and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvlocal.cluster import Cluster
from kvlocal.problems import LocalError
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

NAME = "e2e-second"


@pytest.fixture
def second() -> Iterator[Cluster]:
    cluster = Cluster(NAME)
    cluster.down()
    yield cluster
    cluster.down(wipe=True)


def traces(cluster: Cluster, link: str) -> list[str]:
    """Return what a cluster has left on the machine."""
    mounts = Path("/proc/self/mounts").read_text()
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    found = [str(p) for p in Path("/sys/fs/cgroup").glob(f"**/kvlocal-{NAME}")]
    found += [line for line in mounts.splitlines() if f"clusters/{cluster.name}/" in line]
    found += [line for line in links.splitlines() if f" {link}" in line]
    return found


def test_a_second_cluster_stands_beside_the_first_and_goes_without_a_trace(
    cluster: Cluster, second: Cluster
) -> None:
    second.up()
    link = second.network.link
    assert second.describe()["ready"]
    assert second.network != cluster.network
    assert "node1" in cluster.kubectl("get", "nodes"), "the first one is as it was"
    with pytest.raises(LocalError, match="is up already"):
        second.up()
    assert traces(second, link)
    second.down()
    assert not traces(second, link)
    assert not second.running


def test_a_crashed_cluster_is_replaced_by_the_next_up(cluster: Cluster, second: Cluster) -> None:
    second.up()
    node = int((second.kubeconfig.parent / "node.pid").read_text())
    os.kill(node, signal.SIGKILL)
    wait_until(lambda: not second.running, 10, "the node should be gone")
    second.up()
    assert second.describe()["ready"]
    assert int((second.kubeconfig.parent / "node.pid").read_text()) != node


def test_a_component_that_is_killed_is_started_again(cluster: Cluster) -> None:
    before = cluster.pids()
    assert {"etcd", "kube-apiserver", "kubelet", "containerd"} <= before.keys()
    os.kill(before["kube-scheduler"], signal.SIGKILL)
    wait_until(
        lambda: cluster.pids().get("kube-scheduler") not in (None, before["kube-scheduler"]),
        20,
        "the scheduler should be started again",
    )


def test_a_log_that_does_not_exist_is_an_error_that_names_those_that_do(cluster: Cluster) -> None:
    with pytest.raises(LocalError, match="kubelet"):
        cluster.logs("kubelt")
