"""From a rollout and what was measured to the report: one HTML document that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kvquant import __version__
from kvquant.api.v1alpha1 import DecisionKind, DecisionRecord, Phase
from kvquant.cli import copies
from kvquant.cli.documents import describe
from kvquant.cli.looks import ShadowDocument
from kvquant.cli.report import copied
from kvquant.cli.report.charts import Chart, Plotter, flags
from kvquant.cli.report.document import arm, counted, summary
from kvquant.cli.report.judged import Judged, signals
from kvquant.cli.report.measured import (
    Measured,
    attempt,
    steps,
    stretch,
)
from kvquant.cli.rollouts import Seen
from kvquant.cli.signals import title
from kvquant.cli.times import length

TEMPLATES = Path(__file__).parent / "templates"

SIGNALS = {
    "pageFaults": "page faults (preemptions)",
    "oomRetries": "OOM retries (failed requests)",
    "p99": "requests beyond the baseline's p99",
}


def html(seen: Seen, measured: Measured, judged: Judged, now: datetime) -> str:
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
    environment.filters["day"] = lambda at: f"{at.astimezone(UTC):%Y-%m-%d}"
    environment.filters["signal"] = lambda name: SIGNALS.get(name) or title(name)
    environment.filters["instant"] = lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    environment.filters["number"] = lambda v: "–" if v is None else f"{v:,.0f}"  # noqa: RUF001
    environment.filters["per"] = lambda v: "–" if v is None else f"{v:.2f}"  # noqa: RUF001
    environment.filters["lasting"] = _latency
    environment.filters["pods"] = lambda count: counted(count, "pod")
    whole = stretch(seen, now)
    charts = _charts(seen, measured, judged, decisions, now)
    rollout = describe(seen, now)
    return environment.get_template("report.html.j2").render(
        rollout=rollout,
        copies=_copies(rollout.shadow),
        outcome=_outcome(seen),
        summary=summary(seen, now),
        whole=whole,
        dated=len({d.at.astimezone(UTC).date() for d in decisions}) > 1,
        lasted=length(whole.length),
        charts=_drawn(charts),
        steps=[(one, arm(one.baseline), arm(one.canary)) for one in measured.steps],
        decisions=[(numbers.get(id(d)), d, _style(d)) for d in decisions],
        spec=yaml.safe_dump(_manifest(seen), sort_keys=False, allow_unicode=True, width=90),
        problems=(*measured.problems, *([judged.problem] if judged.problem else [])),
        source=measured.source,
        version=__version__,
        now=now,
    )


def _drawn(charts: Sequence[Chart]) -> list[tuple[Chart, Markup]]:
    return [(chart, Markup(chart.svg)) for chart in charts]  # noqa: S704 - escaped by construction


def _copies(shadow: ShadowDocument | None) -> dict[str, object] | None:
    """Return what the section about copied requests says; None when nothing was copied."""
    if shadow is None:
        return None
    return {
        "look": shadow,
        "charts": _drawn(copied.charts(shadow)),
        "standing": copies.standing(shadow),
        "losses": copies.losses(shadow),
        "gaps": copies.gaps(shadow),
        "outcomes": [(signal, copies.outcome(signal, shadow)) for signal in shadow.signals],
    }


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
    seen: Seen,
    measured: Measured,
    judged: Judged,
    decisions: Sequence[DecisionRecord],
    now: datetime,
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
    looks = judged.looks
    return charts + [plotter.evidence(looks, name, title(name)) for name in signals(looks)]


def _latency(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.2f} s"


def _style(decision: DecisionRecord) -> str:
    styles = {
        DecisionKind.PROMOTE: "good",
        DecisionKind.ADOPT: "good",
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
