"""What our pods may do: no more than the restricted Pod Security Standard allows, and less."""

from __future__ import annotations

from typing import Any

USER = 65532
"""User and group of all our images. Of a name, Kubernetes could not tell that it is not root."""


def pod_security() -> dict[str, Any]:
    """Return a pod's `securityContext`."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Return a container's `securityContext`."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
