"""What the asking verbs write, refuse, wait for, and say when things go wrong."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.cli.verbs import KILL, UNKILL, applicable
from kvquant.errors import Conflict, Refused, Unavailable
from tests.fakes.cluster import Fault
from tests.unit.cli import made
from tests.unit.cli.stage import Stage

VERBS = ("pause", "resume", "promote", "abort", "retry", "kill", "unkill")


def operator(raw: dict[str, Any]) -> None:
    """Take up whatever is asked, as the operator would."""
    asked = raw["metadata"].get("annotations") or {}
    status = raw["status"]
    handled = status.setdefault("handled", {})
    for verb in ("promote", "abort", "retry"):
        token = asked.get(f"kvquant.dev/{verb}")
        if token and handled.get(verb) != token:
            handled[verb] = token
            if verb == "promote":
                status["nextStep"] = status["step"] + 1
            if verb == "abort":
                status.update(phase="RollingBack", weights={"baseline": 100, "canary": 0})
            if verb == "retry":
                status.update(phase="Pending", step=0)
    paused = asked.get("kvquant.dev/paused")
    made.set_condition(raw, "Paused", "True" if paused else "False", "Requested", paused or "")
    status["killed"] = "kvquant.dev/killed" in asked
    if status["killed"]:
        status["weights"] = {"baseline": 100, "canary": 0}


# What goes wrong.


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_name_is_answered_with_the_names_that_exist(verb: str) -> None:
    stage = Stage()
    stage.put(made.progressing("llama-fp8"), made.progressing("qwen-int8"))
    result = stage.run(verb, "lama-fp8")
    assert result.exit_code == 1
    assert "llama-fp8, qwen-int8" in result.stderr
    assert "Did you mean llama-fp8?" in result.stderr
    assert not any(call.writes for call in stage.cluster.calls)


def test_a_rollout_of_another_namespace_is_named_with_it() -> None:
    stage = Stage()
    stage.put(made.progressing(namespace="chat"))
    result = stage.run("pause", "llama-fp8")
    assert result.exit_code == 1
    assert "chat/llama-fp8" in result.stderr
    assert "-n" in result.stderr


def test_an_unknown_name_where_nothing_may_be_listed_is_still_one_clear_sentence() -> None:
    stage = Stage()
    stage.cluster.faults.append(Fault(Refused("forbidden (HTTP 403)"), verb="list", times=9))
    result = stage.run("pause", "llama-fp8")
    assert result.exit_code == 1
    assert "no rollout 'llama-fp8' in namespace inference" in result.stderr


@pytest.mark.parametrize(
    ("verb", "raw", "reason", "instead"),
    [
        ("promote", made.rolled_back("llama-fp8"), "rolled back", "retry"),
        ("promote", made.paused(), "paused", "resume"),
        ("promote", made.killed(), "kill switch", "unkill"),
        ("promote", made.provisioning(), "Provisioning", "status"),
        ("pause", made.promoted(), "promoted", "abort"),
        ("pause", made.rolled_back("llama-fp8"), "rolled back", "retry"),
        ("abort", made.fresh(), "not begun", "pause"),
        ("abort", made.rolled_back("llama-fp8"), "rolled back", "retry"),
        ("retry", made.promoted(), "promoted", "abort"),
    ],
)
def test_a_verb_that_cannot_apply_is_refused_with_the_right_one(
    verb: str, raw: dict[str, Any], reason: str, instead: str
) -> None:
    stage = Stage()
    stage.put(raw)
    result = stage.run(verb, "llama-fp8")
    assert result.exit_code == 1
    assert reason in result.stderr
    assert f"kvquant {instead} llama-fp8 -n inference" in result.stderr
    assert not any(call.writes for call in stage.cluster.calls)


@pytest.mark.parametrize("verb", ["abort", "kill", "promote", "pause"])
def test_a_settled_promotion_is_taken_back_by_a_new_rollout_only(verb: str) -> None:
    stage = Stage()
    stage.put(made.promoted(settled=True))
    result = stage.run(verb, "llama-fp8")
    assert result.exit_code == 1
    assert "targetRef.name: llama-fp8-pool" in result.stderr
    assert not any(call.writes for call in stage.cluster.calls)


@pytest.mark.parametrize("stage_of_it", ["Proving", "HandingOver"])
def test_a_hand_over_is_taken_back_by_kill_and_goes_on_after_unkill(stage_of_it: str) -> None:
    stage = Stage()
    stage.put(made.adopting(stage_of_it))
    asked = stage.run("kill", "llama-fp8", "--no-wait")
    assert asked.exit_code == 0, asked.stderr
    assert "every request to llama-fp8-pool" in asked.stdout + asked.stderr
    assert "kvquant.dev/killed" in stage.rollout()["metadata"]["annotations"]
    stage.put(made.adopting("Proving", killed=True))
    again = stage.run("kill", "llama-fp8")
    assert "killed already: every request goes to llama-fp8-pool" in again.stdout + again.stderr
    lifted = stage.run("unkill", "llama-fp8", "--no-wait")
    assert lifted.exit_code == 0, lifted.stderr
    assert "goes on with the hand-over" in lifted.stdout + lifted.stderr
    assert "kvquant.dev/killed" not in stage.rollout()["metadata"]["annotations"]


def test_kill_of_a_hand_over_is_not_done_before_the_pool_has_the_traffic() -> None:
    """Under a kill switch, a pool without a ready pod cannot take it: the CLI must not say so."""
    raw = made.adopting(killed=True)
    assert not KILL.done(made.seen(raw), None)
    assert not UNKILL.done(made.seen(raw), None)
    raw["status"]["weights"] = {"baseline": 0, "canary": 100}
    assert KILL.done(made.seen(raw), None)


def test_a_hand_over_can_be_paused_and_not_aborted() -> None:
    stage = Stage()
    stage.put(made.adopting())
    paused = stage.run("pause", "llama-fp8", "--no-wait")
    assert paused.exit_code == 0, paused.stderr
    assert "no further with the hand-over" in paused.stdout + paused.stderr
    for verb in ("abort", "promote", "retry"):
        assert stage.run(verb, "llama-fp8").exit_code == 1


def test_a_deleted_rollout_hands_nothing_over_that_could_be_paused() -> None:
    raw = made.adopting()
    raw["metadata"].update(deletionTimestamp=made.before(seconds=5), finalizers=["kvquant.dev/f"])
    assert "pause" not in applicable(made.seen(raw))


def test_retry_of_a_running_attempt_is_refused() -> None:
    stage = Stage()
    stage.put(made.progressing())
    result = stage.run("retry", "llama-fp8")
    assert result.exit_code == 1
    assert "still on its way" in result.stderr


def test_retry_of_an_example_set_that_did_not_decide_asks_it_again() -> None:
    for verdict, taken in (("Error", True), ("Inconclusive", True), ("Pass", False), (None, False)):
        stage = Stage()
        stage.put(made.evaluating(verdict))
        result = stage.run("retry", "llama-fp8", "--no-wait")
        assert any(call.writes for call in stage.cluster.calls) == taken
        assert ("asks the example set again" in result.stdout + result.stderr) == taken


def test_promote_is_refused_while_the_next_step_is_being_made_ready() -> None:
    raw = made.progressing()
    raw["status"]["nextStep"] = 3
    stage = Stage()
    stage.put(raw)
    result = stage.run("promote", "llama-fp8")
    assert result.exit_code == 1
    assert "goes on by itself" in result.stderr


@pytest.mark.parametrize("verb", ["pause", "promote", "retry"])
def test_a_rollout_that_is_being_deleted_takes_no_requests(verb: str) -> None:
    raw = made.progressing()
    raw["metadata"]["deletionTimestamp"] = made.before(seconds=5)
    raw["metadata"]["finalizers"] = ["kvquant.dev/finalizer"]
    stage = Stage()
    stage.put(raw)
    result = stage.run(verb, "llama-fp8")
    assert result.exit_code == 1
    assert "being deleted" in result.stderr


@pytest.mark.parametrize("verb", ["pause", "promote", "abort", "kill"])
def test_a_request_that_nobody_takes_up_ends_in_a_time_out_that_says_what_to_do(verb: str) -> None:
    stage = Stage()
    stage.put(made.progressing())
    result = stage.run(verb, "llama-fp8", "--timeout", "5s")
    assert result.exit_code == 1
    assert stage.waited == pytest.approx(5)
    assert "not taken up within 5 s" in result.stderr
    assert "kubectl get pods" in result.stderr
    assert f"kvquant.dev/{verb}"[:-1] in str(stage.annotations())


def test_a_one_shot_request_that_timed_out_tells_how_to_take_it_back() -> None:
    stage = Stage()
    stage.put(made.progressing())
    result = stage.run("promote", "llama-fp8", "--timeout", "1s")
    assert "annotate kvqr llama-fp8 kvquant.dev/promote-" in result.stderr


def test_a_request_overtaken_by_a_rollback_says_so_at_once() -> None:
    def rolls_back(raw: dict[str, Any]) -> None:
        raw["status"] = made.rolled_back("llama-fp8")["status"]

    stage = Stage(operator=rolls_back)
    stage.put(made.progressing())
    result = stage.run("promote", "llama-fp8")
    assert result.exit_code == 1
    assert "came too late" in result.stderr
    assert stage.waited < 1


def test_promote_does_not_hit_a_step_that_its_author_has_not_seen() -> None:
    stage = Stage()
    stage.put(made.progressing())
    real = stage.cluster.patch
    seen: list[str] = []

    def moved_on(raw: dict[str, Any]) -> None:
        raw["status"].update(step=3, stepLabel="3/4")

    def patch(kind: str, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        if not seen:
            seen.append(name)
            stage.cluster.edit(kind, namespace, name, moved_on)
        return real(kind, namespace, name, patch)

    stage.cluster.patch = patch  # type: ignore[method-assign]
    result = stage.run("promote", "llama-fp8")
    assert result.exit_code == 1
    assert "moved on by itself" in result.stderr
    assert stage.annotations() == {}


def test_a_write_that_lost_a_race_against_the_operator_is_tried_again() -> None:
    stage = Stage(operator=operator)
    stage.put(made.progressing())
    stage.cluster.faults.append(Fault(Conflict("modified"), verb="patch", times=3))
    result = stage.run("abort", "llama-fp8")
    assert result.exit_code == 0, result.stderr


def test_a_write_that_loses_every_race_gives_up_with_a_sentence() -> None:
    stage = Stage()
    stage.put(made.progressing())
    stage.cluster.faults.append(Fault(Conflict("modified"), verb="patch", times=99))
    result = stage.run("abort", "llama-fp8")
    assert result.exit_code == 1
    assert "try again" in result.stderr


def test_a_hiccup_of_the_server_while_waiting_is_no_failure() -> None:
    stage = Stage(operator=operator)
    stage.put(made.progressing())
    stage.cluster.faults.append(Fault(Unavailable("503"), verb="get", skip=1, times=2))
    assert stage.run("pause", "llama-fp8").exit_code == 0


def test_unkill_says_at_once_that_the_switch_of_the_whole_cluster_holds() -> None:
    raw = made.killed()
    raw["metadata"]["annotations"] = {}
    made.set_condition(raw, "Killed", "True", "Requested", "whole cluster: incident (by bob)")
    stage = Stage()
    stage.put(raw)
    result = stage.run("unkill", "llama-fp8")
    assert result.exit_code == 1
    assert "unkill --all" in result.stderr
    assert stage.waited == 0


def test_a_reason_is_kept_on_one_line_and_within_bounds() -> None:
    stage = Stage(operator=operator)
    stage.put(made.progressing())
    assert stage.run("pause", "llama-fp8", "--reason", "x" * 501).exit_code == 2
    assert stage.run("pause", "llama-fp8", "--reason", "two\nlines\x1b[31m").exit_code == 0
    assert stage.annotations()["kvquant.dev/paused"].endswith(": two lines [31m")


# What goes well.


@pytest.mark.parametrize(
    ("verb", "raw"),
    [
        ("pause", made.progressing()),
        ("promote", made.progressing()),
        ("abort", made.progressing()),
        ("abort", made.promoted()),
        ("kill", made.progressing()),
        ("kill", made.promoted()),
        ("retry", made.rolled_back("llama-fp8")),
        ("resume", made.paused()),
        ("unkill", made.killed()),
    ],
)
def test_a_request_is_announced_taken_up_and_timed(verb: str, raw: dict[str, Any]) -> None:
    stage = Stage(operator=operator)
    stage.put(raw)
    result = stage.run(verb, "llama-fp8", "--reason", "because")
    assert result.exit_code == 0, result.stderr
    announced, done = result.stdout.splitlines()
    assert announced.startswith("inference/llama-fp8 ")
    assert done.startswith("Done after 0.2 s: ")


@pytest.mark.parametrize("verb", ["pause", "promote", "abort", "kill"])
def test_requests_say_who_asked_when_and_why_and_touch_nothing_else(verb: str) -> None:
    stage = Stage(operator=operator)
    raw = made.progressing()
    raw["metadata"]["annotations"] = {"theirs": "kept"}
    stage.put(raw)
    stage.run(verb, "llama-fp8", "--reason", "because")
    annotations = stage.annotations()
    assert annotations.pop("theirs") == "kept"
    ((name, value),) = annotations.items()
    assert name == f"kvquant.dev/{verb}".replace("pause", "paused").replace("kill", "killed")
    assert value.startswith("2026-11-24T14:00:00")
    assert value.endswith("by alice: because")
    assert {call.verb for call in stage.cluster.calls if call.writes} == {"patch"}


def test_two_one_shot_requests_have_two_tokens() -> None:
    stage = Stage(operator=operator)
    stage.put(made.progressing())
    stage.run("promote", "llama-fp8")
    first = stage.annotations()["kvquant.dev/promote"]
    stage.put(made.progressing())
    stage.run("promote", "llama-fp8")
    assert stage.annotations()["kvquant.dev/promote"] != first


def test_no_wait_asks_and_returns_at_once() -> None:
    stage = Stage()
    stage.put(made.progressing())
    result = stage.run("pause", "llama-fp8", "--no-wait")
    assert result.exit_code == 0
    assert stage.waited == 0
    assert "kvquant.dev/paused" in stage.annotations()


@pytest.mark.parametrize(
    ("verb", "raw"),
    [("pause", made.paused()), ("resume", made.progressing()), ("unkill", made.progressing())],
)
def test_what_is_so_already_is_no_error_and_writes_nothing(verb: str, raw: dict[str, Any]) -> None:
    stage = Stage()
    stage.put(raw)
    result = stage.run(verb, "llama-fp8")
    assert result.exit_code == 0
    assert "nothing to do" in result.stdout
    assert not any(call.writes for call in stage.cluster.calls)


def test_kill_works_on_a_rollout_that_this_version_cannot_read() -> None:
    raw = made.progressing()
    stage = Stage()
    stage.put(raw)
    real = stage.cluster.get

    def get(kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        found = real(kind, namespace, name)
        if found is not None:
            found["spec"]["kvCache"]["dtype"] = "of-the-future"
            found["status"]["killed"] = "kvquant.dev/killed" in found["metadata"]["annotations"]
            found["status"]["weights"] = {"canary": 0}
        return found

    stage.cluster.get = get  # type: ignore[method-assign]
    raw["metadata"]["annotations"] = {"theirs": "kept"}
    stage.put(raw)
    assert stage.run("kill", "llama-fp8").exit_code == 0
    assert "cannot be read by this version" in stage.run("pause", "llama-fp8").stderr


def test_called_by_kubectl_it_suggests_kubectl_commands() -> None:
    stage = Stage()
    stage.put(made.rolled_back())
    result = stage.run("promote", "llama-int8", program="kubectl kvquant")
    assert "kubectl kvquant retry llama-int8 -n inference" in result.stderr


LIST_DENIED = (
    'kvquantrollouts.kvquant.dev is forbidden: User "alice" cannot list resource '
    '"kvquantrollouts" in API group "kvquant.dev" at the cluster scope (HTTP 403)'
)


@pytest.mark.parametrize("verb", VERBS)
def test_who_may_only_look_is_told_which_role_steers(verb: str) -> None:
    raw = {"retry": made.rolled_back("llama-fp8"), "resume": made.paused(), "unkill": made.killed()}
    denial = LIST_DENIED.replace("list", "patch").replace(
        "at the cluster scope", 'in the namespace "inference"'
    )
    stage = Stage()
    stage.put(raw.get(verb, made.progressing()))
    stage.cluster.faults.append(Fault(Refused(denial), verb="patch"))
    result = stage.run(verb, "llama-fp8")
    assert result.exit_code == 1
    assert "RoleBinding to the ClusterRole kvquant-edit in namespace inference" in result.stderr
    assert "Done" not in result.stdout


def test_a_denial_in_other_words_still_says_how_to_look() -> None:
    stage = Stage()
    stage.cluster.faults.append(Fault(Refused("policy says no (HTTP 403)"), verb="get"))
    result = stage.run("pause", "llama-fp8")
    assert result.exit_code == 1
    assert "policy says no" in result.stderr
    assert "kubectl auth can-i --list" in result.stderr
