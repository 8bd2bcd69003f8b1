"""Looks at the evidence as `-o json` prints them: of live traffic, and of copied requests."""

from __future__ import annotations

from datetime import datetime

from kvquant.api.fields import Model
from kvquant.api.v1alpha1 import AnalysisReport, ShadowReport, Verdict


class SignalDocument(Model):
    """One signal in a look at the evidence."""

    name: str
    """Name of the signal, such as latencyP99, failures or pageFaults."""
    family: str | None = None
    """What it belongs to: pageFaults, oomRetries, p99 or custom."""
    verdict: Verdict
    """Pass, Fail, Inconclusive or Error."""
    baseline: str | None = None
    """The baseline's measurement, as text with its unit."""
    canary: str | None = None
    """The canary's measurement, as text with its unit."""
    tolerance: str | None = None
    """What the canary is allowed beyond the baseline, as text with its unit."""
    effect: str | None = None
    """Harm beyond the tolerance: below zero the canary is within it."""
    lower: str | None = None
    """Lower bound of the effect that holds at every look; above zero it fails."""
    upper: str | None = None
    """Upper bound of the effect at the tolerance that a pass allows; below zero it passes."""
    requests: int | None = None
    """Canary requests behind it."""
    budget_spent_percent: int | None = None
    """Part of this signal's error budget that the evidence against the canary has used up."""
    message: str = ""
    """The verdict in a sentence."""


class AnalysisDocument(Model):
    """One look at the evidence of a step."""

    at: datetime
    """When the evidence was read."""
    verdict: Verdict
    """Worst of the signals' verdicts."""
    message: str
    """The verdict in a sentence."""
    baseline_requests: int | None = None
    """Requests that the baseline ended in the step and that count as evidence."""
    canary_requests: int | None = None
    """Requests that the canary ended in the step and that count as evidence."""
    baseline_p99_ms: int | None = None
    """The baseline's 99th percentile of latency in the step, in milliseconds."""
    canary_p99_ms: int | None = None
    """The canary's 99th percentile of latency in the step, in milliseconds."""
    load_ratio: str | None = None
    """Requests per canary pod divided by requests per baseline pod, such as `0.67`."""
    provisional: bool = False
    """Whether the canary's pods had less than 0.8 times the load of the baseline's, so that a pass
    says less than it seems to."""
    replicas_needed: int | None = None
    """Canary pods that the next step needs, when those planned are too few; else null."""
    eta_seconds: int | None = None
    """Seconds until the evidence should suffice at the present rate of requests; null when more of
    the same will not decide, or nothing is missing."""
    budget_spent_percent: int | None = None
    """Part of the error budget used up by the signal that has used up most."""
    signals: tuple[SignalDocument, ...] = ()
    """The signals."""


class LossDocument(Model):
    """Copies that were not compared, for one reason."""

    reason: str
    """Why, in a word or two."""
    count: int
    """How many copies."""


class BucketDocument(Model):
    """Copied requests of one length."""

    bucket: str
    """Length of the body, such as `64-256KiB`."""
    live: int | None = None
    """Requests of that length that clients sent while the copying lasted; null when the routers do
    not tell."""
    copied: int | None = None
    """Copies of them that arrived at the shadow service."""
    pairs: int
    """Pairs of answers that were compared."""
    covered: bool
    """Whether enough were compared to speak of this length: otherwise it was not evaluated."""


class ShadowDocument(Model):
    """One look at the answers of both pools to copied requests."""

    at: datetime
    """When it was looked at."""
    verdict: Verdict
    """Worst of the signals' verdicts."""
    message: str
    """The verdict in a sentence."""
    pairs: int
    """Pairs of answers, canary against baseline, that were compared."""
    min_pairs: int | None = None
    """Pairs that the spec asks for at least; the statistics may ask for more."""
    noise_pairs: int
    """Pairs of answers of the baseline alone (A/A)."""
    exact_percent: int | None = None
    """Pairs whose texts are the same, in per cent; no evidence, because batching alone changes
    greedy text."""
    noise_exact_percent: int | None = None
    """The same of the baseline's own pairs."""
    eta_seconds: int | None = None
    """Seconds until the pairs should suffice at the present rate; null when that is not known."""
    live: int | None = None
    """Requests that clients sent while the copying lasted; null when the routers do not tell."""
    copied: int
    """Copies of them that arrived at the shadow service."""
    copied_percent: float | None = None
    """Copies per 100 requests that clients sent; null when that is not known."""
    replaced: int | None = None
    """Values of personal data for which placeholders stand in copies and answers."""
    dropped: tuple[LossDocument, ...] = ()
    """Copies that were not compared, by reason, the most frequent first."""
    signals: tuple[SignalDocument, ...] = ()
    """The signals. Of each, baseline is what the baseline differs from itself, and canary what the
    canary differs from the baseline."""
    buckets: tuple[BucketDocument, ...] = ()
    """What was seen by length of the request."""
    not_evaluated: tuple[str, ...] = ()
    """Lengths that clients use and of which too few pairs were compared."""


def looked(analysis: AnalysisReport) -> AnalysisDocument:
    """Return a look at the evidence as it is printed."""
    return AnalysisDocument(**analysis.model_dump())


def copied(shadow: ShadowReport, min_pairs: int | None = None) -> ShadowDocument:
    """Return a look at the answers to copied requests as it is printed.

    Args:
        shadow: The look.
        min_pairs: Pairs that the spec asks for; where the look itself does not tell.
    """
    fields = shadow.model_dump()
    known = [one.live for one in shadow.buckets if one.live is not None]
    live, arrived = sum(known), sum(one.copied or 0 for one in shadow.buckets)
    if fields["min_pairs"] is None:
        fields["min_pairs"] = min_pairs
    return ShadowDocument(
        **fields,
        live=live if known else None,
        copied=arrived,
        copied_percent=round(100 * arrived / live, 1) if live else None,
        not_evaluated=tuple(one.bucket for one in shadow.buckets if not one.covered),
    )
