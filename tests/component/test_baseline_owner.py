"""The baseline's owner goes on working on it in mid-rollout: edits, scaling, deletion."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, Status
from kvquant.ports import Object, RouterKey
from kvquant.reconciler import Ref
from tests.site import NAMESPACE, Site, engine_pool, never_skips, rollout, steps_taken

ROUTER = RouterKey(NAMESPACE, "llama-router")

UNDER_WAY: dict[str, Callable[[Status], bool]] = {
    "provisioning": lambda s: s.phase is Phase.PROVISIONING,
    "verifying": lambda s: s.phase is Phase.VERIFYING,
    "first step": lambda s: s.step == 1 and s.analysis is not None,
    "between steps": lambda s: s.next_step == 3,
    "last step": lambda s: s.step == 4 and s.analysis is not None,
}


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def edit(site: Site, change: Callable[[Object], None]) -> None:
    """Let somebody edit a Deployment."""
    site.cluster.edit("Deployment", NAMESPACE, "llama", change)


def container(deployment: Object) -> Object:
    """Return the engine's container of a Deployment."""
    found: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def held(site: Site, ref: Ref) -> str | None:
    condition = site.status(ref).condition("Held")
    return condition.reason if condition is not None and condition.status == "True" else None


@pytest.mark.parametrize("place", UNDER_WAY)
def test_another_template_of_the_baseline_starts_the_attempt_over(site: Site, place: str) -> None:
    ref = site.apply()
    site.until(ref, UNDER_WAY[place])
    edit(site, lambda d: container(d).update(image="vllm/vllm-openai:v0.33.0"))
    site.until(ref, lambda status: status.attempt == 2)
    assert "BaselineChanged" in site.reasons(ref)
    status = site.until_settled(ref)
    assert (status.phase, status.attempt) == (Phase.PROMOTED, 2)
    image = container(site.deployment("llama-fp8-pool"))["image"]
    assert image == "vllm/vllm-openai:v0.33.0", "the canary is derived from the new template"
    assert never_skips(steps_taken(site.traffic.history, "green"))
    assert site.lost == []


def test_a_baseline_that_is_edited_to_the_dtype_asked_for_leaves_nothing_to_do(site: Site) -> None:
    ref = site.apply()
    site.until(ref, UNDER_WAY["first step"])
    edit(site, lambda d: container(d).update(args=["--model", "llama", "--kv-cache-dtype", "fp8"]))
    site.until_phase(ref, Phase.PENDING)
    for _ in range(3):
        site.turn(ref)
    assert held(site, ref) == "AlreadyRunning"
    assert site.traffic.weights[ROUTER] == {"blue": 100, "green": 0}


def test_a_restart_of_the_baseline_is_no_other_baseline(site: Site) -> None:
    ref = site.apply()
    site.until(ref, UNDER_WAY["first step"])
    restarted = {"kubectl.kubernetes.io/restartedAt": "2026-11-25T12:00:00Z"}
    edit(site, lambda d: d["spec"]["template"]["metadata"].update(annotations=restarted))
    assert site.until_settled(ref).attempt == 1


def test_an_edit_after_the_promotion_is_the_owners_own_affair(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROMOTED)
    edit(site, lambda d: container(d).update(image="vllm/vllm-openai:v0.33.0"))
    status = site.until_settled(ref)
    assert (status.phase, status.attempt) == (Phase.PROMOTED, 1)


@pytest.mark.parametrize("place", UNDER_WAY)
def test_a_baseline_that_grows_makes_the_canary_grow_with_it(site: Site, place: str) -> None:
    ref = site.apply()
    site.until(ref, UNDER_WAY[place])
    edit(site, lambda d: d["spec"].update(replicas=16))
    status = site.until_settled(ref)
    assert (status.phase, status.attempt) == (Phase.PROMOTED, 1)
    assert "BaselineScaled" in site.reasons(ref)
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 16
    assert never_skips(steps_taken(site.traffic.history, "green"))
    assert site.lost == []


def test_a_baseline_that_shrinks_takes_no_pod_from_a_canary_with_traffic(site: Site) -> None:
    site.deploy(engine_pool(replicas=4))
    site.let_pass(5)
    ref = site.apply()
    site.until(ref, UNDER_WAY["last step"])
    edit(site, lambda d: d["spec"].update(replicas=1))
    site.until_phase(ref, Phase.PROMOTED)
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 4
    assert "BaselineScaled" not in site.reasons(ref)


@pytest.mark.parametrize("place", [p for p in UNDER_WAY if p not in ("provisioning", "verifying")])
@pytest.mark.parametrize("how", ["deleted", "scaled to zero"])
def test_without_a_baseline_nothing_moves_until_it_is_back(
    site: Site, place: str, how: str
) -> None:
    ref = site.apply()
    site.until(ref, UNDER_WAY[place])
    step = site.status(ref).step
    if how == "deleted":
        site.cluster.vanish("Deployment", NAMESPACE, "llama")
    else:
        edit(site, lambda d: d["spec"].update(replicas=0))
    site.lost.clear()
    for _ in range(20):
        site.turn(ref)
    assert site.status(ref).step == step
    assert held(site, ref) == ("TargetNotFound" if how == "deleted" else "TargetScaledToZero")
    site.deploy()
    site.let_pass(5)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_an_old_pool_that_is_deleted_early_does_not_keep_the_router(site: Site) -> None:
    first = site.apply()
    site.until_phase(first, Phase.PROMOTED)
    site.turn(first)
    site.cluster.vanish("Deployment", NAMESPACE, "llama")
    site.until_settled(first)
    config = site.cluster.get("ConfigMap", NAMESPACE, "llama-router")
    assert config is not None
    assert config["metadata"]["annotations"][names.ANNOTATION_SETTLED] == "true"
    second = site.apply(rollout("llama-int8", "llama-fp8-pool", "int8"))
    assert site.until_settled(second, first).phase is Phase.PROMOTED
    assert site.lost == []
