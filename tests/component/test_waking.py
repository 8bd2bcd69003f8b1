"""Which rollouts a change in the cluster wakes, and that a hand edit is undone in the next pass."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from kvquant.acting import Actor
from kvquant.api import names
from kvquant.config import OperatorConfig
from kvquant.handlers import Loops
from kvquant.ports import Object
from kvquant.reconciler import Reconciler, Ref
from kvquant.waking import Waker, concerned
from tests.site import NAMESPACE, Site

ROLLOUTS: list[Object] = [
    {
        "metadata": {"name": "one"},
        "spec": {"targetRef": {"name": "llama"}},
        "status": {"router": "llama-router", "canary": {"deployment": "one-pool"}},
    },
    {"metadata": {"name": "two"}, "spec": {"targetRef": {"name": "qwen"}}},
]


def thing(kind: str, name: str = "x", labels: dict[str, str] | None = None, **body: Any) -> Object:
    return {"kind": kind, "metadata": {"name": name, "namespace": "a", "labels": labels}, **body}


def scaler(target: str) -> Object:
    return thing("HorizontalPodAutoscaler", spec={"scaleTargetRef": {"name": target}})


@pytest.mark.parametrize(
    ("obj", "woken"),
    [
        (thing(names.KIND, "two"), {"two"}),
        (thing("Pod", labels={names.LABEL_ROLLOUT: "one"}), {"one"}),
        (thing("Pod", labels={names.LABEL_ROUTER: "llama-router"}), set()),
        (thing("Pod", "llama"), set()),
        (thing("Deployment", "llama"), {"one"}),
        (thing("Deployment", "qwen"), {"two"}),
        (thing("Deployment", "one-pool"), {"one"}),
        (thing("Deployment", "other"), set()),
        (thing("Deployment", "r", {names.LABEL_ROUTER: "llama-router"}), {"one"}),
        (thing("ConfigMap", "r", {names.LABEL_ROUTER: "llama-router"}), {"one"}),
        (thing("ConfigMap", "llama"), set()),
        (thing("Service", "s", {names.LABEL_ROUTER: "other-router"}), set()),
        (scaler("llama"), {"one"}),
        (scaler("one-pool"), {"one"}),
        (scaler("other"), set()),
        (thing("HorizontalPodAutoscaler"), set()),
    ],
)
def test_a_change_concerns_the_rollouts_that_depend_on_it(obj: Object, woken: set[str]) -> None:
    assert concerned(obj, lambda: ROLLOUTS) == woken


def test_pods_are_no_reason_to_look_through_the_rollouts() -> None:
    def look() -> list[Object]:
        raise AssertionError("there are many pods")

    assert concerned(thing("Pod"), look) == set()


def test_what_controllers_report_wakes_nobody_but_of_pods_and_jobs() -> None:
    woken: list[Ref] = []
    waker = Waker(lambda _: ROLLOUTS, lambda _: None, woken.append)
    waker(thing("Deployment", "llama"), False)
    assert woken == []
    waker(thing("Pod", labels={names.LABEL_ROLLOUT: "one"}), False)
    assert woken == [Ref("a", "one")]
    waker(thing("Job", labels={names.LABEL_ROLLOUT: "two"}), False)
    assert woken[1:] == [Ref("a", "two")]


async def test_a_loop_can_be_woken_from_another_thread() -> None:
    loops, ref = Loops(), Ref("a", "one")
    loops.wake_soon(ref)  # kopf has not started yet
    loops.event_loop = asyncio.get_running_loop()
    loop = loops.of(ref)
    await asyncio.to_thread(loops.wake_soon, ref)
    await asyncio.wait_for(loop.wake.wait(), 5)


def test_a_wake_after_the_event_loop_has_ended_is_no_error() -> None:
    loops = Loops()
    loops.event_loop = asyncio.new_event_loop()
    loops.event_loop.close()
    loops.wake_soon(Ref("a", "one"))


def test_a_hand_edit_is_undone_in_the_next_pass() -> None:
    site = Site()
    site.deploy()
    actor = Actor(site.cluster, site.traffic, OperatorConfig(), "-----BEGIN CERTIFICATE-----")
    site.reconciler = Reconciler(site.cluster, site.metrics, site.traffic, lambda: site.now, actor)
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    site.turn(ref)
    woken: list[Ref] = []
    waker = Waker(lambda _: [site.raw(ref)], actor.doubt, woken.append)
    edits: list[tuple[str, str, str, Object]] = [
        ("Service", "llama-router-green", "spec", {"selector": {"app": "llama"}}),
        ("ConfigMap", "llama-router", "data", {"envoy.json": "{}"}),
        ("Deployment", "llama-router", "spec", {"replicas": 7}),
    ]
    for kind, name, part, edit in edits:
        before = existing(site, kind, name)
        site.cluster.edit(kind, NAMESPACE, name, partial(_set, part, edit))
        edited = existing(site, kind, name)
        assert edited[part] != before[part]
        waker(edited, True)
        site.turn(ref)
        assert existing(site, kind, name)[part] == before[part]
    assert woken == [ref] * 3


def test_routers_are_told_of_a_new_authority_of_the_weights_service() -> None:
    site = Site()
    site.deploy()
    actor = Actor(site.cluster, site.traffic, OperatorConfig(), "the old authority")
    site.reconciler = Reconciler(site.cluster, site.metrics, site.traffic, lambda: site.now, actor)
    ref = site.apply()
    site.until(ref, lambda status: status.step == 1)
    site.turn(ref)
    before = existing(site, "Deployment", "llama-router")
    actor.xds_ca = "the new authority"
    site.turn(ref)
    config = str(existing(site, "ConfigMap", "llama-router")["data"])
    assert "the new authority" in config
    assert "the old authority" not in config
    # Envoy reads its configuration at its start alone.
    assert existing(site, "Deployment", "llama-router")["spec"] != before["spec"]
    assert site.lost == []


def existing(site: Site, kind: str, name: str) -> Object:
    found = site.cluster.get(kind, NAMESPACE, name)
    assert found is not None
    return found


def _set(part: str, edit: Object, obj: Object) -> None:
    obj[part].update(edit)
