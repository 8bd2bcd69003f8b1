"""The report for programs, and the sentence that sums it up for people."""

from __future__ import annotations

from datetime import UTC, datetime

from kvquant import __version__
from kvquant.api.fields import Model
from kvquant.api.v1alpha1 import DecisionKind, Phase, Verdict
from kvquant.cli.documents import RolloutDocument, describe
from kvquant.cli.report.judged import Judged
from kvquant.cli.report.measured import Measured, Slice, attempt, looks, steps, stretch
from kvquant.cli.rollouts import Seen
from kvquant.cli.times import length


class ArmMeasured(Model):
    """What an arm did in a stretch of time."""

    requests: int | None = None
    """Requests that clients sent and that have ended, counted at the router."""
    failed: int | None = None
    """Of these, the ones that ended in 5xx, a time-out or a broken connection."""
    page_faults: int | None = None
    """Preemptions, counted by the engines."""
    page_faults_per_100: float | None = None
    """Preemptions per 100 requests that the engines finished; null with too few."""
    p50_seconds: float | None = None
    """Median latency at the router; null with too few requests."""
    p90_seconds: float | None = None
    """90th percentile of the same."""
    p99_seconds: float | None = None
    """99th percentile of the same."""


class StepReport(Model):
    """Both arms over the whole of a step."""

    step: int
    """Number of the step, counted from 1."""
    weight: int
    """The canary's share of the traffic in it, in per cent."""
    started_at: datetime
    """When it began."""
    ended_at: datetime
    """When it ended, or the end of the report."""
    baseline: ArmMeasured
    """What the baseline did in it."""
    canary: ArmMeasured
    """What the canary did in it."""


class PointReport(Model):
    """Both arms over a look: the stretch of time that ends at an instant."""

    at: datetime
    """End of the stretch."""
    baseline: ArmMeasured
    """What the baseline did in it."""
    canary: ArmMeasured
    """What the canary did in it."""


class EvidencePoint(Model):
    """One signal in one look of the analysis."""

    at: datetime
    """When the evidence was read."""
    step: int
    """Step in effect."""
    signal: str
    """Name of the signal."""
    verdict: Verdict
    """Verdict of this signal alone."""
    effect: float
    """Harm beyond the tolerance, as a fraction: below zero the canary is within it."""
    lower: float | None
    """Lower bound of the effect that holds at every look; above zero it fails."""
    upper: float | None
    """Upper bound of the effect at the tolerance that a pass allows; below zero it passes."""


class ReportDocument(Model):
    """What `report -o json` prints."""

    generated_at: datetime
    """When the report was written."""
    version: str
    """Version of the CLI that wrote it."""
    summary: str
    """The outcome in a sentence or two."""
    started_at: datetime
    """When the attempt began."""
    ended_at: datetime
    """When it ended, or when the report was written."""
    source: str | None
    """Where the numbers over time come from; null without Prometheus."""
    problems: tuple[str, ...]
    """What is missing and why, in sentences; empty when nothing is."""
    look_seconds: float
    """Length of the stretch of time behind each point."""
    rollout: RolloutDocument
    """The rollout as `status -o json` prints it."""
    steps: tuple[StepReport, ...]
    """Both arms over the whole of each step; empty without Prometheus."""
    points: tuple[PointReport, ...]
    """Both arms over time, oldest first; neighbouring points overlap."""
    evidence: tuple[EvidencePoint, ...] = ()
    """What the analysis saw over time, oldest first; empty without Prometheus."""


def document(seen: Seen, measured: Measured, judged: Judged, now: datetime) -> ReportDocument:
    """Return the report for programs."""
    whole = stretch(seen, now)
    canary = {one.span.end: one for one in looks(measured.canary)}
    empty = ArmMeasured()
    return ReportDocument(
        generated_at=now,
        version=__version__,
        summary=summary(seen, now),
        started_at=whole.start,
        ended_at=whole.end,
        source=measured.source,
        problems=(*measured.problems, *([judged.problem] if judged.problem else [])),
        look_seconds=measured.look_seconds,
        rollout=describe(seen, now),
        steps=tuple(
            StepReport(
                step=one.step.step,
                weight=one.step.weight,
                started_at=one.step.span.start,
                ended_at=one.step.span.end,
                baseline=arm(one.baseline),
                canary=arm(one.canary),
            )
            for one in measured.steps
        ),
        points=tuple(
            PointReport(
                at=one.span.end,
                baseline=arm(one),
                canary=arm(canary[one.span.end]) if one.span.end in canary else empty,
            )
            for one in looks(measured.baseline)
        ),
        evidence=tuple(
            EvidencePoint(
                at=datetime.fromtimestamp(look.at, UTC),
                step=look.step,
                signal=one.name,
                verdict=one.verdict,
                effect=one.effect,
                lower=one.lower,
                upper=one.upper,
            )
            for look in judged.looks
            for one in look.signals
            if one.effect is not None
        ),
    )


def summary(seen: Seen, now: datetime) -> str:
    """Return the outcome of the attempt in a sentence or two."""
    status, whole = seen.status, stretch(seen, now)
    took = length(whole.length)
    old = status.baseline.deployment if status.baseline else seen.spec.target_ref.name
    dtype = status.resolved_dtype or seen.spec.kv_cache.dtype.value
    new = status.canary.deployment if status.canary else "the canary"
    if status.phase is Phase.PROMOTED:
        promoted = next((d for d in status.decisions if d.kind is DecisionKind.PROMOTE), None)
        until = length((promoted.at if promoted else whole.end) - whole.start)
        since = f" {old} has adopted {dtype} since, and serves again." if status.adopted else ""
        return (
            f"{new} with its {dtype} KV cache took over from {old} after "
            f"{counted(len(steps(seen, now)), 'step')} in {until}.{since}"
        )
    if status.phase in (Phase.ROLLED_BACK, Phase.ROLLING_BACK):
        back = [d for d in attempt(seen) if d.kind is DecisionKind.ROLL_BACK]
        reached = steps(seen, now)
        where = (
            f"in step {reached[-1].step} ({reached[-1].weight} % of the traffic)"
            if reached
            else "before the canary got any traffic"
        )
        after = length((back[-1].at if back else whole.end) - whole.start)
        cause = f" {back[-1].message}" if back else ""
        return f"The {dtype} canary was taken back {where}, {after} after its start.{cause}"
    where = (
        f"in step {status.step_label} with {status.weights.canary} % of the traffic on {new}"
        if status.step
        else f"{status.phase}; all of the traffic is on {old}"
    )
    verdict = f" {status.verdict}" if status.verdict else ""
    return f"On its way to KV-cache dtype {dtype} for {took}: {where}.{verdict}"


def arm(one: Slice) -> ArmMeasured:
    """Return what an arm did, in the units that people read."""
    per_100 = one.page_faults_per_100
    return ArmMeasured(
        requests=_whole(one.attempted),
        failed=_whole(one.failed),
        page_faults=_whole(one.page_faults),
        page_faults_per_100=None if per_100 is None else round(per_100, 4),
        p50_seconds=_rounded(one.quantile(0.5)),
        p90_seconds=_rounded(one.quantile(0.9)),
        p99_seconds=_rounded(one.quantile(0.99)),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def counted(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
