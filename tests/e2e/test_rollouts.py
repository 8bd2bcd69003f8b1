"""Whole rollouts on a real node, under live load."""

from __future__ import annotations

import subprocess

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.engines import vllm
from tests.e2e.stage import ROUTER, Stage, blamed, cause_of, failures, holds, moves
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(420)]


def test_a_good_canary_is_promoted_and_the_next_bad_one_rolled_back(stage: Stage) -> None:
    stage.serve(replicas=2, faults="int8_per_token_head:decode_slowdown=3")
    # A quarter is one pod's, so that the next step needs a second one.
    steps = [{"weight": weight, "soak": "5s"} for weight in (25, 100)]
    stage.roll_out("fp8", "fp8", steps=steps)
    load = stage.send()
    promoted = stage.until_settled("fp8", Phase.PROMOTED)

    assert stage.weights == [0, 25, 80, 100], "no step is skipped, and none is taken back"
    assert holds(promoted, "Ready")
    assert holds(promoted, "RegimeVerified")
    wait_until(lambda: stage.replicas_asked("llama") == 0, 20, "the old pool should be retired")
    assert stage.replicas_ready("fp8-pool") == 2, "the new pool serves with the old one's replicas"
    wait_until(
        lambda: (
            {"Started", "StepStarted", "Promoted", "RollbackWindowClosed"} <= stage.events("fp8")
        ),
        20,
        "every decision should be an Event",
    )
    answered = [o for o in load.outcomes if o.from_canary]
    assert answered, "the client sees in the fingerprint which pool answered"

    stage.weights.clear()
    stage.roll_out("int8", "int8", target="fp8-pool")
    rolled_back = stage.until_settled("int8", Phase.ROLLED_BACK)
    assert rolled_back.weights.canary == 0
    cause = cause_of(rolled_back)
    assert cause.reason == "AnalysisFailed"
    assert blamed(rolled_back) == {"p99"}, cause.message
    wait_until(lambda: stage.replicas_asked("int8-pool") == 0, 20, "the bad pool should be retired")
    load.stop()
    assert not failures(load), "the client notices nothing of either rollout"


@pytest.mark.full
def test_a_target_that_adopts_the_dtype_in_git_gets_the_traffic_back(stage: Stage) -> None:
    def sync(dtype: str) -> None:
        """Change the target's arguments, as a sync from Git does, and leave its replicas alone."""
        target = stage.port.get("Deployment", stage.namespace, "llama")
        assert target is not None
        containers = target["spec"]["template"]["spec"]["containers"]
        containers[0] = vllm.with_dtype(containers[0], dtype, None)
        patch = {"spec": {"template": {"spec": {"containers": containers}}}}
        stage.port.patch("Deployment", stage.namespace, "llama", patch)

    stage.serve(replicas=2)
    stage.roll_out("fp8", "fp8")
    load = stage.send()
    stage.until_settled("fp8", Phase.PROMOTED)
    wait_until(lambda: stage.replicas_asked("llama") == 0, 20, "the old pool should be retired")

    sync("int8_per_token_head")
    waiting = stage.until(
        "fp8", lambda s: s.condition("Adopted") is not None, 60, "the rollout should look at it"
    )
    assert not holds(waiting, "Adopted")
    assert waiting.weights.canary == 100
    assert stage.replicas_asked("llama") == 0, "another dtype is no reason to start pods"

    sync("fp8")
    adopted = stage.until("fp8", lambda s: holds(s, "Adopted"), 180, "the target should adopt it")
    assert moves(adopted)[-3:] == ["AdoptionStarted", "HandingOver", "Adopted"]
    assert holds(adopted, "Ready")
    assert holds(adopted, "RegimeVerified")
    assert (adopted.weights.baseline, adopted.weights.canary) == (100, 0)
    assert stage.replicas_ready("llama") == 2, "it has its own pods back"
    wait_until(
        lambda: stage.port.get("Deployment", stage.namespace, "fp8-pool") is None,
        20,
        "the promoted pool should be removed",
    )
    wait_until(lambda: "Adopted" in stage.events("fp8"), 20, "it should be an Event")
    assert not failures(load), "the client notices nothing of it"

    stage.cluster.kubectl("delete", names.PLURAL, "fp8", "-n", stage.namespace, "--timeout=90s")
    # A pod that nobody proves any more has to be found by the router all the same.
    stage.cluster.kubectl("rollout", "restart", "deployment/llama", "-n", stage.namespace)
    stage.cluster.kubectl(
        *("rollout", "status", "deployment/llama", "-n", stage.namespace, "--timeout=90s")
    )
    seen = len(load.outcomes)
    wait_until(lambda: len(load.outcomes) >= seen + 100, 60, "requests should be answered", 0.2)
    load.stop()
    answered = load.outcomes[-50:]
    assert not any(o.problem or o.from_canary for o in answered), "the target's new pods answer"


def test_a_canary_that_ignores_the_dtype_never_gets_a_request(stage: Stage) -> None:
    stage.serve(faults="fp8:ignore_dtype")
    stage.roll_out("fp8", "fp8")
    load = stage.send()
    status = stage.until_settled("fp8", Phase.ROLLED_BACK)
    load.stop()
    cause = cause_of(status)
    assert cause.reason == "RegimeProofFailed"
    assert "accepted the flag and ignored it" in cause.message
    assert stage.weights == [0]
    assert load.outcomes
    assert not any(o.from_canary for o in load.outcomes)
    assert not failures(load)


def test_a_canary_that_dies_under_traffic_is_rolled_back_and_the_cause_named(
    stage: Stage,
) -> None:
    stage.serve(faults="fp8:exit_after=30")
    stage.roll_out("fp8", "fp8")
    load = stage.send()
    status = stage.until_settled("fp8", Phase.ROLLED_BACK)
    load.stop()
    cause = cause_of(status)
    # One death would be bad luck. Either the third finds that it was none or, if a death falls
    # into a batch, the statistics do before.
    assert cause.reason in ("AnalysisFailed", "EngineKeepsDying")
    assert "exit code 0" in cause.message
    lost = failures(load)
    assert all(o.began <= cause.at.timestamp() + 5 for o in lost), "after the rollback all is well"
    assert len(lost) < len(load.outcomes) / 10


def test_weights_hold_while_the_operator_is_dead_and_a_router_starts_anew(stage: Stage) -> None:
    stage.serve()
    stage.roll_out("fp8", "fp8", steps=[{"weight": 50, "soak": "10m"}, {"weight": 100}])
    stage.send()
    stage.until("fp8", lambda s: s.weights.canary == 50, 90, "half of the traffic should move")
    system = ("-n", "kvquant-system")
    stage.cluster.kubectl("scale", "deployment/kvquant-operator", "--replicas=0", *system)
    try:
        wait_until(
            lambda: not stage.cluster.kubectl("get", "pods", *system, "-o", "name").strip(),
            60,
            "the operator should be gone",
            0.2,
        )
        # The router's pods go too, and the new ones know only what was committed.
        stage.cluster.kubectl(
            *("delete", "pod", "-n", stage.namespace, "--force", "--grace-period=0"),
            *("-l", f"{names.LABEL_ROUTER}={ROUTER}"),
        )
        wait_until(lambda: stage.replicas_ready(ROUTER) == 0, 30, "the router should be gone", 0.1)
        after = stage.send()
        wait_until(lambda: len(after.outcomes) >= 150, 60, "requests should be answered", 0.2)
        after.stop()
    finally:
        stage.cluster.kubectl("scale", "deployment/kvquant-operator", "--replicas=1", *system)
    # Three standard deviations of a fair coin thrown that often.
    count = len(after.outcomes)
    share = sum(o.from_canary for o in after.outcomes) / count
    assert abs(share - 0.5) < 3 * 0.5 / count**0.5
    stage.cluster.kubectl(
        "rollout", "status", "deployment/kvquant-operator", *system, "--timeout=60s"
    )
    stage.ask("fp8", names.ANNOTATION_ABORT, "end-of-the-test")
    stage.until_settled("fp8", Phase.ROLLED_BACK)


def test_people_steer_a_rollout_with_the_command_line(stage: Stage) -> None:
    def kvquant(*arguments: str) -> str:
        done = subprocess.run(
            [".venv/bin/kubectl-kvquant", *arguments, "-n", stage.namespace],
            env={"KUBECONFIG": str(stage.cluster.kubeconfig), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    stage.serve()
    stage.roll_out("fp8", "fp8", steps=[{"weight": 50, "soak": "10m"}, {"weight": 100}])
    load = stage.send()
    stage.until("fp8", lambda s: s.weights.canary == 50, 90, "half of the traffic should move")

    assert "fp8" in kvquant("status")
    kvquant("pause", "fp8")
    stage.until("fp8", lambda s: holds(s, "Paused"), 20, "the rollout should pause")
    kvquant("kill", "fp8", "--reason", "a drill")
    stage.until("fp8", lambda s: s.killed and s.weights.canary == 0, 10, "the kill should act")
    kvquant("unkill", "fp8")
    kvquant("resume", "fp8")
    stage.until("fp8", lambda s: s.weights.canary == 50, 60, "the steps should start over")
    kvquant("abort", "fp8")
    stage.until_settled("fp8", Phase.ROLLED_BACK)
    kvquant("retry", "fp8")
    stage.until("fp8", lambda s: s.attempt == 2, 30, "a second attempt should begin")
    stage.until("fp8", lambda s: s.weights.canary == 50, 90, "it should get traffic again")
    stage.cluster.kubectl("delete", names.PLURAL, "fp8", "-n", stage.namespace, "--timeout=90s")
    load.stop()
    assert not failures(load), "no verb costs a request"
