"""The Kubernetes objects of a router: a frozen spec in, dicts out, in the order of applying."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from kvquant.api import names
from kvquant.core.envoy_bootstrap import STATS_PORT, SUM_OF_WEIGHTS, Bootstrap, envoy_bootstrap
from kvquant.core.envoy_upstreams import Upstream, WeightsService, token_secret
from kvquant.core.pulling import pull_secrets
from kvquant.core.restricted import container_security, pod_security
from kvquant.core.shadow_settings import PORT

Object = dict[str, Any]

TOKEN_AUDIENCE = "kvquant-xds"  # noqa: S105 - an audience, not a token
"""Audience of the tokens by which routers prove to the operator who they are."""
TOKEN_LIFETIME = timedelta(hours=1)
CLIENT_PORT = 8000
"""Port on which router pods listen; the Service's own port may be any, privileged ones included."""
ANNOTATION_CONFIG = f"{names.GROUP}/config"
"""On router pods: hash of their configuration without the weights, so that a change of weights
never restarts a router and any other change does."""

CONFIG_DIRECTORY = "/etc/kvquant"
TOKEN_DIRECTORY = "/var/run/secrets/kvquant"  # noqa: S105 - a directory
BOOTSTRAP_FILE, SECRET_FILE = "envoy.json", "token-secret.json"
DRAIN_COMMAND = "/usr/local/bin/kvquant-drain"
"""In the image: tells clients to go elsewhere and returns when no request is in flight."""
GRACE_BEYOND_TIMEOUT = timedelta(seconds=30)
WORKERS = 2
"""Envoy would start one worker for each core of the node, whatever its share of them."""

MATCHES_NOTHING = {names.LABEL_POOL: "none", names.LABEL_SERVING: "never"}
"""Selector of an empty slot. No selector at all would leave the last one's endpoints behind."""


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """One router.

    Attributes:
        name: Name of the router: of its Deployment, Service, ServiceAccount and ConfigMap.
        namespace: Namespace of the target.
        image: Image with Envoy.
        image_pull_policy: Pull policy.
        image_pull_secrets: Secrets of the namespace to pull it with.
        port: Port of the router's Service.
        replicas: Number of router pods.
        selectors: Labels of the pods that each slot serves from; None for an empty slot.
        engine_ports: Port on which each slot's engines serve.
        weights: Committed per cents by slot; they sum to 100.
        request_timeout: Longest time that one request may take, streaming included.
        drain_timeout: Longest time that requests in flight get to finish.
        hash_header: Header that keeps a conversation on one arm and pod.
        xds_host: DNS name of the operator's weights service.
        xds_port: Its port.
        xds_ca: Certificate authority of the weights service, PEM.
        annotations: Annotations of the ConfigMap: who holds the router, and whether it is free.
        labels: More labels for every object.
    """

    name: str
    namespace: str
    image: str
    image_pull_policy: str
    port: int
    replicas: int
    selectors: Mapping[str, Mapping[str, str] | None]
    engine_ports: Mapping[str, int]
    weights: Mapping[str, int]
    request_timeout: timedelta
    drain_timeout: timedelta
    hash_header: str | None
    xds_host: str
    xds_port: int
    xds_ca: str
    image_pull_secrets: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def slot_service(router: str, slot: str) -> str:
    """Return the name of the headless Service by which a router finds a slot's pods."""
    return f"{router}-{slot}"


def shadow_name(router: str) -> str:
    """Return the name of a router's shadow service: of its Service, Deployment and the rest."""
    return f"{router}-shadow"


class Backends(Protocol):
    """What the Services behind a router, or behind an HTTPRoute, are made of."""

    @property
    def name(self) -> str:
        """Name of the router."""

    @property
    def namespace(self) -> str:
        """Namespace of the target."""

    @property
    def selectors(self) -> Mapping[str, Mapping[str, str] | None]:
        """Labels of the pods that each slot serves from; None for an empty slot."""

    @property
    def engine_ports(self) -> Mapping[str, int]:
        """Port on which each slot's engines serve."""


def backend_services(whose: Backends, labels: Mapping[str, str]) -> list[Object]:
    """Return the headless Service of each slot, and last the one to which copies go.

    That one is always there, so that its name always resolves: where no pod stands behind it, a
    copy is refused at once and forgotten.
    """

    def service(name: str, more: Mapping[str, str], **spec: Any) -> Object:
        metadata = {"name": name, "namespace": whose.namespace, "labels": {**labels, **more}}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    def port(name: str, number: int) -> list[Object]:
        return [{"name": name, "port": number, "targetPort": number, "protocol": "TCP"}]

    slots = [
        service(
            slot_service(whose.name, slot),
            {names.LABEL_SLOT: slot},
            clusterIP="None",
            publishNotReadyAddresses=False,
            selector=dict(whose.selectors.get(slot) or MATCHES_NOTHING),
            ports=port("http", whose.engine_ports[slot]),
        )
        for slot in names.SLOTS
    ]
    selector = shadow_selector(whose.name)
    return [
        *slots,
        service(shadow_name(whose.name), {}, selector=selector, ports=port("copies", PORT)),
    ]


def router_objects(router: RouterSpec) -> list[Object]:
    """Return the router's objects in the order in which they must be applied.

    Raises:
        ValueError: The weights are not per cents of both slots that sum to 100.
    """
    *backends, shadow = backend_services(router, _labels(router))
    return [
        _object(router, "v1", "ServiceAccount", automountServiceAccountToken=False),
        _config_map(router),
        *backends,
        _service(router),
        shadow,
        _object(
            router,
            "policy/v1",
            "PodDisruptionBudget",
            spec={
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": _selector(router)},
            },
        ),
        _object(router, "apps/v1", "Deployment", spec=_deployment(router)),
    ]


def _selector(router: RouterSpec) -> dict[str, str]:
    return {"app.kubernetes.io/name": "kvquant-router", names.LABEL_ROUTER: router.name}


def _labels(router: RouterSpec) -> dict[str, str]:
    return {
        **router.labels,
        **_selector(router),
        "app.kubernetes.io/instance": router.name,
        "app.kubernetes.io/component": "router",
        "app.kubernetes.io/part-of": "kvquant",
        "app.kubernetes.io/managed-by": "kvquant",
    }


def _object(
    router: RouterSpec, api_version: str, kind: str, *, suffix: str = "", **body: Any
) -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": router.name + suffix,
            "namespace": router.namespace,
            "labels": _labels(router),
        },
        **body,
    }


def _bootstrap(router: RouterSpec) -> Object:
    return envoy_bootstrap(
        Bootstrap(
            # The bare name is found by the pod's first search domain, whatever the cluster's
            # domain is called, and costs one query.
            slots={
                slot: Upstream(slot_service(router.name, slot), router.engine_ports[slot])
                for slot in names.SLOTS
            },
            shadow=Upstream(shadow_name(router.name), PORT),
            weights=router.weights,
            port=CLIENT_PORT,
            request_timeout=router.request_timeout,
            hash_header=router.hash_header,
            xds=WeightsService(
                host=router.xds_host,
                port=router.xds_port,
                ca=router.xds_ca,
                secret_file=f"{CONFIG_DIRECTORY}/{SECRET_FILE}",
            ),
        )
    )


def _config_data(router: RouterSpec) -> dict[str, str]:
    return {
        BOOTSTRAP_FILE: json.dumps(_bootstrap(router), indent=1, sort_keys=True),
        SECRET_FILE: json.dumps(token_secret(f"{TOKEN_DIRECTORY}/token"), indent=1),
    }


def _config_hash(router: RouterSpec) -> str:
    first, *others = names.SLOTS
    weightless = replace(router, weights={first: SUM_OF_WEIGHTS, **dict.fromkeys(others, 0)})
    data = json.dumps(_config_data(weightless), sort_keys=True)
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def _config_map(router: RouterSpec) -> Object:
    config = _object(router, "v1", "ConfigMap", data=_config_data(router))
    if router.annotations:
        config["metadata"]["annotations"] = dict(router.annotations)
    return config


def _service(router: RouterSpec) -> Object:
    ports = [{"name": "http", "port": router.port, "targetPort": "http", "protocol": "TCP"}]
    return _object(router, "v1", "Service", spec={"selector": _selector(router), "ports": ports})


def shadow_selector(router: str) -> dict[str, str]:
    """Return the labels by which the pods of a router's shadow service are found."""
    return {"app.kubernetes.io/name": "kvquant-shadow", names.LABEL_ROUTER: router}


def _deployment(router: RouterSpec) -> Object:
    return {
        "replicas": router.replicas,
        "selector": {"matchLabels": _selector(router)},
        # A new router must serve before an old one goes.
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "template": {
            "metadata": {
                "labels": _labels(router),
                "annotations": {
                    ANNOTATION_CONFIG: _config_hash(router),
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": str(STATS_PORT),
                    "prometheus.io/path": "/stats/prometheus",
                },
            },
            "spec": _pod(router),
        },
    }


def _pod(router: RouterSpec) -> Object:
    grace = max(router.request_timeout, router.drain_timeout) + GRACE_BEYOND_TIMEOUT
    return {
        "serviceAccountName": router.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The longest answer may finish. A router without requests in flight goes after seconds.
        "terminationGracePeriodSeconds": int(grace.total_seconds()),
        "securityContext": pod_security(),
        **pull_secrets(router.image_pull_secrets),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _selector(router)},
            }
        ],
        "containers": [_container(router)],
        "volumes": [
            {"name": "config", "configMap": {"name": router.name}},
            {
                "name": "xds-token",
                "projected": {
                    "sources": [
                        {
                            "serviceAccountToken": {
                                "audience": TOKEN_AUDIENCE,
                                "expirationSeconds": int(TOKEN_LIFETIME.total_seconds()),
                                "path": "token",
                            }
                        }
                    ]
                },
            },
        ],
    }


def _container(router: RouterSpec) -> Object:
    return {
        "name": "envoy",
        "image": router.image,
        "imagePullPolicy": router.image_pull_policy,
        "args": [
            *("--service-node", f"$(POD_NAMESPACE)/{router.name}/$(POD_NAME)"),
            *("--service-cluster", router.name),
            *("--concurrency", str(WORKERS)),
            *("--log-level", "warning"),
            *(
                "--log-format",
                '{"time":"%Y-%m-%dT%T.%e","level":"%l","logger":"%n","message":"%j"}',
            ),
        ],
        "env": [
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in (
                ("POD_NAME", "metadata.name"),
                ("POD_NAMESPACE", "metadata.namespace"),
            )
        ],
        "ports": [
            {"name": "http", "containerPort": CLIENT_PORT, "protocol": "TCP"},
            {"name": "stats", "containerPort": STATS_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "stats"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        # Not /ready, which says no while the router drains: that must not get it killed.
        "livenessProbe": {
            "tcpSocket": {"port": "stats"},
            "initialDelaySeconds": 30,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"exec": {"command": [DRAIN_COMMAND]}}},
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "1Gi"},
        },
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            {"name": "xds-token", "mountPath": TOKEN_DIRECTORY, "readOnly": True},
        ],
    }
