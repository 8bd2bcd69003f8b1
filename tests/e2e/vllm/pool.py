"""A pool of real vLLM engines on CPUs, as a Deployment."""

from __future__ import annotations

from typing import Any

from kvlocal import vllm_cpu
from kvlocal.vllm_cpu import VllmCpu

NAME = "tiny"
PORT = 8000

IMAGE = "localhost/kvquant/engine-sim:dev"
"""Only for its Debian with Python, which the cluster has already; vLLM itself is mounted."""


def deployment(vllm: VllmCpu, namespace: str, replicas: int = 1) -> dict[str, Any]:
    """Return the Deployment of the baseline, written as a user's own would be."""
    labels = {"app": NAME}
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [_container(vllm)],
                    "volumes": [
                        {
                            "name": "vllm",
                            "hostPath": {"path": str(vllm.folder), "type": "Directory"},
                        },
                        # Processes of one engine share memory, and Kubernetes gives 64 MiB.
                        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
                        {"name": "tmp", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def _container(vllm: VllmCpu) -> dict[str, Any]:
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "name": "vllm",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": vllm_cpu.COMMAND,
        "args": [*vllm.arguments(port=PORT), "--kv-cache-dtype", "auto"],
        "env": [{"name": k, "value": v} for k, v in vllm.environment().items()],
        "ports": [{"name": "http", "containerPort": PORT}],
        # Three processes import PyTorch one after the other: half a minute of a core's work, and
        # several times that where the cores are busy.
        "startupProbe": {**health, "periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "100m", "memory": "1536Mi"}, "limits": {"memory": "3Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "vllm", "mountPath": vllm_cpu.MOUNT, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
