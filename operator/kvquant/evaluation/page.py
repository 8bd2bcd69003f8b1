"""The report of an evaluation for people: one HTML document that loads nothing."""

from __future__ import annotations

import math
from datetime import UTC
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import kvquant.cli.report
from kvquant.evaluation.document import CellDocument, EvaluationDocument, MeasureDocument
from kvquant.evaluation.forest import forest

TEMPLATES = Path(__file__).parent / "templates"
STYLES = Path(kvquant.cli.report.__file__).parent / "templates"
"""The look of all our reports."""
MINUS = "−"  # noqa: RUF001 - as typesetters write it


def html(told: EvaluationDocument) -> str:
    """Return the report as one HTML document that loads nothing."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, STYLES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["instant"] = lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    environment.globals["amount"] = amount
    environment.globals["level"] = level
    style = {"Pass": "good", "Fail": "bad", "Inconclusive": "open"}[told.outcome.value]
    return environment.get_template("evaluation.html.j2").render(
        told=told,
        style=style,
        measures=[(one, one.cells[0], _blamed(one)) for one in told.measures],
        forests=[
            (one, Markup(forest(one)))  # noqa: S704 - escaped by construction
            for one in told.measures
            if one.judged
        ],
    )


def _blamed(measure: MeasureDocument) -> CellDocument | None:
    """Return the length or kind in which a measure fails worse than over all examples."""
    failed = [cell for cell in measure.cells if cell.outcome == "Fail"]
    worst = max(failed, key=lambda cell: cell.lower, default=None)
    return None if worst is None or worst.by == "all" else worst


def amount(measure: MeasureDocument, value: float) -> str:
    """Return a difference in its unit: per cent of perplexity, or per 100 answers."""
    number = 100 * math.expm1(value) if measure.scale == "nats" else 100 * value
    text = f"{number:+.2f}" if measure.scale == "nats" else f"{number:+.1f}"
    return text.replace("-", MINUS)


def level(measure: MeasureDocument, value: float) -> str:
    """Return the harm of one arm; an arm's drift from itself is none."""
    if measure.scale == "nats":
        return f"{100 * math.expm1(value):.2f}"
    return f"{100 * value:.1f}"
