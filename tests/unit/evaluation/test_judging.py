"""The verdict on made-up results: when it is sure, when it is not, and how often it errs."""

from __future__ import annotations

import json
import math

import pytest

from kvquant.core.evaluation_summary import MOST_BYTES, EvaluationSummary, Outcome
from kvquant.core.shadow_settings import BUCKETS
from kvquant.evaluation.cells import Cell, Margins
from kvquant.evaluation.judging import Judged, judge, worst_examples
from kvquant.evaluation.kinds import Kind
from kvquant.evaluation.results import CANARY, Result
from kvquant.evaluation.statistics import Verdict
from kvquant.evaluation.summarizing import summarize, text
from tests.unit.evaluation.answered import drawn, flips, results, unanswered

MARGINS = Margins(0.05, 0.05)


def cell(judged: Judged, name: str, place: str = "all") -> Cell:
    return next(c for c in judged.cells if (c.measure.name, c.name) == (name, place))


def test_answers_that_are_the_same_pass_once_there_are_enough() -> None:
    judged = judge(results(flips(0, 0, 200)), MARGINS)
    assert judged.verdict is Verdict.PASS
    assert judged.message.startswith("200 examples: ")
    few = judge(results(flips(0, 0, 60)), MARGINS)
    assert few.verdict is Verdict.INCONCLUSIVE
    assert "json (up to +6.0 per 100 with 60, +5.0 per 100 allowed)" in few.message


@pytest.mark.parametrize("count", [0, 1, 29])
def test_too_few_examples_are_inconclusive_whatever_the_margin(count: int) -> None:
    judged = judge(results(flips(0, 0, count)), Margins(1.0, 1.0))
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert f"{count} examples were compared" in judged.message


def test_harm_fails_where_it_is_certain() -> None:
    judged = judge(results(flips(40, 2, 200)), MARGINS)
    assert judged.verdict is Verdict.FAIL
    assert judged.message == (
        "json: answers whose JSON is broken +19.0 per 100 over 200 examples, +5.0 per 100 allowed."
    )
    assert cell(judged, "json").chance == pytest.approx(0.0, abs=1e-6)


def test_as_many_flips_either_way_are_no_harm_but_cost_certainty() -> None:
    judged = judge(results(flips(20, 20, 200)), MARGINS)
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert judge(results(flips(20, 20, 200)), Margins(0.15, 0.05)).verdict is Verdict.PASS


def test_harm_in_one_length_is_found_and_named_though_all_together_pass() -> None:
    fine = results(flips(0, 0, 800))
    long = results(flips(15, 0, 20), bucket="64-256KiB", kind=Kind.TURNS, prefix="long")
    judged = judge([*fine, *long], MARGINS)
    assert cell(judged, "json").verdict is Verdict.PASS
    assert cell(judged, "json", "64-256KiB").verdict is Verdict.FAIL
    assert judged.verdict is Verdict.FAIL
    assert "json for requests of 64-256KiB: " in judged.message
    worst = summarize(judged).measures[0]
    assert (worst.name, worst.bucket, worst.outcome) == ("json", "64-256KiB", Outcome.FAIL)


def test_harm_in_one_kind_is_found_and_named() -> None:
    other = results(flips(15, 0, 20), kind=Kind.TOOLS, prefix="tools")
    judged = judge([*results(flips(0, 0, 800)), *other], MARGINS)
    assert "json for toolCalls requests" in judged.message
    assert summarize(judged).measures[0].bucket == "kind:toolCalls"


def test_one_look_of_many_that_is_bad_is_a_doubt_and_no_failure() -> None:
    fine = [r for name, _ in BUCKETS[:5] for r in results(flips(0, 0, 100), "json", name)]
    odd = results(flips(4, 0, 10), bucket="1MiB+", prefix="odd")
    judged = judge([*fine, *odd], MARGINS)
    assert cell(judged, "json", "1MiB+").is_suspect
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert f"not certain among {judged.looks} looks" in judged.message


def test_nine_examples_of_a_length_are_not_looked_at() -> None:
    odd = results(flips(9, 0, 9), bucket="1MiB+", prefix="odd")
    judged = judge([*results(flips(0, 0, 991)), *odd], MARGINS)
    assert judged.verdict is Verdict.PASS
    assert not [c for c in judged.cells if c.name == "1MiB+" and c.measure.name == "json"]


def test_a_measure_with_few_examples_holds_nothing_and_is_named() -> None:
    few = results(flips(0, 0, 12), name="contains", prefix="few")
    judged = judge([*results(flips(0, 0, 300)), *few], MARGINS)
    assert judged.verdict is Verdict.PASS
    assert "Not evaluated for want of examples: contains (12)." in judged.message
    assert cell(judged, "contains").verdict is Verdict.INCONCLUSIVE


def test_too_many_without_the_baselines_answer_are_inconclusive() -> None:
    good = results(flips(0, 0, 300))
    assert judge([*good, *unanswered(30)], MARGINS).verdict is Verdict.PASS
    judged = judge([*good, *unanswered(40)], MARGINS)
    assert judged.verdict is Verdict.INCONCLUSIVE
    assert "answered 300 of 340 examples (baseline: timeout 40)" in judged.message


def test_answers_that_the_canary_alone_did_not_give_are_harm() -> None:
    judged = judge([*results(flips(0, 0, 170)), *unanswered(30, arm=CANARY)], MARGINS)
    assert judged.verdict is Verdict.FAIL
    assert judged.answered == 200
    assert cell(judged, "answered").interval.mean == 0.15
    assert judged.message.startswith("answered for plain requests: examples without an answer +100")


def test_drift_is_told_in_per_cent_of_perplexity() -> None:
    judged = judge(results([0.2 + 0.01 * (n % 7) for n in range(100)], "drift"), MARGINS)
    assert judged.verdict is Verdict.FAIL
    assert "drift: surprise at the baseline's own answers +25." in judged.message
    assert "+5.00 % allowed" in judged.message
    assert cell(judged, "drift").margin == pytest.approx(math.log(1.05))


def test_a_few_equal_drifts_are_not_taken_for_certainty() -> None:
    judged = judge(results([0.06] * 10, "drift"), MARGINS)
    assert cell(judged, "drift").interval.lower < 0.06
    assert cell(judged, "drift").interval.upper > 0.06


def test_a_canary_at_its_margin_is_failed_as_seldom_as_promised() -> None:
    """Of 300 canaries with exactly the harm that is tolerated, 5 % may fail, and few pass."""
    verdicts = [
        judge(
            [
                r
                for n, (bucket, _) in enumerate(BUCKETS[:4])
                for r in results(list(drawn(4 * seed + n, 60, 0.08, 0.03)), bucket=bucket)
            ],
            MARGINS,
        ).verdict
        for seed in range(300)
    ]
    assert verdicts.count(Verdict.FAIL) / 300 <= 0.05
    assert verdicts.count(Verdict.PASS) / 300 <= 0.06


def test_the_same_results_give_the_same_verdict_and_another_seed_nearly() -> None:
    found = results([0.03 * (n % 5) - 0.02 for n in range(120)], "contains")
    assert judge(found, MARGINS, 7) == judge(found, MARGINS, 7)
    one, other = (cell(judge(found, MARGINS, seed), "contains").interval for seed in (1, 2))
    assert one.upper == pytest.approx(other.upper, abs=0.005)


def test_a_summary_fits_whatever_it_has_to_say() -> None:
    names = ("json", "toolCalls", "citationRecall", "refusals", "endings", "drift", "contains")
    found = [r for name in names for r in results(flips(50, 0, 60), name, prefix=name)]
    judged = judge(found, MARGINS)
    summary = summarize(judged)
    assert len(summary.message) <= 600
    assert len(summary.measures) == len(names) + 1
    told = text(summary)
    assert len(told.encode()) <= MOST_BYTES
    assert EvaluationSummary.model_validate_json(told) == summary
    heavy = summary.model_copy(update={"measures": summary.measures * 10, "message": "ü" * 600})
    shorter = EvaluationSummary.model_validate_json(text(heavy))
    assert 0 < len(shorter.measures) < len(heavy.measures)
    assert len(text(heavy).encode()) <= MOST_BYTES


def test_every_number_of_a_summary_is_finite() -> None:
    for count in (1, 2, 10):
        for name in ("drift", "contains", "json"):
            told = text(summarize(judge(results(flips(0, 0, count), name), MARGINS)))
            for measure in json.loads(told)["measures"]:
                assert all(math.isfinite(measure[end]) for end in ("lower", "upper", "difference"))


def test_the_worst_examples_come_first_and_the_harmless_not_at_all() -> None:
    def one(name: str, **harm: float) -> Result:
        (found,) = results([0.0])
        more = {key: results([value], key)[0].harms[key] for key, value in harm.items()}
        return Result(name, found.endpoint, found.bucket, found.kind, harms=more)

    found = [
        one("same", json=0.0),
        one("slightly", drift=0.01),
        one("other text", exact=1.0),
        one("broken", json=1.0),
        one("broken and drifting", json=1.0, drift=0.5),
        one("better", json=-1.0),
    ]
    assert [r.id for r in worst_examples(found, MARGINS, 9)] == ["broken and drifting", "broken"]
    assert [r.id for r in worst_examples(found, MARGINS, 1)] == ["broken and drifting"]


def test_a_harmless_canary_passes_as_a_rule_though_batches_flip_answers() -> None:
    """Of 100 sets of a thousand with 2 % flips either way, nearly all pass and none fails."""
    verdicts = [
        judge(
            [
                r
                for n, (bucket, _) in enumerate(BUCKETS[:5])
                for r in results(list(drawn(9000 + 5 * seed + n, 200, 0.02, 0.02)), bucket=bucket)
            ],
            MARGINS,
        ).verdict
        for seed in range(100)
    ]
    assert verdicts.count(Verdict.PASS) >= 97
    assert verdicts.count(Verdict.FAIL) == 0
