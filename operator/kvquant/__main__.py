"""The operator process: read the configuration, wire the adapters, run kopf."""

from __future__ import annotations

import logging
import socket
import sys
from datetime import UTC, datetime

import kopf
from kopf._core.engines.peering import Identity
from prometheus_client import start_http_server

from kvquant import __version__, telemetry
from kvquant.acting import Actor
from kvquant.adapters.connection import in_cluster_or_kubeconfig
from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.adapters.tokens import TokenReviewer
from kvquant.adapters.watching import WatchedCluster
from kvquant.config import ConfigError, OperatorConfig
from kvquant.handlers import register
from kvquant.reconciler import Reconciler
from kvquant.router.auth import Authenticator
from kvquant.router.xds import XdsServer
from kvquant.waking import Waker
from kvquant.weights_identity import load_or_make

logger = logging.getLogger("kvquant")


def main() -> int:
    """Run the operator until it is told to stop; return the exit status."""
    try:
        config = OperatorConfig.from_environment()
    except ConfigError as error:
        sys.stderr.write(f"kvquant: {error}\n")
        return 2
    telemetry.configure_logging(config.log_level)
    logger.info("kvquant operator %s starts in namespace %s", __version__, config.namespace)
    connection = in_cluster_or_kubeconfig()
    cluster = WatchedCluster(connection)
    identity = load_or_make(cluster, config.namespace, config.xds_host)
    traffic = XdsServer(
        identity=identity,
        authenticate=Authenticator(TokenReviewer(connection).review),
        port=config.xds_port,
    )
    traffic.start()
    start_http_server(config.metrics_port)
    registry = kopf.OperatorRegistry()
    actor = Actor(cluster, traffic, config, identity.ca.decode())
    loops = register(
        registry,
        Reconciler(
            cluster=cluster,
            metrics=PrometheusMetrics(config.prometheus_url, timeout=config.prometheus_timeout),
            traffic=traffic,
            clock=lambda: datetime.now(UTC),
            actor=actor,
        ),
        config,
    )
    cluster.changed = Waker(cluster.rollouts, actor.doubt, loops.wake_soon)
    namespaces = config.namespaces
    try:
        kopf.run(
            registry=registry,
            # kopf would ask for the user's name, which a pod's numeric user does not have.
            identity=Identity(socket.gethostname()),
            standalone=True,
            clusterwide=not namespaces,
            # The kill switch lives in the operator's own namespace, which must be watched too.
            namespaces={*namespaces, config.namespace} if namespaces else (),
            liveness_endpoint=f"http://0.0.0.0:{config.health_port}/healthz",
        )
    finally:
        cluster.close()
        traffic.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
