"""What one pass of the reconciler saw of the world: the input of `decide`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kvquant.api.v1alpha1 import GatewayRule, PodProof, Pool
from kvquant.core.alerts import Heard
from kvquant.core.analysis import Report
from kvquant.core.evaluation_reading import EvaluationView
from kvquant.core.evidence import Evidence
from kvquant.core.shadow_reading import ShadowEvidence


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a rollout cannot begin or go on: a CamelCase reason and a sentence with the remedy."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Requests:
    """What people have asked for through annotations and the cluster-wide kill switch.

    Attributes:
        paused: The annotation's text while a pause holds, else None.
        killed: Who or what pulled the kill switch, else None.
        promote: Token of the latest request to go on without more evidence.
        abort: Token of the latest request to roll back.
        retry: Token of the latest request to try a rejected spec again.
    """

    paused: str | None = None
    killed: str | None = None
    promote: str | None = None
    abort: str | None = None
    retry: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Everything that an attempt needs to know at its start."""

    engine: str
    resolved_dtype: str
    router: str
    baseline: Pool
    canary_deployment: str
    canary_slot: str
    gateway: GatewayRule | None = None


@dataclass(frozen=True, slots=True)
class TargetView:
    """The target's Deployment as its owner has it now.

    Attributes:
        replicas: Pods that it asks for.
        template_hash: Hash of its pod template.
        differs: Why its template does not ask for the promoted dtype by itself; None when it does.
            Looked at only once a rollout is promoted.
    """

    replicas: int
    template_hash: str
    differs: Problem | None = None


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod of an arm, as far as decisions need it.

    Attributes:
        name: Name of the pod.
        ready: Whether it is ready and not being deleted.
        serving: Whether it bears the label by which the router finds it.
        container_id: The engine's container, empty before it was created.
        started_at: When that container started.
        restarts: Times that the engine's container was restarted.
        died_at: When an engine container of the pod ended last, whatever its exit code.
        death: Reason, exit code and last words of that end, for people.
        hopeless: Whether those last words say that no restart will help.
        finished: Whether the pod will never run again, as after an eviction.
        trouble: Why the pod is not ready, in the scheduler's or kubelet's words.
    """

    name: str
    ready: bool
    serving: bool
    container_id: str = ""
    started_at: datetime | None = None
    restarts: int = 0
    died_at: datetime | None = None
    death: str = ""
    hopeless: bool = False
    trouble: str = ""
    finished: bool = False


@dataclass(frozen=True, slots=True)
class RouterView:
    """The router's state: pods available, streams to us, and how many follow the weights.

    Of an HTTPRoute: its parents, those that report on it, and how many have taken it as it is.
    `trouble` says then why not all have.
    """

    available: int = 0
    connected: int = 0
    applied: int = 0
    trouble: str = ""

    @property
    def follows(self) -> bool:
        """Whether every router pod that we know of has acknowledged the committed weights."""
        return self.connected > 0 and self.applied == self.connected >= self.available


@dataclass(frozen=True, slots=True)
class Observation:
    """The world in one pass. What could not be read is None or empty, never a guess.

    Attributes:
        generation: Generation of the spec that was read.
        spec_hash: Hash of that spec.
        requests: What people asked for.
        problem: Why the rollout cannot begin, or what the status says cannot be done; else None.
        router_taken_by: Another rollout that drives the router; None when none does.
        target_taken_by: An older rollout that works on the target through another router.
        candidate: What an attempt would work with; None while there is a problem.
        target: The target as it is now; None before the attempt, or when it is gone.
        baseline_pods: Pods of the pool that served when the rollout began.
        canary_pods: Pods of the pool with the quantized cache.
        proofs: Regime proofs of the canary's ready pods.
        target_proofs: Regime proofs of the ready pods of a target that adopts the dtype.
        outdated: Ready pods of that target that still come from another template.
        drives_router: Whether the router's weights are this rollout's to set.
        router: State of the router.
        evidence: Metrics of both arms since the step began; None when not asked or not answered.
        report: The analysis of all that was measured in this attempt; None like the evidence.
        shadow_ready: Whether a pod of the shadow service is ready.
        shadow_trouble: Why none is, in the words of scheduler and kubelet.
        shadow: What the shadow service has counted; None when not asked or not answered.
        evaluation: What the present run of the evaluation says; None when there is none yet.
        next_job: Name of the Job of the next run.
        evaluation_problem: Why no run can begin, as far as the operator can see; else None.
        metrics_problem: Why there is no evidence, when Prometheus did not answer.
        alerts: What is known of alerts; None where nobody listens.
    """

    generation: int
    spec_hash: str
    requests: Requests = Requests()
    problem: Problem | None = None
    router_taken_by: str | None = None
    target_taken_by: str | None = None
    candidate: Candidate | None = None
    target: TargetView | None = None
    baseline_pods: tuple[PodView, ...] = ()
    canary_pods: tuple[PodView, ...] = ()
    proofs: tuple[PodProof, ...] = ()
    target_proofs: tuple[PodProof, ...] = ()
    outdated: tuple[str, ...] = ()
    drives_router: bool = True
    router: RouterView = RouterView()
    evidence: Evidence | None = None
    report: Report | None = None
    shadow_ready: bool = False
    shadow_trouble: str = ""
    shadow: ShadowEvidence | None = None
    evaluation: EvaluationView | None = None
    next_job: str | None = None
    evaluation_problem: Problem | None = None
    metrics_problem: str | None = None
    alerts: Heard | None = None


def deaths_since(pods: tuple[PodView, ...], since: datetime) -> int:
    """Count the pods whose engine ended, with any exit code, since an instant.

    Kubernetes keeps only the last end of each container, so that two deaths of one pod between
    two steps count once here; the first already exceeds the default allowance.
    """
    return sum(1 for pod in pods if pod.died_at is not None and pod.died_at >= since)
