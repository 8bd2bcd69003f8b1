"""A whole operator, kopf included, whose API server is slow and answers 409, 429 and 500.

The API server is real, and a proxy in front of it misbehaves towards the operator alone.
Controllers, kubelet, engines and clients are the simulated world's (`tests.site`), which lives in
real time here and sees the API server as it is.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kopf
import pytest
import yaml

from kvquant.adapters.cluster import RESOURCES, KubernetesCluster
from kvquant.adapters.connection import MERGE_PATCH, Connection
from kvquant.adapters.watching import WatchedCluster
from kvquant.api.v1alpha1 import DecisionKind, Phase, Status
from kvquant.config import OperatorConfig
from kvquant.core import record
from kvquant.handlers import register
from kvquant.ports import Object
from kvquant.reconciler import Ref
from tests import manifests
from tests import site as world
from tests.apiserver.conftest import Kubectl
from tests.fakes.cluster import FakeCluster, Key
from tests.fault_proxy import CALM, ONCE, FaultProxy, Odds
from tests.site import Harm, Site, rollout, steps_taken
from tests.transplant import make_namespace
from tests.waiting import wait_until

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(400)]

BAD_DAY = Odds(conflict=0.1, throttled=0.06, broken=0.04, lost=0.06, slow=0.05, delay=(1.0, 3.0))
"""A quarter of all writes goes wrong in one way or another."""

SHORT: dict[str, Any] = {
    "shadow": {"percent": 0},
    "steps": [{"weight": weight, "soak": "3s"} for weight in (50, 100)],
    "promotion": {"rollbackWindow": "3s"},
    "traffic": {"router": {"drainTimeout": "3s"}},
    # Passes that fail are tried again ever later.
    "progressDeadline": "30m",
}


class _Stored:
    """The objects of a real API server, looked up as `FakeCluster` keeps its own."""

    def __init__(self, port: KubernetesCluster) -> None:
        self._port = port

    def get(self, key: Key) -> Object | None:
        return self._port.get(*key)

    def __getitem__(self, key: Key) -> Object:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: Key) -> bool:
        return self.get(key) is not None


class RealObjects(FakeCluster):
    """What controllers and people do in the simulated world, done to a real API server."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        super().__init__()
        self._connection, self._namespace = connection, namespace
        self._port = KubernetesCluster(connection)
        self._objects = _Stored(self._port)  # type: ignore[assignment]

    def put(self, obj: Object) -> Object:
        obj = {**obj}
        status = obj.pop("status", None)
        kind, name = obj["kind"], obj["metadata"]["name"]
        obj["metadata"].pop("finalizers", None)  # kopf's own, which it shall place itself
        if kind == "Pod":
            for container in obj["spec"]["containers"]:
                container.setdefault("image", "example.invalid/engine:1")
        made = self._connection.expect(
            "POST", RESOURCES[kind].path(self._namespace), subject=name, body=obj
        )
        if status:
            self.set_status(kind, self._namespace, name, status)
        return made

    def set_status(self, kind: str, namespace: str, name: str, status: Object) -> None:
        if kind == "Deployment":
            # The real server holds the numbers to each other.
            ready = status["availableReplicas"]
            status = {**status, "replicas": ready, "readyReplicas": ready}
        held = self._port.get(kind, namespace, name)
        if held is None or status.items() <= held.get("status", {}).items():
            return
        self._connection.expect(
            "PATCH",
            RESOURCES[kind].path(namespace, name, "status"),
            subject=name,
            body={"status": status},
            content_type=MERGE_PATCH,
        )

    def vanish(self, kind: str, namespace: str, name: str) -> None:
        self._connection.request(
            "DELETE", RESOURCES[kind].path(namespace, name), query={"gracePeriodSeconds": "0"}
        )

    def objects(self, kind: str) -> Sequence[Object]:
        found = self._port.list(kind, self._namespace, {})
        for pod in found if kind == "Pod" else ():
            # The real server adds when and why, which nobody has said.
            conditions = pod["status"].get("conditions", ())
            pod["status"]["conditions"] = [
                {"type": one["type"], "status": one["status"]} for one in conditions
            ]
        return found


@pytest.fixture
def namespace(
    connection: Connection, kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A namespace in which the simulated world lives."""
    name = f"faults-{datetime.now(UTC):%H%M%S%f}"
    make_namespace(connection, name)
    monkeypatch.setattr(world, "NAMESPACE", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def site(connection: Connection, namespace: str) -> Site:
    site = Site(now=datetime.now(UTC))
    site.cluster = RealObjects(connection, namespace)
    return site


@pytest.fixture
def proxy(kubeconfig: Path) -> Iterator[FaultProxy]:
    document = yaml.safe_load(kubeconfig.read_text())
    server = document["clusters"][0]["cluster"]
    trust = ssl.create_default_context(cadata=_decoded(server["certificate-authority-data"]))
    with FaultProxy(server["server"], trust) as proxy:
        yield proxy


@pytest.fixture
def credentials(
    kubectl: Kubectl, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A kubeconfig of the installed operator by which it reaches the proxy and nothing else."""
    install = manifests.EXAMPLES / "install" / "operator.yaml"
    kubectl.ok("apply", "--server-side", "--force-conflicts", "-f", str(install))
    token = kubectl.ok("create", "token", "kvquant-operator", "-n", "kvquant-system").strip()
    document = {
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{proxy.port}"}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


@contextmanager
def operator(site: Site, credentials: Path, namespace: str) -> Iterator[None]:
    """Run an operator as its process does, but for Prometheus and routers, which are the site's."""
    connection = Connection.from_kubeconfig(str(credentials))
    cluster = WatchedCluster(connection)
    registry = kopf.OperatorRegistry()
    register(registry, site.operator(cluster, site.metrics, site.traffic), OperatorConfig())
    stop, ended = threading.Event(), []

    def run() -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=registry, standalone=True, namespaces=[namespace], stop_flag=stop
                )
            )
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, name="operator", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        cluster.close()
        connection.close()
    assert not thread.is_alive(), "an operator that is told to stop should end"
    assert not ended, ended


def live_until(site: Site, ref: Ref, holds: Callable[[Status], bool], within: float) -> Status:
    """Let the world live until the rollout's status meets a condition."""
    last = [datetime.now(UTC)]

    def look() -> Status | None:
        now = datetime.now(UTC)
        site.let_pass((now - last[0]).total_seconds())
        last[0] = now
        status = site.status(ref)
        return status if holds(status) else None

    try:
        found = wait_until(look, within, "the rollout should get there", 0.2)
    except AssertionError as error:
        told = site.status(ref)
        decided = [f"{d.reason} {d.weight} %: {d.message}" for d in told.decisions]
        raise AssertionError("\n".join([str(error), str(told.verdict), *decided])) from None
    assert found is not None
    return found


def recorded(site: Site, ref: Ref) -> list[str]:
    """Return the reasons of what was decided, as the record has it, without waits."""
    found = site.cluster._objects["ConfigMap", ref.namespace, record.name_of(ref.name)]
    entries = record.read(found["data"])
    assert [entry.number for entry in entries] == [*range(1, len(entries) + 1)]
    others = (DecisionKind.HOLD, DecisionKind.PROVISION)
    return [entry.reason for entry in entries if entry.kind not in others]


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def bad_day(site: Site, proxy: FaultProxy, phase: Phase) -> tuple[Status, list[str]]:
    """Play one rollout to its end; return its last status, and what the record says of it."""
    site.deploy()
    proxy.odds, proxy.owed = BAD_DAY, list(ONCE)
    ref = site.apply(rollout(**SHORT))
    ended = live_until(site, ref, lambda status: status.settled, 280)
    assert ended.phase is phase, "\n".join(d.message for d in ended.decisions)
    assert set(proxy.injected) == {"409", "429", "500", "lost", "slow"}, proxy.done
    proxy.odds = CALM
    # It is written after the status, by passes of which any may have failed: it catches up.
    settled = ended.decisions[-1].reason
    live_until(site, ref, lambda _: recorded(site, ref)[-1] == settled, 90)
    return ended, recorded(site, ref)


def test_a_good_canary_is_promoted_step_by_step_and_nothing_is_decided_twice(
    site: Site, proxy: FaultProxy, credentials: Path, namespace: str
) -> None:
    with operator(site, credentials, namespace):
        promoted, told = bad_day(site, proxy, Phase.PROMOTED)
    assert told == [
        *("Started", "Verifying", "StepStarted", "StepStarted", "Promoted"),
        "RollbackWindowClosed",
    ]
    assert promoted.canary is not None
    assert steps_taken(site.traffic.history, promoted.canary.slot) == [0, 50, 95, 100]
    assert site.lost == []


def test_a_bad_canary_is_rolled_back_once_and_its_weight_never_rises_again(
    site: Site, proxy: FaultProxy, credentials: Path, namespace: str
) -> None:
    site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    with operator(site, credentials, namespace):
        rolled_back, told = bad_day(site, proxy, Phase.ROLLED_BACK)
    assert told == ["Started", "Verifying", "StepStarted", "AnalysisFailed", "RolledBack"]
    assert rolled_back.canary is not None
    assert steps_taken(site.traffic.history, rolled_back.canary.slot) == [0, 50, 0]
    assert site.lost == []
