"""What is said of a signal, in sentences for people."""

from __future__ import annotations

import math

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis.comparing import Harm
from kvquant.core.analysis.report import Evidence, percent, seconds

CUSTOM = "custom"
"""Family of the user's own signals."""

_FAMILIES = {
    "latencyP50": "p99",
    "latencyP90": "p99",
    "latencyP99": "p99",
    "firstTokenP90": "p99",
    "firstTokenP99": "p99",
    "tokenTime": "p99",
    "delivered": "p99",
    "failures": "oomRetries",
    "deaths": "oomRetries",
    "pageFaults": "pageFaults",
}
"""Family of each built-in signal."""

UNITS = {"tokenTime": "seconds", "delivered": "ratio", "pageFaults": "perRequest"}
"""Unit of each signal's values that is not a share."""


def family_of(name: str) -> str:
    """Return the family of a signal."""
    return _FAMILIES.get(name, CUSTOM)


def unmeasured(name: str, tolerance: str, scope: str, *, alone: bool) -> Evidence:
    """Return what is said of a signal without any evidence.

    Args:
        name: Name of the signal.
        tolerance: What is tolerated, in words.
        scope: Of which batches there is none.
        alone: Whether only the baseline's past could have been the control.
    """
    why = "not measured yet"
    if family_of(name) == CUSTOM:
        why += ": the engine pods of both arms must export it, and count something"
    if alone and family_of(name) == "p99":
        why = "no baseline pod ever had the load of a canary pod now, so that there is no control"
    return Evidence(
        name,
        family_of(name),
        Verdict.INCONCLUSIVE,
        tolerance=tolerance,
        scope=scope,
        message=f"{name}: {why}.",
    )


def sentence(name: str, harm: Harm, tolerance: str, verdict: Verdict, *, certain: bool) -> str:
    """Return what is said of a signal that was measured.

    Args:
        name: Name of the signal.
        harm: What was measured.
        tolerance: What is tolerated, in words.
        verdict: Verdict of this signal alone.
        certain: Whether a failure is beyond the error budget, and not only likely.
    """
    what = "observations" if family_of(name) == CUSTOM else "requests"
    if name == "tokenTime":
        told = (
            f"{name}: {seconds(harm.canary)} between two tokens, baseline {seconds(harm.baseline)}"
        )
    elif name == "delivered":
        told = (
            f"{name}: while it queues, the canary delivers {percent(harm.canary)} of what comes to "
            "it and a baseline pod carries"
        )
    elif name == "pageFaults":
        told = (
            f"{name}: {100 * harm.canary:.3g} preemptions per 100 requests, baseline "
            f"{100 * harm.baseline / 2:.3g}"
        )
    elif not math.isnan(harm.edge):
        return (
            f"{name}: {percent(harm.canary)} of canary {what} took longer than "
            f"{seconds(harm.edge * harm.factor)}, the baseline's {seconds(harm.edge)} and "
            f"{tolerance.removesuffix(' slower')}; {percent(harm.baseline)} would be equal."
            f"{_surety(harm, what, verdict, certain=certain)}"
        )
    else:
        told = f"{name}: {percent(harm.canary)}, baseline {percent(harm.baseline)}"
    return f"{told}; {tolerance} is tolerated.{_surety(harm, what, verdict, certain=certain)}"


def _surety(harm: Harm, what: str, verdict: Verdict, *, certain: bool) -> str:
    if verdict is not Verdict.FAIL:
        return ""
    sure = "clear of noise" if certain else "likely, though not certain, after so long a wait"
    return f" The excess is {sure} after {int(harm.requests):,} canary {what}."
