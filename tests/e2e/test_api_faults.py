"""An API server that is slow and answers 409, 429 and 500 to the operator, under live load."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from kvlocal import product
from kvlocal.cluster import Cluster
from kvquant.api.v1alpha1 import Phase
from kvquant.core import record
from tests.e2e.stage import LADDER, Stage, failures, moves, once
from tests.fault_proxy import CALM, FaultProxy, Odds
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.full, pytest.mark.timeout(600)]

BAD_DAY = Odds(conflict=0.1, throttled=0.08, broken=0.05, lost=0.05, slow=0.1, delay=(1.0, 3.0))
"""Nearly three in ten writes go wrong in one way or another, and one request in ten is slow."""

API_SERVER = "kubernetes.default.svc"
"""The name by which pods reach the API server, and which kopf asks for whatever the environment."""

OPERATOR = ("-n", product.NAMESPACE, "deployment/kvquant-operator")


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultProxy]:
    """A proxy that bears the API server's own certificate, and that the operator takes for it."""
    pki = cluster.kubeconfig.parent / "pki"
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
    trust = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    network = cluster.network
    upstream = f"https://{network.node}:6443"
    with FaultProxy(upstream, trust, host=network.host, port=443, tls=tls) as proxy:
        _lead_operator_to(cluster, network.host)
        try:
            yield proxy
        finally:
            proxy.odds = CALM
            cluster.kubectl("rollout", "undo", *OPERATOR)
            cluster.kubectl("rollout", "status", *OPERATOR, "--timeout=120s")


def _lead_operator_to(cluster: Cluster, address: str) -> None:
    """Let the operator's pod find the API server at another address."""
    environment = {"KUBERNETES_SERVICE_HOST": API_SERVER, "KUBERNETES_SERVICE_PORT": "443"}
    pod = {
        "hostAliases": [{"ip": address, "hostnames": [API_SERVER]}],
        "containers": [
            {
                "name": "operator",
                "env": [{"name": name, "value": value} for name, value in environment.items()],
            }
        ],
    }
    patch = json.dumps({"spec": {"template": {"spec": pod}}})
    cluster.kubectl("patch", *OPERATOR, "--type=strategic", "-p", patch)
    cluster.kubectl("rollout", "status", *OPERATOR, "--timeout=120s")


def test_a_good_canary_is_promoted_step_by_step_and_clients_notice_nothing(
    stage: Stage, proxy: FaultProxy
) -> None:
    wait_until(lambda: proxy.done["passed"] > 20, 60, "the operator should come by the proxy")
    stage.serve()
    proxy.odds = BAD_DAY
    begun = datetime.now(UTC)
    stage.roll_out("fp8", "fp8", progressDeadline="5m")
    load = stage.send()
    promoted = stage.until_settled("fp8", Phase.PROMOTED, 420)
    proxy.odds = CALM
    took = (datetime.now(UTC) - begun).total_seconds()
    load.stop()

    assert set(proxy.injected) == {"409", "429", "500", "lost", "slow"}, proxy.done
    assert sum(proxy.injected.values()) >= 20, f"{proxy.done} in {took:.0f} s"
    assert stage.weights == LADDER
    assert moves(promoted) == once(steps=2), "nothing is decided twice"
    # The record is written after the status, by passes of which any may have failed: it catches up.
    newest = max(d.number or 0 for d in promoted.decisions)
    wait_until(
        lambda: _recorded(stage) == [*range(1, newest + 1)],
        90,
        "the record should have every decision once",
    )
    assert not failures(load)


def _recorded(stage: Stage) -> list[int]:
    kept = stage.port.get("ConfigMap", stage.namespace, record.name_of("fp8"))
    return [] if kept is None else [entry.number for entry in record.read(kept["data"])]
