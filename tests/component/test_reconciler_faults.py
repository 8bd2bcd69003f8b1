"""The operator is killed, refused and overtaken at every point: the end is the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, Phase
from kvquant.core.ticking import TickNeed, Timeline
from kvquant.errors import Conflict, Refused, Unavailable
from kvquant.ports import Object, RouterKey
from kvquant.reconciler import Reconciler, Ref, Result
from tests.fakes.cluster import Fault
from tests.site import NAMESPACE, Harm, Site, never_skips, rollout, steps_taken

ROUTER = RouterKey(NAMESPACE, "llama-router")
SHORT: dict[str, Any] = {
    "steps": [{"weight": 50, "soak": "3s"}, {"weight": 100, "soak": "3s"}],
    "promotion": {"rollbackWindow": "3s"},
    "traffic": {"router": {"drainTimeout": "3s"}},
}


class ProcessKilledError(BaseException):
    """What no `except Exception` may catch, because a killed process catches nothing."""


class Killed:
    """A port whose process is killed at one of its calls, counted over all ports.

    Attributes:
        calls: Counts the calls; shared by the ports of one process.
        at: The call at which the process ends; None for never.
        late: The call takes effect first.
    """

    def __init__(self, port: Any, calls: itertools.count[int], at: int | None, late: bool) -> None:
        self._port, self._calls, self._at, self._late = port, calls, at, late

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        call = getattr(self._port, verb)

        def killed(*args: Any, **kwargs: Any) -> Any:
            if next(self._calls) != self._at:
                return call(*args, **kwargs)
            if self._late:
                call(*args, **kwargs)
            raise ProcessKilledError

        return killed


def process(site: Site, at: int | None, late: bool) -> Reconciler:
    """Return an operator process that ends at its n-th call."""
    calls = itertools.count()
    return site.operator(
        *(Killed(port, calls, at, late) for port in (site.cluster, site.metrics, site.traffic))
    )


def pass_killed_everywhere(
    site: Site, one_pass: Callable[[Reconciler], Result], late: bool
) -> Result:
    """Run a pass that is killed at its first call, then at its second, ..., then goes through."""
    for at in range(100):
        try:
            return one_pass(process(site, at, late))
        except ProcessKilledError:
            site.let_pass(0.1)
    raise AssertionError("a pass with more than a hundred calls")


def outcome(site: Site, ref: Ref) -> tuple[Any, ...]:
    """Return everything about the end of a rollout that does not depend on how long it took."""
    status = site.status(ref)
    replicas = {
        d["metadata"]["name"]: d["spec"]["replicas"] for d in site.cluster.objects("Deployment")
    }
    return status.phase, status.step, status.attempt, site.traffic.weights[ROUTER], replicas


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bad", [False, True])
def test_killed_at_every_call_of_every_pass_it_ends_the_same(bad: bool, late: bool) -> None:
    def site() -> Site:
        it = Site()
        it.deploy()
        if bad:
            it.harm["llama-fp8-pool"] = Harm(slow=0.5)
        return it

    calm, hit = site(), site()
    ref = calm.apply(rollout(**SHORT))
    calm.until_settled(ref)
    assert hit.apply(rollout(**SHORT)) == ref
    for _ in range(200):
        if hit.status(ref).settled:
            break
        result = pass_killed_everywhere(hit, lambda process: process.reconcile(ref), late)
        hit.let_pass(max(0.5, min(5.0, result.requeue_after)))
    for _ in range(3):
        hit.turn(ref)
    assert outcome(hit, ref) == outcome(calm, ref)
    assert never_skips(steps_taken(hit.traffic.history, "green"), (0, 50, 95, 100))
    assert hit.lost == []
    reasons = hit.reasons(ref)
    assert len([r for r in reasons if r == "Started"]) == 1


@pytest.mark.parametrize("late", [False, True])
def test_killed_at_every_call_of_a_deletion_it_ends_the_same(late: bool) -> None:
    site = Site()
    site.deploy()
    ref = site.apply(rollout(**SHORT))
    site.until_phase(ref, Phase.PROGRESSING)
    site.turn(ref)
    site.cluster.delete(names.KIND, ref.namespace, ref.name)
    for _ in range(50):
        result = pass_killed_everywhere(site, lambda process: process.finalize(ref), late)
        if result.done:
            break
        site.let_pass(max(0.5, min(5.0, result.requeue_after)))
    assert result.done
    assert site.pods("llama-fp8-pool") == [] or "llama-fp8-pool" not in _deployments(site)
    assert steps_taken(site.traffic.history, "green") == [0, 50, 0]
    assert site.lost == []


def _deployments(site: Site) -> set[str]:
    return {d["metadata"]["name"] for d in site.cluster.objects("Deployment")}


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def test_what_somebody_wrote_between_read_and_write_is_obeyed(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    before = site.metrics.timeline

    def abort_meanwhile(need: TickNeed, now: Any) -> Any:
        site.annotate(ref, abort="now")
        return before(need, now)

    site.metrics.timeline = abort_meanwhile
    stored = site.status(ref)
    assert site.turn(ref).requeue_after == 0, "read and decide again, at once"
    assert site.status(ref) == stored, "what was decided on the old object is void"
    site.metrics.timeline = before
    site.turn(ref)
    assert site.status(ref).phase is Phase.ROLLING_BACK


def test_a_pod_that_is_gone_before_it_is_labelled_is_no_error(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.VERIFYING)
    site.cluster.faults.append(Fault(Conflict("Pod is gone"), verb="patch", kind="Pod"))
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert site.cluster.faults[0].times < 1, "the fault has struck"


def test_an_api_server_that_does_not_answer_changes_nothing(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 2)
    stored = site.status(ref)
    for verb in ("get", "list", "replace_status"):
        site.cluster.faults = [Fault(Unavailable("time-out"), verb=verb)]
        with pytest.raises(Unavailable):
            site.turn(ref)
        assert site.status(ref) == stored
    site.cluster.faults.clear()
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_canary_that_may_not_be_created_is_told_and_given_up_at_the_deadline(site: Site) -> None:
    denied = Refused("deployments.apps is forbidden: exceeded quota: gpus")
    site.cluster.faults.append(Fault(denied, verb="apply", kind="Deployment", skip=1, times=10**6))
    ref = site.apply(rollout(traffic={"router": {}}))
    for _ in range(5):
        site.turn(ref)
    condition = site.status(ref).condition("Held")
    assert condition is not None
    assert condition.reason == "RefusedByAPIServer"
    assert "exceeded quota" in condition.message
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK


def test_a_refused_router_object_keeps_no_rollback_from_the_live_routers(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 2)
    site.turn(ref)
    site.cluster.faults.append(Fault(Refused("denied by policy"), verb="apply", times=10**6))
    site.harm["llama-fp8-pool"] = Harm(errors=0.6)
    site.until_phase(ref, Phase.ROLLING_BACK)
    site.turn(ref)
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}
    site.until_phase(ref, Phase.ROLLED_BACK)
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] > 0, (
        "a router that starts now would still send to it"
    )
    site.cluster.faults.clear()
    site.until_settled(ref)
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 0


def test_a_target_edited_beyond_recognition_keeps_no_rollback_from_its_end(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 2)

    def hide(deployment: Object) -> None:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container.update(image="mine", command=["/start.sh"], args=[])

    site.cluster.edit("Deployment", NAMESPACE, "llama", hide)
    site.restart()
    site.annotate(ref, abort="1")
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 0
    config = site.cluster.get("ConfigMap", NAMESPACE, "llama-router")
    assert config is not None
    assert config["metadata"]["annotations"][names.ANNOTATION_SETTLED] == "true"


def test_a_router_whose_holder_was_removed_by_force_is_taken_over(site: Site) -> None:
    first = site.apply()
    site.until(first, lambda status: status.step == 1)
    site.turn(first)
    site.cluster.vanish(names.KIND, first.namespace, first.name)
    second = site.apply(rollout("llama-int8", "llama", "int8"))
    assert site.until_settled(second).phase is Phase.PROMOTED


def test_an_abort_before_the_canary_was_created_creates_none(site: Site) -> None:
    ref = site.apply()
    site.turn(ref)
    assert site.status(ref).phase is Phase.PROVISIONING
    site.annotate(ref, abort="1")
    site.cluster.faults.append(Fault(Refused("quota"), verb="apply", kind="Deployment"))
    site.turn(ref)
    assert site.status(ref).phase is Phase.ROLLING_BACK
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK
    assert "llama-fp8-pool" not in _deployments(site)


def test_evidence_that_leaves_the_rollout_out_is_no_pass(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    site.metrics.timeline = lambda need, now: None
    for _ in range(20):
        site.turn(ref)
    assert site.status(ref).step == 1
    site.metrics.timeline = lambda need, now: Timeline(())
    for _ in range(20):
        site.turn(ref)
    assert site.status(ref).step == 1


def test_a_rollout_that_this_version_cannot_read_is_told_and_left_alone(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    site.turn(ref)
    raw = site.raw(ref)
    raw["spec"]["kvCache"]["dtype"] = "int1"
    before = KVQuantRollout.parse(site.raw(ref))
    site.cluster._objects[names.KIND, ref.namespace, ref.name] = raw
    site.cluster.calls.clear()
    result = site.reconciler.reconcile(ref)
    (told,) = result.announcements
    assert (told.type, told.reason) == ("Warning", "InvalidSpec")
    assert "spec.kvCache.dtype" in told.message
    assert {call.verb for call in site.cluster.calls if call.writes} == {"replace_status"}
    assert not site.reconciler.finalize(ref).done, "its canary still has traffic"
    idle = {**raw, "status": {**raw["status"], "weights": {"baseline": 100, "canary": 0}}}
    site.cluster._objects[names.KIND, ref.namespace, ref.name] = idle
    assert site.reconciler.finalize(ref).done, "it must be possible to delete it"
    assert before.status.weights.canary == site.traffic.weights[ROUTER]["green"] == 10


def test_a_status_that_somebody_has_cut_is_told_once_and_its_weights_are_kept(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    site.turn(ref)
    site.cluster.edit(
        names.KIND, ref.namespace, ref.name, lambda obj: obj["status"].pop("canary") and None
    )
    told = [a for _ in range(3) for a in site.turn(ref).announcements]
    assert [(a.reason, a.message) for a in told] == [
        ("InvalidSpec", "status: Value error, phase Progressing needs status.canary, too")
    ]
    stalled = next(c for c in site.raw(ref)["status"]["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert site.traffic.weights[ROUTER] == {"blue": 90, "green": 10}


def test_a_rollout_that_is_gone_needs_nothing(site: Site) -> None:
    gone = Ref(NAMESPACE, "never-was")
    assert site.reconciler.reconcile(gone).done
    assert site.reconciler.finalize(gone).done
