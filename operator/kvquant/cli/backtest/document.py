"""What `backtest -o json` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from kvquant.api.fields import Model
from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Evidence
from kvquant.core.backtest.replay import Outcome, Passage
from kvquant.core.backtest.splitting import Share, Tried, counted
from kvquant.core.backtest.thresholds import Ruled

DECISIONS = {
    Verdict.PASS: "Promote",
    Verdict.FAIL: "RollBack",
    Verdict.INCONCLUSIVE: "Hold",
    Verdict.ERROR: "Hold",
}

EXAMPLES = 5
"""Splits that would have been rolled back of which more is told."""


class EvidenceDocument(Model):
    """One signal, in numbers."""

    name: str
    """Name of the signal, such as latencyP99, failures or pageFaults."""
    family: str
    """What it belongs to: pageFaults, oomRetries, p99 or custom."""
    verdict: Verdict
    """Verdict of this signal alone."""
    unit: str
    """Unit of the arms' values: share (a fraction of requests), seconds, perRequest, ratio or
    deaths."""
    baseline: float | None = None
    """The baseline's value."""
    canary: float | None = None
    """The canary's value."""
    effect: float | None = None
    """Harm beyond the tolerance, as a fraction: below zero the canary is within it."""
    lower: float | None = None
    """Lower bound of the effect that holds at every look; above zero it fails."""
    upper: float | None = None
    """Upper bound of the effect at the tolerance that a pass allows; below zero it passes."""
    tolerance: str
    """What was tolerated, in words."""
    budget_spent: float
    """Part of this signal's error budget that was used up, from 0 to 1."""
    requests: float
    """Canary requests behind it."""
    message: str
    """The verdict in a sentence."""


class PassageDocument(Model):
    """What the analysis said of one step."""

    step: int
    """Number of the step, counted from 1."""
    weight: float
    """The canary's share of the traffic in it, in per cent."""
    verdict: Verdict
    """Pass: it could have been left. Fail: rolled back. Inconclusive: held."""
    decided_at: datetime | None = None
    """When; null while held."""
    baseline_requests: int | None = None
    """Requests of the baseline behind it."""
    canary_requests: int | None = None
    """Requests of the canary behind it."""
    message: str
    """The verdict in a sentence."""


class ThresholdDocument(Model):
    """What a static threshold would have done."""

    rule: str
    """The rule in words."""
    limit_seconds: float | None = None
    """Its threshold; null when there was nothing to derive it from."""
    decision: str
    """RollBack, or Promote: static rules never hold for long."""
    decided_at: datetime | None = None
    """When it would have rolled back; null when it would not."""
    failed_checks: int
    """Checks that failed until then, or to the end."""
    checks: int
    """Checks that were made until then, or to the end."""


class BacktestDocument(Model):
    """What would have been decided about a canary."""

    verdict: Verdict
    """Fail: rolled back. Pass: promoted. Inconclusive: held. Error: nothing could be compared."""
    decision: str
    """The same as a decision: RollBack, Promote or Hold."""
    decided_at: datetime | None = None
    """When; null when it would still have been held at the end."""
    message: str
    """The decision in a sentence."""
    source: str
    """The Prometheus that was asked."""
    start: datetime
    """When the first step began."""
    end: datetime
    """Last instant that was read."""
    time_scale: float
    """Factor by which recorded time was compressed."""
    tick_seconds: float
    """Time between two looks."""
    baseline_pods: tuple[str, ...]
    """Pods that the baseline's selector found."""
    canary_pods: tuple[str, ...]
    """Pods that the canary's selector found."""
    budget_spent: float | None = None
    """Part of the error budget used up by the signal that used up most, from 0 to 1."""
    load_ratio: float | None = None
    """Requests per canary pod divided by requests per baseline pod."""
    provisional: bool = False
    """Whether a pass was earned at less load per pod than the baseline's."""
    eta_seconds: float | None = None
    """For one that is held: seconds until the evidence should have sufficed."""
    signals: tuple[EvidenceDocument, ...] = ()
    """Each signal's evidence when it was decided, or at the end."""
    steps: tuple[PassageDocument, ...] = ()
    """Each step that came into effect."""
    thresholds: tuple[ThresholdDocument, ...] = ()
    """What static thresholds would have done."""


class RateDocument(Model):
    """How often something happened in all splits."""

    count: int
    """Splits in which it did."""
    rate: float
    """Their share, as a fraction."""
    lower: float
    """Lower end of the rate's exact 95 % interval."""
    upper: float
    """Upper end of it. Splits share one history: it speaks of other splits, not of other days."""


class ThresholdRateDocument(Model):
    """How often a static threshold would have rolled back."""

    rule: str
    """The rule in words."""
    rolled_back: RateDocument
    """How often."""


class ExampleDocument(Model):
    """A split that would have been rolled back."""

    canary_pods: tuple[str, ...]
    """Pods that played the canary."""
    started_at: datetime
    """When they began to."""
    decided_at: datetime | None = None
    """When they would have been rolled back."""
    message: str
    """Why."""


class SplitsDocument(Model):
    """How often an innocent canary would have been rolled back: one pool split in two at random."""

    splits: int
    """Splits that were tried, each once: few pods can be split in few ways."""
    seed: int
    """The same seed draws the same splits."""
    source: str
    """The Prometheus that was asked."""
    start: datetime
    """Begin of the history that was read."""
    end: datetime
    """Its end."""
    time_scale: float
    """Factor by which recorded time was compressed."""
    tick_seconds: float
    """Time between two looks."""
    pods: tuple[str, ...]
    """Pods of the pool."""
    false_rollbacks: RateDocument
    """Splits in which the analysis would have rolled back."""
    promoted: RateDocument
    """Splits in which it would have promoted."""
    held: RateDocument
    """Splits in which it would have been held to the end, or found nothing to compare."""
    thresholds: tuple[ThresholdRateDocument, ...] = ()
    """What static thresholds would have done in the same splits."""
    examples: tuple[ExampleDocument, ...] = ()
    """The first five splits that would have been rolled back, with the reason."""


def evidence(one: Evidence) -> EvidenceDocument:
    """Return a signal in numbers."""
    return EvidenceDocument(
        name=one.name,
        family=one.family,
        verdict=one.verdict,
        unit=one.unit,
        baseline=_finite(one.baseline),
        canary=_finite(one.canary),
        effect=_finite(one.effect),
        lower=_finite(one.lower),
        upper=_finite(one.upper),
        tolerance=one.tolerance,
        budget_spent=one.spent,
        requests=one.requests,
        message=one.message,
    )


def passages(outcome: Outcome) -> tuple[PassageDocument, ...]:
    """Return what was said of each step."""
    return tuple(_passage(one) for one in outcome.steps)


def thresholds(ruled: Sequence[Ruled]) -> tuple[ThresholdDocument, ...]:
    """Return what static rules would have done."""
    return tuple(
        ThresholdDocument(
            rule=one.rule,
            limit_seconds=_finite(one.limit),
            decision="Promote" if one.rolled_back_at is None else "RollBack",
            decided_at=instant(one.rolled_back_at),
            failed_checks=one.failed,
            checks=one.checks,
        )
        for one in ruled
    )


def rate(share: Share) -> RateDocument:
    """Return how often something happened."""
    return RateDocument(count=share.hits, rate=share.rate, lower=share.lower, upper=share.upper)


def rates(tried: Sequence[Tried]) -> tuple[RateDocument, RateDocument, RateDocument]:
    """Return how often splits were rolled back, promoted and held."""
    back, through = counted(tried, Verdict.FAIL), counted(tried, Verdict.PASS)
    held = Share(len(tried) - back.hits - through.hits, len(tried))
    return rate(back), rate(through), rate(held)


def threshold_rates(tried: Sequence[Tried]) -> tuple[ThresholdRateDocument, ...]:
    """Return how often each static rule would have rolled back."""
    names = [one.rule.split(" times ")[0] for one in tried[0].ruled] if tried else []
    found = []
    for index, name in enumerate(names):
        hits = sum(1 for one in tried if one.ruled[index].rolled_back_at is not None)
        told = f"{name} times what the pool showed before"
        found.append(ThresholdRateDocument(rule=told, rolled_back=rate(Share(hits, len(tried)))))
    return tuple(found)


def examples(tried: Sequence[Tried]) -> tuple[ExampleDocument, ...]:
    """Return the first splits that would have been rolled back."""
    back = [one for one in tried if one.outcome.verdict is Verdict.FAIL]
    return tuple(
        ExampleDocument(
            canary_pods=tuple(sorted(one.split.canary)),
            started_at=datetime.fromtimestamp(round(one.split.start, 3), UTC),
            decided_at=instant(one.outcome.decided_at),
            message=one.outcome.message,
        )
        for one in back[:EXAMPLES]
    )


def instant(at: float | None) -> datetime | None:
    """Return an instant for people and programs."""
    return None if at is None else datetime.fromtimestamp(at, UTC)


def _passage(one: Passage) -> PassageDocument:
    report = one.report
    return PassageDocument(
        step=one.step,
        weight=round(one.weight, 2),
        verdict=one.verdict,
        decided_at=instant(one.decided_at),
        baseline_requests=None if report is None else _whole(report.baseline_requests),
        canary_requests=None if report is None else _whole(report.canary_requests),
        message="It was too short to be looked at." if report is None else report.message,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
