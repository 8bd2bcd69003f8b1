"""The answer of `backtest` in words, line by line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime

from kvquant.cli.backtest.document import BacktestDocument, RateDocument, SplitsDocument
from kvquant.cli.paint import Paint, tame
from kvquant.cli.signals import STYLES, title


def lines(told: BacktestDocument | SplitsDocument, paint: Paint, width: int) -> Iterator[str]:
    """Yield the lines that tell what was found.

    Args:
        told: What was found.
        paint: What the stream can show.
        width: Columns into which sentences are wrapped.
    """
    if isinstance(told, BacktestDocument):
        yield from _pair(told, paint, width)
    else:
        yield from _aa(told, width)


def _pair(told: BacktestDocument, paint: Paint, width: int) -> Iterator[str]:
    glyph, style = STYLES[told.verdict]
    when = "" if told.decided_at is None else f" at {_instant(told.decided_at)} UTC"
    would = {"Promote": "promoted", "RollBack": "rolled back", "Hold": "held to the end"}
    verdict = paint(f"{glyph} It would have been {would[told.decision]}{when}.", "bold", style)
    yield verdict
    yield from textwrap.wrap(tame(told.message), width, initial_indent="  ", subsequent_indent="  ")
    yield ""
    yield f"  past        {_instant(told.start)} to {_instant(told.end)} UTC, {told.source}"
    yield f"  baseline    {_some(told.baseline_pods)}"
    yield f"  canary      {_some(told.canary_pods)}"
    spent = "-" if told.budget_spent is None else f"{100 * told.budget_spent:.0f} %"
    load = "" if told.load_ratio is None else f"; load per pod x{told.load_ratio:.2f}"
    doubt = " (a pass is provisional)" if told.provisional else ""
    yield f"  evidence    {spent} of the error budget spent{load}{doubt}"
    yield ""
    for step in told.steps:
        glyph, style = STYLES[step.verdict]
        at = "" if step.decided_at is None else f" at {_instant(step.decided_at)}"
        counts = f"{step.baseline_requests or 0:,} and {step.canary_requests or 0:,} requests"
        said = paint(f"{glyph} {step.verdict.value}{at}", style)
        yield f"  step {step.step} ({step.weight:g} %)  {said}, {counts}"
    if told.signals:
        yield ""
        yield from _signals(told, paint)
    yield ""
    yield "  Static thresholds would have"
    for rule in told.thresholds:
        limit = (
            "nothing to compare with"
            if rule.limit_seconds is None
            else (
                f"{rule.limit_seconds:.3g} s; {rule.failed_checks} of {rule.checks} checks failed"
            )
        )
        done = (
            "promoted"
            if rule.decided_at is None
            else (f"rolled back at {_instant(rule.decided_at)}")
        )
        yield f"  - {done}: {rule.rule} ({limit})"


def _signals(told: BacktestDocument, paint: Paint) -> Iterator[str]:
    heads = ("signal", "baseline", "canary", "effect", "lower", "upper", "spent", "")
    rows: list[tuple[str, ...]] = [heads]
    for one in told.signals:
        glyph, style = STYLES[one.verdict]
        rows.append(
            (
                title(one.name),
                *(_value(value, one.unit) for value in (one.baseline, one.canary)),
                *("-" if v is None else f"{100 * v:+.2f}" for v in (one.effect, one.lower)),
                "-" if one.upper is None else f"{100 * one.upper:+.2f}",
                f"{100 * one.budget_spent:.0f} %",
                paint(f"{glyph} {one.verdict.value}", style),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads) - 1)]
    for index, row in enumerate(rows):
        cells = [
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row[:-1], widths, strict=True))
        ]
        line = "  ".join([*cells, row[-1]])
        yield "  " + (paint(line, "bold") if index == 0 else line)
    yield "  effect, lower, upper: harm beyond what is tolerated, in per cent or points of it"


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "seconds":
        return f"{1000 * value:.3g} ms"
    if unit == "deaths":
        return f"{value:.0f}"
    return f"{100 * value:.3g}{'/100' if unit == 'perRequest' else ' %'}"


def _aa(told: SplitsDocument, width: int) -> Iterator[str]:
    yield (
        f"An innocent canary would have been rolled back in {_rate(told.false_rollbacks)} of "
        f"{told.splits} random splits."
    )
    yield ""
    yield f"  past        {_instant(told.start)} to {_instant(told.end)} UTC, {told.source}"
    yield f"  pool        {_some(told.pods)}"
    yield f"  promoted    {_rate(told.promoted)}"
    yield f"  held        {_rate(told.held)}"
    yield ""
    yield "  Static thresholds would have rolled back"
    for rule in told.thresholds:
        yield f"  - {_rate(rule.rolled_back)}: {rule.rule}"
    for one in told.examples:
        yield ""
        yield f"  With {_some(one.canary_pods)} as the canary from {_instant(one.started_at)}:"
        yield from textwrap.wrap(
            tame(one.message), width, initial_indent="    ", subsequent_indent="    "
        )
    yield ""
    yield from textwrap.wrap(
        "In brackets: exact 95 % intervals. All splits share this one past, so that they speak of "
        "other splits of it, not of other days.",
        width,
        initial_indent="  ",
        subsequent_indent="  ",
    )


def _rate(rate: RateDocument) -> str:
    return (
        f"{rate.count} ({100 * rate.rate:.1f} %, "
        f"{100 * rate.lower:.1f} to {100 * rate.upper:.1f} %)"
    )


def _some(pods: tuple[str, ...]) -> str:
    count = f"{len(pods)} pod{'' if len(pods) == 1 else 's'}: "
    shown = ", ".join(tame(pod) for pod in pods[:4])
    return count + shown + (f" and {len(pods) - 4} more" if len(pods) > 4 else "")


def _instant(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
