"""What one look at the evidence says: numbers, and the sentences that go with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvquant.api.v1alpha1 import Verdict


@dataclass(frozen=True, slots=True)
class Evidence:
    """One signal in one look.

    Attributes:
        name: Name of the signal, such as `latencyP99`.
        family: The family that it belongs to: p99, oomRetries, pageFaults, or custom.
        verdict: Verdict of this signal alone.
        baseline: The baseline's value, in the unit.
        canary: The canary's value, in the unit.
        unit: `share` (a fraction of requests), `seconds`, `perRequest`, `ratio` or `deaths`.
        effect: Harm beyond the tolerance: below zero the canary is within it. None: not measured.
        error: Standard error of the effect.
        relaxed: The effect at the tolerance that a pass allows, which is a fifth wider.
        equal: What `relaxed` would be, were the canary like the baseline.
        lower: Anytime-valid lower bound of the effect, at this signal's part of the budget.
        upper: Upper 90 % bound of the effect, at the tolerance that a pass allows.
        tolerance: What was tolerated, in words.
        spent: Part of this signal's error budget that its evidence has used up, from 0 to 1.
        scope: `step` when this step's batches spoke, `rollout` when those of all steps did.
        batches: Batches behind it.
        requests: Canary requests behind it.
        message: The verdict in a sentence.
    """

    name: str
    family: str
    verdict: Verdict
    baseline: float | None = None
    canary: float | None = None
    unit: str = "share"
    effect: float | None = None
    error: float = 0.0
    relaxed: float | None = None
    equal: float = -math.inf
    lower: float | None = None
    upper: float | None = None
    tolerance: str = ""
    spent: float = 0.0
    scope: str = "step"
    batches: int = 0
    requests: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Load per pod, and what follows from it.

    Attributes:
        ratio: Requests per canary pod divided by requests per baseline pod; None: unknown.
        per_canary_pod: Requests per second and canary pod.
        tested: Largest load per canary pod that has been measured without harm.
        next: Load per canary pod that the next step would bring; None in the last.
        queueing: Whether the canary has a backlog now.
        replicas_needed: Canary pods that the next step needs, when those planned are too few.
        message: What keeps the step from advancing, in a sentence; empty when nothing does.
    """

    ratio: float | None = None
    per_canary_pod: float | None = None
    tested: float | None = None
    next: float | None = None
    queueing: bool = False
    replicas_needed: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict of one look, with everything behind it.

    Attributes:
        at: Instant of the latest tick in seconds since the epoch.
        step: Step that it speaks of.
        verdict: PASS: the step may advance. FAIL: roll back. INCONCLUSIVE: wait. ERROR: no data.
        message: The verdict in a sentence.
        signals: Each signal's evidence.
        load: Load per pod.
        provisional: Whether the pass was earned at less load per pod than the baseline's.
        baseline_requests: Requests that the baseline ended in this step.
        canary_requests: Requests that the canary ended in this step.
        seconds: Evidence of this step in seconds.
        eta_seconds: Seconds until the evidence should suffice at the present rate; None when more
            of the same will not decide.
        budget_spent: Part of the rollout's error budget used up by the signal that used up most.
        baseline_p99: The baseline's p99 at the router in this step in seconds.
        canary_p99: The canary's.
    """

    at: float
    step: int
    verdict: Verdict
    message: str
    signals: tuple[Evidence, ...] = ()
    load: Load = Load()
    provisional: bool = False
    baseline_requests: float | None = None
    canary_requests: float | None = None
    seconds: float = 0.0
    eta_seconds: float | None = None
    budget_spent: float = 0.0
    baseline_p99: float | None = None
    canary_p99: float | None = None


def percent(value: float) -> str:
    """Return a fraction as per cent with up to three digits that matter."""
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") + " %"


def seconds(value: float) -> str:
    """Return a duration for people."""
    if not math.isfinite(value):
        return "unknown"
    if value == 0:
        return "0 s"
    if value < 0.1:
        return f"{1000 * value:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"
