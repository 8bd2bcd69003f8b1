"""A forest plot: a measure's difference over all examples, and by length and kind, with margins."""

from __future__ import annotations

import math

from kvquant.cli.report.svg import Node, Scale, drawing, nice_ceiling
from kvquant.evaluation.document import CellDocument, MeasureDocument

WIDTH = 960.0
LEFT, RIGHT = 220.0, 226.0
ROW, TOP, BOTTOM = 24.0, 14.0, 32.0
MOST_TICKS = 4
STYLES = {"Pass": "good", "Fail": "bad", "Inconclusive": "open"}


def forest(measure: MeasureDocument) -> str:
    """Return the plot as SVG, in per cent: of the answers, or of perplexity."""
    height = TOP + ROW * len(measure.cells) + BOTTOM
    svg = drawing(WIDTH, height, f"{measure.title}: the canary's less the baseline's, by group")
    margin = _percent(measure, measure.margin)
    ends = [_percent(measure, end) for c in measure.cells for end in (c.lower, c.upper)]
    least = max(1.0, 2 * margin)
    high = nice_ceiling(max([*ends, least]), 1.0)
    low = -nice_ceiling(max([*(-end for end in ends), least / 2]), 0.5)
    x = Scale(low, high, LEFT, WIDTH - RIGHT)
    floor = height - BOTTOM
    _axis(svg, x, floor)
    svg.add("line", x1=x(0.0), x2=x(0.0), y1=TOP - 6, y2=floor, class_="zero")
    svg.add("line", x1=x(margin), x2=x(margin), y1=TOP - 6, y2=floor, class_="margin")
    svg.add("text", "margin", x=x(margin), y=floor + 26, class_="tick")
    for index, cell in enumerate(measure.cells):
        _row(svg, x, measure, cell, TOP + ROW * (index + 0.5))
    return svg.markup()


def _axis(svg: Node, x: Scale, floor: float) -> None:
    rough = (x.high - x.low) / (2 * MOST_TICKS)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    for number in range(math.ceil(x.low / step), math.floor(x.high / step) + 1):
        at = x(number * step)
        svg.add("line", x1=at, x2=at, y1=TOP - 6, y2=floor, class_="grid")
        svg.add(
            "text", f"{number * step:+.10g} %" if number else "0", x=at, y=floor + 14, class_="tick"
        )
    svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis")


def _row(svg: Node, x: Scale, measure: MeasureDocument, cell: CellDocument, y: float) -> None:
    style = STYLES[cell.outcome.value]
    names = {"all": "all examples", "length": cell.name, "kind": f"kind {cell.name}"}
    whole = " whole" if cell.by == "all" else ""
    svg.add("text", names[cell.by], x=8, y=y + 4, class_=f"group{whole}")
    svg.add("text", f"{cell.pairs}", x=LEFT - 14, y=y + 4, class_="tick value")
    low, middle, high = (
        _percent(measure, value) for value in (cell.lower, cell.difference, cell.upper)
    )
    svg.add("line", x1=x(low), x2=x(high), y1=y, y2=y, class_=f"interval {style}{whole}")
    size = 4.5 if cell.by == "all" else 3.5
    dot = svg.add("circle", cx=x(middle), cy=y, r=size, class_=f"mean {style}")
    digits = 2 if measure.scale == "nats" else 1
    told = f"{middle:+.{digits}f} % ({low:+.{digits}f} to {high:+.{digits}f})"
    dot.add("title", f"{names[cell.by]}: {told}, {cell.pairs} examples, {cell.outcome.value}")
    svg.add("text", told, x=WIDTH - RIGHT + 12, y=y + 4, class_=f"told {style}")


def _percent(measure: MeasureDocument, value: float) -> float:
    return 100 * math.expm1(value) if measure.scale == "nats" else 100 * value
