"""When a step may advance, and if it may not, what is missing and how long that will take."""

from __future__ import annotations

import math
from dataclasses import replace

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis.report import Evidence, Report, seconds
from kvquant.core.analysis.sentences import CUSTOM
from kvquant.core.analysis.settings import Settings

REQUIRED = frozenset({"latencyP50", "latencyP90", "failures"})
"""Signals that must be shown to be within their tolerance. The rarer ones (p99, deaths) could not
be in any bearable time, and those of the engine may not exist: they must only not be in doubt."""

FEWEST_BATCHES, FEWEST_REQUESTS = 2, 20
"""Batches and canary requests below which nothing but deaths fails: fewer are an anecdote."""

IN_DOUBT = 1.0
"""Standard errors beyond its tolerance from which on a signal is in doubt."""

FULLER = 1.0
"""Standard errors beyond twice the baseline's share of preempted requests from which on the
canary's cache is taken for the fuller one, however far within the tolerance. A quantized cache
holds more in the same memory: when it overflows where the baseline's does not, its limit is near,
and the load that shows it may come after the promotion only."""


def passes(
    report: Report, settings: Settings, pace: tuple[float, float] | None, *, last: bool = False
) -> Report:
    """Return the report with its verdict, PASS or INCONCLUSIVE, a sentence and the time to go.

    Args:
        report: Evidence without any failure.
        settings: Minimum requests and time.
        pace: Requests per second that baseline and canary ended lately.
        last: Whether no baseline of like load is left to compare with.
    """
    missing: list[str] = []
    waits: list[float | None] = []
    shortage = _requests_missing(report, settings, pace)
    if shortage is not None:
        missing.append(shortage[0])
        waits.append(shortage[1])
    least = settings.scaled(settings.min_seconds)
    if report.seconds < least:
        left = least - report.seconds
        missing.append(f"{seconds(report.seconds)} of {seconds(least)} of evidence")
        waits.append(left)
    for evidence in report.signals:
        doubt = _doubt(evidence, report.seconds) or (None if last else _fuller(evidence, settings))
        if doubt is not None:
            missing.append(doubt[0])
            waits.append(doubt[1])
    if report.load.message:
        missing.append(report.load.message.rstrip("."))
        waits.append(None)
    if not missing:
        told = (
            f"Every signal is within its tolerance after {int(report.canary_requests or 0):,} "
            f"canary and {int(report.baseline_requests or 0):,} baseline requests."
        )
        if report.provisional:
            told += (
                f" Provisional: a canary pod had {report.load.ratio:.2f} times the load of a "
                "baseline pod."
            )
        return replace(report, verdict=Verdict.PASS, message=told)
    eta = None if any(wait is None for wait in waits) else max(w for w in waits if w is not None)
    told = "Not enough evidence yet: " + "; ".join(missing) + "."
    if eta is not None and math.isfinite(eta):
        told += f" About {seconds(eta)} to go at the present rate."
    return replace(report, verdict=Verdict.INCONCLUSIVE, message=told, eta_seconds=eta)


def _requests_missing(
    report: Report, settings: Settings, pace: tuple[float, float] | None
) -> tuple[str, float | None] | None:
    counts = (("baseline", report.baseline_requests), ("canary", report.canary_requests))
    short = [
        (f"{int(n or 0):,} of {settings.min_requests:,} {arm} requests", i, n or 0.0)
        for i, (arm, n) in enumerate(counts)
        if (n or 0.0) < settings.min_requests
    ]
    if not short:
        return None
    told = " and ".join(text for text, _, _ in short)
    if pace is None or any(pace[i] <= 0 for _, i, _ in short):
        return told, None
    return told, max((settings.min_requests - n) / pace[i] for _, i, n in short)


def _fuller(evidence: Evidence, settings: Settings) -> tuple[str, float | None] | None:
    """Return what keeps a canary from passing whose cache overflows more than the baseline's."""
    if evidence.name != "pageFaults" or evidence.effect is None:
        return None
    if evidence.effect + settings.page_faults <= FULLER * evidence.error:
        return None
    assert evidence.canary is not None  # noqa: S101 - there is no effect without
    assert evidence.baseline is not None  # noqa: S101 - likewise
    told = (
        f"the canary preempts {100 * evidence.canary:.2g} in 100 requests and the baseline "
        f"{100 * evidence.baseline:.2g}: its KV cache is the fuller one at this load"
    )
    return told, None


def _doubt(evidence: Evidence, elapsed: float) -> tuple[str, float | None] | None:
    """Return what keeps a signal from passing, with the seconds that more of the same needs."""
    if evidence.verdict is Verdict.PASS:
        return None
    custom = evidence.family == CUSTOM
    if evidence.effect is None or evidence.upper is None or evidence.lower is None:
        # What somebody has asked for must be there; what engines may not have need not.
        if custom or evidence.name in REQUIRED:
            return evidence.message.rstrip("."), None
        return None
    if custom and (evidence.requests < FEWEST_REQUESTS or evidence.batches < FEWEST_BATCHES):
        told = f"{evidence.name}: {int(evidence.requests)} of {FEWEST_REQUESTS} canary observations"
        much = min(evidence.requests / FEWEST_REQUESTS, evidence.batches / FEWEST_BATCHES)
        return told, elapsed * (1 / much - 1) if much > 0 else None
    error = evidence.error
    if evidence.name not in REQUIRED:
        if evidence.effect <= IN_DOUBT * error:
            return None
        return f"{evidence.name} is in doubt", None
    if evidence.relaxed is None:
        return f"{evidence.name} is not measured", None
    # The bound shrinks with the root of the time. How far it has to is taken from a canary that is
    # like the baseline: what was measured swings as long as it is little.
    reach = evidence.upper - evidence.relaxed
    wait = elapsed * ((reach / -evidence.equal) ** 2 - 1) if evidence.equal < 0 else math.inf
    if evidence.relaxed >= 0:
        told = f"{evidence.name} is beyond its tolerance, which may be noise"
        return told, wait if 0 < wait < math.inf else None
    return f"{evidence.name} is not told from its tolerance yet", max(0.0, wait)
