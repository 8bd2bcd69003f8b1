"""What `explain` says of decisions, and what it says when the record cannot be read."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kvquant.api.v1alpha1 import AnalysisReport, ShadowReport
from kvquant.cli.explanation import changes, changes_of_answers
from kvquant.cli.looks import copied, looked
from kvquant.core import record
from kvquant.errors import ClusterError, Refused, Unavailable
from tests.fakes.cluster import Fault
from tests.unit.cli import made
from tests.unit.cli.stage import Stage


@pytest.fixture
def stage() -> Stage:
    it = Stage()
    raw = made.condemned()
    it.put(raw, made.recorded(raw))
    return it


def explained(stage: Stage, *arguments: str) -> str:
    result = stage.run("explain", "llama-int8", *arguments)
    assert result.exit_code == 0, result.output
    return " ".join(str(result.stdout).split())


# What goes wrong.


def test_a_wrong_name_is_answered_with_the_names_that_exist(stage: Stage) -> None:
    result = stage.run("explain", "llama-int")
    assert result.exit_code == 1
    assert "Did you mean llama-int8?" in result.stderr


@pytest.mark.parametrize("number", ["99", "6"])
def test_a_decision_that_there_is_not_is_answered_with_those_there_are(
    stage: Stage, number: str
) -> None:
    result = stage.run("explain", "llama-int8", "--decision", number)
    assert result.exit_code == 1
    assert f"--decision {number}: there is no such decision" in result.stderr
    assert "those of 1 to 5 are known" in result.stderr


@pytest.mark.parametrize("number", ["0", "-1", "last"])
def test_what_is_no_number_is_wrong_usage(stage: Stage, number: str) -> None:
    assert stage.run("explain", "llama-int8", "--decision", number).exit_code == 2


@pytest.mark.parametrize("error", [Refused("may not (HTTP 403)"), Unavailable("no answer")])
def test_without_the_record_it_tells_what_the_status_knows_and_what_is_missing(
    stage: Stage, error: ClusterError
) -> None:
    stage.cluster.faults.append(Fault(error, verb="get", kind="ConfigMap"))
    result = stage.run("explain", "llama-int8")
    assert result.exit_code == 0
    assert "4 2026-11-24 13:58:00 RollBack" in " ".join(result.stdout.split())
    assert f"The record cannot be read ({error})" in result.stderr
    assert "ask for the right to get ConfigMaps in namespace inference" in result.stderr


def test_a_record_of_an_earlier_rollout_of_the_name_is_not_believed(stage: Stage) -> None:
    stage.cluster.edit(
        "ConfigMap",
        "inference",
        "llama-int8-record",
        lambda obj: obj["metadata"].update(ownerReferences=[{"uid": "another"}]),
    )
    result = stage.run("explain", "llama-int8")
    assert "is of an earlier rollout of that name" in result.stderr
    assert "RollBack" in result.stdout


def test_a_configmap_of_somebody_elses_is_no_record(stage: Stage) -> None:
    stage.cluster.edit(
        "ConfigMap", "inference", "llama-int8-record", lambda obj: obj["metadata"].pop("labels")
    )
    assert "There is no record" in stage.run("explain", "llama-int8").stderr


def test_entries_that_cannot_be_read_are_counted(stage: Stage) -> None:
    stage.cluster.edit(
        "ConfigMap",
        "inference",
        "llama-int8-record",
        lambda obj: obj["data"].update({"000002": "{", "000003": '{"kind": "Teleport"}'}),
    )
    result = stage.run("explain", "llama-int8")
    assert "2 entries of the record cannot be read by this version" in result.stderr
    # The status knows them, too.
    assert "5 decisions" in result.stdout


def test_what_stands_in_the_record_cannot_steer_the_terminal(stage: Stage) -> None:
    raw = made.condemned()
    raw["status"]["decisions"][3]["message"] = "\x1b[2J evil\x07"
    raw["status"]["analysis"]["signals"][0].update(name="\x1b[31m", baseline="\x1b[2J")
    stage.put(raw, made.recorded(raw))
    for arguments in ((), ("--decision", "4")):
        text = explained(stage, *arguments)
        assert "\x1b" not in text
        assert "\x07" not in text


def test_a_rollout_that_nobody_has_looked_at_has_no_decisions_and_no_warning() -> None:
    it = Stage()
    it.put(made.fresh())
    result = it.run("explain", "llama-fp8")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "0 decisions" in result.stdout


def test_decisions_of_an_operator_that_kept_no_record_are_told_without_a_number() -> None:
    it = Stage()
    it.put(made.progressing())
    result = it.run("explain", "llama-fp8")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "- 2026-11-24 13:51:00 Advance step 1, 10 % to the canary" in " ".join(
        result.stdout.split()
    )


# What it says.


def test_every_decision_in_words(stage: Stage) -> None:
    text = explained(stage)
    mark = record.fingerprint("u-1", 1)
    assert "inference/llama-int8 5 decisions" in text
    assert f"Attempt 1, whose canary's answers bear {mark}" in text
    assert "4 2026-11-24 13:58:00 RollBack step 1, 0 % to the canary ✗ Fail p99: canary" in text
    assert "kvquant explain llama-int8 -n inference --decision N" in text


def test_one_decision_with_its_table_of_signals(stage: Stage) -> None:
    text = explained(stage, "--decision", "4")
    for part in (
        "decision 4: RollBack (AnalysisFailed)",
        "2026-11-24 13:58:00 UTC, 2m ago",
        "step 1/4; weights after it: baseline 100 %, canary 0 %",
        "llama (auto, 2 pods) against llama-int8-pool (int8_per_token_head, 0 pods)",
        "read at 13:57:57: 1,204 baseline and 52 canary requests; 100 % of the error budget spent; "
        "load per pod x0.67 (a pass is provisional)",
        "signal baseline canary allowed effect lower upper spent",
        "beyond p99 1 % 38.46 % +25 % +36.21 points +20.10 points +49.00 points 100 % ✗ Fail",
        "failures 0 % 0 % +0.5 % -0.50 points -9.00 points +1.25 points 0 % … Waiting",
        "latencyP99: harm beyond the tolerance, which is at least +20.10 points, would have to go",
        "a larger spec.analysis.p99.tolerancePercent",
    ):
        assert part in text


def test_a_decision_that_rests_on_no_measurement_says_so(stage: Stage) -> None:
    text = explained(stage, "--decision", "1")
    assert "evidence none: this decision rests on no measurement" in text
    assert "would have changed" not in text


def test_what_the_status_has_forgotten_is_told_from_the_record(stage: Stage) -> None:
    raw = made.condemned()
    kept = made.recorded(raw)
    raw["status"]["decisions"] = raw["status"]["decisions"][-1:]
    stage.put(raw, kept)
    assert "5 decisions" in explained(stage)
    assert "Attempt 1: llama (auto, 2 pods)" in explained(stage, "--decision", "1")


def test_what_the_record_lacks_yet_is_told_from_the_status(stage: Stage) -> None:
    raw = made.condemned()
    partly = copy.deepcopy(raw)
    partly["status"]["decisions"] = partly["status"]["decisions"][:3]
    stage.put(raw, made.recorded(partly))
    assert "5 decisions" in explained(stage)
    assert "decision 5: Settle (RolledBack)" in explained(stage, "--decision", "5")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"verdict": "Error"}, "Data: a look without any decides nothing"),
        ({"verdict": "Fail"}, "latencyP99: harm beyond the tolerance, which is at least +20.10"),
        (
            {"verdict": "Fail", "signals": [made.judged("deaths", "Fail", lower=None)]},
            "deaths: fewer of them.",
        ),
        (
            {"verdict": "Fail", "signals": [made.judged("x", "Fail", lower="-1.00 points")]},
            "x: less harm than +36.21 points beyond the tolerance. It was likely, not certain",
        ),
        (
            {
                "verdict": "Pass",
                "signals": [
                    made.judged("far", "Pass", budgetSpentPercent=2),
                    made.judged("near", "Pass", budgetSpentPercent=40, lower="-0.30 points"),
                ],
            },
            "near came nearest: -0.30 points, with 40 % of its error budget spent",
        ),
        ({"verdict": "Inconclusive", "etaSeconds": 720}, "More requests: about 12m of them"),
        (
            {"verdict": "Inconclusive", "replicasNeeded": 3},
            "More canary pods: the next step needs 3",
        ),
        (
            {"verdict": "Inconclusive", "signals": [made.judged("x", "Inconclusive")]},
            "x: it passes when its upper bound, +49.00 points, falls below zero, and fails when",
        ),
    ],
)
def test_what_would_have_changed_the_verdict(fields: dict[str, Any], said: str) -> None:
    base = {"at": made.before(), "message": "", "signals": [made.judged("latencyP99", "Fail")]}
    analysis = looked(AnalysisReport.model_validate(base | fields))
    assert any(said in sentence for sentence in changes(analysis)), changes(analysis)


def test_a_pass_without_numbers_claims_nothing() -> None:
    report = {"at": made.before(), "message": "", "verdict": "Pass"}
    assert changes(looked(AnalysisReport.model_validate(report))) == ()


def test_a_decision_that_rests_on_copies_tells_what_their_answers_said() -> None:
    it, raw = Stage(), made.condemned_by_answers()
    it.put(raw, made.recorded(raw))
    every = " ".join(it.run("explain", "llama-fp8").stdout.split())
    assert "RollBack step 0, 0 % to the canary ✗ Fail" in every
    result = it.run("explain", "llama-fp8", "--decision", "4")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in (
        "copies read at 13:59:56; 380 pairs (200 asked for), 60 more of the baseline alone",
        "37 personal values replaced",
        "not compared: queue 5, size 2; not evaluated for want of pairs: 1MiB+",
        "citations 380 +0.0/100 +10.5/100 +2.0/100 +1.7/100 +10.6/100 ✗ Fail",
        "citations: less harm: at least +1.7 per 100 beyond what is allowed, or a larger "
        "spec.shadow.answersPercent.",
    ):
        assert part in text
    assert "rests on no measurement" not in text


def test_harm_to_one_length_of_request_is_not_told_as_harm_to_all() -> None:
    shadow = copied(ShadowReport.model_validate(made.answers(4000, 60, lost=40)))
    (citations,) = [one for one in shadow.signals if one.name == "citations"]
    assert (citations.lower or "").startswith("-"), "over all requests it is within bounds"
    assert changes_of_answers(shadow) == (
        "citations: less harm to the requests of the length that its sentence names, or a larger "
        "spec.shadow.answersPercent.",
    )


def test_copies_that_do_not_decide_yet_tell_what_is_missing() -> None:
    told = changes_of_answers(copied(ShadowReport.model_validate(made.answers(50))))
    assert told[0] == "More pairs: about 30m of them at the rate of then."
    assert "answered: it passes when its upper bound, +0.6 per 100, falls below zero." in told
