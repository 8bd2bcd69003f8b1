"""The record of decisions: what an entry says, what it leaves out, and what is still missing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api.v1alpha1 import (
    AnalysisReport,
    DecisionKind,
    DecisionRecord,
    KVQuantRollout,
    ShadowBucket,
    ShadowLoss,
    ShadowReport,
    SignalReport,
    Status,
    Verdict,
)
from kvquant.core import record

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def decision(number: int | None, kind: DecisionKind = DecisionKind.HOLD, **ago: float) -> Any:
    return DecisionRecord(
        number=number,
        at=NOW - timedelta(**ago),
        kind=kind,
        reason="Why",
        step=1,
        weight=10,
        message=f"Decision {number}.",
    )


def analysis(signals: int = 1, verdict: Verdict = Verdict.PASS, text: str = "") -> AnalysisReport:
    return AnalysisReport(
        at=NOW - timedelta(minutes=1),
        verdict=verdict,
        message="All is well.",
        signals=tuple(
            SignalReport(
                name=f"signal{i}",
                verdict=verdict if i == 0 else Verdict.PASS,
                baseline="1 %",
                canary="2 %",
                effect="-20.00 %",
                lower="-30.00 %",
                upper="-10.00 %",
                tolerance="25 % slower",
                requests=1234,
                budget_spent_percent=3,
                message=f"signal{i}: {text}",
            )
            for i in range(signals)
        ),
    )


def shadow(verdict: Verdict = Verdict.PASS, text: str = "w " * 60, **fields: Any) -> ShadowReport:
    return ShadowReport(
        at=NOW - timedelta(minutes=1),
        verdict=verdict,
        message=f"The answers: {text}",
        pairs=412,
        min_pairs=200,
        replaced=37,
        dropped=(ShadowLoss(reason="queue", count=3),),
        signals=analysis(7, verdict, text).signals,
        buckets=tuple(
            ShadowBucket(bucket=f"{n}-{n + 1}KiB", live=10_000, copied=500, pairs=400, covered=True)
            for n in range(6)
        ),
        **fields,
    )


def rollout(*decisions: DecisionRecord, spec: Any = None, **status: Any) -> KVQuantRollout:
    return KVQuantRollout.model_validate(
        {
            "metadata": {"name": "llama-fp8", "namespace": "inference", "uid": "u-1"},
            "spec": {
                "targetRef": {"name": "llama"},
                "kvCache": {"dtype": "fp8"},
                "traffic": {"router": {}},
                **(spec or {}),
            },
            "status": Status(attempt=2, total_steps=4, decisions=decisions, **status),
        }
    )


# What is missing.


def test_decisions_of_an_operator_that_kept_no_record_are_never_missing() -> None:
    it = rollout(decision(None), decision(None), decision(3))
    assert [d.number for d in record.missing(it.status, 0)] == [3]
    assert record.additions(rollout(decision(None)), 0) == {}


def test_a_status_that_somebody_has_cut_begins_anew() -> None:
    it = rollout(decision(1), decision(2))
    assert [d.number for d in record.missing(it.status, 17)] == [1, 2]
    assert record.missing(it.status, 2) == ()


def test_what_is_recorded_is_not_missing() -> None:
    it = rollout(decision(4), decision(5), decision(7))
    assert list(record.additions(it, 4)) == ["000005", "000007"]


def test_for_each_line_beyond_the_limit_one_goes() -> None:
    changes = record.additions(rollout(decision(record.KEPT + 1)), record.KEPT)
    assert changes["000001"] is None
    assert set(changes) == {"000001", record.key_of(record.KEPT + 1)}


# What an entry says.


def test_evidence_that_came_later_does_not_belong_to_a_decision() -> None:
    it = rollout(decision(1, minutes=5), decision(2, minutes=0), analysis=analysis())
    before, after = (record.entry(it, d) for d in it.status.decisions)
    assert before.analysis is None
    assert after.analysis == analysis()


def test_a_decision_of_the_attempt_before_bears_that_attempts_mark_and_no_evidence() -> None:
    it = rollout(decision(1), decision(2, DecisionKind.START), analysis=analysis())
    before, after = (record.entry(it, d) for d in it.status.decisions)
    assert (before.attempt, before.fingerprint) == (1, record.fingerprint("u-1", 1))
    assert (before.analysis, before.total_steps) == (None, 0)
    assert (after.attempt, after.fingerprint) == (2, record.fingerprint("u-1", 2))


def test_answers_that_are_not_marked_have_no_fingerprint() -> None:
    it = rollout(decision(1), spec={"engine": {"fingerprint": False}})
    assert record.entry(it, it.status.decisions[0]).fingerprint is None


@pytest.mark.parametrize(
    ("kind", "step", "ago", "rests"),
    [
        (DecisionKind.ROLL_BACK, 0, 0, True),
        (DecisionKind.ADVANCE, 1, 0, True),
        (DecisionKind.HOLD, 0, 0, True),
        # Copies are over, and the users' own requests decide.
        (DecisionKind.ROLL_BACK, 1, 0, False),
        (DecisionKind.ADVANCE, 2, 0, False),
        # It was decided before anybody had looked.
        (DecisionKind.HOLD, 0, 5, False),
    ],
)
def test_a_decision_made_by_answers_to_copies_keeps_what_they_said(
    kind: DecisionKind, step: int, ago: float, rests: bool
) -> None:
    one = decision(1, kind, minutes=ago).model_copy(update={"step": step})
    it = rollout(one, shadow=shadow())
    told = record.entry(it, one)
    assert told.shadow == (shadow() if rests else None)
    assert record.read({"1": record.line(told)}) == [told]


def test_an_attempt_before_has_nothing_of_the_answers_of_this_one() -> None:
    before = decision(1, DecisionKind.ROLL_BACK).model_copy(update={"step": 0})
    it = rollout(before, decision(2, DecisionKind.START), shadow=shadow())
    assert record.entry(it, before).shadow is None


def test_what_failed_among_the_answers_stays_in_a_line_that_is_too_long() -> None:
    one = decision(1).model_copy(update={"step": 0, "message": "m" * 1500})
    it = rollout(
        one, shadow=shadow(Verdict.FAIL, "x" * 1000), analysis=analysis(11, text="y" * 900)
    )
    told = record.line(record.entry(it, one))
    assert len(told.encode()) <= record.LARGEST
    (back,) = record.read({"1": told})
    assert back.shadow is not None
    assert back.analysis is not None
    assert back.shadow.signals[0].verdict is Verdict.FAIL
    assert back.shadow.buckets == shadow().buckets, "what was not evaluated has to be told"
    assert len(back.shadow.signals) + len(back.analysis.signals) + back.signals_left_out == 18


def test_an_entry_is_one_line_that_reads_back_as_it_was() -> None:
    it = rollout(decision(1), analysis=analysis(11, Verdict.FAIL, "as it\nwas"))
    told = record.entry(it, it.status.decisions[0])
    text = record.line(told)
    assert "\n" not in text
    assert record.read({"000001": text}) == [told]
    assert json.loads(text)["weights"] == {"baseline": 90, "canary": 10, "mirror": 0}


def test_the_signals_of_the_analysis_fit_whole() -> None:
    it = rollout(decision(1), analysis=analysis(11, text="w " * 40))
    told = record.line(record.entry(it, it.status.decisions[0]))
    assert json.loads(told)["signalsLeftOut"] == 0
    assert len(json.loads(told)["analysis"]["signals"]) == 11


@given(
    signals=st.integers(0, 32),
    text=st.text(max_size=1000),
    verdict=st.sampled_from(Verdict),
    message=st.sampled_from(["", "a" * 2048, "🜁" * 2048, '"' * 2048, "\x00" * 2048]),
)
def test_no_line_is_longer_than_allowed(
    signals: int, text: str, verdict: Verdict, message: str
) -> None:
    one = decision(1).model_copy(update={"message": message})
    it = rollout(one, analysis=analysis(signals, verdict, text))
    told = record.line(record.entry(it, it.status.decisions[0]))
    assert len(told.encode()) <= record.LARGEST
    (back,) = record.read({"1": told})
    assert back.analysis is not None
    assert len(back.analysis.signals) + back.signals_left_out == signals
    if signals and len(json.dumps(message)) <= 2050:
        assert back.analysis.signals[0].verdict is verdict, "what failed stays"


def test_a_full_record_fits_into_a_configmap() -> None:
    assert record.KEPT * record.LARGEST <= 900 * 1024


@pytest.mark.parametrize("spoilt", ["", "{", "[]", "7", '{"number": 1}', "null"])
def test_a_line_that_cannot_be_read_is_left_out_and_no_more(spoilt: str) -> None:
    it = rollout(decision(2), decision(1))
    lines = {
        record.key_of(d.number or 0): record.line(record.entry(it, d)) for d in it.status.decisions
    }
    found = record.read({**lines, "000000": spoilt})
    assert [entry.number for entry in found] == [1, 2]
