"""Verdicts on shadowed answers: harm is named with its length of request, noise is no harm."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from kvquant.api.v1alpha1 import ShadowReport, SignalReport, Verdict
from kvquant.core import shadow_settings as told
from kvquant.core.plan import PlannedShadow
from kvquant.core.quality import JUDGED, PROBED, judge
from kvquant.core.shadow_reading import ShadowEvidence, Sums
from kvquant.core.shadow_settings import CANARY_PAIR, NOISE_PAIR

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
PLAN = PlannedShadow(percent=5, min_pairs=200)
BUDGET = 0.01


class Pairs:
    """Pairs of answers, one by one."""

    def __init__(self) -> None:
        self.evidence = ShadowEvidence()

    def add(
        self, signal: str, difference: float, bucket: str = "0-4KiB", pair: str = CANARY_PAIR
    ) -> None:
        sums = self.evidence.sums.setdefault((pair, signal, bucket), Sums())
        sums.add(Sums(1, max(0.0, difference), max(0.0, -difference), difference**2))

    def good(self, count: int, bucket: str = "0-4KiB") -> Pairs:
        """Add pairs in which nothing differs."""
        for _ in range(count):
            for signal in JUDGED:
                self.add(signal, 0.0, bucket)
        self.evidence.received[bucket] = self.evidence.received.get(bucket, 0.0) + count
        return self

    def judged(self, plan: PlannedShadow = PLAN, budget: float = BUDGET) -> ShadowReport:
        return judge(self.evidence, plan, budget, NOW, 600.0)


def signal(report: ShadowReport, name: str) -> SignalReport:
    return next(one for one in report.signals if one.name == name)


def noise(pairs: Pairs, name: str, count: int, differing: int = 0) -> None:
    for number in range(count):
        pairs.add(name, 1.0 if number < differing else 0.0, pair=NOISE_PAIR)


def test_enough_equal_answers_pass() -> None:
    pairs = Pairs().good(200)
    noise(pairs, told.TOOLS, 60)
    report = pairs.judged()
    assert report.verdict is Verdict.PASS, report.message
    assert {one.verdict for one in report.signals} == {Verdict.PASS}


def test_too_few_pairs_never_pass_and_say_how_long_it_will_take() -> None:
    report = Pairs().good(50).judged()
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.message.startswith("50 of 200 pairs are compared.")
    assert report.eta_seconds == 1800  # 150 more at 50 in 600 s


def test_without_any_copy_the_report_says_what_is_copied() -> None:
    report = judge(ShadowEvidence(), PLAN, BUDGET, NOW, 60.0)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "/v1/chat/completions" in report.message
    assert report.eta_seconds is None


def test_why_copies_were_not_compared_is_told() -> None:
    pairs = Pairs().good(10)
    pairs.evidence.dropped = {"queue": 5.0, "withheld:timeout": 2.0, "size": 0.0}
    report = pairs.judged()
    assert "queue 5, withheld:timeout 2" in report.message
    told_ = [(loss.reason, loss.count) for loss in report.dropped]
    assert told_ == [("queue", 5), ("withheld:timeout", 2)]


def test_more_reasons_than_the_status_holds_are_cut_to_the_most_frequent() -> None:
    pairs = Pairs().good(10)
    pairs.evidence.dropped = {f"reason{n}": float(n) for n in range(1, 40)}
    dropped = pairs.judged().dropped
    assert len(dropped) == 12
    assert (dropped[0].reason, dropped[0].count) == ("reason39", 39)


def test_what_was_asked_for_and_what_was_replaced_is_told() -> None:
    pairs = Pairs().good(10)
    pairs.evidence.replaced = 37.0
    report = pairs.judged()
    assert (report.min_pairs, report.replaced) == (200, 37)


@pytest.mark.parametrize("name", [n for n in JUDGED if n != told.DRIFT])
def test_spoilt_answers_fail(name: str) -> None:
    pairs = Pairs().good(100)
    noise(pairs, name, 100)
    for number in range(120):
        pairs.add(name, 1.0 if number % 2 else 0.0)
    report = pairs.judged()
    assert report.verdict is Verdict.FAIL
    assert signal(report, name).verdict is Verdict.FAIL
    assert name in report.message


def test_harm_over_all_requests_is_told_with_the_length_that_has_most_of_it() -> None:
    pairs = Pairs().good(60).good(60, "4-16KiB")
    for _ in range(60):
        pairs.add(told.CITATIONS, 0.0)
        pairs.add(told.CITATIONS, 1.0, "4-16KiB")
    # Over all it is certain first, as it gets more of the budget.
    report = pairs.judged()
    message = signal(report, told.CITATIONS).message
    assert message.startswith("citations: +25.0 per 100 more")
    assert "Most of it in requests of 4-16KiB: +50.0 per 100." in message


def test_harm_that_is_alike_everywhere_names_no_length() -> None:
    pairs = Pairs().good(60).good(60, "4-16KiB")
    for bucket in ("0-4KiB", "4-16KiB"):
        for _ in range(60):
            pairs.add(told.CITATIONS, 1.0, bucket)
    assert "Most of it" not in signal(pairs.judged(), told.CITATIONS).message


def test_drift_beyond_the_tolerance_fails_and_within_it_passes() -> None:
    random_ = random.Random(5)
    for drift, verdict in ((0.15, Verdict.FAIL), (0.01, Verdict.PASS)):
        pairs = Pairs().good(0)
        for _ in range(250):
            for name in JUDGED:
                pairs.add(name, random_.gauss(drift, 0.08) if name == told.DRIFT else 0.0)
        noise(pairs, told.TOOLS, 60)
        report = pairs.judged()
        assert report.verdict is verdict, report.message


def test_citations_lost_in_long_prompts_alone_are_found_and_the_length_is_named() -> None:
    pairs = Pairs().good(2000)
    pairs.good(40, "64-256KiB")
    for number in range(40):
        pairs.add(told.CITATIONS, 1.0 if number % 3 else 0.0, "64-256KiB")
    report = pairs.judged()
    assert report.verdict is Verdict.FAIL
    assert "citations for requests of 64-256KiB" in report.message


def test_a_length_that_looks_worse_holds_the_rollout() -> None:
    pairs = Pairs().good(2000)
    for number in range(40):
        pairs.add(told.CITATIONS, 1.0 if number < 5 else 0.0, "64-256KiB")
    report = pairs.judged()
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "requests of 64-256KiB look worse" in report.message


def test_what_the_baseline_differs_from_itself_is_no_harm() -> None:
    """Tool calls differ in 30 % of all pairs, whoever answers."""
    pairs = Pairs().good(0)
    for number in range(400):
        for name in JUDGED:
            pairs.add(name, 1.0 if name == told.TOOLS and number % 10 < 3 else 0.0)
    noise(pairs, told.TOOLS, 200, differing=60)
    tools = signal(pairs.judged(), told.TOOLS)
    assert tools.verdict is Verdict.INCONCLUSIVE
    assert (tools.baseline, tools.canary) == ("+30.0 per 100", "+30.0 per 100")


def test_a_rare_kind_of_request_is_named_and_holds_nothing() -> None:
    pairs = Pairs()
    for _ in range(300):
        for name in JUDGED:
            if name not in (told.JSON, told.TOOLS, told.DRIFT):
                pairs.add(name, 0.0)
    for _ in range(5):
        pairs.add(told.JSON, 0.0)
    report = pairs.judged()
    assert report.verdict is Verdict.PASS
    assert "not evaluated" in signal(report, told.JSON).message
    assert "not evaluated" in signal(report, told.DRIFT).message


def test_lengths_without_pairs_are_named_as_not_evaluated() -> None:
    pairs = Pairs().good(300)
    pairs.evidence.live = {"0-4KiB": 6000.0, "1MiB+": 12.0, "4-16KiB": 0.0}
    pairs.evidence.received["1MiB+"] = 2.0
    report = pairs.judged()
    assert report.verdict is Verdict.PASS
    assert report.message.endswith("Not evaluated for want of pairs: 1MiB+ (0 pairs).")
    assert [(one.bucket, one.covered) for one in report.buckets] == [
        ("0-4KiB", True),
        ("1MiB+", False),
    ]


def test_exact_answers_are_told_and_decide_nothing() -> None:
    pairs = Pairs().good(300)
    for number in range(300):
        pairs.add(told.EXACT, 1.0 if number % 2 else 0.0)
    noise(pairs, told.EXACT, 60, differing=24)
    report = pairs.judged()
    assert (report.exact_percent, report.noise_exact_percent) == (50, 60)
    assert report.verdict is Verdict.PASS


def test_nothing_is_failed_by_a_handful_of_pairs() -> None:
    pairs = Pairs()
    for _ in range(9):
        pairs.add(told.ANSWERED, 1.0)
    assert pairs.judged().verdict is Verdict.INCONCLUSIVE


def test_the_budget_holds_for_equal_arms_at_every_look() -> None:
    """A hundred rollouts of equal arms that flip by chance both ways, looked at each tenth pair."""
    failed = 0
    for seed in range(100):
        random_ = random.Random(seed)
        pairs = Pairs()
        for number in range(600):
            bucket = random_.choice(("0-4KiB", "4-16KiB", "64-256KiB"))
            for name in JUDGED:
                if name == told.DRIFT:
                    pairs.add(name, random_.gauss(0.0, 0.1), bucket)
                elif name == told.TOOLS:
                    pairs.add(name, float(random_.random() < 0.1), bucket)
                    if number % 5 == 0:
                        pairs.add(name, float(random_.random() < 0.1), bucket, NOISE_PAIR)
                else:
                    pairs.add(name, random_.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, -1)), bucket)
            if number % 10 == 9 and pairs.judged(budget=0.01).verdict is Verdict.FAIL:
                failed += 1
                break
    # At 1 %, four and more of a hundred come by chance once in fifty times.
    assert failed <= 3


def test_a_tolerance_is_told_in_the_signals_own_unit() -> None:
    report = Pairs().good(200).judged(PlannedShadow(percent=5, drift=0.1, answers=0.03))
    assert signal(report, told.DRIFT).tolerance == "+10.00 %"
    assert signal(report, told.JSON).tolerance == "+3.0 per 100"


def probed(count: int, harmed: int, name: str = told.SATURATED) -> ShadowReport:
    """A verdict on pairs that are all well, but for the saturation probe's."""
    pairs = Pairs()
    for _ in range(300):
        for other in JUDGED:
            if other not in PROBED:
                pairs.add(other, 0.0)
    noise(pairs, told.TOOLS, 60)
    for number in range(count):
        pairs.add(name, float(number < harmed))
    return pairs.judged()


def test_one_clean_round_of_the_saturation_probe_is_enough() -> None:
    report = probed(40, 0)
    assert report.verdict is Verdict.PASS, report.message
    assert signal(report, told.SATURATED).verdict is Verdict.PASS


@pytest.mark.parametrize("name", PROBED)
def test_a_canary_that_is_wrong_while_full_fails_after_one_round(name: str) -> None:
    report = probed(40, 20, name)
    assert report.verdict is Verdict.FAIL
    assert "while it is full" in report.message
    assert "requests of" not in report.message, "the lengths of the probe's prompts are ours"


def test_two_wrong_answers_while_full_wait_for_another_round() -> None:
    report = probed(40, 2)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "more pairs are needed" in report.message
    assert probed(400, 2).verdict is Verdict.PASS


def test_without_a_probe_nothing_waits_for_it_and_it_is_told() -> None:
    report = probed(0, 0)
    assert report.verdict is Verdict.PASS
    assert "not evaluated" in signal(report, told.SATURATED).message
