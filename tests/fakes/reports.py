"""Reports of an analysis, for tests of what is made of them."""

from __future__ import annotations

from datetime import UTC, datetime

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Evidence, Report

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


def report(
    verdict: Verdict = Verdict.PASS,
    *,
    step: int = 1,
    baseline: float = 2700,
    canary: float = 300,
    eta: float | None = None,
) -> Report:
    """Return a report whose one signal has the verdict of the whole."""
    messages = {
        Verdict.PASS: f"Every signal is within its tolerance after {canary:,.0f} canary and "
        f"{baseline:,.0f} baseline requests.",
        Verdict.FAIL: "latencyP99: far too slow.",
        Verdict.INCONCLUSIVE: "Not enough evidence yet.",
        Verdict.ERROR: "No data.",
    }
    return Report(
        at=AT.timestamp(),
        step=step,
        verdict=verdict,
        message=messages[verdict],
        signals=(Evidence("latencyP99", "p99", verdict, 0.01, 0.02, message=messages[verdict]),),
        baseline_requests=baseline,
        canary_requests=canary,
        eta_seconds=eta,
    )
