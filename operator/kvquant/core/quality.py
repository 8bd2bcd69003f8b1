"""Is the canary's answer as good as the baseline's? The verdict on pairs of shadowed answers.

Each signal is a paired difference, so that hard prompts, which are hard for both arms, cancel out.
The tests are anytime-valid like those of live traffic, and use up part of the same error budget.
Harm is looked for over all requests and in each length of request by itself: a cache that loses
what stands far back hurts long prompts only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from kvquant.api.v1alpha1 import (
    ShadowBucket,
    ShadowLoss,
    ShadowReport,
    SignalReport,
    Verdict,
)
from kvquant.core import shadow_settings as told
from kvquant.core.analysis.sequential import SOUND, TUNED_AT, boundary, student
from kvquant.core.plan import PlannedShadow
from kvquant.core.shadow_reading import ShadowEvidence, Sums
from kvquant.core.shadow_settings import BUCKETS, CANARY_PAIR, NOISE_PAIR

FAMILY = "quality"

ANSWER_SIGNALS = (
    told.ANSWERED,
    told.JSON,
    told.TOOLS,
    told.CITATIONS,
    told.REFUSALS,
    told.ENDINGS,
)
"""Signals whose differences are -1, 0 or 1."""
PROBED = (told.SATURATED, told.SATURATED_ANSWERED)
"""Signals of the saturation probe, whose pairs are the canary's calm and full answers."""
JUDGED = (told.DRIFT, *ANSWER_SIGNALS, *PROBED)

BOTH_WAYS = frozenset({*JUDGED} - {told.TOOLS})
"""Signals whose differences have the mean 0 where the arms are the same. The others count any
difference, so that what the baseline differs from itself is taken off."""

NOISY_TOLERANCE = 2.5
"""Of what else is tolerated, as many times is tolerated where there are fewer pairs: where the
baseline's own noise must be taken off first, and in the saturation probe."""

MEANING = {
    told.DRIFT: "more surprised by the baseline's answers than the baseline is",
    told.ANSWERED: "more requests left without an answer",
    told.JSON: "more answers whose JSON is broken",
    told.TOOLS: "more tool calls that differ from the baseline's",
    told.CITATIONS: "more answers that lost citations",
    told.REFUSALS: "more refusals",
    told.ENDINGS: "more answers that ran into the cap of tokens",
    told.SATURATED: "more answers of the canary that are wrong while it is full",
    told.SATURATED_ANSWERED: "more requests that the canary fails to answer while it is full",
}

FEWEST = 30
"""Pairs of a signal, and of its noise, below which it keeps nothing from moving: a kind of request
that is so rare is not what the rollout is about, and is told to be not evaluated."""
FEWEST_TO_FAIL = 10
"""Pairs from which harm can be believed, and from which a length of request counts as covered."""
TUNED_PAIRS = 100.0
"""Pairs at which the bound is tightest."""
REASONS = 12
"""Reasons for which copies were not compared that are told."""
PRIOR_PAIRS, PRIOR_DRIFT = 5.0, 0.05
"""Scatter of the drift (nats per token) that is assumed before, and the pairs that it is worth."""


@dataclass(frozen=True, slots=True)
class _Excess:
    """By how much the canary's mean exceeds what it is compared with, and its standard error."""

    value: float
    error: float
    count: float

    def lower(self, alpha: float) -> float:
        """Return the anytime-valid lower bound at the error probability alpha."""
        batches = max(1.0, self.count * TUNED_AT / TUNED_PAIRS)
        return self.value - student(boundary(batches, alpha), self.count) * self.error

    def sound(self, side: int) -> float:
        """Return the upper (1) or lower (-1) 90 % bound of a single look."""
        return self.value + side * student(SOUND, self.count) * self.error


def judge(
    evidence: ShadowEvidence, shadow: PlannedShadow, budget: float, now: datetime, seconds: float
) -> ShadowReport:
    """Return the verdict on everything that was compared in this attempt.

    Args:
        evidence: What was counted.
        shadow: What the spec asks for.
        budget: Probability that a canary as good as the baseline is failed by any of the signals.
        now: The present instant.
        seconds: How long the copying has lasted.
    """
    pairs = int(evidence.pooled(CANARY_PAIR, told.ANSWERED).count)
    exact, same = (evidence.pooled(pair, told.EXACT) for pair in (CANARY_PAIR, NOISE_PAIR))
    judged = [_signal(name, evidence, shadow, budget / len(JUDGED)) for name in JUDGED]
    signals = tuple(one.report for one in judged)
    failed = [one for one in signals if one.verdict is Verdict.FAIL]
    undecided = [one.report for one in judged if one.blocks]
    buckets = _buckets(evidence)
    if failed:
        verdict, message = Verdict.FAIL, " ".join(one.message for one in failed)
    elif pairs < shadow.min_pairs:
        verdict = Verdict.INCONCLUSIVE
        message = f"{pairs} of {shadow.min_pairs} pairs are compared. {_losses(evidence)}"
    elif undecided:
        verdict = Verdict.INCONCLUSIVE
        message = f"{pairs} pairs do not decide yet: " + " ".join(one.message for one in undecided)
    else:
        verdict = Verdict.PASS
        message = f"{pairs} pairs of answers: the canary's are as good as the baseline's."
    missing = [one for one in buckets if not one.covered]
    if missing and verdict is not Verdict.FAIL:
        told_ = ", ".join(f"{one.bucket} ({one.pairs} pairs)" for one in missing)
        message = f"{message.rstrip()} Not evaluated for want of pairs: {told_}."
    wanted = shadow.min_pairs - pairs
    return ShadowReport(
        at=now,
        verdict=verdict,
        message=message.strip()[:2048],
        pairs=pairs,
        min_pairs=shadow.min_pairs,
        noise_pairs=int(same.count),
        exact_percent=_same_percent(exact),
        noise_exact_percent=_same_percent(same),
        eta_seconds=round(wanted * seconds / pairs) if pairs > 0 and wanted > 0 else None,
        replaced=int(evidence.replaced),
        dropped=tuple(
            ShadowLoss(reason=reason[:64], count=int(count))
            for reason, count in _dropped(evidence)[:REASONS]
        ),
        signals=signals,
        buckets=buckets,
    )


def _same_percent(exact: Sums) -> int | None:
    return None if exact.count <= 0 else round(100 * (1 - min(1.0, exact.harm / exact.count)))


def _losses(evidence: ShadowEvidence) -> str:
    """Tell why there are fewer pairs than copies."""
    received = sum(evidence.received.values())
    if received == 0:
        return (
            "No copy has arrived at the shadow service yet: only POSTs to /v1/completions, "
            "/v1/chat/completions, /v1/responses and /v1/messages are copied."
        )
    lost = ", ".join(f"{reason} {count:.0f}" for reason, count in _dropped(evidence)[:3])
    return f"{received:.0f} copies arrived" + (f"; not compared: {lost}." if lost else ".")


def _dropped(evidence: ShadowEvidence) -> list[tuple[str, float]]:
    """Return how many copies were not compared, by reason, the most frequent first."""
    found = [(reason, count) for reason, count in evidence.dropped.items() if count >= 1]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def _tolerance(name: str, shadow: PlannedShadow) -> float:
    """Return what is tolerated: nats per token of the drift, else a share of the answers."""
    if name == told.DRIFT:
        return math.log1p(shadow.drift)
    few = name in PROBED or name not in BOTH_WAYS
    return NOISY_TOLERANCE * shadow.answers if few else shadow.answers


@dataclass(frozen=True, slots=True)
class _Judged:
    """A signal's report, and whether what it has not decided keeps the rollout from moving."""

    report: SignalReport
    blocks: bool = False


def _signal(name: str, evidence: ShadowEvidence, shadow: PlannedShadow, alpha: float) -> _Judged:
    """Judge one signal: over all requests with half of its budget, by length with the rest."""
    tolerance = _tolerance(name, shadow)
    pooled = evidence.pooled(CANARY_PAIR, name)
    noise = evidence.pooled(NOISE_PAIR, name)
    excess = _excess(name, pooled, noise)
    report = SignalReport(
        name=name,
        family=FAMILY,
        verdict=Verdict.INCONCLUSIVE,
        requests=int(pooled.count),
        tolerance=_told(name, tolerance),
        baseline=_told(name, noise.mean) if noise.count else None,
        canary=_told(name, pooled.mean) if pooled.count else None,
        message=f"{name}: not evaluated ({pooled.count:.0f} pairs, {noise.count:.0f} of the "
        "baseline alone).",
    )
    if excess is None:
        return _Judged(report)
    report = report.model_copy(
        update={
            "effect": _told(name, excess.value - tolerance),
            "lower": _told(name, excess.lower(alpha / 2) - tolerance),
            "upper": _told(name, excess.sound(1) - tolerance),
        }
    )
    # The probe's prompts are of our making: how long they are says nothing about users.
    lengths = [] if name in PROBED else _excesses(name, evidence, noise)
    if excess.count >= FEWEST_TO_FAIL and excess.lower(alpha / 2) > tolerance:
        return _Judged(_failed(report, excess, tolerance, most=_most(name, excess, lengths)))
    suspect = None
    for bucket, there in lengths:
        if there.lower(alpha / 2 / len(BUCKETS)) > tolerance:
            return _Judged(_failed(report, there, tolerance, f" for requests of {bucket}"))
        if there.sound(-1) > tolerance and suspect is None:
            suspect = bucket
    if excess.count < FEWEST:
        return _Judged(report)
    what = f"{name}: {_told(name, excess.value)} {MEANING[name]}, {_told(name, tolerance)} allowed"
    if suspect is not None:
        message = f"{what}; requests of {suspect} look worse, which is not certain yet."
        return _Judged(report.model_copy(update={"message": message}), blocks=True)
    if excess.sound(1) > tolerance:
        message = f"{what}; more pairs are needed."
        return _Judged(report.model_copy(update={"message": message}), blocks=True)
    return _Judged(report.model_copy(update={"verdict": Verdict.PASS, "message": f"{what}."}))


def _excesses(name: str, evidence: ShadowEvidence, noise: Sums) -> list[tuple[str, _Excess]]:
    """Return the excess in each length of request of which there are enough pairs."""
    pairs, own = (evidence.by_bucket(pair, name) for pair in (CANARY_PAIR, NOISE_PAIR))
    found = []
    for bucket, _ in BUCKETS:
        there = pairs.get(bucket, Sums())
        # Where too few of the baseline's own pairs have this length, those of all lengths stand in.
        usual = own.get(bucket, Sums())
        excess = _excess(name, there, usual if usual.count >= FEWEST_TO_FAIL else noise)
        if excess is not None and there.count >= FEWEST_TO_FAIL:
            found.append((bucket, excess))
    return found


def _most(name: str, overall: _Excess, lengths: list[tuple[str, _Excess]]) -> str:
    """Tell which length has most of the harm; nothing where no length stands out."""
    if not lengths:
        return ""
    bucket, worst = max(lengths, key=lambda one: one[1].value)
    if worst.sound(-1) <= overall.value:
        return ""
    return f" Most of it in requests of {bucket}: {_told(name, worst.value)}."


def _failed(
    report: SignalReport, excess: _Excess, tolerance: float, where: str = "", most: str = ""
) -> SignalReport:
    name = report.name
    message = (
        f"{name}{where}: {_told(name, excess.value)} {MEANING[name]} over {excess.count:.0f} "
        f"pairs, {_told(name, tolerance)} allowed.{most}"
    )
    return report.model_copy(update={"verdict": Verdict.FAIL, "message": message})


def _excess(name: str, canary: Sums, noise: Sums) -> _Excess | None:
    """Return the excess of the canary's mean; None where there is nothing to take it from."""
    if canary.count <= 0:
        return None
    variance = _variance(name, canary) / canary.count
    if name in BOTH_WAYS:
        return _Excess(canary.mean, math.sqrt(variance), canary.count)
    if noise.count <= 0:
        return None
    variance += _variance(name, noise) / noise.count
    fewest = min(canary.count, noise.count)
    return _Excess(canary.mean - noise.mean, math.sqrt(variance), fewest)


def _variance(name: str, sums: Sums) -> float:
    """Return the variance of one difference, which a lucky few must not make too small.

    Of shares, one more difference is assumed than was seen: none at all in n then has an upper
    bound of about three in n, as the exact binomial bound (the rule of three).
    """
    mean = sums.mean
    if name == told.DRIFT:
        known = PRIOR_PAIRS * PRIOR_DRIFT**2
        return max(0.0, (sums.squares - sums.count * mean**2) + known) / (sums.count + PRIOR_PAIRS)
    return max(0.0, (sums.squares + 1) / (sums.count + 1) - mean**2) + 1 / (sums.count + 1) ** 2


def _buckets(evidence: ShadowEvidence) -> tuple[ShadowBucket, ...]:
    """Return what was seen of each length that clients use."""
    pairs = evidence.by_bucket(CANARY_PAIR, told.ANSWERED)
    found = []
    for name, _ in BUCKETS:
        live, copied = evidence.live.get(name), evidence.received.get(name, 0.0)
        compared = int(pairs[name].count) if name in pairs else 0
        if not copied and not live:
            continue
        found.append(
            ShadowBucket(
                bucket=name,
                live=None if live is None else int(live),
                copied=int(copied),
                pairs=compared,
                covered=compared >= FEWEST_TO_FAIL,
            )
        )
    return tuple(found)


def _told(name: str, value: float) -> str:
    """Return a difference in the words of its unit: per cent of perplexity, or per 100 answers."""
    if name == told.DRIFT:
        return f"{100 * math.expm1(value):+.2f} %"
    return f"{100 * value:+.1f} per 100"
