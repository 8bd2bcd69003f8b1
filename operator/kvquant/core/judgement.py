"""Between the analysis and the API: the spec's tolerances, and the status' words for a report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kvquant.api.v1alpha1 import AnalysisReport, AnalysisSettings, SignalReport, Verdict
from kvquant.core.analysis import CustomSignal, Evidence, Report, Settings
from kvquant.core.analysis.report import percent, seconds
from kvquant.core.ticking import GRID

FAMILIES = ("pageFaults", "oomRetries", "p99")

FIRST_TOKEN, TOKEN = 2.0, 0.6
"""What the time to the first token and the time between tokens may be slower, as a part of what
the p99 may: a prefill depends on the prompts drawn, and the mean of many tokens on little."""

LEAST_TOKEN = 0.05
"""Least that the time between tokens may be slower: identical servers were up to 3 % apart."""

NO_FORECAST = 366 * 86_400.0
"""Seconds beyond which nobody waits for evidence, and far beyond which no integer holds them."""


def settings_of(
    asked: AnalysisSettings, grid: timedelta = GRID, budget: float | None = None
) -> Settings:
    """Return the analysis' settings for what the spec asks.

    A step's soak is the spec's own shortest time and is kept elsewhere; what stays here is the
    time without which no statistics can be.

    Args:
        asked: Tolerances of the spec.
        grid: Time between two ticks; a shorter one than usual shortens all durations alike.
        budget: Part of the error budget that is for live traffic; None: all of it.
    """
    slowdown = asked.p99.tolerance_percent / 100
    return Settings(
        slowdown=slowdown,
        first_token_slowdown=FIRST_TOKEN * slowdown,
        token_slowdown=max(LEAST_TOKEN, TOKEN * slowdown),
        failures=asked.oom_retries.tolerance_percent / 100,
        page_faults=asked.page_faults.tolerance_percent / 100,
        most_deaths=asked.oom_retries.max_restarts,
        min_requests=asked.min_requests,
        min_seconds=240.0,
        budget=asked.error_budget_percent / 100 if budget is None else budget,
        time_scale=GRID / grid,
        custom=tuple(
            CustomSignal(
                signal.name,
                signal.tolerance_percent / 100,
                quantile=signal.latency.percentile / 100 if signal.latency else 0.9,
                higher_is_worse=signal.direction == "increase",
            )
            for signal in asked.custom
        ),
    )


def told(report: Report) -> AnalysisReport:
    """Return a report as the status tells it."""
    eta = report.eta_seconds
    return AnalysisReport(
        at=datetime.fromtimestamp(report.at, UTC),
        verdict=report.verdict,
        message=report.message[:2048],
        baseline_requests=_whole(report.baseline_requests),
        canary_requests=_whole(report.canary_requests),
        baseline_p99_ms=_milliseconds(report.baseline_p99),
        canary_p99_ms=_milliseconds(report.canary_p99),
        load_ratio=None if report.load.ratio is None else f"{report.load.ratio:.2f}",
        provisional=report.provisional,
        replicas_needed=report.load.replicas_needed,
        eta_seconds=None if eta is None or eta > NO_FORECAST else round(eta),
        budget_spent_percent=round(100 * report.budget_spent),
        signals=tuple(_signal(evidence) for evidence in report.signals[:32]),
    )


def silence(why: str, at: datetime) -> AnalysisReport:
    """Return the report of a look that found no data at all: neither a pass nor a failure."""
    return AnalysisReport(
        at=at,
        verdict=Verdict.ERROR,
        message=why[:2048],
        signals=tuple(
            SignalReport(name=name, family=name, verdict=Verdict.ERROR, message=f"{name}: {why}")
            for name in FAMILIES
        ),
    )


def same_verdict(one: AnalysisReport, other: AnalysisReport) -> bool:
    """Tell whether two reports say the same but for their numbers."""
    return (one.verdict, [(s.name, s.verdict) for s in one.signals]) == (
        other.verdict,
        [(s.name, s.verdict) for s in other.signals],
    )


def _signal(evidence: Evidence) -> SignalReport:
    unit = "%" if evidence.unit in ("seconds", "ratio") else "points"
    return SignalReport(
        name=evidence.name,
        family=evidence.family,
        verdict=evidence.verdict,
        baseline=_value(evidence.baseline, evidence.unit),
        canary=_value(evidence.canary, evidence.unit),
        tolerance=evidence.tolerance,
        effect=_signed(evidence.effect, unit),
        lower=_signed(evidence.lower, unit),
        upper=_signed(evidence.upper, unit),
        requests=int(evidence.requests),
        budget_spent_percent=round(100 * evidence.spent),
        message=evidence.message[:1024],
    )


def _signed(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{100 * value:+.2f} {unit}"


def _value(value: float | None, unit: str) -> str | None:
    if value is None:
        return None
    if unit == "seconds":
        return seconds(value)
    if unit == "deaths":
        return f"{value:.0f} engine deaths"
    if unit == "perRequest":
        return f"{100 * value:.3g} per 100 requests"
    return percent(value)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _milliseconds(value: float | None) -> int | None:
    return None if value is None else round(1000 * value)
