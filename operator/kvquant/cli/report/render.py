"""From a rollout and what was measured to the report: as HTML, and as a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kvquant import __version__
from kvquant.api.fields import Model
from kvquant.api.v1alpha1 import DecisionKind, DecisionRecord, Phase
from kvquant.cli.documents import RolloutDocument, describe
from kvquant.cli.report.charts import Chart, Plotter, flags
from kvquant.cli.report.measured import (
    Measured,
    Slice,
    attempt,
    looks,
    steps,
    stretch,
)
from kvquant.cli.rollouts import Seen
from kvquant.cli.times import length

TEMPLATES = Path(__file__).parent / "templates"


class ArmMeasured(Model):
    """What an arm did in a stretch of time."""

    requests: int | None = None
    failed: int | None = None
    page_faults: int | None = None
    page_faults_per_100: float | None = None
    p50_seconds: float | None = None
    p90_seconds: float | None = None
    p99_seconds: float | None = None


class StepReport(Model):
    """Both arms over the whole of a step."""

    step: int
    weight: int
    started_at: datetime
    ended_at: datetime
    baseline: ArmMeasured
    canary: ArmMeasured


class PointReport(Model):
    """Both arms over a look: the stretch of time that ends at an instant."""

    at: datetime
    baseline: ArmMeasured
    canary: ArmMeasured


class ReportDocument(Model):
    """What `report -o json` prints."""

    generated_at: datetime
    version: str
    summary: str
    started_at: datetime
    ended_at: datetime
    source: str | None
    problems: tuple[str, ...]
    look_seconds: float
    rollout: RolloutDocument
    steps: tuple[StepReport, ...]
    points: tuple[PointReport, ...]


def document(seen: Seen, measured: Measured, now: datetime) -> ReportDocument:
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
        problems=measured.problems,
        look_seconds=measured.look_seconds,
        rollout=describe(seen, now),
        steps=tuple(
            StepReport(
                step=one.step.step,
                weight=one.step.weight,
                started_at=one.step.span.start,
                ended_at=one.step.span.end,
                baseline=_arm(one.baseline),
                canary=_arm(one.canary),
            )
            for one in measured.steps
        ),
        points=tuple(
            PointReport(
                at=one.span.end,
                baseline=_arm(one),
                canary=_arm(canary[one.span.end]) if one.span.end in canary else empty,
            )
            for one in looks(measured.baseline)
        ),
    )


def html(seen: Seen, measured: Measured, now: datetime) -> str:
    """Return the report as one HTML document that loads nothing."""
    decisions = attempt(seen)
    marks = flags(decisions)
    numbers = {id(flag.decision): flag.number for flag in marks}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["length"] = length
    environment.filters["clock"] = lambda at: f"{at.astimezone(UTC):%H:%M:%S}"
    environment.filters["instant"] = lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    environment.filters["number"] = lambda v: "–" if v is None else f"{v:,.0f}"  # noqa: RUF001
    environment.filters["per"] = lambda v: "–" if v is None else f"{v:.2f}"  # noqa: RUF001
    environment.filters["lasting"] = _latency
    environment.filters["pods"] = lambda count: _counted(count, "pod")
    whole = stretch(seen, now)
    return environment.get_template("report.html.j2").render(
        rollout=describe(seen, now),
        outcome=_outcome(seen),
        summary=summary(seen, now),
        whole=whole,
        lasted=length(whole.length),
        charts=[(chart, Markup(chart.svg)) for chart in _charts(seen, measured, decisions, now)],  # noqa: S704 - escaped by construction
        steps=[(one, _arm(one.baseline), _arm(one.canary)) for one in measured.steps],
        decisions=[(numbers.get(id(d)), d, _style(d)) for d in decisions],
        spec=yaml.safe_dump(_manifest(seen), sort_keys=False, allow_unicode=True, width=90),
        problems=measured.problems,
        source=measured.source,
        version=__version__,
        now=now,
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
        return (
            f"{new} with its {dtype} KV cache took over from {old} after "
            f"{_counted(len(steps(seen, now)), 'step')} in {until}."
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
    return f"On its way to a {dtype} KV cache for {took}: {where}. {status.verdict or ''}".strip()


def _outcome(seen: Seen) -> tuple[str, str]:
    """Return the word for the outcome, and its style."""
    phase = seen.status.phase
    words = {
        Phase.PROMOTED: ("Promoted", "good"),
        Phase.ROLLED_BACK: ("Rolled back", "bad"),
        Phase.ROLLING_BACK: ("Rolling back", "bad"),
    }
    return words.get(phase, (phase.value, "open"))


def _charts(
    seen: Seen, measured: Measured, decisions: Sequence[DecisionRecord], now: datetime
) -> list[Chart]:
    plotter = Plotter(measured, steps(seen, now), flags(decisions))
    charts = [plotter.weights(decisions)]
    if measured.baseline or measured.canary:
        charts += [
            plotter.latency(0.99),
            plotter.latency(0.9),
            plotter.latency(0.5),
            plotter.page_faults(),
            plotter.failures(),
            plotter.requests(),
        ]
    return charts


def _arm(one: Slice) -> ArmMeasured:
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


def _latency(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.2f} s"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _style(decision: DecisionRecord) -> str:
    styles = {
        DecisionKind.PROMOTE: "good",
        DecisionKind.ROLL_BACK: "bad",
        DecisionKind.KILL: "bad",
        DecisionKind.HOLD: "quiet",
    }
    return styles.get(decision.kind, "plain")


def _manifest(seen: Seen) -> dict[str, object]:
    """Return the manifest as it was applied, without what the API server added."""
    return {
        "apiVersion": seen.raw.get("apiVersion"),
        "kind": seen.raw.get("kind"),
        "metadata": {"name": seen.name, "namespace": seen.namespace},
        "spec": seen.raw.get("spec"),
    }
