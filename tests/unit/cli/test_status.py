"""What `status` shows of a rollout in every state, and what it says when it cannot."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from kvquant.cli.documents import describe
from kvquant.cli.paint import Paint, visible
from kvquant.cli.screen import screen
from kvquant.errors import ClusterError, Refused, Unavailable
from tests.fakes.cluster import FakeCluster, Fault
from tests.unit.cli import made
from tests.unit.cli.stage import Stage

FORBIDDEN = (
    'rollout: kvquantrollouts.kvquant.dev "llama-fp8" is forbidden: User "alice" cannot get '
    'resource "kvquantrollouts" in API group "kvquant.dev" in the namespace "inference" (HTTP 403)'
)


def shown(raw: dict[str, Any], *arguments: str) -> str:
    """Return what `status` prints of one rollout."""
    stage = Stage()
    stage.put(raw)
    result = stage.run("status", raw["metadata"]["name"], *arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


# What goes wrong.


def test_a_wrong_name_is_answered_with_the_names_that_exist() -> None:
    stage = Stage()
    stage.put(made.progressing("llama-fp8"), made.progressing("qwen-int8"))
    result = stage.run("status", "lama-fp8")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "There are: llama-fp8, qwen-int8. Did you mean llama-fp8?" in result.stderr


def test_a_missing_right_is_named_with_the_role_that_holds_it() -> None:
    stage = Stage()
    stage.cluster.faults.append(Fault(Refused(FORBIDDEN), verb="get"))
    result = stage.run("status", "llama-fp8")
    assert result.exit_code == 1
    assert 'cannot get resource "kvquantrollouts"' in result.stderr
    assert "RoleBinding to the ClusterRole kvquant-view in namespace inference" in result.stderr


def test_a_right_missing_in_the_whole_cluster_wants_a_cluster_role_binding() -> None:
    denial = FORBIDDEN.replace('in the namespace "inference"', "at the cluster scope")
    stage = Stage()
    stage.cluster.faults.append(Fault(Refused(denial), verb="list"))
    result = stage.run("status", "-A")
    assert result.exit_code == 1
    assert "ClusterRoleBinding to the ClusterRole kvquant-view in the whole cluster" in (
        result.stderr
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("Unauthorized (HTTP 401)"), "log in anew"),
        (Unavailable("etcd is slow (HTTP 503)"), "try again in a moment"),
    ],
)
def test_a_server_that_refuses_or_rests_is_explained(error: ClusterError, said: str) -> None:
    stage = Stage()
    stage.cluster.faults.append(Fault(error))
    result = stage.run("status", "llama-fp8")
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_cluster_without_rollouts_is_no_error_and_says_where_it_looked() -> None:
    assert "No rollouts in namespace inference" in Stage().run("status").stdout
    assert "No rollouts in the cluster" in Stage().run("status", "-A").stdout


def test_a_name_and_all_namespaces_contradict_each_other() -> None:
    result = Stage().run("status", "llama-fp8", "-A")
    assert result.exit_code == 2
    assert "-A" in result.stderr


def test_a_rollout_of_a_newer_version_is_named_as_such() -> None:
    raw = made.progressing()
    raw["status"]["phase"] = "Teleporting"
    cluster = FakeCluster()
    stage = Stage(cluster=cluster)
    cluster.get = lambda *_: raw  # type: ignore[method-assign]
    result = stage.run("status", "llama-fp8")
    assert result.exit_code == 1
    assert "status.phase" in result.stderr
    assert "version of the CLI that came with the operator" in result.stderr


def test_what_the_cluster_says_cannot_steer_the_terminal() -> None:
    raw = made.paused()
    evil = "\x1b[2J\x1b]0;owned\x07 then\nanother line"
    raw["metadata"]["annotations"]["kvquant.dev/paused"] = evil
    made.set_condition(raw, "Held", "True", "Paused", evil)
    raw["status"]["decisions"][-1]["message"] = evil
    text = shown(raw)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "then another line" in text


def test_an_operator_that_fell_silent_is_warned_of() -> None:
    raw = made.progressing()
    raw["status"]["analysis"]["at"] = made.before(minutes=9)
    assert "has not looked at the evidence for 540 s" in " ".join(shown(raw).split())
    assert "has not looked at the evidence" not in shown(made.progressing())


def test_a_changed_spec_that_nobody_took_up_is_warned_of() -> None:
    raw = made.progressing()
    raw["metadata"]["generation"] = 2
    assert "the operator has not taken it up yet" in shown(raw)


def test_signals_without_numbers_are_shown_as_missing_and_never_as_zero() -> None:
    raw = made.progressing()
    for signal in raw["status"]["analysis"]["signals"]:
        del signal["baseline"], signal["canary"]
        signal["verdict"] = "Error"
    row = next(line for line in shown(raw).splitlines() if "page faults" in line)
    assert row.count("no data") == 2
    assert "✗ Error" in row


def test_a_proof_that_failed_stands_before_those_that_passed() -> None:
    raw = made.progressing()
    passed = raw["status"]["regimeProof"][0]
    bad = {
        **copy.deepcopy(passed),
        "pod": "llama-fp8-pool-bad",
        "verdict": "Fail",
        "message": "dtype is auto",
    }
    raw["status"]["regimeProof"] = [{**passed, "pod": f"llama-{i}"} for i in range(6)] + [bad]
    lines = [line for line in shown(raw).splitlines() if "✗" in line or "more" in line]
    assert "llama-fp8-pool-bad  dtype is auto" in lines[0]
    assert lines[1].strip() == "and 3 more"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "ALERT KVCacheSlow fires since 7m; it rolls back."),
        ({"policy": "pause"}, "it holds the step."),
        ({"policy": "ignore"}, "it is ignored."),
        ({"policy": "ignore", "beforeTraffic": True}, "it is ignored."),
        ({"beforeTraffic": True}, "nothing moves until it is over"),
        ({"name": "\x1b[2Jevil"}, "ALERT [2Jevil fires"),
    ],
)
def test_an_alert_that_fires_is_told_with_what_it_does(fields: dict[str, Any], said: str) -> None:
    raw = made.progressing()
    raw["status"]["alerts"] = [made.alert(**fields)]
    text = " ".join(shown(raw).split())
    assert said in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("analysis", "said"),
    [
        ({"verdict": "Inconclusive", "etaSeconds": 720}, "about 12m to go at this rate"),
        ({"verdict": "Inconclusive"}, "time to go not known"),
        ({"budgetSpentPercent": 17}, "17 % of the error budget spent"),
        ({"provisional": True}, "load per pod x0.67 (a pass is provisional)"),
        ({"replicasNeeded": 4}, "the next step needs 4 canary pods"),
    ],
)
def test_how_far_the_evidence_is(analysis: dict[str, Any], said: str) -> None:
    raw = made.progressing()
    assert said not in shown(raw)
    raw["status"]["analysis"].update(analysis)
    assert said in " ".join(shown(raw).split())


def test_of_many_signals_those_are_shown_that_matter() -> None:
    raw = made.progressing()
    raw["status"]["analysis"]["signals"] = [
        *(made.judged(f"quiet{i}", "Pass", budgetSpentPercent=i) for i in range(9)),
        made.judged("latencyP99", "Fail"),
        made.judged("unmeasured", "Inconclusive", baseline=None, canary=None),
    ]
    text = shown(raw)
    assert "beyond p99" in text
    assert "✗ Fail" in text
    assert "quiet8" in text, "what has spent most of its budget"
    assert "quiet0" not in text
    assert "unmeasured" not in text
    assert "and 6 signals more: explain" in text


def test_seconds_with_decimals_are_no_long_times() -> None:
    raw = made.progressing()
    made.set_condition(raw, "Held", "True", "Why", "took 0.172 s, and 1800 s are left")
    assert "took 0.172 s, and 30m are left" in " ".join(shown(raw).split())


# Every state.


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            made.fresh(),
            ["Pending", "The operator has not looked at this rollout yet", "0 % canary"],
        ),
        (made.provisioning(), ["Provisioning", "waits 30s", "Insufficient nvidia.com/gpu."]),
        (
            made.progressing(),
            ["Progressing", "step 2/4, soak 3m of 5m", "25 % canary", "Soak left: 2m.", "x2.00"],
        ),
        (made.paused(), ["■ PAUSED. 2026-11-24T13:59:30Z by alice: freeze", "resume"]),
        (made.killed(), ["■ KILLED: every request goes to the baseline.", "garbled", "unkill"]),
        (made.rolled_back(), ["RolledBack", "cause", "38.46 %", "10 ✗", "✗ Fail", "retry"]),
        (made.promoted(), ["Promoted", "100 % canary", "100 ✓", "closes in 58m"]),
    ],
    ids=lambda value: (
        value["status"]["phase"] if isinstance(value, dict) and "status" in value else None
    ),
)
def test_every_state_is_shown_with_what_matters_in_it(
    raw: dict[str, Any], expected: list[str]
) -> None:
    text = " ".join(shown(raw).split())
    assert [part for part in expected if part not in text] == []


def test_a_rollout_on_its_way_back_says_why() -> None:
    raw = made.rolled_back()
    raw["status"].update(phase="RollingBack", settled=False)
    text = " ".join(shown(raw).split())
    assert "RollingBack" in text
    assert "cause p99: canary 38.46 %" in text


def test_verifying_shows_the_proof_that_is_awaited() -> None:
    raw = made.provisioning()
    proof = {**made.PROOF_PASSED, "verdict": "Inconclusive", "message": "no scrape of this pod yet"}
    raw["status"].update(phase="Verifying", regimeProof=[proof])
    text = shown(raw)
    assert "Verifying" in text
    assert re.search(r"regime proof … llama-fp8-pool-\S+  no scrape of this pod yet", text)


@pytest.mark.parametrize(
    ("verdict", "said", "verbs"),
    [
        (None, "example set  run 1 on its way", "pause, promote, abort, kill"),
        ("Error", "example set  ✗ 1,190 of 1,200  The canary loses", "promote, abort, retry, kill"),
        ("Inconclusive", "1,190 of 1,200  The canary loses", "promote, abort, retry, kill"),
        ("Pass", "example set  ✓ 1,190 of 1,200  The canary loses", "promote, abort, kill"),
    ],
)
def test_what_an_example_set_has_come_to_is_one_line(
    verdict: str | None, said: str, verbs: str
) -> None:
    text = shown(made.evaluating(verdict))
    assert said in text
    assert verbs in text
    assert "example set" not in shown(made.progressing())


def test_deleting_is_told() -> None:
    raw = made.progressing()
    raw["metadata"]["deletionTimestamp"] = made.before(seconds=5)
    raw["metadata"]["finalizers"] = ["kvquant.dev/finalizer"]
    assert "being deleted: traffic goes back to the baseline first" in shown(raw)


def test_a_settled_promotion_offers_no_verb() -> None:
    assert "you can" not in shown(made.promoted(settled=True))


def test_the_proofs_of_a_target_that_adopts_the_dtype_are_shown_with_what_it_waits_for() -> None:
    raw = made.promoted(settled=True)
    wrong = {**made.PROOF_PASSED, "pod": "llama-7", "verdict": "Fail", "message": "it ignored it"}
    raw["status"]["adoption"] = {
        "stage": "Proving",
        "since": made.before(minutes=1),
        "regimeProof": [wrong],
    }
    made.set_condition(raw, "Held", "True", "RegimeProofFailed", "llama-7: it ignored it")
    text = " ".join(shown(raw).split())
    assert "llama-7 it ignored it" in text
    assert "waits" in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_wider_than_the_terminal(width: int, unicode: bool) -> None:
    many = made.progressing()
    weights = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 100)
    many["spec"]["steps"] = [{"weight": weight, "soak": "5m"} for weight in weights]
    long = made.progressing("a-rollout-with-quite-a-long-name-of-63-characters", "a-namespace")
    made.set_condition(long, "Held", "True", "Soaking", "word " * 200)
    for raw in (made.fresh(), made.rolled_back(), made.killed(), many, long):
        lines = screen(describe(made.seen(raw), made.NOW), made.NOW, Paint(unicode=unicode), width)
        assert [line for line in lines if visible(line) > max(width, 60)] == []
        if not unicode:
            assert all(line.isascii() for line in lines)


def test_a_low_terminal_keeps_what_matters_and_drops_old_decisions() -> None:
    document = describe(made.seen(made.progressing()), made.NOW)
    lines = screen(document, made.NOW, Paint(), 80, height=24)
    assert len(lines) <= 24
    assert any("weights" in line for line in lines)
    assert sum(" ago" in line for line in lines) < sum(
        " ago" in line for line in screen(document, made.NOW, Paint(), 80)
    )


def test_colours_come_only_where_they_may() -> None:
    document = describe(made.seen(made.rolled_back()), made.NOW)
    assert "\x1b[31m" in "".join(screen(document, made.NOW, Paint(colour=True)))
    assert "\x1b" not in "".join(screen(document, made.NOW, Paint(colour=False)))


class _Stream:
    """A stream that is a terminal or not."""

    encoding = "utf-8"

    def __init__(self, terminal: bool) -> None:
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("terminal", "environment", "colour", "interactive"),
    [
        (True, {}, True, True),
        (True, {"NO_COLOR": "1"}, False, True),
        (True, {"NO_COLOR": ""}, True, True),
        (True, {"TERM": "dumb"}, False, False),
        (False, {"TERM": "xterm"}, False, False),
    ],
)
def test_no_color_dumb_terminals_and_pipes_are_respected(
    terminal: bool, environment: dict[str, str], colour: bool, interactive: bool
) -> None:
    paint = Paint.of(_Stream(terminal), environment)  # type: ignore[arg-type]
    assert (paint.colour, paint.interactive) == (colour, interactive)


def test_the_table_has_one_line_for_each_rollout_in_order() -> None:
    stage = Stage()
    stage.put(
        made.rolled_back("b"), made.progressing("a"), made.killed(), made.progressing("c", "z")
    )
    lines = stage.run("status", "-A").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["inference", "a"],
        ["inference", "b"],
        ["inference", "llama-fp8"],
        ["z", "c"],
    ]
    assert "killed: 2026-11-24T13:59:30Z by alice: garbled" in lines[3]
    assert "38.46 %" in lines[2]


def test_json_of_many_is_a_list_and_of_one_a_rollout() -> None:
    stage = Stage()
    stage.put(made.progressing("a"), made.progressing("b"))
    many = json.loads(stage.run("status", "-o", "json").stdout)
    one = json.loads(stage.run("status", "b", "-o", "json").stdout)
    assert [item["name"] for item in many["items"]] == ["a", "b"]
    assert many["items"][1] == one
    assert json.loads(Stage().run("status", "-o", "json").stdout) == {"items": []}


def test_json_tells_waiting_weights_and_verbs() -> None:
    document = json.loads(shown(made.progressing(), "-o", "json"))
    assert document["waiting"]["soakLeftSeconds"] == 120
    assert document["weights"] == {"baseline": 75, "canary": 25, "mirror": 0}
    assert document["verbs"] == ["pause", "promote", "abort", "kill"]
    assert [step["state"] for step in document["steps"]] == ["Done", "Current", "ToDo", "ToDo"]
    assert document["killed"] is None


# Copied requests.


def test_before_a_pair_is_compared_it_says_what_is_copied() -> None:
    text = " ".join(shown(made.shadowing()).split())
    assert "copies 5 % of the generation requests are copied; no pair is compared yet" in text
    assert "copies" not in shown(made.progressing()), "nothing is copied any more"


def test_pairs_losses_and_what_is_not_covered_are_shown_while_copies_decide() -> None:
    text = " ".join(shown(made.shadowing(made.answers(50))).split())
    for part in (
        "… Waiting 50 of 200 pairs, 10 more of the baseline alone; about 30m to go at this rate",
        "58 copies, 5.6 % of what clients sent; 37 personal values replaced",
        "100 % of the texts the same (baseline against itself: 100 %)",
        "not compared: queue 5, size 2",
        "not evaluated for want of pairs: 1MiB+ (0 pairs, 31 requests)",
        "answers pairs differs allowed lower upper",
        "drift 50 +0.00 % +5.00 %",
        "citations 50 +0.0/100 +2.0/100 -11.3/100 +0.6/100 … Waiting",
    ):
        assert part in text


def test_too_few_of_a_kind_are_told_apart_from_what_is_waited_for() -> None:
    report = made.answers(300)
    for signal in report["signals"]:
        if signal["name"] == "toolCalls":
            signal.update(verdict="Inconclusive", requests=12)
    text = " ".join(shown(made.shadowing(report)).split())
    assert re.search(r"tool calls 12 \S+ \S+ \S+ \S+ · Too few", text)
    assert "Waiting" not in text


def test_harm_that_ended_the_rollout_stays_on_the_screen() -> None:
    text = " ".join(shown(made.condemned_by_answers()).split())
    assert "✗ Fail 380 pairs (200 asked for)" in text
    assert "citations 380 +10.5/100 +2.0/100 +1.7/100 +10.6/100 ✗ Fail" in text


def test_once_users_meet_the_canary_the_copies_are_summed_up() -> None:
    raw = made.progressing()
    raw["status"]["shadow"] = made.answers(300, 80)
    text = " ".join(shown(raw).split())
    assert "copies ✓ Pass 380 pairs (200 asked for)" in text
    assert "not evaluated for want of pairs: 1MiB+" in text
    assert "differs" not in text, "the steps' signals are what matters now"


def test_copies_of_an_older_operator_are_shown_without_what_it_did_not_tell() -> None:
    report = made.answers(300, 80)
    for name in ("minPairs", "replaced", "dropped"):
        del report[name]
    for bucket in report["buckets"]:
        del bucket["live"]
    raw = made.shadowing(report)
    text = " ".join(shown(raw).split())
    assert "380 pairs (200 asked for)" in text, "the spec knows it"
    assert "388 copies 100 % of the texts" in text
    assert "1MiB+ (0 pairs)" in text


@pytest.mark.parametrize("width", [60, 80, 110])
def test_the_table_of_copies_fits_its_screen(width: int) -> None:
    lines = screen(
        describe(made.seen(made.condemned_by_answers()), made.NOW), made.NOW, Paint(), width
    )
    found = [line for line in lines if line.startswith("  citations ")]
    assert len(found) == 1
    assert "✗ Fail" in found[0]
    assert "+10.5/100" in found[0]
    start = lines.index(next(line for line in lines if line.strip().startswith("copies")))
    assert max(map(visible, lines[start:])) <= width
    assert ("noise" in lines[lines.index(found[0]) - 5]) is (width >= 110)


def test_what_the_shadow_service_says_cannot_steer_the_terminal() -> None:
    report = made.answers(300)
    report["dropped"][0]["reason"] = "\x1b[2Jqueue"
    report["signals"][0]["canary"] = "\x1b]0;owned\x07"
    assert "\x1b" not in shown(made.shadowing(report))


def test_on_a_low_terminal_signals_that_passed_make_room_for_the_others() -> None:
    document = describe(made.seen(made.condemned_by_answers()), made.NOW)
    full = screen(document, made.NOW, Paint(), 80)
    low = screen(document, made.NOW, Paint(), 80, height=24)
    text = "\n".join(low)
    assert len(low) < len(full)
    assert "✗ Fail" in text.split("answers", 2)[2], "what failed is not left out"
    assert re.search(r"and \d more: status -o json", text)
    assert "retry" in low[-1]
    assert len(screen(document, made.NOW, Paint(), 80, height=60)) == len(full)


def test_harm_to_one_length_of_request_is_told_apart_from_harm_to_all() -> None:
    text = " ".join(shown(made.shadowing(made.answers(4000, 60, lost=40))).split())
    assert re.search(r"citations 4,060 \S+ \S+ (-\S+ )?\S+ ✗ Fail in one length", text)
    assert "citations for requests of 16-64KiB" in text, "which one is said where it waits"
