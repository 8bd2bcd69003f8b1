"""What each kind of harm does to the verdict, and the words that come with it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from kvquant.api.v1alpha1 import AnalysisReport, AnalysisSettings, OOMRetries, SignalReport, Verdict
from kvquant.core.analysis import Replicas, Restarts, judge, traffic_arrived
from kvquant.core.evidence import ArmSample, Evidence, Histogram
from tests.fakes.metrics import arm

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
SETTINGS = AnalysisSettings()
CALM = Restarts(baseline=0, canary=0)
PODS = Replicas(baseline=2, canary=1)
HEALTHY = arm(1000, slow=5, errors=1, preemptions=20)


def judged(baseline: ArmSample, canary: ArmSample, restarts: Restarts = CALM) -> AnalysisReport:
    return judge(SETTINGS, Evidence(AT, baseline, canary), restarts, PODS, AT)


def signal(report: AnalysisReport, name: str) -> SignalReport:
    return next(s for s in report.signals if s.name == name)


def test_alike_arms_with_enough_requests_pass() -> None:
    report = judged(HEALTHY, arm(400, slow=3, preemptions=9))
    assert report.verdict is Verdict.PASS
    assert [s.name for s in report.signals] == ["pageFaults", "oomRetries", "p99"]
    assert {s.verdict for s in report.signals} == {Verdict.PASS}
    assert "400 canary and 1,000 baseline requests" in report.message


def test_too_few_canary_requests_say_how_many_are_missing() -> None:
    report = judged(HEALTHY, arm(141))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.message == "141 of 300 canary requests so far."


def test_too_few_requests_in_both_arms_name_both() -> None:
    report = judged(arm(299.9), arm(20))
    assert "20 of 300 canary requests and 299 of 300 baseline requests" in report.message


@pytest.mark.parametrize(
    ("name", "canary"),
    [
        ("pageFaults", arm(400, preemptions=200)),
        ("oomRetries", arm(400, errors=60)),
        ("oomRetries", arm(400, timeouts=60)),
        ("oomRetries", arm(400, resets=60)),
        ("p99", arm(400, slow=120)),
        ("p99", arm(400, timeouts=120)),
    ],
)
def test_gross_harm_fails_the_signal_that_measures_it(name: str, canary: ArmSample) -> None:
    report = judged(HEALTHY, canary)
    assert report.verdict is Verdict.FAIL
    assert signal(report, name).verdict is Verdict.FAIL
    assert name in report.message


def test_nothing_but_errors_fails_after_twenty_requests() -> None:
    report = judged(arm(180), arm(20, errors=20))
    assert report.verdict is Verdict.FAIL
    assert signal(report, "oomRetries").verdict is Verdict.FAIL
    assert "canary 100 %, baseline 0 % of requests failed" in report.message


def test_nothing_but_errors_in_fewer_than_ten_requests_waits() -> None:
    assert judged(arm(180), arm(9, errors=9)).verdict is Verdict.INCONCLUSIVE


def test_both_arms_failing_alike_is_not_the_canarys_fault() -> None:
    report = judged(arm(1000, errors=400), arm(400, errors=160))
    assert signal(report, "oomRetries").verdict is Verdict.PASS


def test_harm_beyond_tolerance_that_may_be_noise_is_neither_pass_nor_failure() -> None:
    report = judged(HEALTHY, arm(400, slow=25))
    assert signal(report, "p99").verdict is Verdict.INCONCLUSIVE
    assert "more requests will decide" in signal(report, "p99").message


def test_a_better_canary_passes() -> None:
    worse = arm(1000, slow=200, errors=100, preemptions=900)
    assert judged(worse, arm(400)).verdict is Verdict.PASS


def test_a_restart_of_the_canary_fails_it_without_any_evidence() -> None:
    report = judge(SETTINGS, None, Restarts(baseline=0, canary=1), PODS, AT)
    assert report.verdict is Verdict.FAIL
    assert "engine restarts in this step: canary 1, baseline 0" in report.message
    assert signal(report, "p99").verdict is Verdict.ERROR


def test_as_many_restarts_as_the_baselines_are_tolerated() -> None:
    assert judged(HEALTHY, arm(400), Restarts(baseline=1, canary=1)).verdict is Verdict.PASS


def test_restarts_within_the_allowance_are_tolerated() -> None:
    settings = AnalysisSettings(oom_retries=OOMRetries(max_restarts=2))
    evidence = Evidence(AT, HEALTHY, arm(400))
    verdicts = [judge(settings, evidence, Restarts(0, n), PODS, AT).verdict for n in (2, 3)]
    assert verdicts == [Verdict.PASS, Verdict.FAIL]


def test_an_outage_of_prometheus_is_an_error_told_once() -> None:
    report = judge(SETTINGS, None, CALM, PODS, AT, problem="Prometheus at prom:9090 is out")
    assert report.verdict is Verdict.ERROR
    assert report.message == "Prometheus at prom:9090 is out"


def test_a_router_that_is_not_scraped_any_more_is_an_error_whatever_was_counted() -> None:
    for canary in (arm(400), arm(400, errors=400)):
        evidence = Evidence(AT, HEALTHY, canary, problems=("router r is not scraped",))
        report = judge(SETTINGS, evidence, CALM, PODS, AT)
        assert report.verdict is Verdict.ERROR
        assert "router r is not scraped" in report.message


def test_the_engines_silence_holds_and_does_not_hide_the_routers_evidence() -> None:
    silent = replace(arm(400), preemptions=None, finished=None)
    report = judged(HEALTHY, silent)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "no data of the canary" in report.message
    assert judged(HEALTHY, replace(silent, errors_5xx=200.0)).verdict is Verdict.FAIL


@pytest.mark.parametrize("count", [math.nan, math.inf, -1.0, None])
@pytest.mark.parametrize("field", ["completed", "errors_5xx", "timeouts", "resets"])
def test_a_count_that_is_no_number_is_no_data(field: str, count: float | None) -> None:
    change: dict[str, Any] = {field: count}
    report = judged(HEALTHY, replace(arm(400), **change))
    assert signal(report, "oomRetries").verdict is Verdict.INCONCLUSIVE
    assert "no data of the canary" in signal(report, "oomRetries").message


@pytest.mark.parametrize(
    "histogram",
    [
        Histogram((), ()),
        Histogram((1.0,), (5.0,)),
        Histogram((1.0, 2.0), (5.0, 400.0)),
        Histogram((1.0, math.inf), (math.nan, 400.0)),
        Histogram((1.0, math.inf), (500.0, 400.0)),
        Histogram((2.0, 1.0, math.inf), (1.0, 2.0, 400.0)),
        Histogram((1.0, math.inf), (1.0, 2.0, 400.0)),
        Histogram((-math.inf, math.inf), (1.0, 400.0)),
    ],
)
def test_a_broken_histogram_is_no_data(histogram: Histogram) -> None:
    for baseline, canary in ((HEALTHY, arm(400)), (arm(400), HEALTHY)):
        report = judged(replace(baseline, latency=histogram), canary)
        assert signal(report, "p99").verdict is Verdict.INCONCLUSIVE
        report = judged(baseline, replace(canary, latency=histogram))
        assert signal(report, "p99").verdict is Verdict.INCONCLUSIVE


def test_arms_measured_in_different_buckets_are_not_compared() -> None:
    other = Histogram((0.7, math.inf), (0.0, 400.0))
    report = judged(HEALTHY, replace(arm(400), latency=other))
    assert signal(report, "p99").verdict is Verdict.INCONCLUSIVE
    assert "different buckets" in signal(report, "p99").message


def test_the_report_shows_both_arms_p99_and_requests() -> None:
    latency = Histogram((1.0, 2.0, 4.0, math.inf), (900.0, 980.0, 1000.0, 1000.0))
    report = judged(replace(arm(1000), latency=latency), arm(400))
    assert report.baseline_p99_ms == 3000  # half of the bucket's way from 980 to 1000 requests
    assert (report.baseline_requests, report.canary_requests) == (1000, 400)


def test_unanswered_requests_push_the_shown_p99_to_the_last_bound() -> None:
    assert judged(HEALTHY, arm(400, timeouts=40)).canary_p99_ms == 600_000


def test_the_load_ratio_is_per_pod_and_second() -> None:
    assert judged(arm(1000), arm(400)).load_ratio == "0.80"
    longer = replace(arm(1000), seconds=200.0)
    assert judged(longer, replace(arm(400), seconds=100.0)).load_ratio == "1.60"
    assert judged(arm(0), arm(400)).load_ratio is None


@pytest.mark.parametrize(
    ("baseline", "canary", "arrived"),
    [
        (900, 100, True),
        (950, 50, True),
        (951, 49, False),
        (1000, 0, False),
        (290, 0, None),
        (0, 0, None),
    ],
)
def test_traffic_has_arrived_at_half_of_the_weight(
    baseline: int, canary: int, arrived: bool | None
) -> None:
    assert traffic_arrived(Evidence(AT, arm(baseline), arm(canary)), 10) is arrived


def test_nothing_known_of_the_traffic_is_no_answer() -> None:
    assert traffic_arrived(None, 10) is None
    assert traffic_arrived(Evidence(AT, HEALTHY, ArmSample()), 10) is None
    assert traffic_arrived(Evidence(AT, HEALTHY, arm(0), problems=("out",)), 10) is None


def test_the_last_step_looks_at_todays_traffic_and_judges_by_the_baselines_earlier() -> None:
    evidence = Evidence(AT, HEALTHY, arm(400), baseline_now=arm(3))
    assert traffic_arrived(evidence, 100) is True
    assert judge(SETTINGS, evidence, CALM, PODS, AT).verdict is Verdict.PASS
    assert traffic_arrived(replace(evidence, baseline_now=arm(2000)), 100) is False
