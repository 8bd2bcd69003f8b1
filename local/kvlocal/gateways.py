"""Envoy Gateway in a local cluster: the Gateway API as its users have it."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from kvlocal import binaries, images
from kvlocal.cache import cache, locked
from kvlocal.chart import helm_in
from kvlocal.cluster import Cluster
from kvlocal.images import ENVOY_GATEWAY_IMAGE
from kvlocal.problems import LocalError
from kvquant.core.envoy_bootstrap import LATENCY_BOUNDS_MS

NAMESPACE = "envoy-gateway-system"
CLASS = "envoy"
"""The GatewayClass."""


def install_envoy_gateway(cluster: Cluster) -> None:
    """Install Envoy Gateway by its own chart, with a GatewayClass, and wait until it is ready.

    Its proxies run the Envoy of the product's router image, which the cluster has.

    Raises:
        LocalError: It cannot be built, or does not become ready.
    """
    cluster.load(images.envoy_gateway())
    kubernetes = {"shutdownManager": {"image": ENVOY_GATEWAY_IMAGE}}
    helm_in(
        cluster,
        NAMESPACE,
        *("upgrade", "--install", "eg", str(_chart()), "--create-namespace"),
        *("--wait", "--timeout=180s"),
        values={
            "config": {
                "envoyGateway": {"provider": {"type": "Kubernetes", "kubernetes": kubernetes}}
            },
            # Zones of a node that has none.
            "topologyInjector": {"enabled": False},
        },
    )
    cluster.apply(_proxy(), _class())


def remove_envoy_gateway(cluster: Cluster) -> None:
    """Take it away again, with its proxies; the kinds of the Gateway API stay.

    Raises:
        LocalError: Helm fails.
    """
    cluster.kubectl("delete", f"gatewayclass/{CLASS}", "--wait=false")
    helm_in(cluster, NAMESPACE, "uninstall", "eg", "--timeout=60s")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def crds() -> Path:
    """Return the CRDs of the Gateway API, as Envoy Gateway brings them.

    Raises:
        LocalError: They cannot be had.
    """
    return _chart() / "charts" / "crds" / "crds" / "gatewayapi-crds.yaml"


def _chart() -> Path:
    """Return the chart of the Envoy Gateway that is built, which lies in the same module."""
    version = binaries.ENVOY_GATEWAY.partition("@v")[2]
    folder = cache() / "charts" / f"gateway-helm-{version}"
    with locked("gateway-helm"):
        if folder.exists():
            return folder
        source = binaries.module_folder(binaries.ENVOY_GATEWAY) / "charts" / "gateway-helm"
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished, copy_function=shutil.copyfile)
        for path in (unfinished, *unfinished.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        template = unfinished / "values.tmpl.yaml"
        if not template.exists():
            raise LocalError(f"the chart of Envoy Gateway {version} has no {template.name}")
        # A release fills these in.
        values = template.read_text().replace("${GatewayImage}", ENVOY_GATEWAY_IMAGE)
        values = values.replace("${GatewayImagePullPolicy}", "IfNotPresent")
        (unfinished / "values.yaml").write_text(values)
        unfinished.rename(folder)
    return folder


def _proxy() -> dict[str, object]:
    container = {
        "image": "localhost/kvquant/router:dev",
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
    }
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyProxy",
        "metadata": {"name": CLASS, "namespace": NAMESPACE},
        "spec": {
            "bootstrap": {"type": "Merge", "value": yaml.safe_dump(_measured())},
            "provider": {
                "type": "Kubernetes",
                "kubernetes": {
                    "envoyDeployment": {"container": container},
                    # There is nobody here who gives addresses to load balancers.
                    "envoyService": {"type": "ClusterIP"},
                },
            },
        },
    }


def _measured() -> dict[str, object]:
    """Return what docs/gateway-api.md asks for: latency as fine and as fresh as of our router."""
    settings = [{"match": {"suffix": "upstream_rq_time"}, "buckets": list(LATENCY_BOUNDS_MS)}]
    return {
        "stats_flush_interval": "1s",
        "stats_config": {"histogram_bucket_settings": settings},
    }


def _class() -> dict[str, object]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": CLASS},
        "spec": {
            "controllerName": "gateway.envoyproxy.io/gatewayclass-controller",
            "parametersRef": {
                "group": "gateway.envoyproxy.io",
                "kind": "EnvoyProxy",
                "name": CLASS,
                "namespace": NAMESPACE,
            },
        },
    }
