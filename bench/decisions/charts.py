"""Two plots, drawn by hand as SVG: no plotting library is worth a dependency for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#c0392b", "#1f6fb2", "#7fb3d8", "#2e8b57", "#8fcfa8", "#8e5ea2", "#c9a6d8", "#888888")
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" role="img" aria-label="{label}" '
    'font-family="sans-serif" font-size="12">\n<rect width="{w}" height="{h}" fill="white"/>\n'
)

Share = tuple[float, float, float]
"""A share and the ends of its interval."""


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>\n'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>\n'
    )


def errors(rules: Mapping[str, tuple[Share, Share]]) -> str:
    """Draw both kinds of error of each rule as bars with their intervals, in per cent."""
    width, left, right, row = 760, 130, 40, 34
    height = 60 + row * len(rules) + 30
    most = max([0.05, *(share[2] for both in rules.values() for share in both)])
    span = (width - left - right) / 2 - 20

    def at(side: int, share: float) -> float:
        return left + side * (span + 40) + share / most * span

    label = "False rollbacks of good canaries and promotions of bad ones, by rule"
    out = _HEAD.format(w=width, h=height, label=label)
    for side, title in enumerate(("good ones rolled back", "bad ones promoted")):
        out += _text(at(side, 0), 24, title, 'font-weight="bold"')
        for tick in range(5):
            share = most * tick / 4
            out += _line(at(side, share), 40, at(side, share), height - 30, "#dddddd")
            out += _text(
                at(side, share), height - 12, f"{100 * share:.0f} %", 'text-anchor="middle"'
            )
    for index, (rule, both) in enumerate(rules.items()):
        y = 56 + row * index
        colour = _COLOURS[index % len(_COLOURS)]
        out += _text(left - 8, y + 4, rule, 'text-anchor="end"')
        for side, (share, low, high) in enumerate(both):
            bar = max(1.0, at(side, share) - at(side, 0))
            out += (
                f'<rect x="{at(side, 0):.1f}" y="{y - 8}" width="{bar:.1f}" height="16" '
                f'fill="{colour}"/>\n'
            )
            out += _line(at(side, low), y, at(side, high), y, "#222222", 1.5)
    return out + "</svg>\n"


def delays(
    kinds: Sequence[str], rules: Mapping[str, Mapping[str, float | None]], cap: float
) -> str:
    """Draw the median minutes to the rollback, kind by kind; what was never caught at the edge."""
    width, left, row = 760, 110, 30
    height = 50 + row * len(kinds) + 30 + 18 * math.ceil(len(rules) / 4)
    low = math.log10(0.5)

    def at(minutes: float) -> float:
        span = math.log10(cap) - low
        return left + (math.log10(max(0.5, minutes)) - low) / span * (width - left - 60)

    out = _HEAD.format(w=width, h=height, label="Median minutes until a bad canary is rolled back")
    title = "median minutes until a bad canary is rolled back, medium load"
    out += _text(left, 20, title, 'font-weight="bold"')
    for tick in (0.5, 1, 2, 5, 10, 20, 60, 180):
        bottom = 40 + row * len(kinds)
        out += _line(at(tick), 34, at(tick), bottom, "#dddddd")
        out += _text(at(tick), bottom + 16, f"{tick:g}", 'text-anchor="middle"')
    for index, kind in enumerate(kinds):
        y = 52 + row * index
        out += _text(left - 8, y + 4, kind, 'text-anchor="end"')
        for number, (rule, by_kind) in enumerate(rules.items()):
            minutes = by_kind.get(kind)
            x = width - 30.0 if minutes is None else at(minutes)
            middle = y - 9 + 18 * (number + 0.5) / len(rules)
            out += (
                f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="{5 if not number else 3.5}" '
                f'fill="{_COLOURS[number % len(_COLOURS)]}">'
                f"<title>{escape(rule)}</title></circle>\n"
            )
    out += _text(width - 30, 30, "mostly not", 'text-anchor="middle"')
    for number, rule in enumerate(rules):
        x, y = (
            left + 160 * (number % 4),
            height - 18 * math.ceil(len(rules) / 4) + 18 * (number // 4),
        )
        out += f'<circle cx="{x}" cy="{y}" r="4" fill="{_COLOURS[number % len(_COLOURS)]}"/>\n'
        out += _text(x + 8, y + 4, rule)
    return out + "</svg>\n"
