"""Between the analysis and the API: the spec's tolerances, and the status' words for a report."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest

from kvquant.api.v1alpha1 import AnalysisSettings, Verdict
from kvquant.core.analysis import CustomSignal, Evidence, Load, Report, Settings
from kvquant.core.judgement import FAMILIES, same_verdict, settings_of, silence, told
from tests.fakes.reports import AT, report

SLOW = Evidence(
    name="latencyP99",
    family="p99",
    verdict=Verdict.FAIL,
    baseline=0.01,
    canary=0.0432,
    unit="share",
    effect=0.0332,
    error=0.004,
    lower=0.0113,
    upper=0.041,
    tolerance="25 % slower",
    spent=0.876,
    requests=812.4,
    message="latencyP99: too slow.",
)


# --- What the spec asks for -------------------------------------------------------------------


def test_what_the_spec_does_not_say_is_what_the_api_says_by_default() -> None:
    asked = AnalysisSettings()
    found = settings_of(asked)

    assert found.min_requests == 100
    assert found.budget == 0.05
    assert found.failures == asked.oom_retries.tolerance_percent / 100
    assert found.page_faults == asked.page_faults.tolerance_percent / 100
    assert found.slowdown == asked.p99.tolerance_percent / 100
    assert found.most_deaths == asked.oom_retries.max_restarts
    assert found.time_scale == 1
    # Nothing of what makes the statistics sound is in the spec.
    known = Settings()
    for name in ("batch", "warm_up", "patience", "deaths_per_hour", "token_slowdown"):
        assert getattr(found, name) == getattr(known, name)


def test_every_tolerance_of_the_spec_arrives_where_it_belongs() -> None:
    asked = AnalysisSettings.model_validate(
        {
            "minRequests": 7,
            "errorBudgetPercent": 2,
            "pageFaults": {"tolerancePercent": 11},
            "oomRetries": {"tolerancePercent": 3, "maxRestarts": 4},
            "p99": {"tolerancePercent": 40},
        }
    )

    found = settings_of(asked)

    assert found.min_requests == 7
    assert found.budget == 0.02
    assert found.page_faults == 0.11
    assert found.failures == 0.03
    assert found.most_deaths == 4
    assert found.slowdown == 0.4


@pytest.mark.parametrize(
    ("asked", "first_token", "token"),
    [(25, 0.5, 0.15), (50, 1.0, 0.3), (10, 0.2, 0.06), (5, 0.1, 0.05), (0, 0.0, 0.05)],
)
def test_the_tolerance_of_the_p99_holds_for_tokens_in_proportion(
    asked: int, first_token: float, token: float
) -> None:
    found = settings_of(AnalysisSettings.model_validate({"p99": {"tolerancePercent": asked}}))

    assert found.first_token_slowdown == pytest.approx(first_token)
    assert found.token_slowdown == pytest.approx(token)
    assert settings_of(AnalysisSettings()).token_slowdown == Settings().token_slowdown


def test_signals_of_the_users_arrive_with_their_tolerance_and_direction() -> None:
    counters = {"events": "hits_total", "total": "lookups_total"}
    asked = AnalysisSettings.model_validate(
        {
            "custom": [
                {
                    "name": "hits",
                    "ratio": counters,
                    "direction": "decrease",
                    "tolerancePercent": 3,
                },
                {"name": "errors", "ratio": counters, "tolerancePercent": 1},
                {
                    "name": "rerank",
                    "latency": {"histogram": "rerank_seconds", "percentile": 95},
                    "tolerancePercent": 20,
                },
            ]
        }
    )

    assert settings_of(asked).custom == (
        CustomSignal("hits", 0.03, higher_is_worse=False),
        CustomSignal("errors", 0.01),
        CustomSignal("rerank", 0.2, quantile=0.95),
    )


def test_a_shorter_grid_shortens_all_durations_alike() -> None:
    found = settings_of(AnalysisSettings(), timedelta(seconds=1))

    assert found.time_scale == 15
    assert found.scaled(found.min_seconds) == 16


# --- What the status says ---------------------------------------------------------------------


def test_a_report_is_told_with_its_numbers() -> None:
    found = told(
        replace(
            report(Verdict.FAIL, baseline=2700.6, canary=812.4),
            signals=(SLOW,),
            load=Load(ratio=0.6666, replicas_needed=3),
            provisional=True,
            eta_seconds=90.6,
            budget_spent=0.876,
            baseline_p99=7.0314,
            canary_p99=9.2,
        )
    )

    assert found.at == AT
    assert found.verdict is Verdict.FAIL
    assert (found.baseline_requests, found.canary_requests) == (2700, 812)
    assert (found.baseline_p99_ms, found.canary_p99_ms) == (7031, 9200)
    assert found.load_ratio == "0.67"
    assert found.provisional
    assert found.replicas_needed == 3
    assert found.eta_seconds == 91
    assert found.budget_spent_percent == 88
    (signal,) = found.signals
    assert (signal.name, signal.family, signal.verdict) == ("latencyP99", "p99", Verdict.FAIL)
    assert (signal.baseline, signal.canary) == ("1 %", "4.32 %")
    assert (signal.effect, signal.lower, signal.upper) == (
        "+3.32 points",
        "+1.13 points",
        "+4.10 points",
    )
    assert signal.tolerance == "25 % slower"
    assert signal.requests == 812
    assert signal.budget_spent_percent == 88
    assert signal.message == "latencyP99: too slow."


@pytest.mark.parametrize(
    ("unit", "value", "words", "effect"),
    [
        ("seconds", 0.0225, "22.5 ms", "-5.00 %"),
        ("ratio", 0.8, "80 %", "-5.00 %"),
        ("deaths", 2, "2 engine deaths", "-5.00 points"),
        ("perRequest", 0.031, "3.1 per 100 requests", "-5.00 points"),
        ("share", 0.5, "50 %", "-5.00 points"),
    ],
)
def test_each_number_is_told_in_its_unit(unit: str, value: float, words: str, effect: str) -> None:
    evidence = replace(SLOW, unit=unit, canary=value, effect=-0.05)
    (signal,) = told(replace(report(), signals=(evidence,))).signals

    assert (signal.canary, signal.effect) == (words, effect)


def test_what_was_not_measured_is_told_as_nothing() -> None:
    unknown = Evidence("latencyP50", "p99", Verdict.INCONCLUSIVE)
    found = told(
        Report(at=0.0, step=1, verdict=Verdict.INCONCLUSIVE, message="?", signals=(unknown,))
    )

    assert found.at == datetime(1970, 1, 1, tzinfo=UTC)
    for name in (
        "baseline_requests",
        "canary_requests",
        "baseline_p99_ms",
        "canary_p99_ms",
        "load_ratio",
        "replicas_needed",
        "eta_seconds",
    ):
        assert getattr(found, name) is None, name
    (signal,) = found.signals
    for name in ("baseline", "canary", "effect", "lower", "upper"):
        assert getattr(signal, name) is None, name


def test_what_would_not_fit_the_status_is_cut() -> None:
    long = replace(SLOW, message="x" * 5000)
    found = told(replace(report(), message="y" * 5000, signals=(long,) * 50))

    assert len(found.message) == 2048
    assert len(found.signals) == 32
    assert {len(signal.message) for signal in found.signals} == {1024}


@pytest.mark.parametrize("eta", [1e12, 1e30, float("inf")])
def test_a_time_that_nobody_lives_to_see_is_no_forecast(eta: float) -> None:
    # Beyond 64 bits, the API server would refuse the whole status.
    assert told(report(Verdict.INCONCLUSIVE, eta=eta)).eta_seconds is None


def test_every_field_of_a_report_is_told_or_left_out_on_purpose() -> None:
    left_out = {"step", "seconds", "load"}
    names = {one.name for one in fields(Report)} - left_out
    renamed = {"baseline_p99": "baseline_p99_ms", "canary_p99": "canary_p99_ms"}
    renamed["budget_spent"] = "budget_spent_percent"

    told_of = set(type(told(report())).model_fields)
    assert {renamed.get(name, name) for name in names} <= told_of


# --- Silence, and saying the same twice -------------------------------------------------------


def test_silence_is_an_error_of_every_family_and_no_verdict_on_the_canary() -> None:
    found = silence("Prometheus does not answer. " + "x" * 5000, AT)

    assert found.verdict is Verdict.ERROR
    assert len(found.message) == 2048
    assert tuple(signal.name for signal in found.signals) == FAMILIES
    assert {signal.verdict for signal in found.signals} == {Verdict.ERROR}
    assert found.at == AT
    assert found.canary_requests is None


def test_the_same_verdicts_are_the_same_whatever_the_numbers() -> None:
    one = told(replace(report(Verdict.INCONCLUSIVE, canary=5), signals=(SLOW,)))
    other = told(
        replace(
            report(Verdict.INCONCLUSIVE, canary=500, eta=60),
            signals=(replace(SLOW, canary=0.5, message="latencyP99: even slower."),),
        )
    )

    assert same_verdict(one, other)


@pytest.mark.parametrize(
    "changed",
    [
        replace(report(Verdict.PASS), signals=(SLOW,)),
        replace(report(Verdict.FAIL), signals=(replace(SLOW, verdict=Verdict.PASS),)),
        replace(report(Verdict.FAIL), signals=(replace(SLOW, name="latencyP90"),)),
        replace(report(Verdict.FAIL), signals=()),
    ],
)
def test_another_verdict_or_another_signal_is_not_the_same(changed: Report) -> None:
    one = told(replace(report(Verdict.FAIL), signals=(SLOW,)))

    assert not same_verdict(one, told(changed))
