"""From Prometheus' counters to what each arm did over time and in each step.

The series are cut into equal slices and counted with the operator's own code, so that the report
and the decisions never disagree about what a request or a failure is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from kvquant import errors
from kvquant.api.v1alpha1 import DecisionKind, DecisionRecord, Phase
from kvquant.cli.report.history import History
from kvquant.cli.rollouts import Seen
from kvquant.core import queries
from kvquant.core.analysis import arms
from kvquant.core.counters import Series
from kvquant.core.evidence import ArmNeed, ArmSample, EvidenceNeed, Histogram
from kvquant.core.reading import Readings

GRID_POINTS = 360
"""Points that are asked of Prometheus for each series."""

FINEST = 5.0
"""Seconds between two points at least; scrapes come no oftener."""

GRID_PER_SLICE = 2
SLICES_PER_LOOK = 3
"""Slices over which quantiles and rates are taken: one slice alone holds too few requests."""

LEAD = 0.06
"""Share of the attempt's length that is shown before its start and after its end."""

FEWEST = 10
"""Requests below which no quantile is drawn: fewer are an anecdote."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time."""

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start

    @property
    def middle(self) -> datetime:
        """The instant half-way."""
        return self.start + self.length / 2


@dataclass(frozen=True, slots=True)
class StepSpan:
    """A step as it was in effect."""

    step: int
    weight: int
    span: Span


@dataclass(frozen=True, slots=True)
class Slice:
    """What an arm did in a stretch of time; None: nobody measured."""

    span: Span
    sample: ArmSample

    @property
    def attempted(self) -> float | None:
        """Requests that clients sent and that have ended."""
        counted = arms.requests(self.sample)
        return None if counted is None else counted.attempted

    @property
    def failed(self) -> float | None:
        """Of these, the ones that ended in 5xx, a time-out or a broken connection."""
        counted = arms.requests(self.sample)
        return None if counted is None else counted.failed

    @property
    def page_faults(self) -> float | None:
        """Preemptions."""
        return arms.count(self.sample.preemptions)

    @property
    def page_faults_per_100(self) -> float | None:
        """Preemptions per 100 requests that the engines finished."""
        faults, finished = self.page_faults, arms.count(self.sample.finished)
        if faults is None or not finished or finished < FEWEST:
            return None
        return 100 * faults / finished

    def quantile(self, quantile: float) -> float | None:
        """Return a quantile of the latency in seconds; None with too few requests."""
        latency = arms.latency(self.sample)
        if latency is None or latency.total < FEWEST:
            return None
        return latency.quantile(quantile)


@dataclass(frozen=True, slots=True)
class StepMeasured:
    """Both arms over the whole of a step."""

    step: StepSpan
    baseline: Slice
    canary: Slice


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of an attempt.

    Attributes:
        shown: The stretch of time that plots show.
        slice_seconds: Length of a slice.
        baseline: Slices of the pool that served when the rollout began.
        canary: Slices of the pool with the quantized cache, from the attempt's start on.
        steps: Both arms by step.
        source: Where the numbers come from; None without Prometheus.
        problems: What could not be read, in sentences.
    """

    shown: Span
    slice_seconds: float
    baseline: tuple[Slice, ...] = ()
    canary: tuple[Slice, ...] = ()
    steps: tuple[StepMeasured, ...] = ()
    source: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def look_seconds(self) -> float:
        """Length of the stretches over which quantiles and rates are taken."""
        return self.slice_seconds * SLICES_PER_LOOK


def attempt(seen: Seen) -> tuple[DecisionRecord, ...]:
    """Return the decisions of the latest attempt, oldest first."""
    decisions = seen.status.decisions
    starts = [i for i, d in enumerate(decisions) if d.kind is DecisionKind.START]
    return decisions[starts[-1] :] if starts else decisions


def forgotten(seen: Seen) -> str | None:
    """Say that the status no longer holds the attempt's beginning; None while it does."""
    decisions = seen.status.decisions
    if not decisions or any(d.kind is DecisionKind.START for d in decisions):
        return None
    return (
        f"The status keeps the last {len(decisions)} decisions, and the attempt began before the "
        "first of them: what came earlier stands only in the cluster's Events and in the "
        "operator's log."
    )


def stretch(seen: Seen, now: datetime) -> Span:
    """Return the time from the attempt's start to its end, or until now."""
    decisions = attempt(seen)
    start = decisions[0].at if decisions else seen.created_at or now
    if forgotten(seen) and seen.status.step_started_at is not None:
        start = min(start, seen.status.step_started_at)
    over = seen.status.settled and decisions
    return Span(start, max(start, decisions[-1].at if over else now))


def steps(seen: Seen, now: datetime) -> tuple[StepSpan, ...]:
    """Return the steps of the latest attempt as they were in effect."""
    decisions, whole = attempt(seen), stretch(seen, now)
    leaves = (
        DecisionKind.ADVANCE,
        DecisionKind.PROMOTE,
        DecisionKind.ROLL_BACK,
        DecisionKind.KILL,
    )
    found = []
    for index, decision in enumerate(decisions):
        if decision.kind is not DecisionKind.ADVANCE:
            continue
        end = next((d.at for d in decisions[index + 1 :] if d.kind in leaves), whole.end)
        found.append(StepSpan(decision.step, decision.weight, Span(decision.at, end)))
    status = seen.status
    begun = status.step_started_at
    if status.phase is Phase.PROGRESSING and begun is not None and not found:
        # The decision that began this step is forgotten; the step itself is not.
        found.append(StepSpan(status.step, status.weights.canary, Span(begun, whole.end)))
    return tuple(found)


def measure(seen: Seen, history: History | None, now: datetime) -> Measured:
    """Return what Prometheus remembers of the latest attempt. What it does not is a problem told.

    Args:
        seen: The rollout.
        history: Where to ask; None when the user named nothing.
        now: The present instant.
    """
    whole = stretch(seen, now)
    margin = max(timedelta(seconds=20), whole.length * LEAD)
    end = min(now, whole.end + margin)
    step = max(FINEST, math.ceil((end - whole.start + margin).total_seconds() / GRID_POINTS))
    shown = Span(whole.start - margin, max(end, whole.start + timedelta(seconds=step)))
    lost = forgotten(seen)
    known = () if lost is None else (lost,)
    bare = Measured(shown, step * GRID_PER_SLICE)
    if history is None:
        return replace(
            bare,
            problems=(
                *known,
                "No Prometheus was named, so there are no plots over time: add --prometheus URL or "
                "--prometheus-service NAMESPACE/SERVICE:PORT.",
            ),
        )
    bare = replace(bare, source=history.source)
    status = seen.status
    if status.baseline is None or status.canary is None or status.router is None:
        return replace(
            bare,
            problems=(*known, "The attempt has no pools yet, so there is nothing to measure."),
        )
    need = EvidenceNeed(
        key="report",
        namespace=seen.namespace,
        router=status.router,
        baseline=ArmNeed(status.baseline.slot, status.baseline.deployment),
        canary=ArmNeed(status.canary.slot, status.canary.deployment),
        since=shown.end,
    )
    window = _window(shown, step)
    readings, problems = _read(history, need, window)
    if readings is None:
        return replace(bare, problems=(*known, *problems))
    slices = [_both(readings, need, span) for span in _spans(window)]
    return replace(
        bare,
        baseline=tuple(baseline for baseline, _ in slices),
        canary=tuple(canary for _, canary in slices if _mine(canary, whole)),
        steps=tuple(
            StepMeasured(one, *_both(readings, need, one.span)) for one in steps(seen, now)
        ),
        problems=(*known, *problems),
    )


def looks(slices: Sequence[Slice]) -> list[Slice]:
    """Return one look for each slice: the slice together with the ones right before it."""
    found = []
    for index, last in enumerate(slices):
        begin = max(0, index + 1 - SLICES_PER_LOOK)
        part = slices[begin : index + 1]
        sample = part[0].sample
        for one in part[1:]:
            sample = _added(sample, one.sample)
        found.append(Slice(Span(part[0].span.start, last.span.end), sample))
    return found


def _window(shown: Span, step: float) -> queries.Window:
    end = round(shown.end.timestamp() * 1000)
    step_ms = round(step * 1000)
    count = max(1, math.floor(shown.length.total_seconds() / step))
    return queries.Window(end - count * step_ms, end, step_ms)


def _spans(window: queries.Window) -> list[Span]:
    # Slices end at the end of the window, so that the newest one is whole.
    width = window.step_ms * GRID_PER_SLICE
    count = (window.end_ms - window.start_ms) // width
    edges = [_instant(window.end_ms - i * width) for i in range(count, -1, -1)]
    return [Span(begin, end) for begin, end in pairwise(edges)]


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _read(
    history: History, need: EvidenceNeed, window: queries.Window
) -> tuple[Readings | None, tuple[str, ...]]:
    problems: list[str] = []

    def ask(query: str) -> list[Series]:
        try:
            return history.series(query, window)
        except errors.MetricsError as error:
            problems.append(str(error))
            return []

    router = ask(queries.router_counters([need]))
    if problems:
        # One outage is told once, and asked after once.
        return None, tuple(problems)
    router += ask(queries.router_latency([need]))
    engines = ask(queries.engine_counters([need]))
    if not router:
        problems.append(f"Prometheus knows no requests of router {need.router} in this time.")
    if not engines:
        problems.append("Prometheus knows no engine of either pool in this time.")
    try:
        readings = Readings.of(window, router, engines)
        # One trial here, so that series of another shape are a problem told and no traceback.
        readings.evidence(need, need.since)
    except (KeyError, ValueError, OverflowError) as error:
        return None, (f"Prometheus' series cannot be read: {error}", *problems)
    return readings, tuple(problems)


def _both(readings: Readings, need: EvidenceNeed, span: Span) -> tuple[Slice, Slice]:
    """Count both arms over a span, between the grid points within it: it shares no request."""
    grid = readings.window
    begin = (span.start.timestamp() * 1000 - grid.start_ms) / grid.step_ms
    end = (span.end.timestamp() * 1000 - grid.start_ms) / grid.step_ms
    first, last = math.ceil(round(begin, 6)), math.floor(round(end, 6))
    if last <= first:
        return Slice(span, ArmSample()), Slice(span, ArmSample())
    first, last = (grid.start_ms + index * grid.step_ms for index in (first, last))
    part = replace(readings, window=queries.Window(first, last, grid.step_ms))
    counted = part.evidence(replace(need, since=_instant(first)), _instant(last))
    return Slice(span, counted.baseline), Slice(span, counted.canary)


def _mine(one: Slice, whole: Span) -> bool:
    """Whether a slice of the canary's slot is the canary's: before, others may have filled it."""
    return one.span.start >= whole.start - timedelta(seconds=FINEST)


def _added(one: ArmSample, other: ArmSample) -> ArmSample:
    """Add the counts of two neighbouring slices; what neither knows stays unknown."""
    counts = {
        field.name: _sum(getattr(one, field.name), getattr(other, field.name))
        for field in fields(ArmSample)
        if field.name != "latency"
    }
    known = ArmSample(**counts)  # type: ignore[arg-type]
    return replace(known, latency=_merged(one.latency, other.latency))


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


def _merged(one: Histogram | None, other: Histogram | None) -> Histogram | None:
    if one is None or other is None:
        return one or other
    if one.bounds != other.bounds:
        return other
    both = zip(one.counts, other.counts, strict=True)
    return Histogram(one.bounds, tuple(a + b for a, b in both))
