"""What an end-to-end test does to the cluster and sees of it, in the words of the field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvdemo.load import Load, Outcome, Recipe
from kvlocal.cluster import Cluster
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, Phase, Status
from tests import manifests
from tests.waiting import wait_until

ROUTER = "llama-router"
QUICK = {
    "steps": [{"weight": weight, "soak": "5s"} for weight in (20, 50, 100)],
    "analysis": {"interval": "2s", "minRequests": 40},
    "promotion": {"rollbackWindow": "5s"},
    "progressDeadline": "2m",
}
"""A ladder that a test can wait for. Production's defaults are hours."""


@dataclass(slots=True)
class Stage:
    """A namespace with a baseline, its rollouts and its clients."""

    cluster: Cluster
    connection: Connection
    namespace: str
    weights: list[int] = field(default_factory=list)
    _loads: list[Load] = field(default_factory=list)

    @property
    def port(self) -> KubernetesCluster:
        """The Kubernetes API as the operator speaks to it, with an administrator's rights."""
        return KubernetesCluster(self.connection)

    def open(self) -> None:
        """Make the namespace."""
        self.cluster.kubectl("create", "namespace", self.namespace)

    def close(self) -> None:
        """Stop the clients and remove everything, rollouts first so that they end in order."""
        for load in self._loads:
            load.stop()
        self.cluster.kubectl(
            *("delete", names.PLURAL, "--all", "-n", self.namespace, "--timeout=90s")
        )
        self.cluster.kubectl("delete", "namespace", self.namespace, "--wait=false")
        # Requests that wait for a pod's end are nobody's here.
        self.cluster.kubectl(
            *("delete", "pods", "--all", "-n", self.namespace, "--grace-period=1", "--wait=false")
        )

    def serve(self, replicas: int = 1, faults: str = "") -> None:
        """Bring up the demo's baseline with other faults, and wait until it is ready."""
        for document in manifests.documents("demo/baseline.yaml"):
            if document["kind"] == "Namespace":
                continue
            document = copy.deepcopy(document)
            document["metadata"]["namespace"] = self.namespace
            if document["kind"] == "Deployment":
                document["spec"]["replicas"] = replicas
                (container,) = document["spec"]["template"]["spec"]["containers"]
                for variable in container["env"]:
                    if variable["name"] == "KVSIM_FAULTS":
                        variable["value"] = faults
            self.cluster.apply(document)
        self.cluster.kubectl(
            *("rollout", "status", "deployment/llama", "-n", self.namespace, "--timeout=90s")
        )

    def roll_out(self, name: str, dtype: str, target: str = "llama", **spec: Any) -> None:
        """Apply a rollout that is quick unless `spec` says otherwise."""
        self.cluster.apply(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {
                    "targetRef": {"name": target},
                    "kvCache": {"dtype": dtype},
                    "traffic": {"router": {"name": ROUTER, "replicas": 1, "drainTimeout": "20s"}},
                    **QUICK,
                    **spec,
                },
            }
        )

    def status(self, name: str) -> Status:
        """Return a rollout's status, and remember the weight that it commits to."""
        raw = self.port.get(names.KIND, self.namespace, name)
        assert raw is not None, f"rollout {name} is gone"
        status = KVQuantRollout.parse(raw).status
        if not self.weights or self.weights[-1] != status.weights.canary:
            self.weights.append(status.weights.canary)
        return status

    def until(
        self, name: str, holds: Callable[[Status], bool], timeout: float, what: str
    ) -> Status:
        """Wait until a rollout's status satisfies a condition, and return that status."""
        seen: list[Status] = []

        def look() -> bool:
            seen[:] = [self.status(name)]
            return holds(seen[0])

        try:
            wait_until(look, timeout, what, interval=0.2)
        except AssertionError as error:
            last = seen[0] if seen else None
            raise AssertionError(f"{error}\n{_told(last)}") from None
        return seen[0]

    def until_phase(self, name: str, phase: Phase, timeout: float = 150) -> Status:
        """Wait for a phase; an end in another one fails at once, with the decisions."""

        def there(status: Status) -> bool:
            assert status.phase is phase or not status.settled, _told(status)
            return status.phase is phase

        return self.until(name, there, timeout, f"{name} should become {phase.value}")

    def until_settled(self, name: str, phase: Phase, timeout: float = 150) -> Status:
        """Wait until a rollout has ended for good, in the phase that is expected."""
        status = self.until(name, lambda s: s.settled, timeout, f"{name} should end")
        assert status.phase is phase, _told(status)
        return status

    def ask(self, name: str, annotation: str, value: str | None) -> None:
        """Annotate a rollout, as the command line does."""
        self.port.patch(
            names.KIND,
            self.namespace,
            name,
            {"metadata": {"annotations": {annotation: value}}},
        )

    def send(self, rate: float = 15.0) -> Load:
        """Begin steady load through the router, once that answers."""
        wait_until(
            lambda: self.replicas_ready(ROUTER) > 0, 60, "the router should become ready", 0.2
        )
        service = self.port.get("Service", self.namespace, ROUTER)
        assert service is not None
        load = Load(f"http://{service['spec']['clusterIP']}:8000", Recipe(rate=rate))
        load.start()
        self._loads.append(load)
        return load

    def replicas_ready(self, deployment: str) -> int:
        """Return the number of a Deployment's available pods; 0 when there is none."""
        found = self.port.get("Deployment", self.namespace, deployment)
        return int((found or {}).get("status", {}).get("availableReplicas") or 0)

    def replicas_asked(self, deployment: str) -> int:
        """Return the number of pods that a Deployment asks for."""
        found = self.port.get("Deployment", self.namespace, deployment)
        assert found is not None, f"no Deployment {deployment}"
        return int(found["spec"]["replicas"])

    def events(self, name: str) -> set[str]:
        """Return the reasons of a rollout's Events."""
        answer = self.connection.expect(
            "GET",
            f"/api/v1/namespaces/{self.namespace}/events",
            subject="events",
            query={"fieldSelector": f"involvedObject.name={name}"},
        )
        return {event["reason"] for event in answer["items"]}


def failures(load: Load) -> list[Outcome]:
    """Return the requests that failed."""
    return [outcome for outcome in load.outcomes if outcome.problem]


def _told(status: Status | None) -> str:
    if status is None:
        return "no status was read"
    lines = [f"{status.phase.value} step {status.step_label}: {status.verdict}"]
    lines += [f"{d.at:%H:%M:%S} {d.reason} {d.weight} %: {d.message}" for d in status.decisions]
    lines += [f"{c.type}={c.status} {c.reason}: {c.message}" for c in status.conditions]
    return "\n".join(lines)
