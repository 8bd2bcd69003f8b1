"""The operator process: read the configuration, wire the adapters, run kopf."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import kopf
from kopf._core.engines.peering import Identity
from prometheus_client import start_http_server

from kvquant import __version__, telemetry
from kvquant.acting import Actor
from kvquant.adapters.archive import ObjectArchive
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection, in_cluster_or_kubeconfig
from kvquant.adapters.lease import KubernetesLease
from kvquant.adapters.metrics import SET_WITHIN, PrometheusMetrics
from kvquant.adapters.prometheus_secret import MountedSecret
from kvquant.adapters.shared_metrics import SharedMetrics
from kvquant.adapters.tokens import TokenReviewer
from kvquant.adapters.watching import WatchedCluster
from kvquant.adapters.webhook import SecretWebhook
from kvquant.alerting.access import Access
from kvquant.alerting.board import AlertBoard
from kvquant.alerting.polling import AlertPoller
from kvquant.alerting.receiver import AlertReceiver
from kvquant.archiving import Archivist
from kvquant.config import ConfigError, OperatorConfig
from kvquant.core.scope import Scope
from kvquant.errors import ClusterError
from kvquant.handlers import register
from kvquant.leading import Leadership, Terms, show_leader
from kvquant.notifying import Notifier
from kvquant.ports import AlertQueries
from kvquant.reconciler import Reconciler, Ref
from kvquant.router.auth import Authenticator
from kvquant.router.pki import ServerIdentity
from kvquant.router.xds import XdsServer
from kvquant.standing_by import StandBy
from kvquant.waking import Waker
from kvquant.weights_identity import Renewer, load_or_make

logger = logging.getLogger("kvquant")

LEASE = "kvquant-operator"
"""Name of the Lease by which operators agree who decides."""


def main() -> int:
    """Run the operator until it is told to stop; return the exit status."""
    try:
        config = OperatorConfig.from_environment()
    except ConfigError as error:
        sys.stderr.write(f"kvquant: {error}\n")
        return 2
    telemetry.configure_logging(config.log_level)
    # An answer of Prometheus is millions of small objects, none of them in a cycle: looking for
    # cycles among them each time that 700 have come doubles what reading it costs.
    gc.set_threshold(100_000, 20, 20)
    logger.info("kvquant operator %s starts in namespace %s", __version__, config.namespace)
    connection = in_cluster_or_kubeconfig()
    try:
        archivist = archivist_of(config, connection)
    except ConfigError as error:
        sys.stderr.write(f"kvquant: {error}\n")
        return 2
    start_http_server(config.metrics_port)
    if config.lease_seconds == 0:
        telemetry.LEADER.set(1)
        return _lead(config, connection, archivist)
    leadership = _leadership(config)
    if not _await_turn(config, connection, leadership):
        return 0
    try:
        return _lead(config, connection, archivist)
    finally:
        leadership.release()


def _lead(config: OperatorConfig, connection: Connection, archivist: Archivist | None) -> int:
    """Look after rollouts until told to stop; return the exit status."""
    cluster = WatchedCluster(connection)
    load = partial(load_or_make, cluster, config.namespace, config.xds_host)
    identity = load()
    traffic = XdsServer(
        identity=identity,
        authenticate=Authenticator(TokenReviewer(connection).review),
        port=config.xds_port,
    )
    traffic.start()
    telemetry.watch_routers(traffic.everybody)
    registry = kopf.OperatorRegistry()
    metrics = _prometheus(config)
    alerts = AlertBoard(_now, polls=config.alerts_poll > 0)
    actor = Actor(cluster, traffic, config, identity.ca.decode())

    def use(new: ServerIdentity) -> None:
        traffic.show(new)
        actor.xds_ca = new.ca.decode()

    renewer = Renewer(identity, load, use, config.xds_host)
    notifier = _notifier(config)
    loops = register(
        registry,
        Reconciler(
            cluster=cluster,
            metrics=SharedMetrics(metrics, patience=SET_WITHIN * config.prometheus_timeout),
            traffic=traffic,
            clock=_now,
            actor=actor,
            alerts=alerts,
            grid=timedelta(seconds=config.tick_seconds),
            archivist=archivist,
        ),
        config,
        notifier,
    )
    cluster.changed = Waker(cluster.rollouts, actor.doubt, loops.wake_soon)
    alerts.wake = lambda namespace, name: loops.wake_soon(Ref(namespace, name))
    namespaces = config.namespaces
    ears: list[AlertPoller | AlertReceiver] = []
    for worker in (archivist, notifier):
        if worker is not None:
            worker.start()
    try:
        for ear in _ears(config, alerts, metrics):
            ear.start()
            ears.append(ear)
        renewer.start()
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
    except ConfigError as error:
        sys.stderr.write(f"kvquant: {error}\n")
        return 2
    finally:
        for ear in ears:
            ear.stop()
        for worker in (archivist, notifier):
            if worker is not None:
                worker.stop()
        renewer.stop()
        cluster.close()
        traffic.stop()
    return 0


def _leadership(config: OperatorConfig) -> Leadership:
    # A connection of its own: the Lease is what opens the other one's fence. An answer that takes
    # longer than a candidate may be silent is worth nothing.
    terms = Terms.of(config.lease_seconds)
    connection = in_cluster_or_kubeconfig((terms.deadline / 2, terms.deadline / 2))
    lease = KubernetesLease(connection, config.namespace, LEASE)
    return Leadership(lease, f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}", terms)


def _await_turn(config: OperatorConfig, connection: Connection, leadership: Leadership) -> bool:
    """Wait until this operator is the one to decide; False when it was told to stop before."""

    def stop(*_: object) -> None:
        leadership.stop()

    # Process 1 of a container is told nothing that it has no handler for. kopf brings its own.
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    pods, pod = KubernetesCluster(connection), socket.gethostname()
    with StandBy(config.health_port):
        if not leadership.acquire():
            return False
        leadership.start(_give_way)
        connection.fence = leadership.check
        while True:
            try:
                show_leader(pods, config.namespace, pod)
            except ClusterError as error:
                # Without it no router finds this operator, so nothing is begun before.
                logger.warning("The Services do not lead here yet: %s", error)
                if leadership.pause():
                    return False
            else:
                break
    for number, handler in before.items():
        signal.signal(number, handler)
    return True


def _give_way(leader: str) -> None:
    """End this process at once, whatever it is doing: another decides now."""
    logger.error("Another operator has taken the Lease, %s: this one ends", leader)
    os._exit(1)


def archivist_of(config: OperatorConfig, connection: Connection) -> Archivist | None:
    """Return who keeps the archive that the configuration names; None where it names none.

    Raises:
        ConfigError: It names nothing that can be written to.
    """
    if not config.record_url:
        return None
    try:
        archive = ObjectArchive(config.record_url)
    except Exception as error:
        # Credentials that do not fit, a folder that cannot be made: better known now than never.
        # The URL is not repeated, as somebody may have put a password into it.
        raise ConfigError(f"KVQUANT_RECORD_URL cannot be written to: {error}") from None
    return Archivist(archive, KubernetesCluster(connection))


def _notifier(config: OperatorConfig) -> Notifier | None:
    """Return who tells others of rollouts; None where nobody is to be told."""
    if not config.notify_folder:
        return None
    return Notifier(SecretWebhook(Path(config.notify_folder)), config.notify_format)


def _prometheus(config: OperatorConfig) -> PrometheusMetrics:
    """Return the client of the Prometheus that the configuration names."""
    folder = config.prometheus_auth_folder
    return PrometheusMetrics(
        config.prometheus_url,
        timeout=config.prometheus_timeout,
        secret=MountedSecret(Path(folder) if folder else None),
        scope=config.scope,
        delay=timedelta(seconds=config.prometheus_delay),
        grid=timedelta(seconds=config.tick_seconds),
        alerts=Scope(matchers=config.alerts_matchers),
    )


def _ears(
    config: OperatorConfig, board: AlertBoard, prometheus: AlertQueries
) -> Iterator[AlertPoller | AlertReceiver]:
    """Return the ways in which the configuration has alerts become known."""
    if config.alerts_poll > 0:
        yield AlertPoller(board, prometheus, config.alerts_poll, _now)
    if config.alerts_port > 0:
        files = (config.alerts_token_file, config.alerts_tls_folder, config.alerts_client_ca)
        access = Access(*(Path(name) if name else None for name in files))
        yield AlertReceiver(board, access, config.alerts_port, _now)


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main())
