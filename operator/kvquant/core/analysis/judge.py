"""The verdict over all signals, and whether the traffic that it rests on has arrived."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kvquant.api.v1alpha1 import AnalysisReport, AnalysisSettings, SignalReport, Verdict
from kvquant.core.analysis import arms
from kvquant.core.analysis import signals_v1 as signals
from kvquant.core.analysis.signals_v1 import QUANTILE, Restarts
from kvquant.core.evidence import ArmSample, Evidence, worst

ENOUGH_TO_MISS = 30
"""Expected canary requests from which their absence means something: with a Poisson mean of 30,
less than half of it comes by chance once in five hundred times."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """Pods per arm."""

    baseline: int
    canary: int


def judge(
    settings: AnalysisSettings,
    evidence: Evidence | None,
    restarts: Restarts,
    replicas: Replicas,
    at: datetime,
    problem: str | None = None,
) -> AnalysisReport:
    """Judge the canary by what was measured since the step began.

    The worst signal decides: FAIL before ERROR before INCONCLUSIVE before PASS. Restarts fail the
    canary even while Prometheus is out, because Kubernetes counts them; nothing else does.

    Args:
        settings: Minimum samples and tolerances.
        evidence: Both arms' measurements; None when Prometheus could not be asked.
        restarts: Engine restarts per arm since the step began.
        replicas: Pods per arm.
        at: The present instant.
        problem: Why there is no evidence, for people.
    """
    if evidence is not None and not evidence.problems:
        measured = [
            signals.page_faults(settings, evidence),
            signals.oom_retries(settings, evidence),
            signals.p99(settings, evidence),
        ]
    else:
        why = worst(evidence.problems) if evidence else problem or "Prometheus did not answer"
        measured = [signals.error(name, why) for name in ("pageFaults", "oomRetries", "p99")]
    dead = signals.deaths(settings, restarts)
    reports = tuple(dead if dead and r.name == dead.name else r for r in measured)
    return _report(reports, evidence, replicas, at)


def traffic_arrived(evidence: Evidence | None, weight_canary: int) -> bool | None:
    """Tell whether the canary gets at least half of the share that it should.

    Args:
        evidence: Both arms' measurements since the weight was set.
        weight_canary: The canary's committed weight in per cent.

    Returns:
        None while nothing is known or too few requests came to miss any.
    """
    if evidence is None or evidence.problems or weight_canary <= 0:
        return None
    baseline = arms.requests(evidence.baseline_now or evidence.baseline)
    canary = arms.requests(evidence.canary)
    if baseline is None or canary is None:
        return None
    total = baseline.attempted + canary.attempted
    expected = total * weight_canary / 100
    if expected < ENOUGH_TO_MISS:
        return None
    return canary.attempted >= expected / 2


def _report(
    reports: tuple[SignalReport, ...],
    evidence: Evidence | None,
    replicas: Replicas,
    at: datetime,
) -> AnalysisReport:
    order = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)
    verdict = min((r.verdict for r in reports), key=order.index)
    baseline = evidence.baseline if evidence else ArmSample()
    canary = evidence.canary if evidence else ArmSample()
    return AnalysisReport(
        at=at,
        verdict=verdict,
        message=_message(verdict, reports, baseline, canary),
        baseline_requests=_attempted(baseline),
        canary_requests=_attempted(canary),
        baseline_p99_ms=_p99_ms(baseline),
        canary_p99_ms=_p99_ms(canary),
        load_ratio=_load_ratio(baseline, canary, replicas),
        signals=reports,
    )


def _message(
    verdict: Verdict, reports: tuple[SignalReport, ...], baseline: ArmSample, canary: ArmSample
) -> str:
    if verdict is Verdict.PASS:
        return (
            f"Every signal is within its tolerance after {_attempted(canary):,} canary and "
            f"{_attempted(baseline):,} baseline requests."
        )
    said = [r.message.removeprefix(f"{r.name}: ") for r in reports if r.verdict is verdict]
    if len(said) > 1 and len(set(said)) == 1:
        # One cause for all signals, such as an outage, is told once.
        return said[0]
    return " ".join(r.message for r in reports if r.verdict is verdict)


def _attempted(sample: ArmSample) -> int | None:
    requests = arms.requests(sample)
    return None if requests is None else int(requests.attempted)


def _p99_ms(sample: ArmSample) -> int | None:
    latency = arms.latency(sample)
    seconds = None if latency is None else latency.quantile(QUANTILE)
    return None if seconds is None else round(1000 * seconds)


def _load_ratio(baseline: ArmSample, canary: ArmSample, replicas: Replicas) -> str | None:
    """Return requests per canary pod and second, divided by those per baseline pod and second."""
    requests = arms.requests(baseline), arms.requests(canary)
    if requests[0] is None or requests[1] is None or replicas.baseline < 1 or replicas.canary < 1:
        return None
    seconds = baseline.seconds or 1.0, canary.seconds or 1.0
    per_pod = (
        requests[0].attempted / replicas.baseline / seconds[0],
        requests[1].attempted / replicas.canary / seconds[1],
    )
    return f"{per_pod[1] / per_pod[0]:.2f}" if per_pod[0] > 0 else None
