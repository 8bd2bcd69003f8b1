"""The kill switch of the whole cluster: who may throw it, and what they hear."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api import names
from kvquant.errors import Refused
from tests import manifests
from tests.fakes.cluster import Fault
from tests.unit.cli import made
from tests.unit.cli.stage import Stage

SWITCH_DENIED = (
    'configmaps "kvquant-kill-switch" is forbidden: User "alice" cannot patch resource '
    '"configmaps" in API group "" in the namespace "kvquant-system" (HTTP 403)'
)
LIST_DENIED = (
    'kvquantrollouts.kvquant.dev is forbidden: User "alice" cannot list resource '
    '"kvquantrollouts" in API group "kvquant.dev" at the cluster scope (HTTP 403)'
)


# What goes wrong.


@pytest.mark.parametrize("arguments", [(), ("llama-fp8", "--all")])
@pytest.mark.parametrize("verb", ["kill", "unkill"])
def test_kill_wants_either_a_name_or_all(verb: str, arguments: tuple[str, ...]) -> None:
    result = Stage().run(verb, *arguments)
    assert result.exit_code == 2
    assert "--all" in result.stderr


def test_who_may_not_throw_the_switch_of_the_cluster_is_told_the_role_that_may() -> None:
    stage = Stage()
    stage.cluster.faults.append(Fault(Refused(SWITCH_DENIED), verb="apply"))
    result = stage.run("kill", "--all")
    assert result.exit_code == 1
    assert 'cannot patch resource "configmaps"' in result.stderr
    assert "Role kvquant-kill-switch in namespace kvquant-system" in result.stderr


@pytest.mark.parametrize(("verb", "state"), [("kill", "on"), ("unkill", "off")])
def test_who_may_not_see_every_rollout_still_hears_that_the_switch_was_thrown(
    verb: str, state: str
) -> None:
    stage = Stage()
    if verb == "unkill":
        stage.run("kill", "--all")
    stage.cluster.faults.append(Fault(Refused(LIST_DENIED), verb="list"))
    result = stage.run(verb, "--all")
    assert result.exit_code == 1
    assert f"the kill switch of the whole cluster is {state}" in result.stderr
    assert "ClusterRoleBinding to the ClusterRole kvquant-view in the whole" in result.stderr
    switch = stage.cluster.get("ConfigMap", "kvquant-system", "kvquant-kill-switch")
    assert switch is not None
    assert switch["data"]["killed"] == ("true" if verb == "kill" else "false")


def test_a_cluster_wide_kill_that_a_rollout_does_not_follow_is_no_success() -> None:
    stage = Stage()
    stage.put(made.progressing())
    result = stage.run("kill", "--all", "--timeout", "3s")
    assert result.exit_code == 1
    assert stage.waited == pytest.approx(3)
    assert "not taken up within 3 s" in result.stderr


def test_the_role_of_the_kill_switch_fits_the_object_that_is_written() -> None:
    (role,) = [
        document
        for _, document in manifests.of_kind("Role")
        if document["metadata"]["name"] == "kvquant-kill-switch"
    ]
    assert role["metadata"]["namespace"] == "kvquant-system"
    (rule,) = role["rules"]
    assert rule["resourceNames"] == [names.KILL_SWITCH_CONFIGMAP]
    assert {"get", "create", "patch"} == set(rule["verbs"])


# What goes well.


def test_kill_all_sets_the_switch_of_the_cluster_and_waits_for_every_rollout() -> None:
    def killed_one_by_one(raw: dict[str, Any]) -> None:
        if raw["metadata"]["name"] == "llama-fp8" or stage.waited > 1:
            raw["status"].update(killed=True, weights={"baseline": 100, "canary": 0})

    stage = Stage(operator=killed_one_by_one)
    stage.put(made.progressing("llama-fp8"), made.progressing("qwen", namespace="chat"))
    result = stage.run("kill", "--all", "--reason", "incident 4711")
    assert result.exit_code == 0, result.stderr
    assert stage.waited > 1
    assert "2 rollouts" in result.stdout
    switch = stage.cluster.get("ConfigMap", "kvquant-system", "kvquant-kill-switch")
    assert switch is not None
    assert switch["metadata"]["labels"] == {"kvquant.dev/kill-switch": "true"}
    assert switch["data"] == {
        "killed": "true",
        "reason": "incident 4711",
        "by": "alice",
        "at": "2026-11-24T14:00:00Z",
    }


def test_kill_all_names_promotions_that_cannot_go_back() -> None:
    stage = Stage()
    stage.put(made.promoted(settled=True))
    result = stage.run("kill", "--all")
    assert result.exit_code == 0
    assert "0 rollouts" in result.stdout
    assert "llama-fp8" in result.stdout


def test_kill_all_waits_until_a_hand_over_is_taken_back() -> None:
    stage = Stage()
    for unmoved in (made.adopting("HandingOver", killed=True), made.adopting("Proving")):
        stage.put(unmoved)
        late = stage.run("kill", "--all", "--timeout", "3s")
        assert late.exit_code == 1
        assert "3 s" in late.stderr
    stage.put(made.adopting("Proving", killed=True))
    result = stage.run("kill", "--all")
    assert result.exit_code == 0, result.stderr
    assert "1 more stay on their promoted pools" in result.stdout
    assert "no old pool" not in result.stdout


def test_unkill_all_names_the_rollouts_that_have_a_switch_of_their_own() -> None:
    stage = Stage()
    stage.put(made.killed())
    stage.run("kill", "--all")
    result = stage.run("unkill", "--all")
    assert result.exit_code == 0, result.stderr
    assert "switches of their own: llama-fp8" in result.stdout
    switch = stage.cluster.get("ConfigMap", "kvquant-system", "kvquant-kill-switch")
    assert switch is not None
    assert switch["data"]["killed"] == "false"


def test_unkill_all_names_a_hand_over_that_has_a_switch_of_its_own() -> None:
    stage = Stage()
    stage.put(made.adopting("Proving", killed=True))
    stage.run("kill", "--all")
    result = stage.run("unkill", "--all")
    assert result.exit_code == 0, result.stderr
    assert "switches of their own: llama-fp8" in result.stdout


def test_unkill_all_without_a_switch_has_nothing_to_do() -> None:
    result = Stage().run("unkill", "--all")
    assert result.exit_code == 0
    assert "nothing to do" in result.stdout


def test_the_operators_namespace_may_be_another() -> None:
    stage = Stage()
    assert stage.run("kill", "--all", "--operator-namespace", "ops").exit_code == 0
    assert stage.cluster.get("ConfigMap", "ops", "kvquant-kill-switch") is not None
