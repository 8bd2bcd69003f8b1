"""A target with an autoscaler: held still for the rollout, given back whatever its end."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.errors import Conflict, Refused
from kvquant.ports import Object
from kvquant.reconciler import Ref
from tests.fakes.cluster import Fault
from tests.site import NAMESPACE, Harm, Site, never_skips, rollout, steps_taken

HPA = "HorizontalPodAutoscaler"
OWNERS = (2, 8)


@dataclass(slots=True)
class ScaledSite(Site):
    """A site whose autoscaler wants a number of pods that changes all the time."""

    wishes: list[int] = field(default_factory=lambda: [3, 1, 8, 2, 5])
    ever: list[int] = field(default_factory=list)

    def control(self) -> None:
        self.wishes.append(self.wishes.pop(0))
        for autoscaler in self.cluster.objects(HPA):
            name = autoscaler["spec"]["scaleTargetRef"]["name"]
            if name != "llama" or not self.deployment(name)["spec"]["replicas"]:
                continue
            lowest, highest = bounds(autoscaler)
            wish = max(lowest, min(highest, self.wishes[0]))
            self.cluster.edit("Deployment", NAMESPACE, name, functools.partial(scale, wish))
            self.ever.append(wish)
        super(ScaledSite, self).control()


def scale(replicas: int, deployment: Object) -> None:
    deployment["spec"]["replicas"] = replicas


def bounds(autoscaler: Object) -> tuple[int, int]:
    return autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]


def autoscaler(name: str = "llama", target: str = "llama", **spec: Any) -> Object:
    lowest, highest = OWNERS
    return {
        "apiVersion": "autoscaling/v2",
        "kind": HPA,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "minReplicas": lowest,
            "maxReplicas": highest,
            **spec,
        },
    }


def stored(site: Site, name: str = "llama") -> Object:
    return next(o for o in site.cluster.objects(HPA) if o["metadata"]["name"] == name)


def is_as_its_owner_left_it(site: Site) -> bool:
    found = stored(site)
    pinned = names.ANNOTATION_PINNED in found["metadata"].get("annotations", {})
    return bounds(found) == OWNERS and not pinned


@pytest.fixture
def site() -> ScaledSite:
    it = ScaledSite()
    it.deploy()
    it.cluster.put(autoscaler())
    return it


def begun(site: ScaledSite) -> Ref:
    """Return a rollout that is on its way, with its target's autoscaler held."""
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    site.ever.clear()
    return ref


@pytest.mark.parametrize("end", ["promoted", "rolled back", "aborted", "killed and deleted"])
def test_it_is_held_still_to_the_end_and_given_back_whatever_the_end(
    site: ScaledSite, end: str
) -> None:
    ref = begun(site)
    held = bounds(stored(site))
    assert held[0] == held[1]
    if end == "rolled back":
        site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    elif end == "aborted":
        site.annotate(ref, abort="1")
    if end == "killed and deleted":
        site.annotate(ref, killed="true")
        site.turn(ref)
        site.delete(ref)
    else:
        site.until(ref, lambda status: status.settled)
        assert set(site.ever) == {held[0]}, "not one pod came or went"
        assert not is_as_its_owner_left_it(site)
        site.until_settled(ref)
    assert is_as_its_owner_left_it(site)
    assert never_skips(steps_taken(site.traffic.history, "green"))
    assert site.lost == []


@pytest.mark.parametrize("where", [Phase.PROVISIONING, Phase.PROGRESSING, Phase.PROMOTED])
def test_a_deleted_rollout_gives_it_back(site: ScaledSite, where: Phase) -> None:
    ref = site.apply()
    site.until_phase(ref, where)
    site.turn(ref)
    assert not is_as_its_owner_left_it(site)
    site.delete(ref)
    assert is_as_its_owner_left_it(site)


def test_a_deleted_rollout_that_nobody_can_read_gives_it_back(site: ScaledSite) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROVISIONING)
    site.turn(ref)
    raw = site.raw(ref)
    raw["spec"]["kvCache"]["dtype"] = "int1"
    site.cluster._objects[names.KIND, ref.namespace, ref.name] = raw
    assert site.reconciler.finalize(ref).done
    assert is_as_its_owner_left_it(site)


def test_one_whose_rollout_was_removed_by_force_is_given_back_by_the_next(site: ScaledSite) -> None:
    first = begun(site)
    site.cluster.vanish(names.KIND, first.namespace, first.name)
    second = site.apply(rollout("llama-int8", "llama", "int8"))
    site.until_settled(second)
    assert is_as_its_owner_left_it(site)


def test_bounds_that_the_owner_edits_meanwhile_are_what_is_given_back(site: ScaledSite) -> None:
    ref = begun(site)
    site.cluster.edit(HPA, NAMESPACE, "llama", lambda o: o["spec"].update(maxReplicas=20))
    site.turn(ref)
    lowest, highest = bounds(stored(site))
    assert lowest == highest, "held again"
    site.until_settled(ref)
    assert bounds(stored(site))[1] == 20


def test_an_edit_in_the_same_moment_is_not_overwritten(site: ScaledSite) -> None:
    site.cluster.faults.append(Fault(Conflict("modified"), verb="patch", kind=HPA))
    ref = begun(site)
    assert site.cluster.faults[0].times < 1, "the fault has struck"
    site.until_settled(ref)
    assert is_as_its_owner_left_it(site)


def test_autoscalers_of_others_are_left_alone(site: ScaledSite) -> None:
    site.cluster.put(autoscaler("others", "llama-router"))
    site.cluster.put(autoscaler("fixed", "llama", minReplicas=3, maxReplicas=3))
    before = stored(site, "others")
    ref = begun(site)
    assert stored(site, "others")["spec"] == before["spec"]
    site.until_settled(ref)
    assert "annotations" not in stored(site, "others")["metadata"]
    assert bounds(stored(site, "fixed")) == (3, 3)


def test_an_annotation_that_nobody_can_read_is_replaced(site: ScaledSite) -> None:
    broken = autoscaler()
    broken["metadata"]["annotations"] = {names.ANNOTATION_PINNED: "[}"}
    site.cluster.put(broken)
    ref = begun(site)
    site.until_settled(ref)
    assert is_as_its_owner_left_it(site)


def test_without_the_right_to_hold_it_nothing_moves_and_the_reason_is_told(
    site: ScaledSite,
) -> None:
    denied = Refused(f"list of {HPA} in inference: HTTP 403: forbidden")
    site.cluster.faults.append(Fault(denied, kind=HPA, times=10**6))
    ref = site.apply()
    for _ in range(10):
        site.turn(ref)
    status = site.status(ref)
    assert (status.phase, status.weights.canary) == (Phase.PROVISIONING, 0)
    assert "HorizontalPodAutoscaler" in (status.verdict or "")
    site.annotate(ref, abort="1")
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK
