"""A small simulated world around the reconciler: controllers, kubelet, engines and clients.

Everything is driven by `Site.turn`, one pass and a few seconds at a time; nothing runs by itself.
The control plane is `FakeCluster`, and what clients experience follows the weights that the
routers have at that moment, as in life.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from kvquant.acting import Actor
from kvquant.alerting.board import AlertBoard
from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, Phase, Status
from kvquant.archiving import Archivist
from kvquant.config import OperatorConfig
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Share, Tick
from kvquant.core.custom_signals import ShareQuery
from kvquant.core.evaluation_summary import EvaluationSummary
from kvquant.core.evidence import ArmNeed, CacheConfig
from kvquant.core.manifests import selects
from kvquant.core.quality import JUDGED
from kvquant.core.regime import expected_factor
from kvquant.core.router_manifests import shadow_name
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed, Sums
from kvquant.core.shadow_settings import CANARY_PAIR, EXACT, NOISE_PAIR
from kvquant.core.ticking import TickNeed, Timeline, in_effect
from kvquant.engines import vllm
from kvquant.ports import Object, RouterKey
from kvquant.reconciler import Reconciler, Ref, Result
from tests.fakes import evaluations
from tests.fakes.cluster import FakeCluster
from tests.fakes.metrics import FakeMetrics
from tests.fakes.traffic import FakeTraffic

NAMESPACE = "inference"
BEGIN = datetime(2026, 11, 25, 12, tzinfo=UTC)
BASELINE_TOKENS = 98_304
MEMORY = 6 * 2**30
LONG_AGO = timedelta(days=2)

GRID = timedelta(seconds=1)
"""Time between two ticks: all durations of the analysis are 15 times shorter than usual."""
BOUNDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, math.inf)
"""Bounds of the made-up latencies in seconds: answers take up to 1 s, the slow ones 10 to 30 s."""

SHADOW = {"percent": 50, "minPairs": 30, "soak": "5s"}
STEPS = [{"weight": w, "soak": "20s"} for w in (10, 25, 50, 100)]


def rollout(
    name: str = "llama-fp8", target: str = "llama", dtype: str = "fp8", **spec: Any
) -> Object:
    """Return a rollout with short times, as somebody applies it."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {}},
        "spec": {
            "targetRef": {"name": target},
            "kvCache": {"dtype": dtype},
            "traffic": {"router": {"drainTimeout": "30s"}},
            "shadow": SHADOW,
            "steps": STEPS,
            "analysis": {"interval": "5s", "minRequests": 60},
            "promotion": {"rollbackWindow": "40s"},
            "progressDeadline": "3m",
            **spec,
        },
    }


def engine_pool(name: str = "llama", replicas: int = 2, dtype: str = "auto") -> Object:
    """Return the Deployment of a pool that people made themselves."""
    labels = {"app": name}
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.32.0",
        "args": ["--model", "llama", "--kv-cache-dtype", dtype],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels)},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": {"containers": [container]}},
        },
    }


@dataclass(slots=True)
class Harm:
    """What goes wrong in a pool, as shares of its requests."""

    slow: float = 0.0
    errors: float = 0.0
    preemptions: float = 0.0
    tools: float = 0.0


@dataclass(frozen=True, slots=True)
class Served:
    """What a slot of a router has served since the beginning, as cumulative counts."""

    requests: float = 0.0
    slow: float = 0.0
    errors: float = 0.0
    preemptions: float = 0.0
    tools: float = 0.0

    def more(self, requests: float, harm: Harm) -> Served:
        """Return the counts after so many more requests."""
        return Served(
            self.requests + requests,
            self.slow + requests * harm.slow,
            self.errors + requests * harm.errors,
            self.preemptions + requests * harm.preemptions,
            self.tools + requests * harm.tools,
        )


@dataclass(slots=True)
class Site:
    """The world, and an operator in it.

    Attributes:
        now: The present instant.
        load_time: Seconds that a new pod takes to become ready.
        rate: Requests a second that clients send to each router.
        harm: What goes wrong, by Deployment.
        ignored_dtypes: Dtypes that engines accept and ignore.
        ignoring: Deployments whose engines accept every dtype and ignore it.
        spoilt: Share of a canary's answers to copies that is worse than the baseline's, by signal.
        asking: Seconds that a Job takes to ask an example set.
        said: What the program of such a Job says at its end; None: it never ends.
        lost: Sentences about requests that were sent to a pool without a serving pod.
        config: How the operator is configured.
        polls: Whether an operator that begins asks Prometheus which alerts fire.
    """

    now: datetime = BEGIN
    load_time: float = 4.0
    rate: float = 40.0
    harm: dict[str, Harm] = field(default_factory=dict)
    ignored_dtypes: set[str] = field(default_factory=set)
    ignoring: set[str] = field(default_factory=set)
    spoilt: dict[str, float] = field(default_factory=dict)
    asking: float = 20.0
    said: EvaluationSummary | None = field(default_factory=evaluations.summary)
    lost: list[str] = field(default_factory=list)
    cluster: FakeCluster = field(init=False)
    metrics: FakeMetrics = field(init=False)
    traffic: FakeTraffic = field(init=False)
    alerts: AlertBoard = field(init=False)
    config: OperatorConfig = field(default_factory=OperatorConfig)
    polls: bool = False
    archivist: Archivist | None = None
    reconciler: Reconciler = field(init=False)
    _flow: list[tuple[float, dict[tuple[RouterKey, str], Served]]] = field(default_factory=list)
    _copies: list[tuple[RouterKey, datetime, float]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.cluster = FakeCluster(now=lambda: self.now)
        self.metrics = FakeMetrics()
        self.metrics.timeline = self._timeline
        self.metrics.shadow = self._shadow
        self.traffic = FakeTraffic()
        self.restart()

    def restart(self) -> None:
        """Let a new operator process begin; only what the API server holds survives."""
        self.alerts = AlertBoard(lambda: self.now, polls=self.polls)
        self.reconciler = self.operator(self.cluster, self.metrics, self.traffic)

    def operator(self, cluster: Any, metrics: Any, traffic: Any) -> Reconciler:
        """Return a fresh operator that uses these ports."""
        actor = Actor(cluster, traffic, self.config, "-----BEGIN CERTIFICATE-----")
        return Reconciler(
            *(cluster, metrics, traffic, lambda: self.now, actor, self.alerts),
            grid=GRID,
            archivist=self.archivist,
        )

    # What people do.

    def deploy(self, pool: Object | None = None) -> None:
        """Bring up a pool whose pods are ready."""
        self.cluster.put(pool or engine_pool())
        self.control()
        self.now += timedelta(seconds=self.load_time)
        self.control()

    def apply(self, obj: Object | None = None) -> Ref:
        """Create a rollout, as by kubectl apply."""
        obj = copy.deepcopy(obj or rollout())
        obj["metadata"].setdefault("finalizers", [names.FINALIZER])
        self.cluster.put(obj)
        return Ref(NAMESPACE, obj["metadata"]["name"])

    def annotate(self, ref: Ref, **annotations: str | None) -> None:
        """Set or, with None, remove annotations of ours by their short names."""

        def change(obj: Object) -> None:
            known = obj["metadata"].setdefault("annotations", {})
            for name, value in annotations.items():
                known.pop(f"{names.GROUP}/{name}", None)
                if value is not None:
                    known[f"{names.GROUP}/{name}"] = value

        self.cluster.edit(names.KIND, ref.namespace, ref.name, change)

    def edit_spec(self, ref: Ref, **fields: Any) -> None:
        """Change fields of a rollout's spec."""
        self.cluster.edit(
            names.KIND, ref.namespace, ref.name, lambda obj: obj["spec"].update(fields)
        )

    # What can be seen.

    def raw(self, ref: Ref) -> Object:
        """Return the rollout as stored."""
        obj = self.cluster._objects[names.KIND, ref.namespace, ref.name]
        return copy.deepcopy(obj)

    def status(self, ref: Ref) -> Status:
        """Return a rollout's status as stored."""
        return KVQuantRollout.parse(self.raw(ref)).status

    def deployment(self, name: str) -> Object:
        """Return a Deployment as stored."""
        return copy.deepcopy(self.cluster._objects["Deployment", NAMESPACE, name])

    def pods(self, deployment: str) -> list[Object]:
        """Return the pods of a Deployment."""
        return [
            pod
            for pod in self.cluster.objects("Pod")
            if pod["metadata"]["annotations"]["test/deployment"] == deployment
        ]

    def serving(self, router: str, slot: str) -> list[str]:
        """Return the names of the ready pods behind a slot's Service."""
        service = self.cluster._objects.get(("Service", NAMESPACE, f"{router}-{slot}"))
        selector = (service or {}).get("spec", {}).get("selector")
        return [
            pod["metadata"]["name"]
            for pod in self.cluster.objects("Pod")
            if selects(selector, pod["metadata"]["labels"]) and _is_ready(pod)
        ]

    def reasons(self, ref: Ref) -> list[str]:
        """Return the reasons of the rollout's decisions, in order, waits left out."""
        return [d.reason for d in self.status(ref).decisions if d.kind.value != "Hold"]

    # Time.

    def turn(self, ref: Ref, *others: Ref) -> Result:
        """Let controllers act, one pass run for each rollout, and time pass until the next."""
        results = [self.reconciler.reconcile(one) for one in (ref, *others)]
        self.let_pass(max(0.5, min(5.0, *(r.requeue_after for r in (*results, results[0])))))
        return results[0]

    def let_pass(self, seconds: float) -> None:
        """Let clients send requests for a while, then let controllers catch up."""
        served = dict(self._flow[-1][1]) if self._flow else {}
        for router, weights in self.traffic.weights.items():
            for slot, weight in weights.items():
                pods = self.serving(router.name, slot)
                harm = self.harm.get(self._deployment_of(pods[0]) if pods else "", Harm())
                before = served.get((router, slot), Served())
                served[router, slot] = before.more(self.rate * seconds * weight / 100, harm)
            for slot, weight in weights.items():
                exists = ("Service", NAMESPACE, f"{router.name}-{slot}") in self.cluster._objects
                if weight and exists and not self.serving(router.name, slot):
                    self.lost.append(f"{self.now:%H:%M:%S} {weight} % to {slot}: no pod serves")
            share = self.traffic.mirrored.get(router, 0) / 100
            if any(_is_ready(pod) for pod in self.pods(shadow_name(router.name))):
                self._copies.append((router, self.now, self.rate * seconds * share))
        if not self._flow:
            self._flow.append((self.now.timestamp(), {}))
        self.now += timedelta(seconds=seconds)
        self._flow.append((self.now.timestamp(), served))
        self.control()

    def until(
        self, ref: Ref, condition: Callable[[Status], bool], *others: Ref, turns: int = 400
    ) -> Status:
        """Run turns until the stored status meets a condition; fail after too many."""
        for _ in range(turns):
            if condition(self.status(ref)):
                return self.status(ref)
            self.turn(ref, *others)
        status = self.status(ref)
        raise AssertionError(f"never came about; at last {status.phase}: {status.verdict}")

    def until_phase(self, ref: Ref, phase: Phase, *others: Ref) -> Status:
        """Run turns until the rollout is in a phase."""
        return self.until(ref, lambda status: status.phase is phase, *others)

    def until_settled(self, ref: Ref, *others: Ref) -> Status:
        """Run turns until nothing is left to do, and a few more for what follows of it."""
        self.until(ref, lambda status: status.settled, *others)
        for _ in range(3):
            self.turn(ref, *others)
        return self.status(ref)

    def delete(self, ref: Ref) -> None:
        """Delete a rollout, and run passes until it may vanish; fail after too many."""
        self.cluster.delete(names.KIND, ref.namespace, ref.name)
        for _ in range(60):
            result = self.reconciler.finalize(ref)
            if result.done:
                return
            self.let_pass(max(0.5, min(5.0, result.requeue_after)))
        raise AssertionError("never done")

    # Controllers and kubelet.

    def control(self) -> None:
        """Let the pods of every Deployment be as the controllers would make them."""
        for deployment in self.cluster.objects("Deployment"):
            name = deployment["metadata"]["name"]
            wanted = deployment["spec"].get("replicas", 1)
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            if labels.get("app.kubernetes.io/name") == "kvquant-router":
                self._report(name, wanted)
                continue
            pods = self.pods(name)
            for pod in pods[wanted:]:
                self.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
            for _ in range(wanted - len(pods)):
                self._start_pod(deployment)
            for pod in self.pods(name):
                self._refresh(pod)
            self._report(name, sum(1 for pod in self.pods(name) if _is_ready(pod)))
        for job in self.cluster.objects("Job"):
            self._run_job(job)
        existing = {
            obj["metadata"]["name"]
            for kind in ("Deployment", "Job")
            for obj in self.cluster.objects(kind)
        }
        for pod in self.cluster.objects("Pod"):
            if pod["metadata"]["annotations"]["test/deployment"] not in existing:
                self.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
        for gone in set(self.metrics.configs) - {
            pod["metadata"]["name"] for pod in self.cluster.objects("Pod")
        }:
            del self.metrics.configs[gone]

    def kill_engine(self, pod: str, *, restarts: bool = True) -> None:
        """Let an engine die as vLLM does when the GPU is full: exit code 0, `Completed`."""

        def die(obj: Object) -> None:
            (engine,) = obj["status"]["containerStatuses"]
            ended = {"reason": "Completed", "exitCode": 0, "finishedAt": _text(self.now)}
            engine["lastState"] = {"terminated": ended}
            engine["restartCount"] += 1
            engine["containerID"] = f"containerd://{next(self._numbers)}"
            engine["state"] = {"running": {"startedAt": _text(self.now)}} if restarts else {}
            obj["status"]["conditions"] = [{"type": "Ready", "status": "False"}]

        self.cluster.edit("Pod", NAMESPACE, pod, die)

    def _start_pod(self, deployment: Object) -> None:
        number = next(self._numbers)
        name = deployment["metadata"]["name"]
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        template = deployment["spec"]["template"]["metadata"]
        self.cluster.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{name}-7d9f8b6c5-{number:05d}",
                    "namespace": NAMESPACE,
                    "labels": dict(template["labels"]),
                    "annotations": {
                        **template.get("annotations", {}),
                        "test/deployment": name,
                        "test/dtype": vllm.dtype_of(container),
                    },
                },
                "spec": {"containers": [container], "volumes": spec.get("volumes", [])},
                "status": {
                    "conditions": [{"type": "Ready", "status": "False"}],
                    "containerStatuses": [
                        {
                            "name": container["name"],
                            "containerID": f"containerd://{number}",
                            "restartCount": 0,
                            "state": {"running": {"startedAt": _text(self.now)}},
                        }
                    ],
                },
            }
        )

    def _run_job(self, job: Object) -> None:
        """Let a Job begin, and end when its program has asked everything."""
        metadata, template = job["metadata"], job["spec"]["template"]
        if not self.pods(metadata["name"]):
            started = {"state": {"running": {"startedAt": _text(self.now)}}, "name": "evaluation"}
            self.cluster.put(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"{metadata['name']}-{next(self._numbers):05d}",
                        "namespace": NAMESPACE,
                        "labels": dict(template["metadata"]["labels"]),
                        "annotations": {"test/deployment": metadata["name"]},
                        "ownerReferences": [{"kind": "Job", "uid": metadata["uid"]}],
                    },
                    "status": {"containerStatuses": [started]},
                }
            )
        lasted = self.now - datetime.fromisoformat(metadata["creationTimestamp"])
        if self.said is not None and lasted >= timedelta(seconds=self.asking):
            self.end_job(metadata["name"], evaluations.ended(self.said.model_dump_json()))

    def end_job(self, name: str, state: Object, *, condition: str = "Complete", **pod: Any) -> None:
        """Let the pod of a Job end in a state, and the Job with it; what has ended stays so."""
        job = self.cluster._objects["Job", NAMESPACE, name]
        if job.get("status", {}).get("conditions"):
            return
        for one in self.pods(name):
            status = {"containerStatuses": [{"name": "evaluation", "state": state}], **pod}
            self.cluster.set_status("Pod", NAMESPACE, one["metadata"]["name"], status)
        told = {"conditions": [{"type": condition, "status": "True"}]}
        self.cluster.set_status("Job", NAMESPACE, name, told)

    def _refresh(self, pod: Object) -> None:
        """Let a pod become ready when its model is loaded, and be scraped from then on."""
        name = pod["metadata"]["name"]
        (engine,) = pod["status"]["containerStatuses"]
        running = engine["state"].get("running")
        if running is None:
            return
        started = datetime.fromisoformat(running["startedAt"])
        if self.now - started < timedelta(seconds=self.load_time):
            return
        if not _is_ready(pod):
            status = {**pod["status"], "conditions": [{"type": "Ready", "status": "True"}]}
            self.cluster.set_status("Pod", NAMESPACE, name, status)
        dtype = pod["metadata"]["annotations"]["test/dtype"]
        if "args" not in pod["spec"]["containers"][0]:
            return  # no engine
        ignored = dtype in self.ignored_dtypes or self._deployment_of(name) in self.ignoring
        effective = "auto" if ignored else dtype
        factor = expected_factor("auto", effective, 128) or 1.0
        self.metrics.configs[name] = CacheConfig(
            name, self.now, dtype, int(BASELINE_TOKENS * factor), MEMORY, prefix_caching=False
        )

    def _report(self, deployment: str, available: int) -> None:
        self.cluster.set_status(
            "Deployment", NAMESPACE, deployment, {"availableReplicas": available}
        )

    # Prometheus.

    def _deployment_of(self, pod: str) -> str:
        found = self.cluster._objects["Pod", NAMESPACE, pod]
        return str(found["metadata"]["annotations"]["test/deployment"])

    def _timeline(self, need: TickNeed, now: datetime) -> Timeline:
        router = RouterKey(need.namespace, need.router)
        step = GRID.total_seconds()
        first = math.ceil(need.since.timestamp() / step)
        if self._flow:
            # Before that, nobody sent anything.
            first = max(first, math.floor(self._flow[0][0] / step))
        ticks = []
        for index in range(first, math.floor(now.timestamp() / step) + 1):
            at = index * step
            arms = [self._arm(need, router, arm, at) for arm in (need.baseline, need.canary)]
            tick = Tick(at=at, step=0, weight=0.0, baseline=arms[0], canary=arms[1])
            ticks.append(in_effect(tick, need.spans))
        healthy = {
            arm.slot: float(len(self.serving(need.router, arm.slot)))
            for arm in (need.baseline, need.canary)
        }
        return Timeline(tuple(ticks), healthy=healthy)

    def _shadow(self, need: ShadowNeed) -> ShadowEvidence:
        """Every copy was compared, and of the canary's answers the test's share is worse."""
        key = RouterKey(need.namespace, need.router)
        pairs = sum(n for router, at, n in self._copies if router == key and at >= need.since)
        found = ShadowEvidence(received={"0-4KiB": pairs}, live={"0-4KiB": 2 * pairs}, runs=1)
        for pair, share in ((CANARY_PAIR, 1.0), (NOISE_PAIR, 0.2)):
            for signal in (*JUDGED, EXACT):
                count = share * pairs
                harm = count * self.spoilt.get(signal, 0.0) if pair == CANARY_PAIR else 0.0
                found.sums[pair, signal, "0-4KiB"] = Sums(count, harm, 0.0, harm)
        return found

    def _arm(self, need: TickNeed, router: RouterKey, arm: ArmNeed, at: float) -> Arm:
        served = self._served(router, arm.slot, at)
        fast = served.requests - served.slow
        counts = [0.3 * fast, 0.8 * fast, *[fast] * 5, *[served.requests] * 3]
        pods = [pod for pod in self.pods(arm.deployment) if _is_ready(pod)]
        return Arm(
            routers={
                "router": RouterSample(
                    started=served.requests,
                    failed=served.errors,
                    unanswered=0.0,
                    active=0.0,
                    latency=Bins(BOUNDS, tuple(counts)),
                )
            },
            engines={
                arm.deployment: EngineSample(
                    process_started=0.0,
                    finished=served.requests,
                    preemptions=served.preemptions,
                    running=1.0,
                    waiting=0.0,
                    custom={
                        signal.name: Share(served.tools, served.requests)
                        for signal in need.signals
                        if isinstance(signal, ShareQuery)
                    },
                )
            },
            replicas=max(1, len(pods)),
        )

    def _served(self, router: RouterKey, slot: str, at: float) -> Served:
        """Return the counts at an instant, between those that were kept."""
        if not self._flow:
            return Served()
        after = bisect.bisect_left(self._flow, at, key=lambda entry: entry[0])
        if after >= len(self._flow) or after == 0:
            return self._flow[min(after, len(self._flow) - 1)][1].get((router, slot), Served())
        (begin, old), (end, new) = self._flow[after - 1 : after + 1]
        one, other = old.get((router, slot), Served()), new.get((router, slot), Served())
        part = (at - begin) / (end - begin)
        return Served(
            *(
                getattr(one, f.name) + part * (getattr(other, f.name) - getattr(one, f.name))
                for f in fields(Served)
            )
        )


def steps_taken(history: list[tuple[RouterKey, dict[str, int]]], slot: str) -> list[int]:
    """Return the weights that a slot had, one after the other."""
    return [weights[slot] for _, weights in history]


def never_skips(weights: list[int], rungs: Sequence[int] = (0, 10, 25, 50, 95, 100)) -> bool:
    """Tell whether each rise goes to the next rung of the ladder, never past it."""
    return all(
        after <= before or rungs.index(after) == rungs.index(before) + 1
        for before, after in itertools.pairwise([0, *weights])
    )


def _is_ready(pod: Object) -> bool:
    return {"type": "Ready", "status": "True"} in (pod["status"].get("conditions") or [])


def _text(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def held(status: Status) -> str | None:
    """Return why the rollout waits, if it does."""
    condition = status.condition("Held")
    return condition.reason if condition is not None and condition.status == "True" else None
