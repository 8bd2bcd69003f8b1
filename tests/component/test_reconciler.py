"""Whole rollouts, pass by pass, in a simulated world: how they end, and what clients saw."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.ports import Object, RouterKey
from tests.site import (
    NAMESPACE,
    Harm,
    Site,
    engine_pool,
    held,
    never_skips,
    rollout,
    steps_taken,
)

ROUTER = RouterKey(NAMESPACE, "llama-router")


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


# Unhappy paths.


def test_a_slow_canary_is_rolled_back_and_its_pods_go_only_after_its_traffic(site: Site) -> None:
    site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = site.apply()
    status = site.until_phase(ref, Phase.ROLLING_BACK)
    site.turn(ref)
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 1, "not drained yet"
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert "latencyP99: 50 % of canary requests took longer than" in (status.verdict or "")
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 0
    assert site.deployment("llama")["spec"]["replicas"] == 2
    assert steps_taken(site.traffic.history, "green") == [0, 10, 0]
    assert site.lost == []


def test_a_rejected_spec_is_not_tried_again_until_somebody_says_so(site: Site) -> None:
    site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = site.apply()
    first = site.until_settled(ref)
    for _ in range(20):
        site.turn(ref)
    assert site.status(ref).attempt == first.attempt == 1
    del site.harm["llama-fp8-pool"]
    site.annotate(ref, retry="1")
    site.until(ref, lambda status: status.attempt == 2)
    last = site.until_settled(ref)
    assert (last.phase, last.attempt) == (Phase.PROMOTED, 2)
    assert never_skips(steps_taken(site.traffic.history, "green"))
    assert site.lost == []


def test_an_engine_that_keeps_ending_with_exit_code_0_is_named_as_the_cause(site: Site) -> None:
    ref = site.apply(rollout(analysis={"interval": "5s", "oomRetries": {"maxRestarts": 0}}))
    site.until_phase(ref, Phase.PROGRESSING)
    site.turn(ref)
    (pod,) = site.pods("llama-fp8-pool")
    name = pod["metadata"]["name"]
    site.kill_engine(name)
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert "EngineKeepsDying" in site.reasons(ref)
    assert f"{name} (Completed, exit code 0; 1 restarts)" in status.decisions[-1].message


def test_one_engine_that_ends_takes_its_traffic_along_and_condemns_nobody(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.turn(ref)
    site.kill_engine(site.pods("llama-fp8-pool")[0]["metadata"]["name"])
    site.turn(ref)
    assert site.status(ref).weights.canary == 0
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_an_engine_that_keeps_ending_is_rolled_back_while_prometheus_is_out(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.metrics.outage = "Prometheus at prometheus:9090 did not answer within 10 s"
    site.turn(ref)
    assert held(site.status(ref)) == "MetricsUnavailable"
    assert "did not answer within 10 s" in (site.status(ref).verdict or "")
    for _ in range(3):
        site.kill_engine(site.pods("llama-fp8-pool")[0]["metadata"]["name"])
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("where", [Phase.VERIFYING, Phase.PROGRESSING])
def test_a_dtype_that_the_engine_ignores_never_gets_a_request_more(
    site: Site, where: Phase
) -> None:
    if where is Phase.VERIFYING:
        site.ignored_dtypes.add("fp8")
        ref = site.apply()
    else:
        ref = site.apply()
        site.until(ref, lambda status: status.next_step == 3)
        site.ignored_dtypes.add("fp8")  # pods that start from here on, as on other hardware
    status = site.until_settled(ref)
    assert "RegimeProofFailed" in site.reasons(ref)
    assert "the engine accepted the flag and ignored it" in status.decisions[-1].message
    assert status.phase is Phase.ROLLED_BACK
    weights = steps_taken(site.traffic.history, "green")
    assert max(weights) == (0 if where is Phase.VERIFYING else 25)


def test_nothing_moves_while_prometheus_says_nothing_and_goes_on_by_itself(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROVISIONING)
    site.metrics.outage = "refused"
    for _ in range(20):
        site.turn(ref)
    assert held(site.status(ref)) == "MetricsUnavailable"
    assert site.traffic.weights[ROUTER]["green"] == 0, "unproven pods get nothing"
    site.metrics.outage = None
    site.until_phase(ref, Phase.PROGRESSING)
    site.metrics.outage = "refused"
    for _ in range(60):
        site.turn(ref)
    assert (site.status(ref).step, held(site.status(ref))) == (1, "MetricsUnavailable")
    site.metrics.outage = None
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_canary_that_gets_no_traffic_waits_for_ever_and_says_why(site: Site) -> None:
    site.rate = 0
    ref = site.apply(rollout(shadow={"percent": 0}))
    site.until_phase(ref, Phase.PROGRESSING)
    for _ in range(100):
        site.turn(ref)
    assert site.status(ref).step == 1
    assert "0 of 60 canary requests" in (site.status(ref).verdict or "")


def test_routers_that_do_not_follow_stop_every_step(site: Site) -> None:
    ref = site.apply()
    site.traffic.deaf.add(ROUTER)
    for _ in range(30):
        site.turn(ref)
    assert site.status(ref).phase is Phase.PROVISIONING
    assert "2 connected to the operator, 0 follow" in (site.status(ref).verdict or "")
    site.traffic.deaf.clear()
    site.until(ref, lambda status: status.step == 2)
    site.traffic.deaf.add(ROUTER)
    for _ in range(30):
        site.turn(ref)
    assert (site.status(ref).step, held(site.status(ref))) == (2, "RouterNotReady")


def test_pods_that_never_become_ready_end_the_attempt_at_the_deadline(site: Site) -> None:
    site.load_time = 1e9
    ref = site.apply()
    status = site.until_settled(ref)
    assert "ProgressDeadlineExceeded" in site.reasons(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert steps_taken(site.traffic.history, "green") == [0]


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda s: s.cluster.vanish("Deployment", NAMESPACE, "llama"), "TargetNotFound"),
        (lambda s: _unready(s), "TargetNotReady"),
        (lambda s: s.deploy(engine_pool(dtype="fp8")), "AlreadyRunning"),
        (lambda s: s.deploy(engine_pool("llama-fp8-pool")), "PoolNameTaken"),
        (lambda s: s.cluster.put(_service({})), None),
        (lambda s: s.cluster.put(_service({"tier": "gpu"})), "ServiceSelectsBothArms"),
    ],
)
def test_a_rollout_that_cannot_begin_says_why_and_begins_when_it_can(
    site: Site, break_it: Any, reason: str | None
) -> None:
    pool = engine_pool()
    pool["spec"]["template"]["metadata"]["labels"]["tier"] = "gpu"
    site.deploy(pool)
    for pod in site.pods("llama"):
        site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.let_pass(5)
    site.let_pass(5)
    break_it(site)
    ref = site.apply()
    for _ in range(3):
        site.turn(ref)
    status = site.status(ref)
    if reason is None:
        assert status.phase is not Phase.PENDING
        return
    assert (status.phase, held(status)) == (Phase.PENDING, reason)
    stalled = status.condition("Stalled")
    assert stalled is not None
    assert (stalled.status, stalled.reason) == ("True", reason)
    assert len(status.decisions) == 1, "a wait is recorded once, however long it lasts"
    assert site.traffic.history == []
    if reason == "TargetNotFound":
        site.deploy()
        assert site.until_settled(ref).phase is Phase.PROMOTED


def _unready(site: Site) -> None:
    site.load_time = 1e9
    for pod in site.pods("llama"):
        site.cluster.vanish("Pod", NAMESPACE, pod["metadata"]["name"])
    site.control()


def _service(selector: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "mine", "namespace": NAMESPACE},
        "spec": {"selector": selector},
    }


# Happy paths.


def test_a_good_canary_is_promoted_step_by_step_and_the_old_pool_goes_to_zero(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROMOTED)
    site.turn(ref)
    assert site.deployment("llama")["spec"]["replicas"] == 2, "kept through the rollback window"
    status = site.until_settled(ref)
    assert steps_taken(site.traffic.history, "green") == [0, 10, 25, 50, 95, 100]
    assert site.reasons(ref) == [
        "Started",
        "Verifying",
        "Shadowing",
        *(["StepStarted", "StepPassed"] * 3),
        "StepStarted",
        "Promoted",
        "RollbackWindowClosed",
    ]
    ready = status.condition("Ready")
    assert ready is not None
    assert ready.status == "True"
    assert status.step_label == "4/4"
    assert site.deployment("llama")["spec"]["replicas"] == 0
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 2
    assert site.lost == []


def test_each_step_lasts_its_soak_and_rests_on_requests_of_its_own(site: Site) -> None:
    ref = site.apply()
    status = site.until_phase(ref, Phase.PROMOTED)
    starts = [d.at for d in status.decisions if d.reason == "StepStarted"]
    ends = [d.at for d in status.decisions if d.reason in ("StepPassed", "Promoted")]
    assert len(starts) == len(ends) == 4
    assert all((end - start).total_seconds() >= 20 for start, end in zip(starts, ends, strict=True))
    assert all(span.since == start for span, start in zip(status.traffic[1:5], starts, strict=True))


def test_the_last_step_fails_on_harm_that_shows_at_full_weight_only(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.weights.canary == 95)
    site.harm["llama-fp8-pool"] = Harm(slow=0.4)
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert site.deployment("llama")["spec"]["replicas"] == 2
    assert steps_taken(site.traffic.history, "green")[-2:] == [95, 0]


def test_a_ladder_of_one_step_is_compared_with_the_time_before_it(site: Site) -> None:
    ref = site.apply(rollout(steps=[{"weight": 100, "soak": "10s"}]))
    status = site.until_settled(ref)
    assert status.phase is Phase.PROMOTED
    assert steps_taken(site.traffic.history, "green") == [0, 95, 100]


def test_the_second_rollout_starts_from_the_promoted_pool_in_swapped_slots(site: Site) -> None:
    first = site.apply()
    site.until_settled(first)
    site.harm["llama-int8-pool"] = Harm(slow=0.5)
    second = site.apply(rollout("llama-int8", "llama-fp8-pool", "int8"))
    status = site.until_settled(second, first)
    assert status.phase is Phase.ROLLED_BACK
    assert status.baseline is not None
    assert status.canary is not None
    assert (status.baseline.slot, status.canary.slot) == ("green", "blue")
    assert site.traffic.weights == {ROUTER: {"green": 100, "blue": 0}}
    del site.harm["llama-int8-pool"]
    site.annotate(second, retry="1")
    site.until(second, lambda status: status.attempt == 2, first)
    assert site.until_settled(second, first).phase is Phase.PROMOTED
    assert site.traffic.weights == {ROUTER: {"green": 0, "blue": 100}}
    replicas = {d["metadata"]["name"]: d["spec"]["replicas"] for d in _pools(site)}
    assert replicas == {"llama": 0, "llama-fp8-pool": 0, "llama-int8-pool": 2}
    assert site.lost == []


def _pools(site: Site) -> list[Object]:
    return [
        d
        for d in site.cluster.objects("Deployment")
        if not d["metadata"]["name"].endswith("-router")
    ]


def test_a_second_rollout_waits_until_the_first_has_ended(site: Site) -> None:
    first = site.apply()
    site.until_phase(first, Phase.PROGRESSING)
    second = site.apply(rollout("llama-int8", "llama", "int8"))
    site.turn(second)
    assert held(site.status(second)) == "RouterBusy"
    site.until_phase(first, Phase.PROMOTED, second)
    assert held(site.status(second)) == "RouterBusy", "the rollback window is part of it"


def test_of_two_rollouts_that_begin_at_once_one_goes_back_and_waits(site: Site) -> None:
    first = site.apply()
    second = site.apply(rollout("llama-int8", "llama", "int8"))
    site.until_settled(first, second)
    phases = {site.status(ref).phase for ref in (first, second)}
    assert phases == {Phase.PROMOTED, Phase.PENDING}
    assert never_skips(steps_taken(site.traffic.history, "green"))
    winner = first if site.status(first).phase is Phase.PROMOTED else second
    loser = second if winner is first else first
    assert "RouterBusy" in site.reasons(loser)
    assert held(site.status(loser)) == "TargetNotServing", "its target was retired meanwhile"
    assert site.lost == []


def test_a_pool_that_the_router_sends_nothing_to_is_no_target(site: Site) -> None:
    first = site.apply()
    site.until_settled(first)
    site.cluster.edit("Deployment", NAMESPACE, "llama", lambda d: d["spec"].update(replicas=2))
    site.let_pass(5)
    site.let_pass(5)
    second = site.apply(rollout("llama-int8", "llama", "int8"))
    for _ in range(5):
        site.turn(second, first)
    assert held(site.status(second)) == "TargetNotServing"
    assert "targetRef.name: llama-fp8-pool" in (site.status(second).verdict or "")
    assert site.traffic.weights[ROUTER] == {"blue": 0, "green": 100}, "no traffic jumps back"


def test_an_old_pool_that_its_owner_starts_again_is_left_alone(site: Site) -> None:
    ref = site.apply()
    site.until_settled(ref)
    site.cluster.edit("Deployment", NAMESPACE, "llama", lambda d: d["spec"].update(replicas=3))
    site.cluster.edit(
        "Deployment", NAMESPACE, "llama-fp8-pool", lambda d: d["spec"].update(replicas=5)
    )
    site.restart()
    for _ in range(5):
        site.turn(ref)
    assert site.deployment("llama")["spec"]["replicas"] == 3
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 5
    assert len(site.serving("llama-router", "green")) == 5, "new pods are proven and serve"


def test_a_rollout_that_has_ended_writes_nothing(site: Site) -> None:
    ref = site.apply()
    site.until_settled(ref)
    site.turn(ref)
    before = site.raw(ref)["metadata"]["resourceVersion"]
    site.cluster.calls.clear()
    result = site.turn(ref)
    assert result.requeue_after == 60
    assert [call for call in site.cluster.calls if call.writes] == []
    assert len(site.cluster.calls) <= 9
    assert site.raw(ref)["metadata"]["resourceVersion"] == before


def test_drift_is_undone_and_never_believed(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    site.turn(ref)
    site.traffic.weights[ROUTER] = {"blue": 0, "green": 100}
    site.cluster.edit(
        "Service",
        NAMESPACE,
        "llama-router-green",
        lambda s: s["spec"].update(selector={"app": "llama"}),
    )
    (pod,) = site.pods("llama-fp8-pool")
    site.cluster.edit(
        "Pod", NAMESPACE, pod["metadata"]["name"],
        lambda p: p["metadata"]["labels"].pop(names.LABEL_SERVING),
    )  # fmt: skip
    site.turn(ref)
    assert site.traffic.weights[ROUTER] == {"blue": 90, "green": 10}
    site.let_pass(30)
    site.turn(ref)
    assert site.serving("llama-router", "green") == [pod["metadata"]["name"]]
