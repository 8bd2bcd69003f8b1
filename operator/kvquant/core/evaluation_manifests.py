"""The Job of a rollout's evaluation: a frozen spec in, a dict out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from kvquant.api import names
from kvquant.core.evaluation_summary import TERMINATION_FILE
from kvquant.core.pulling import pull_secrets
from kvquant.core.restricted import container_security, pod_security

Object = dict[str, Any]

PROGRAM = ("python", "-m", "kvquant.evaluation")
DATASET_FOLDER = "/etc/kvquant/dataset"
"""Where the set is mounted."""
OUT_FOLDER = "/var/lib/kvquant/evaluation"
"""Where the program leaves its report, as long as the pod is there."""

SEED = 1
"""The same in every run, so that a run that is repeated asks the same."""

START_WITHIN = timedelta(minutes=10)
"""Time that a pod gets for its image, its volume and a node."""

GRACE = timedelta(minutes=2)
"""Time beyond the deadline in which the program writes what it knows."""

KEPT_FOR = timedelta(days=1)
"""Time for which a Job that has ended is kept: its log has the whole report."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the set lies.

    Attributes:
        config_map: Name of the ConfigMap that holds it.
        claim: Name of the claim whose volume holds it.
        path: Its key, or its path in the volume.
        url: The object in a bucket.
        secret: Name of the Secret with that bucket's credentials.
    """

    config_map: str | None = None
    claim: str | None = None
    path: str = ""
    url: str | None = None
    secret: str | None = None

    @property
    def dataset(self) -> str:
        """What the program is told."""
        return self.url or f"{DATASET_FOLDER}/{self.path}"


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """One run.

    Attributes:
        name: Name of the Job.
        namespace: Namespace of rollout and Job.
        rollout: The rollout's name.
        owner: Reference to the rollout: what belongs to it is removed with it.
        image: Image of the program.
        image_pull_policy: Pull policy.
        image_pull_secrets: Secrets of the namespace to pull it with.
        source: Where the set lies.
        baseline: `host:port` of the baseline's headless Service.
        canary: The same of the canary's.
        margin_percent: Examples per 100 that the canary may spoil.
        drift_percent: Excess of the perplexity per token that is tolerated, in per cent.
        noise_percent: Share of the examples for which the baseline is asked twice, in per cent.
        concurrency: Examples that are asked at a time.
        deadline: Longest time that the set may take.
        model: Name of the model to ask for; None: as it stands in each example.
    """

    name: str
    namespace: str
    rollout: str
    owner: Mapping[str, Any]
    image: str
    image_pull_policy: str
    source: Source
    baseline: str
    canary: str
    margin_percent: int
    drift_percent: int
    noise_percent: int
    concurrency: int
    deadline: timedelta
    model: str | None = None
    image_pull_secrets: tuple[str, ...] = ()


def job_name(rollout: str, uid: str, attempt: int, run: int) -> str:
    """Return the name of a run's Job: its own for each run of each attempt of each rollout."""
    mark = hashlib.sha256(f"{uid}/{attempt}/{run}".encode()).hexdigest()[:8]
    return f"{rollout[:40].rstrip('-')}-eval-{mark}"


def jobs_selector(rollout: str) -> dict[str, str]:
    """Return the labels of all evaluation Jobs of a rollout, and of their pods."""
    return {names.LABEL_ROLLOUT: rollout, "app.kubernetes.io/component": "evaluation"}


def job_object(job: EvaluationJob) -> Object:
    """Return the Job."""
    labels = {
        **jobs_selector(job.rollout),
        names.LABEL_EVALUATION: job.name,
        "app.kubernetes.io/name": "kvquant-evaluation",
        "app.kubernetes.io/part-of": "kvquant",
        "app.kubernetes.io/managed-by": "kvquant",
    }
    longest = job.deadline + START_WITHIN + GRACE
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job.name,
            "namespace": job.namespace,
            "labels": labels,
            "ownerReferences": [dict(job.owner)],
        },
        "spec": {
            # Whether it is tried again is the operator's to say: it tells why it failed.
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(longest.total_seconds()),
            "ttlSecondsAfterFinished": int(KEPT_FOR.total_seconds()),
            "template": {"metadata": {"labels": labels}, "spec": _pod(job)},
        },
    }


def _pod(job: EvaluationJob) -> Object:
    volumes: list[Object] = [
        {"name": "out", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    source = job.source
    if source.config_map is not None:
        item = {"key": source.path, "path": source.path}
        volumes.append(
            {"name": "dataset", "configMap": {"name": source.config_map, "items": [item]}}
        )
    elif source.claim is not None:
        claim = {"claimName": source.claim, "readOnly": True}
        volumes.append({"name": "dataset", "persistentVolumeClaim": claim})
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 15,
        "securityContext": {**pod_security(), "fsGroupChangePolicy": "OnRootMismatch"},
        **pull_secrets(job.image_pull_secrets),
        "containers": [_container(job)],
        "volumes": volumes,
    }


def _container(job: EvaluationJob) -> Object:
    mounts: list[Object] = [
        {"name": "out", "mountPath": OUT_FOLDER},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
    ]
    if job.source.url is None:
        mounts.append({"name": "dataset", "mountPath": DATASET_FOLDER, "readOnly": True})
    container: Object = {
        "name": "evaluation",
        "image": job.image,
        "imagePullPolicy": job.image_pull_policy,
        "command": list(PROGRAM),
        "args": _arguments(job),
        # The log is no substitute: it may quote what a set holds.
        "terminationMessagePath": TERMINATION_FILE,
        "terminationMessagePolicy": "File",
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "2Gi"},
        },
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if job.source.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": job.source.secret}}]
    return container


def _arguments(job: EvaluationJob) -> list[str]:
    values: dict[str, Any] = {
        "dataset": job.source.dataset,
        "baseline": job.baseline,
        "canary": job.canary,
        "concurrency": job.concurrency,
        "margin-percent": job.margin_percent,
        "drift-percent": job.drift_percent,
        "noise-percent": job.noise_percent,
        "seed": SEED,
        "out": OUT_FOLDER,
        "summary": TERMINATION_FILE,
        "deadline": int(job.deadline.total_seconds()),
    }
    if job.model is not None:
        values |= {"baseline-model": job.model, "canary-model": job.model}
    # In one word, so that no value is taken for a flag; and without Kubernetes' putting in what
    # `$(NAME)` stands for: the variables hold a Secret, and the arguments are told to anybody.
    return [f"--{flag}={value}".replace("$", "$$") for flag, value in values.items()]
