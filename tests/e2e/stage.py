"""What an end-to-end test does to the cluster and sees of it, in the words of the field."""

from __future__ import annotations

import copy
import json
import os
import signal
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvdemo.load import Load, Outcome, Recipe
from kvlocal import addons, gateways, product
from kvlocal.cluster import Cluster
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.api import names
from kvquant.api.v1alpha1 import (
    DecisionKind,
    DecisionRecord,
    KVQuantRollout,
    Phase,
    Status,
    Verdict,
)
from kvquant.core import http_routes
from tests import manifests
from tests.waiting import wait_until

ROUTER = "llama-router"
OPERATOR = {"app.kubernetes.io/name": "kvquant-operator"}
SHADOWED: dict[str, Any] = {
    # What the saturation probe does has a test of its own.
    "percent": 50,
    "minPairs": 40,
    "soak": "5s",
    "saturationProbe": False,
}
"""Requests are shadowed for seconds instead of minutes."""
OWN_CLUSTER = {
    "type": "RequestHeaderModifier",
    "requestHeaderModifier": {"set": [{"name": "x-kvquant-arm", "value": "baseline"}]},
}
"""A filter of the baseline's backendRef: with one, its upstream cluster keeps its name."""
QUICK: dict[str, Any] = {
    # What shadowing does has tests of its own.
    "shadow": {"percent": 0},
    "steps": [{"weight": weight, "soak": "5s"} for weight in (40, 100)],
    "analysis": {
        "interval": "1s",
        "minRequests": 40,
        "p99": {"tolerancePercent": 100},
        "oomRetries": {"tolerancePercent": 3},
        # A test's few requests leave a baseline with less too little to be compared with.
        "holdbackPercent": 20,
    },
    "promotion": {"rollbackWindow": "5s"},
    "progressDeadline": "2m",
}
"""A ladder that a test can wait for: a step needs 20 s of evidence, in production five minutes."""

LADDER = [0, 40, 80, 100]
"""The canary's weights on it. The last step leaves the baseline a fifth, the promotion nothing. In
the first step, the baseline's pods have about the load that the canary's have in the last one: with
that time they are compared then."""


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

    def serve(
        self,
        replicas: int = 1,
        faults: str = "",
        memory: str = "512Mi",
        at_once: int = 64,
        model_tokens: int = 32_768,
        memory_bytes: int = 6 * 2**30,
        time_scale: int = 4,
    ) -> None:
        """Bring up the demo's baseline, and wait until it is ready and Prometheus knows it.

        Args:
            replicas: Number of its pods.
            faults: What goes wrong in it and in the canaries that inherit it.
            memory: Limit of a pod.
            at_once: Requests that an engine serves at once; the others wait in its queue.
            model_tokens: Longest prompt with its answer, in tokens.
            memory_bytes: Memory of an engine's KV cache.
            time_scale: How many times faster than a real engine it is.
        """
        for document in manifests.documents("demo/baseline.yaml"):
            if document["kind"] == "Namespace":
                continue
            document = copy.deepcopy(document)
            document["metadata"]["namespace"] = self.namespace
            if document["kind"] == "Deployment":
                document["spec"]["replicas"] = replicas
                (container,) = document["spec"]["template"]["spec"]["containers"]
                container["resources"]["limits"]["memory"] = memory
                arguments = container["args"]
                for flag, value in (
                    ("--max-num-seqs", at_once),
                    ("--max-model-len", model_tokens),
                    ("--kv-cache-memory-bytes", memory_bytes),
                ):
                    arguments[arguments.index(flag) + 1] = str(value)
                changed = {"KVSIM_FAULTS": faults, "KVSIM_TIME_SCALE": str(time_scale)}
                for variable in container["env"]:
                    variable["value"] = changed.get(variable["name"], variable["value"])
            self.cluster.apply(document)
        self.cluster.kubectl(
            *("rollout", "status", "deployment/llama", "-n", self.namespace, "--timeout=90s")
        )
        # A rollout that comes before looks again only after a while.
        wait_until(
            lambda: self.measured("llama") == replicas, 60, "Prometheus should scrape it", 0.2
        )

    def measured(self, deployment: str) -> int:
        """Return the number of a Deployment's pods that Prometheus has scraped."""
        service = self.port.get("Service", addons.PROMETHEUS_NAMESPACE, "prometheus")
        assert service is not None
        metrics = PrometheusMetrics(f"http://{service['spec']['clusterIP']}:9090")
        names = [pod["metadata"]["name"] for pod in self.pods(app=deployment)]
        try:
            return len(metrics.cache_configs(self.namespace, names, datetime.now(UTC)))
        finally:
            metrics.close()

    def query(self, text: str) -> list[Any]:
        """Return what Prometheus answers to a query now."""
        service = self.port.get("Service", addons.PROMETHEUS_NAMESPACE, "prometheus")
        assert service is not None
        url = f"http://{service['spec']['clusterIP']}:9090/api/v1/query"
        body = urllib.parse.urlencode({"query": text}).encode()
        with urllib.request.urlopen(url, body, timeout=10) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
        return found

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

    def until_settled(self, name: str, phase: Phase, timeout: float = 300) -> Status:
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

    def send(self, rate: float = 20.0, *, gateway: str = "", **recipe: Any) -> Load:
        """Begin steady load through the router, or a Gateway, once that answers."""
        if gateway:
            address = self._gateway_answers(gateway)
        else:
            wait_until(
                lambda: self.replicas_ready(ROUTER) > 0, 60, "the router should become ready", 0.2
            )
            service = self.port.get("Service", self.namespace, ROUTER)
            assert service is not None
            address = service["spec"]["clusterIP"]
        load = Load(f"http://{address}:8000", Recipe(rate=rate, **recipe))
        load.start()
        self._loads.append(load)
        return load

    def open_gateway(self) -> None:
        """Bring up a Gateway of Envoy Gateway's, and a route through it to the target."""
        where = {"namespace": self.namespace}
        listener = {"name": "http", "protocol": "HTTP", "port": 8000}
        self.cluster.apply(
            {
                "apiVersion": http_routes.API_VERSION,
                "kind": "Gateway",
                "metadata": {"name": "edge", **where},
                "spec": {"gatewayClassName": gateways.CLASS, "listeners": [listener]},
            },
            self.http_route(),
        )

    def http_route(self) -> dict[str, Any]:
        """Return the route as its owner writes it."""
        return {
            "apiVersion": http_routes.API_VERSION,
            "kind": "HTTPRoute",
            "metadata": {"name": "llama", "namespace": self.namespace},
            "spec": {
                "parentRefs": [{"name": "edge"}],
                "rules": [
                    {
                        "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                        "backendRefs": [{"name": "llama", "port": 8000, "filters": [OWN_CLUSTER]}],
                        "timeouts": {"request": "60s"},
                    }
                ],
            },
        }

    def route(self) -> dict[str, Any]:
        """Return the route as it stands."""
        found = self.port.get("HTTPRoute", self.namespace, "llama")
        assert found is not None
        return found

    def backends(self) -> dict[str, int]:
        """Return the weights of the route's backends."""
        refs = self.route()["spec"]["rules"][0]["backendRefs"]
        return {ref["name"]: ref["weight"] for ref in refs}

    def _gateway_answers(self, gateway: str) -> str:
        """Wait until a Gateway of this namespace answers, and return its address."""
        labels = {
            "gateway.envoyproxy.io/owning-gateway-name": gateway,
            "gateway.envoyproxy.io/owning-gateway-namespace": self.namespace,
        }
        found: list[str] = []

        def look() -> bool:
            services = self.port.list("Service", gateways.NAMESPACE, labels)
            if not services:
                return False
            found[:] = [services[0]["spec"]["clusterIP"]]
            with suppress(OSError):
                url = f"http://{found[0]}:8000/v1/models"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return bool(answer.status == 200)
            return False

        wait_until(look, 120, "the Gateway should answer", 0.5)
        return found[0]

    def replicas_ready(self, deployment: str) -> int:
        """Return the number of a Deployment's available pods; 0 when there is none."""
        found = self.port.get("Deployment", self.namespace, deployment)
        return int((found or {}).get("status", {}).get("availableReplicas") or 0)

    def replicas_asked(self, deployment: str) -> int:
        """Return the number of pods that a Deployment asks for."""
        found = self.port.get("Deployment", self.namespace, deployment)
        assert found is not None, f"no Deployment {deployment}"
        return int(found["spec"]["replicas"])

    def pods(self, namespace: str | None = None, **labels: str) -> list[dict[str, Any]]:
        """Return the pods with these labels that are not about to go."""
        found = self.port.list("Pod", namespace or self.namespace, labels)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def kill(self, pod: dict[str, Any]) -> int:
        """End a pod's processes without notice, and return how many there were."""
        killed = 0
        for process in processes(pod):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                killed += 1
        return killed

    def kill_and_replace(self, namespace: str, **labels: str) -> bool:
        """Kill the first such pod's processes; tell whether there were any.

        The pod goes too, so that its successor begins at once: the kubelet lets a container that
        dies so often wait ever longer.
        """
        for pod in self.pods(namespace, **labels)[:1]:
            killed = self.kill(pod)
            self.cluster.kubectl(
                *("delete", "pod", pod["metadata"]["name"], "-n", namespace),
                *("--force", "--grace-period=0", "--wait=false", "--ignore-not-found"),
            )
            return killed > 0
        return False

    def kill_operator(self) -> bool:
        """End the operator without notice; tell whether it was there."""
        return self.kill_and_replace(product.NAMESPACE, **OPERATOR)

    def operator_is_back(self) -> None:
        """Wait until the operator is ready again."""
        where = ("-n", product.NAMESPACE, "deployment/kvquant-operator")
        self.cluster.kubectl("rollout", "status", *where, "--timeout=120s")

    def operator_runs(self) -> bool:
        """Tell whether the operator's process is there; it need not be ready."""
        return any(processes(pod) for pod in self.pods(product.NAMESPACE, **OPERATOR))

    def restart_api_server(self) -> None:
        """Kill the API server, and wait until the node has started another that answers."""
        before = self.cluster.pids()["kube-apiserver"]
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda: (
                self.cluster.pids().get("kube-apiserver") not in (None, before)
                and self.cluster.describe()["ready"]
            ),
            60,
            "the API server should be back",
        )

    def stop_prometheus(self) -> None:
        """Take Prometheus away together with everything that it has stored."""
        self._scale_prometheus(0)
        wait_until(
            lambda: not self.pods(addons.PROMETHEUS_NAMESPACE, app="prometheus"),
            60,
            "Prometheus should be gone",
        )

    def start_prometheus(self) -> None:
        """Bring Prometheus back, with an empty store."""
        self._scale_prometheus(1)
        addons.wait(self.cluster, prometheus=True)

    def signal_prometheus(self, number: signal.Signals) -> None:
        """Let Prometheus hang, with its connections open, or go on."""
        for pod in self.pods(addons.PROMETHEUS_NAMESPACE, app="prometheus"):
            for process in processes(pod):
                os.kill(process, number)

    def _scale_prometheus(self, replicas: int) -> None:
        self.cluster.kubectl(
            *("scale", "deployment/prometheus", "-n", addons.PROMETHEUS_NAMESPACE),
            f"--replicas={replicas}",
        )

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


def cause_of(status: Status) -> DecisionRecord:
    """Return the decision that rolled a rollout back."""
    return next(d for d in status.decisions if d.kind is DecisionKind.ROLL_BACK)


def moves(status: Status) -> list[str]:
    """Return the reasons of what was decided, without the waits and the preparations."""
    others = (DecisionKind.HOLD, DecisionKind.PROVISION)
    return [d.reason for d in status.decisions if d.kind not in others]


def once(steps: int) -> list[str]:
    """Return the reasons of what is decided in a rollout that nothing disturbs."""
    return ["Started", "Verifying", *["StepStarted"] * steps, "Promoted", "RollbackWindowClosed"]


def blamed(status: Status) -> set[str | None]:
    """Return the families of the signals that failed in the latest look."""
    assert status.analysis is not None, _told(status)
    return {one.family for one in status.analysis.signals if one.verdict is Verdict.FAIL}


def holds(status: Status, condition: str, reason: str = "") -> bool:
    """Tell whether a condition is True, and for that reason if one is given."""
    found = status.condition(condition)
    return found is not None and found.status == "True" and reason in ("", found.reason)


def processes(pod: dict[str, Any]) -> list[int]:
    """Return the host's ids of a pod's processes, but for the one that holds its namespaces."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            inside = f"pod{pod['metadata']['uid']}" in (folder / "cgroup").read_text()
            if inside and (folder / "comm").read_text().strip() != "pause":
                found.append(int(folder.name))
    return found


def _told(status: Status | None) -> str:
    if status is None:
        return "no status was read"
    lines = [f"{status.phase.value} step {status.step_label}: {status.verdict}"]
    lines += [f"{d.at:%H:%M:%S} {d.reason} {d.weight} %: {d.message}" for d in status.decisions]
    lines += [f"{c.type}={c.status} {c.reason}: {c.message}" for c in status.conditions]
    return "\n".join(lines)
