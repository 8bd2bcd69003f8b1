"""The plots of copied requests: each signal's interval against what is allowed, and coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvquant.api.v1alpha1 import Verdict
from kvquant.cli.copies import TOO_FEW, outcome
from kvquant.cli.looks import BucketDocument, ShadowDocument, SignalDocument
from kvquant.cli.report.charts import Chart
from kvquant.cli.report.svg import Node, Scale, drawing
from kvquant.cli.signals import title
from kvquant.core.shadow_settings import DRIFT

WIDTH, LEFT, RIGHT = 960.0, 118.0, 250.0
ROW, HEAD, GAP, FOOT = 27.0, 26.0, 6.0, 26.0
BAR = 9.0
FARTHEST, NEAREST = 4.0, -2.0
"""Multiples of what is allowed beyond which an interval is cut off."""

_STYLES = {Verdict.PASS: "good", Verdict.FAIL: "bad"}


@dataclass(frozen=True, slots=True)
class _Interval:
    """A signal's harm as a multiple of what is allowed: 0 is none, 1 just what is allowed."""

    lower: float
    middle: float
    upper: float


def charts(shadow: ShadowDocument) -> list[Chart]:
    """Return the plots of a look at copied requests, as far as anything is known."""
    return [chart for chart in (_forest(shadow), _coverage(shadow)) if chart is not None]


def _forest(shadow: ShadowDocument) -> Chart | None:
    known = [(signal, found) for signal in shadow.signals if (found := _interval(signal))]
    if not known:
        return None
    ends = [value for _, one in known for value in (one.lower, one.upper)]
    low = max(NEAREST, min(-1.0, math.floor(min(ends))))
    high = min(FARTHEST, max(2.0, math.ceil(max(ends))))
    floor = HEAD + ROW * len(known)
    svg = drawing(WIDTH, floor + FOOT, "harm of each signal as a multiple of what is allowed")
    x = Scale(low, high, LEFT, WIDTH - RIGHT)
    svg.add("rect", x=LEFT, y=HEAD, width=x(1.0) - LEFT, height=floor - HEAD, class_="within")
    for value in range(math.ceil(low), math.floor(high) + 1):
        style = {0: "zero", 1: "limit"}.get(value, "grid")
        svg.add("line", x1=x(value), x2=x(value), y1=HEAD, y2=floor, class_=style)
        svg.add("text", f"{value}×", x=x(value), y=floor + 17, class_="tick")  # noqa: RUF001
    svg.add("text", "no harm", x=x(0.0), y=HEAD - 8, class_="tick")
    svg.add("text", "allowed", x=x(1.0), y=HEAD - 8, class_="tick limit")
    for index, (signal, one) in enumerate(known):
        _row(svg, x, HEAD + ROW * (index + 0.5), signal, one, outcome(signal, shadow))
    return Chart(
        "Answers: canary against baseline",
        "Paired differences on the users' own prompts, each as a multiple of what is allowed for "
        "it. A bar reaches from the lower bound, which holds at every look, to the upper one of "
        "this look: a signal fails when the whole bar is right of “allowed”, and passes when it "
        "is left of it. Harm to one length of request alone fails it, too, and is named above.",
        svg.markup(),
    )


def _row(svg: Node, x: Scale, y: float, signal: SignalDocument, one: _Interval, told: str) -> None:
    style = _STYLES.get(signal.verdict, "open")
    svg.add("text", title(signal.name), x=LEFT - 10, y=y + 4, class_="value name")
    start, end = (x(min(x.high, max(x.low, value))) for value in (one.lower, one.upper))
    bar = svg.add("line", x1=start, x2=max(end, start + 1), y1=y, y2=y, class_=f"span {style}")
    bar.add("title", signal.message)
    # What goes on beyond the plot ends in an arrow, and what ends within it in a stroke.
    for at, value, side in ((start, one.lower, -1), (end, one.upper, 1)):
        if x.low <= value <= x.high:
            svg.add("line", x1=at, x2=at, y1=y - 4, y2=y + 4, class_=f"span {style}")
        else:
            points = f"{at:.1f},{y - 4:.1f} {at + 6 * side:.1f},{y:.1f} {at:.1f},{y + 4:.1f}"
            svg.add("polygon", points=points, class_=f"arrow {style}")
    if x.low <= one.middle <= x.high:
        svg.add("circle", cx=x(one.middle), cy=y, r=4, class_=f"middle {style}")
    words = f"{told}: {signal.canary or '–'}"  # noqa: RUF001
    dim = " muted" if told == TOO_FEW else f" {style}"
    svg.add("text", words, x=WIDTH - RIGHT + 14, y=y + 4, class_=f"label{dim}")


def _coverage(shadow: ShadowDocument) -> Chart | None:
    if not shadow.buckets:
        return None
    live = sum(one.live or 0 for one in shadow.buckets)
    copied = sum(one.copied or 0 for one in shadow.buckets)
    shares = [
        (100 * (one.live or 0) / live if live else 0.0, 100 * (one.copied or 0) / max(1, copied))
        for one in shadow.buckets
    ]
    floor = GAP + ROW * len(shares)
    svg = drawing(WIDTH, floor + FOOT, "requests and copies by length")
    x = Scale(0.0, 100.0, LEFT, WIDTH - RIGHT)
    for value in (0, 25, 50, 75, 100):
        style = "axis" if value == 0 else "grid"
        svg.add("line", x1=x(value), x2=x(value), y1=GAP, y2=floor, class_=style)
        svg.add("text", f"{value} %", x=x(value), y=floor + 17, class_="tick")
    for index, (one, (of_live, of_copied)) in enumerate(zip(shadow.buckets, shares, strict=True)):
        y = GAP + ROW * (index + 0.5)
        svg.add("text", one.bucket, x=LEFT - 10, y=y + 4, class_="value name")
        for share, count, top, arm, word in (
            (of_live, one.live, y - BAR - 0.5, "baseline", "requests"),
            (of_copied, one.copied, y + 0.5, "canary", "copies"),
        ):
            if count is None:
                continue
            width = max(1.5, x(share) - LEFT) if count else 0.0
            bar = svg.add("rect", x=LEFT, y=top, width=width, height=BAR, class_=f"bar {arm}")
            bar.add("title", f"{one.bucket}: {count:,} {word}, {share:.1f} % of all")
        style = "label muted" if one.covered else "label bad"
        svg.add("text", _told(one), x=WIDTH - RIGHT + 14, y=y + 4, class_=style)
    return Chart(
        "Coverage by length of the request",
        "Share of each length among the requests that clients sent (upper bar) and among the "
        "copies that were compared or lost (lower bar). A length of which too few pairs were "
        "compared was not evaluated, whatever the verdict says.",
        svg.markup(),
    )


def _told(one: BucketDocument) -> str:
    of = "" if one.live is None else f" of {one.live:,}"
    return f"{one.pairs:,}{of} compared" if one.covered else f"not evaluated ({one.pairs:,}{of})"


def _interval(signal: SignalDocument) -> _Interval | None:
    """Return where a signal's interval lies; None when its numbers are not known."""
    texts = (signal.lower, signal.effect, signal.upper)
    tolerance = _number(signal, signal.tolerance)
    beyond = [_number(signal, text) for text in texts]
    if tolerance is None or tolerance <= 0 or None in beyond:
        return None
    lower, middle, upper = ((value or 0.0) / tolerance + 1.0 for value in beyond)
    return _Interval(lower, middle, upper)


def _number(signal: SignalDocument, text: str | None) -> float | None:
    """Return the number that a text of a signal begins with, on a scale on which they add up."""
    try:
        value = float((text or "").split()[0])
        if not math.isfinite(value):
            return None
        # Perplexities multiply: their logarithms are what was subtracted.
        return math.log1p(value / 100) if signal.name == DRIFT else value
    except (IndexError, ValueError):
        return None
