"""kvquant itself in a local cluster: images, CRD and operator, as a user installs them."""

from __future__ import annotations

from kvlocal import addons, images
from kvlocal.cache import REPOSITORY, progress
from kvlocal.cluster import Cluster

NAMESPACE = "kvquant-system"

MANIFESTS = ("crds", "examples/install/operator.yaml")


def start(name: str) -> Cluster:
    """Bring up a fresh cluster with Prometheus, the product's images and the operator.

    Raises:
        LocalError: Something of it does not come up.
    """
    cluster = Cluster(name)
    # Everything that can fail slowly is built before anything runs.
    built = images.everything()
    cluster.down()
    with progress(f"starting a one-node Kubernetes named {name}"):
        cluster.up()
    with progress("giving it the images"):
        cluster.load(*built)
    with progress("starting DNS, Prometheus and the kvquant operator"):
        addons.install_dns(cluster)
        addons.install_prometheus(cluster)
        install(cluster)
        addons.wait(cluster, prometheus=True)
        wait(cluster)
    return cluster


def install(cluster: Cluster) -> None:
    """Apply the CRD and the operator's manifest.

    Raises:
        LocalError: The API server refuses one.
    """
    for path in MANIFESTS:
        cluster.kubectl("apply", "--server-side", "-f", str(REPOSITORY / path))
    # Here Prometheus scrapes every second instead of every fifteen, and all durations of the
    # analysis follow from that.
    cluster.kubectl(
        *("set", "env", "-n", NAMESPACE, "deployment/kvquant-operator"),
        f"KVQUANT_TICK_SECONDS={addons.SCRAPE_SECONDS}",
    )
    cluster.kubectl(
        "wait", "--for=condition=Established", "--timeout=30s", "crd/kvquantrollouts.kvquant.dev"
    )


def wait(cluster: Cluster) -> None:
    """Wait until the operator is ready.

    Raises:
        LocalError: It does not become ready.
    """
    cluster.kubectl(
        "rollout", "status", "-n", NAMESPACE, "deployment/kvquant-operator", "--timeout=120s"
    )
