"""The three signals. Each compares the canary with the baseline over the same evidence.

One rule for all of them:

- FAIL when the harm beyond the tolerance is clear of sampling noise, however few requests that
  took (but at least `FEWEST`);
- PASS when both arms have their minimum of requests and the measured harm is within tolerance;
- INCONCLUSIVE otherwise, with what is missing. No data is neither a pass nor a failure.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvquant.api.v1alpha1 import AnalysisSettings, SignalReport, SignalSettings, Verdict
from kvquant.core.analysis.arms import count, latency, requests
from kvquant.core.analysis.intervals import Estimate, least_excess, rate, share
from kvquant.core.evidence import Evidence

FEWEST = 10
"""Canary requests below which nothing fails: fewer are an anecdote."""

QUANTILE = 0.99

# Measured in simulations fitted to recordings of real engines, the variance of a share of slow
# requests is one to two times the binomial one at medium load and ten to twenty times at
# saturation, because queues make neighbours alike. Four lies between; failures are less contagious.
LATENCY_DESIGN_EFFECT = 4.0
PAGE_FAULT_DESIGN_EFFECT = 4.0
FAILURE_DESIGN_EFFECT = 2.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """Engine restarts of any exit code per arm since the step began, from the API server."""

    baseline: int
    canary: int


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One signal's two estimates, with the words to tell of them.

    Attributes:
        name: Name of the signal.
        baseline: The baseline's share or rate, as a fraction of one.
        canary: The canary's.
        baseline_requests: Requests behind the baseline's.
        canary_requests: Requests behind the canary's.
        tolerance_percent: Excess that is allowed, in points or events per 100 requests.
        wanted: Requests that each arm needs for a pass.
        unit: Unit of the numbers, such as ` %` for shares.
        what: What they are numbers of, such as `of requests failed`.
    """

    name: str
    baseline: Estimate
    canary: Estimate
    baseline_requests: float
    canary_requests: float
    tolerance_percent: int
    wanted: int
    unit: str
    what: str


def page_faults(settings: AnalysisSettings, evidence: Evidence) -> SignalReport:
    """Compare the preemptions per finished request, as the engines count them.

    A rate, no share: a request can be preempted more than once.
    """
    name = "pageFaults"
    events = count(evidence.baseline.preemptions), count(evidence.canary.preemptions)
    finished = count(evidence.baseline.finished), count(evidence.canary.finished)
    missing = _missing(
        name,
        "preemptions and finished requests, which the engines count",
        None if events[0] is None else finished[0],
        None if events[1] is None else finished[1],
        wanted := _wanted(settings, settings.page_faults),
    )
    if missing is not None:
        return missing
    assert events[0] is not None and events[1] is not None  # noqa: S101 - nothing is missing
    assert finished[0] is not None and finished[1] is not None  # noqa: S101
    return _judge(
        _Comparison(
            name,
            rate(events[0], finished[0], PAGE_FAULT_DESIGN_EFFECT),
            rate(events[1], finished[1], PAGE_FAULT_DESIGN_EFFECT),
            finished[0],
            finished[1],
            settings.page_faults.tolerance_percent,
            wanted,
            "",
            "preemptions per 100 requests",
        )
    )


def deaths(settings: AnalysisSettings, restarts: Restarts) -> SignalReport | None:
    """Return a failure when the canary's engines died more often than allowed, else None.

    This half of the signal oomRetries needs no Prometheus: Kubernetes counts the restarts.
    """
    allowed = restarts.baseline + settings.oom_retries.max_restarts
    if restarts.canary <= allowed:
        return None
    return SignalReport(
        name="oomRetries",
        verdict=Verdict.FAIL,
        baseline=f"{restarts.baseline} engine restarts",
        canary=f"{restarts.canary} engine restarts",
        tolerance=f"{allowed} engine restarts",
        message=(
            f"oomRetries: engine restarts in this step: canary {restarts.canary}, baseline "
            f"{restarts.baseline}; {settings.oom_retries.max_restarts} more are tolerated. Any "
            "exit code counts."
        ),
    )


def oom_retries(settings: AnalysisSettings, evidence: Evidence) -> SignalReport:
    """Compare the share of requests that failed at the router: 5xx, timed out or broken off."""
    name = "oomRetries"
    baseline, canary = requests(evidence.baseline), requests(evidence.canary)
    missing = _missing(
        name,
        "requests, which the router counts",
        baseline.attempted if baseline else None,
        canary.attempted if canary else None,
        wanted := _wanted(settings, settings.oom_retries),
    )
    if missing is not None:
        return missing
    assert baseline is not None and canary is not None  # noqa: S101 - nothing is missing
    return _judge(
        _Comparison(
            name,
            share(baseline.failed, baseline.attempted, FAILURE_DESIGN_EFFECT),
            share(canary.failed, canary.attempted, FAILURE_DESIGN_EFFECT),
            baseline.attempted,
            canary.attempted,
            settings.oom_retries.tolerance_percent,
            wanted,
            " %",
            "of requests failed (5xx, timed out or broken off)",
        )
    )


def p99(settings: AnalysisSettings, evidence: Evidence) -> SignalReport:
    """Compare the share of requests slower than the baseline's own p99.

    The p99 is taken at the end of its histogram bucket, where both arms' shares are exact counts.
    That it comes from the same data as the baseline's share is covered by that share's upper
    limit: for identical arms, the chance that the canary's true share beyond the slowest of n
    baseline requests exceeds u is (1 - u)^n, far below the limit's own error.
    """
    name = "p99"
    baseline, canary = latency(evidence.baseline), latency(evidence.canary)
    missing = _missing(
        name,
        "latencies, which the router measures",
        baseline.total if baseline else None,
        canary.total if canary else None,
        wanted := _wanted(settings, settings.p99),
    )
    if missing is not None:
        return missing
    assert baseline is not None and canary is not None  # noqa: S101 - nothing is missing
    edge = baseline.edge(QUANTILE)
    slow = baseline.slower_than(edge), canary.slower_than(edge)
    if slow[0] is None or slow[1] is None:
        return _inconclusive(
            name,
            f"the arms' latencies were measured in different buckets ({edge:g} s is a bound of "
            "only one): run the same router version in all router pods",
        )
    return _judge(
        _Comparison(
            name,
            share(slow[0], baseline.total, LATENCY_DESIGN_EFFECT),
            share(slow[1], canary.total, LATENCY_DESIGN_EFFECT),
            baseline.total,
            canary.total,
            settings.p99.tolerance_percent,
            wanted,
            " %",
            f"of requests took longer than {edge:g} s",
        )
    )


def error(name: str, why: str) -> SignalReport:
    """Return the report of a signal that could not be measured at all."""
    return SignalReport(name=name, verdict=Verdict.ERROR, message=f"{name}: {why}")


def _judge(it: _Comparison) -> SignalReport:
    tolerance = it.tolerance_percent / 100
    harm = it.canary.value - it.baseline.value
    told = (
        f"{it.name}: canary {_percent(it.canary.value)}{it.unit}, baseline "
        f"{_percent(it.baseline.value)}{it.unit} {it.what}; {it.tolerance_percent} more are "
        "tolerated"
    )
    few = min(it.baseline_requests, it.canary_requests) < it.wanted
    if it.canary_requests >= FEWEST and least_excess(it.canary, it.baseline) > tolerance:
        verdict = Verdict.FAIL
        told += f". The excess is clear of noise after {_number(it.canary_requests)} requests."
    elif few:
        verdict = Verdict.INCONCLUSIVE
        told = f"{it.name}: {_shortage(it.baseline_requests, it.canary_requests, it.wanted)}."
    elif harm <= tolerance:
        verdict = Verdict.PASS
        told += "."
    else:
        verdict = Verdict.INCONCLUSIVE
        told += (
            f". That is too much, but {_number(it.canary_requests)} canary requests are too few "
            "to tell it from noise: more requests will decide."
        )
    return SignalReport(
        name=it.name,
        verdict=verdict,
        baseline=_measured(it, it.baseline, it.baseline_requests),
        canary=_measured(it, it.canary, it.canary_requests),
        tolerance=f"+{it.tolerance_percent}{' points' if it.unit else ' per 100 requests'}",
        message=told,
    )


def _wanted(settings: AnalysisSettings, signal: SignalSettings) -> int:
    return signal.min_requests or settings.min_requests


def _missing(
    name: str, what: str, baseline: float | None, canary: float | None, wanted: int
) -> SignalReport | None:
    """Return an inconclusive report when an arm has no data or no request, else None."""
    unknown = [arm for arm, n in (("baseline", baseline), ("canary", canary)) if n is None]
    if baseline is None or canary is None:
        return _inconclusive(name, f"no data of the {' and the '.join(unknown)} ({what})")
    if baseline == 0 or canary == 0:
        return _inconclusive(name, _shortage(baseline, canary, wanted))
    return None


def _inconclusive(name: str, why: str) -> SignalReport:
    return SignalReport(name=name, verdict=Verdict.INCONCLUSIVE, message=f"{name}: {why}.")


def _shortage(baseline: float, canary: float, wanted: int) -> str:
    arms = (("canary", canary), ("baseline", baseline))
    # Counts are rounded down, so that a shortage never reads as if nothing were missing.
    short = [f"{int(n):,} of {wanted:,} {arm} requests" for arm, n in arms if n < wanted]
    return " and ".join(short) + " so far"


def _measured(it: _Comparison, estimate: Estimate, requests: float) -> str:
    return f"{_percent(estimate.value)}{it.unit or ' per 100'} of {_number(requests)} requests"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}".rstrip("0").rstrip(".")


def _number(value: float) -> str:
    return f"{int(value):,}"
