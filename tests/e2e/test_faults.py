"""Faults around a good canary, under live load: it is promoted all the same, or nothing moves."""

from __future__ import annotations

import random
import signal
import time

import pytest

from kvdemo.load import Load, Outcome
from kvlocal import product
from kvquant.api import names
from kvquant.api.v1alpha1 import DecisionKind, Phase, Status
from kvquant.core.router_manifests import slot_service
from tests.e2e.stage import (
    LADDER,
    ROUTER,
    Stage,
    failures,
    holds,
    moves,
    once,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(420)]

KILLS = 10


@pytest.mark.full
def test_ten_kills_of_the_operator_within_one_rollout_lead_to_the_same_end(stage: Stage) -> None:
    stage.serve()
    stage.roll_out(
        "fp8",
        "fp8",
        steps=[{"weight": weight, "soak": "15s"} for weight in (20, 50, 100)],
        promotion={"rollbackWindow": "15s"},
        progressDeadline="4m",
    )
    load = stage.send()
    chance = random.Random(7)
    for _ in range(KILLS):
        wait_until(stage.operator_runs, 30, "the next operator should start", 0.1)
        # Any moment will do, from before it has read anything. The moments at which weights were
        # just committed, and perhaps not yet served, are never missed.
        moment = time.monotonic() + chance.uniform(0.5, 10)
        committed = stage.weights[-1:]

        def due(_: Status, moment: float = moment, committed: list[int] = committed) -> bool:
            return time.monotonic() >= moment or stage.weights[-1:] != committed

        status = stage.until("fp8", due, 30, "the next moment to kill should come")
        assert not status.settled, "the rollout ended before the operator was killed often enough"
        assert stage.kill_operator()
    promoted = stage.until_settled("fp8", Phase.PROMOTED, 240)
    load.stop()

    assert stage.weights == [0, 20, 50, 80, 100]
    assert moves(promoted) == once(steps=3), "nothing is decided twice"
    assert not failures(load)
    assert the_canary_answered(load)


def test_neither_a_dead_baseline_pod_nor_an_api_server_that_restarts_counts_against_the_canary(
    stage: Stage,
) -> None:
    stage.serve(replicas=2)
    stage.roll_out("fp8", "fp8")
    load = stage.send()
    stage.until("fp8", lambda s: s.weights.canary == 40, 90, "the first step should begin")
    died = time.time()
    assert stage.kill(stage.pods(app="llama")[0])
    stage.until("fp8", lambda s: s.weights.canary == 80, 120, "the second step should begin")
    stage.restart_api_server()
    promoted = stage.until_settled("fp8", Phase.PROMOTED)
    load.stop()

    assert stage.weights == LADDER
    assert moves(promoted) == once(steps=2)
    # Requests that the dead pod was serving are lost. Nobody can answer those for it.
    lost = failures(load)
    assert not [o for o in lost if not died - 15 < o.began < died + 5]
    assert len(lost) < 30


def test_edits_by_hand_are_undone_and_the_kill_switch_of_the_cluster_works(stage: Stage) -> None:
    stage.serve()
    stage.roll_out("fp8", "fp8", steps=[{"weight": 50, "soak": "10m"}, {"weight": 100}])
    load = stage.send()
    pool = {names.LABEL_POOL: "fp8-pool"}
    (unproven,) = wait_until(
        lambda: stage.pods(**pool), 60, "the canary's pod should be there", 0.1
    )
    assert not stage.status("fp8").regime_proof
    stage.port.patch(
        "Pod",
        stage.namespace,
        unproven["metadata"]["name"],
        {"metadata": {"labels": {names.LABEL_SERVING: "true"}}},
    )
    wait_until(
        lambda: names.LABEL_SERVING not in stage.pods(**pool)[0]["metadata"]["labels"],
        10,
        "an unproven pod should not stay in the Service",
        0.1,
    )
    stage.until("fp8", lambda s: s.weights.canary == 50, 90, "half of the traffic should move")

    slot = slot_service(ROUTER, "green")
    service = stage.port.get("Service", stage.namespace, slot)
    config = stage.port.get("ConfigMap", stage.namespace, ROUTER)
    assert service is not None
    assert config is not None
    assert names.LABEL_SERVING in service["spec"]["selector"]
    edited = {file: text.replace("50", "49") for file, text in config["data"].items()}
    assert edited != config["data"]
    stage.port.patch("Deployment", stage.namespace, "fp8-pool", {"spec": {"replicas": 3}})
    mangled = stage.port.patch("ConfigMap", stage.namespace, ROUTER, {"data": edited})
    assert mangled["data"] != config["data"]
    opened = stage.port.patch(
        "Service",
        stage.namespace,
        slot,
        {"spec": {"selector": {names.LABEL_SERVING: None}}},
    )
    assert names.LABEL_SERVING not in opened["spec"]["selector"]

    def edits() -> list[str]:
        """Return what is not yet as it was."""
        now = stage.port.get("Service", stage.namespace, slot)
        data = stage.port.get("ConfigMap", stage.namespace, ROUTER)
        assert now is not None
        assert data is not None
        left = {
            "replicas": stage.replicas_asked("fp8-pool") != 1,
            "selector": now["spec"]["selector"] != service["spec"]["selector"],
            "bootstrap": data["data"] != config["data"],
        }
        return [what for what, differs in left.items() if differs]

    def undone() -> bool:
        left = edits()
        assert not left, left
        return True

    wait_until(undone, 20, "every edit should be undone", 0.2)

    switch = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.KILL_SWITCH_CONFIGMAP,
            "namespace": product.NAMESPACE,
            "labels": {names.LABEL_KILL_SWITCH: "true"},
        },
        "data": {"killed": "true", "by": "the-test", "reason": "a drill"},
    }
    # A Prometheus that takes questions and does not answer must keep nobody from it.
    stage.signal_prometheus(signal.SIGSTOP)
    try:
        # A pass comes every two seconds. After three, one waits for Prometheus.
        since = time.monotonic()
        stage.until("fp8", lambda _: time.monotonic() > since + 3, 10, "three seconds should pass")
        stage.cluster.apply(switch)
        killed = stage.until("fp8", lambda s: s.weights.canary == 0, 5, "the kill should act")
        obeyed = time.time() + 1
        wait_until(
            lambda: sum(o.began > obeyed for o in load.outcomes) >= 60,
            30,
            "the baseline should answer",
            0.2,
        )
        lifted = time.time()
    finally:
        stage.signal_prometheus(signal.SIGCONT)
        stage.port.delete("ConfigMap", product.NAMESPACE, names.KILL_SWITCH_CONFIGMAP)
    assert holds(killed, "Killed")
    assert "a drill" in next(d.message for d in killed.decisions if d.kind is DecisionKind.KILL)
    assert not [o for o in the_canary_answered(load) if obeyed < o.began < lifted]
    stage.until("fp8", lambda s: s.weights.canary == 50, 60, "the steps should start over")
    stage.ask("fp8", names.ANNOTATION_ABORT, "end-of-the-test")
    stage.until_settled("fp8", Phase.ROLLED_BACK)
    load.stop()

    assert stage.weights == [0, 50, 0, 50, 0]
    assert not failures(load), "no edit and no switch costs a request"


def the_canary_answered(load: Load) -> list[Outcome]:
    """Return the requests that a canary answered."""
    return [o for o in load.outcomes if o.from_canary]
