"""SLO alerts from real rules of a real Prometheus, by a real Alertmanager or by polling."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kvdemo.load import Load, Outcome
from kvlocal import addons, product
from kvlocal.cluster import Cluster
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, Status
from tests.e2e.stage import ROUTER, Stage, cause_of, holds
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(420)]

logger = logging.getLogger(__name__)

RULES = f"""
groups:
- name: slo
  interval: 1s
  rules:
  - alert: LlamaErrorBudgetBurn
    expr: |
      sum by (namespace) (rate(envoy_cluster_upstream_rq_xx{{envoy_response_code_class="5"}}[60s])) > 0.02
    labels: {{severity: critical, service: {ROUTER}}}
"""  # noqa: E501 - PromQL that is to be read as it is
# Two errors are enough: those until the rollback have to keep it firing for the rest of the minute.
BAD = "fp8:error_rate=0.5"
NEVER_LOOKS = {"interval": "10m", "minRequests": 1_000_000}
"""The analysis, which would find such a canary guilty as well, does not get to it."""
STEPS = [{"weight": 50, "soak": "10m"}, {"weight": 100}]


class Witness:
    """A second webhook: it notes when Alertmanager tells that an alert fires."""

    def __init__(self, host: str) -> None:
        self.told: list[tuple[float, dict[str, Any]]] = []
        witness = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                at = time.time()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                witness.told += [(at, alert) for alert in body["alerts"]]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def firing(self, namespace: str) -> list[float]:
        """Return when alerts of a namespace were told to fire."""
        return [
            at
            for at, alert in self.told
            if alert["status"] == "firing" and alert["labels"].get("namespace") == namespace
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def witness(cluster: Cluster) -> Iterator[Witness]:
    """An Alertmanager that tells the operator and a witness, with a token that both were given."""
    witness = Witness(cluster.network.host)
    token = secrets.token_hex(16)
    cluster.kubectl(
        *("create", "secret", "generic", "kvquant-alerts-token", "-n", product.NAMESPACE),
        f"--from-literal=token={token}",
    )
    operator = f"http://kvquant-alerts.{product.NAMESPACE}.svc:9095/alerts"
    addons.install_alertmanager(cluster, [operator, witness.url], token, RULES)
    yield witness
    # Later tests have bad canaries of their own, which are to be found without an alert.
    addons.remove_alertmanager(cluster)
    configure(cluster, "KVQUANT_ALERTS_POLL-")
    witness.close()


def configure(cluster: Cluster, variable: str) -> None:
    """Restart the operator with a variable set, or removed by a `-` at its end."""
    where = ("-n", product.NAMESPACE, "deployment/kvquant-operator")
    cluster.kubectl("set", "env", *where, variable, "KVQUANT_TEST_RUN=" + secrets.token_hex(4))
    cluster.kubectl("rollout", "status", *where, "--timeout=90s")


def burn(stage: Stage) -> Load:
    """Give half of the traffic to a canary that answers every other request with HTTP 500."""
    stage.serve(faults=BAD)
    stage.roll_out("fp8", "fp8", steps=STEPS, analysis=NEVER_LOOKS)
    load = stage.send(rate=20)
    stage.until("fp8", lambda s: s.weights.canary == 50, 90, "half of the traffic should move")
    return load


def rolled_back(stage: Stage, load: Load) -> Status:
    """Wait until an alert has taken the traffic, and for long enough to see that it is so."""
    stage.until("fp8", lambda s: s.weights.canary == 0, 60, "the alert should take the traffic")
    taken = time.time()
    wait_until(
        lambda: sum(o.began > taken + 1 for o in load.outcomes) >= 100,
        60,
        "the baseline should answer",
        0.2,
    )
    return stage.status("fp8")


def of_the_canary(load: Load) -> list[Outcome]:
    """Return the requests that the canary got: the baseline fails none."""
    return [o for o in load.outcomes if o.from_canary or o.problem]


def test_by_webhook_the_canary_gets_its_last_request_within_two_seconds(
    stage: Stage, witness: Witness
) -> None:
    configure(stage.cluster, "KVQUANT_ALERTS_POLL=0")
    load = burn(stage)
    status = rolled_back(stage, load)
    cause = cause_of(status)
    assert cause.reason == "AlertFiring"
    assert "LlamaErrorBudgetBurn" in cause.message
    assert "learned by webhook" in cause.message
    arrived = min(witness.firing(stage.namespace))
    last = max(o.began for o in of_the_canary(load))
    logger.info(
        "From the webhook to the decision %.3f s, to the canary's last request %.3f s",
        cause.at.timestamp() - arrived,
        last - arrived,
    )
    assert last - arrived <= 2
    assert "AlertFiring" in stage.events("fp8")

    # It fires for another while, which the next attempt waits for.
    stage.until("fp8", lambda s: s.phase is Phase.ROLLED_BACK, 60, "the rollback should end")
    stage.ask("fp8", names.ANNOTATION_RETRY, "again")
    stage.until(
        "fp8",
        lambda s: s.phase is Phase.PENDING and holds(s, "Held", "AlertFiring"),
        15,
        "the alert should keep another attempt from beginning",
    )
    stage.until("fp8", lambda s: s.attempt == 2, 120, "the end of the alert should let it begin")
    load.stop()


def test_by_polling_the_canary_gets_its_last_request_within_two_seconds_of_a_look(
    stage: Stage, witness: Witness
) -> None:
    where = ("-n", addons.PROMETHEUS_NAMESPACE, "deployment/alertmanager")
    stage.cluster.kubectl("scale", *where, "--replicas=0")
    configure(stage.cluster, "KVQUANT_ALERTS_POLL=5")
    try:
        load = burn(stage)
        status = rolled_back(stage, load)
        load.stop()
    finally:
        stage.cluster.kubectl("scale", *where, "--replicas=1")
    cause = cause_of(status)
    assert cause.reason == "AlertFiring"
    assert "learned by polling" in cause.message
    assert not witness.firing(stage.namespace)
    last = max(o.began for o in of_the_canary(load))
    (alert,) = status.alerts
    logger.info(
        "From the alert to the decision %.3f s, from there to the canary's last request %.3f s",
        (cause.at - alert.since).total_seconds(),
        last - cause.at.timestamp(),
    )
    assert last - cause.at.timestamp() <= 2
    assert last - alert.since.timestamp() <= 5 + 2 + 2
