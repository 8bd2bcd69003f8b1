"""kvquant itself in a local cluster: images, CRD and operator, as a user installs them."""

from __future__ import annotations

from kvlocal import addons, chart, images
from kvlocal.cache import progress
from kvlocal.cluster import Cluster

NAMESPACE = chart.NAMESPACE


def start(name: str) -> Cluster:
    """Bring up a fresh cluster with Prometheus, the product's images and the operator.

    Raises:
        LocalError: Something of it does not come up.
    """
    cluster = Cluster(name)
    # Everything that can fail slowly is built before anything runs.
    built = images.everything()
    chart.ensure()
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
    """Install the chart, or upgrade it to this tree's.

    Raises:
        LocalError: Helm fails, or the API server refuses something.
    """
    cluster.apply(chart.namespace())
    # Here Prometheus scrapes every second instead of every fifteen, and all durations of the
    # analysis follow from that.
    chart.install(cluster, {"replicas": 1, "prometheus": {"tickSeconds": addons.SCRAPE_SECONDS}})
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
