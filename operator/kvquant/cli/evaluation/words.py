"""The answer of `eval` in words, line by line."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from kvquant.api.v1alpha1 import Verdict
from kvquant.cli.paint import Paint, tame, visible
from kvquant.cli.signals import STYLES
from kvquant.core.evaluation_summary import Outcome
from kvquant.evaluation.document import CellDocument, EvaluationDocument, MeasureDocument

SHOWN = 5
"""Worst examples that are named."""


def lines(told: EvaluationDocument, paint: Paint, width: int) -> Iterator[str]:
    """Yield the lines that tell what was found.

    Args:
        told: What was found.
        paint: What the stream can show.
        width: Columns into which sentences are wrapped.
    """
    glyph, style = STYLES[Verdict(told.outcome.value)]
    yield paint(f"{glyph} {told.outcome.value}", "bold", style)
    yield from textwrap.wrap(tame(told.message), width, initial_indent="  ", subsequent_indent="  ")
    yield ""
    yield f"  set         {tame(told.dataset)}, {told.examples} examples"
    for name, arm in (("baseline", told.baseline), ("canary", told.canary)):
        model = "" if arm.model is None else f", model {arm.model}"
        yield f"  {name:<10}  {tame(arm.place + model)}"
    for one in told.failures:
        yield f"  no answer   {one.arm}: {one.count} x {one.reason}"
    for one in told.unscored:
        yield f"  no drift    {one.count} x {one.reason}"
    yield ""
    yield from _table(told, paint)
    yield ""
    yield from textwrap.wrap(
        "Harm in 100 answers; drift in per cent of perplexity. Lower and upper: 95 % interval of "
        f"the paired difference. Fail: certain among {told.looks} looks (Bonferroni).",
        width,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    if told.worst:
        named = ", ".join(f"{tame(one.id)} ({', '.join(one.worse)})" for one in told.worst[:SHOWN])
        text = f"Worst: {named}"
        yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")


def _table(told: EvaluationDocument, paint: Paint) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        ("measure", "examples", "baseline", "canary", "lower", "upper", "margin", "")
    ]
    for measure in told.measures:
        rows += [_row(measure, cell, paint) for cell in _shown(measure)]
    widths = [max(visible(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        first = row[0] + " " * (widths[0] - visible(row[0]))
        rest = [
            " " * (wide - visible(text)) + text
            for text, wide in zip(row[1:-1], widths[1:], strict=True)
        ]
        yield "  " + "  ".join([first, *rest, row[-1]])


def _shown(measure: MeasureDocument) -> Iterator[CellDocument]:
    """Yield the cell over all examples, and those by length or kind that fail or may."""
    whole, *slices = measure.cells
    yield whole
    yield from (cell for cell in slices if cell.suspect or cell.outcome is Outcome.FAIL)


def _row(measure: MeasureDocument, cell: CellDocument, paint: Paint) -> tuple[str, ...]:
    glyph, style = STYLES[Verdict(cell.outcome.value)]
    name = measure.name if cell.by == "all" else f"  {cell.name}"
    verdict = paint(f"{glyph} {cell.outcome.value}", style)
    if not measure.judged:
        alone = "" if measure.noise is None else f", baseline itself {100 * measure.noise:.1f}"
        verdict = f"told only{alone}"
    levels = ("-", "-") if measure.scale == "nats" else (
        f"{100 * cell.baseline:.1f}", f"{100 * cell.canary:.1f}"
    )  # fmt: skip
    bounds = (_amount(measure, value) for value in (cell.lower, cell.upper))
    margin = _amount(measure, measure.margin) if measure.judged else "-"
    return name, str(cell.pairs), *levels, *bounds, margin, verdict


def _amount(measure: MeasureDocument, value: float) -> str:
    if measure.scale == "nats":
        return f"{100 * math.expm1(value):+.2f}"
    return f"{100 * value:+.1f}"
