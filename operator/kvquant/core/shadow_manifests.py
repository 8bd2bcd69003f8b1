"""The Kubernetes objects of a rollout's shadow service: a frozen spec in, dicts out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvquant.api import names
from kvquant.core.pulling import pull_secrets
from kvquant.core.restricted import container_security, pod_security
from kvquant.core.router_manifests import shadow_name, shadow_selector
from kvquant.core.shadow_settings import (
    ENGINE_KEY_DIRECTORY,
    ENGINE_KEY_FILE,
    METRICS_PORT,
    PORT,
    SETTINGS_FILE,
    ShadowSettings,
)

Object = dict[str, Any]

LOG_DIRECTORY = "/var/log/kvquant"
"""Where the pairs are kept when no bucket is named."""
ANNOTATION_CONFIG = f"{names.GROUP}/config"
"""On the pod: hash of its settings, so that a new attempt gets a new process."""


@dataclass(frozen=True, slots=True)
class ShadowSpec:
    """One rollout's shadow service.

    Attributes:
        router: Name of the router whose copies it takes.
        rollout: The rollout's name.
        owner: Reference to the rollout: what belongs to it is removed with it.
        image: Image of the service.
        image_pull_policy: Pull policy.
        image_pull_secrets: Secrets of the namespace to pull it with.
        settings: What the service must know.
        secret_name: Secret whose keys become environment variables; None: there is none.
        engine_key: Secret and key of the engines' API key; None: they ask for none.
        claim_name: Claim of the volume for the log; None takes an emptyDir.
        volume_mi: Size that the emptyDir may have, in MiB.
        labels: More labels for every object.
    """

    router: str
    rollout: str
    owner: Mapping[str, Any]
    image: str
    image_pull_policy: str
    settings: ShadowSettings
    secret_name: str | None = None
    engine_key: tuple[str, str] | None = None
    claim_name: str | None = None
    volume_mi: int = 4096
    image_pull_secrets: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def shadow_objects(shadow: ShadowSpec) -> list[Object]:
    """Return the objects in the order in which they must be applied.

    Their Service is the router's, which needs its name at all times.
    """
    return [
        _object(shadow, "v1", "ServiceAccount", automountServiceAccountToken=False),
        _object(shadow, "v1", "ConfigMap", data={_file(): _settings(shadow)}),
        _object(shadow, "apps/v1", "Deployment", spec=_deployment(shadow)),
    ]


def _file() -> str:
    return SETTINGS_FILE.rsplit("/", 1)[1]


def _settings(shadow: ShadowSpec) -> str:
    return shadow.settings.model_dump_json(indent=1)


def _labels(shadow: ShadowSpec) -> dict[str, str]:
    return {
        **shadow.labels,
        **shadow_selector(shadow.router),
        names.LABEL_ROLLOUT: shadow.rollout,
        "app.kubernetes.io/instance": shadow_name(shadow.router),
        "app.kubernetes.io/component": "shadow",
        "app.kubernetes.io/part-of": "kvquant",
        "app.kubernetes.io/managed-by": "kvquant",
    }


def _object(shadow: ShadowSpec, api_version: str, kind: str, **body: Any) -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": shadow_name(shadow.router),
            "namespace": shadow.settings.namespace,
            "labels": _labels(shadow),
            "ownerReferences": [dict(shadow.owner)],
        },
        **body,
    }


def _deployment(shadow: ShadowSpec) -> Object:
    digest = hashlib.sha256(_settings(shadow).encode()).hexdigest()[:16]
    return {
        # One process sees every pair, so that the same value gets the same placeholder.
        "replicas": 1,
        "selector": {"matchLabels": shadow_selector(shadow.router)},
        # Two at once would write to the same volume, and nobody waits for either.
        "strategy": {"type": "Recreate"},
        "template": {
            "metadata": {
                "labels": _labels(shadow),
                "annotations": {
                    ANNOTATION_CONFIG: digest,
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": str(METRICS_PORT),
                    "prometheus.io/path": "/metrics",
                },
            },
            "spec": _pod(shadow),
        },
    }


def _pod(shadow: ShadowSpec) -> Object:
    log: Object = {"name": "log"}
    if shadow.claim_name is not None:
        log["persistentVolumeClaim"] = {"claimName": shadow.claim_name}
    else:
        log["emptyDir"] = {"sizeLimit": f"{shadow.volume_mi}Mi"}
    engine: list[Object] = []
    if shadow.engine_key is not None:
        secret, key = shadow.engine_key
        items = [{"key": key, "path": "key"}]
        engine = [{"name": "engine-key", "secret": {"secretName": secret, "items": items}}]
    return {
        "serviceAccountName": shadow_name(shadow.router),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 15,
        "securityContext": pod_security(),
        **pull_secrets(shadow.image_pull_secrets),
        "containers": [_container(shadow)],
        "volumes": [
            {"name": "config", "configMap": {"name": shadow_name(shadow.router)}},
            {"name": "tmp", "emptyDir": {}},
            log,
            *engine,
        ],
    }


def _container(shadow: ShadowSpec) -> Object:
    health = {"httpGet": {"path": "/healthz", "port": "metrics"}}
    container: Object = {
        "name": "shadow",
        "image": shadow.image,
        "imagePullPolicy": shadow.image_pull_policy,
        "ports": [
            {"name": "copies", "containerPort": PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 2},
        "livenessProbe": {
            **health,
            "initialDelaySeconds": 30,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "2Gi"},
        },
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "config", "mountPath": SETTINGS_FILE.rsplit("/", 1)[0], "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
            {"name": "log", "mountPath": LOG_DIRECTORY},
        ],
    }
    if shadow.engine_key is not None:
        # A file, because an environment shows up in more places than a file does.
        container["env"] = [{"name": ENGINE_KEY_FILE, "value": f"{ENGINE_KEY_DIRECTORY}/key"}]
        mount = {"name": "engine-key", "mountPath": ENGINE_KEY_DIRECTORY, "readOnly": True}
        container["volumeMounts"].append(mount)
    if shadow.secret_name is not None:
        container["envFrom"] = [{"secretRef": {"name": shadow.secret_name}}]
    return container
