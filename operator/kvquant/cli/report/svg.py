"""A little SVG: elements, scales and ticks. Well-formed and escaped by construction."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

TIME_STEPS = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Seconds between two ticks of a time axis that people can count in."""


@dataclass(frozen=True, slots=True)
class Node:
    """An SVG element that is being built."""

    element: ET.Element

    def add(self, tag: str, text: str | None = None, **attributes: object) -> Node:
        """Append a child; `class_` and `stroke_width` become `class` and `stroke-width`."""
        named = {
            key.rstrip("_").replace("_", "-"): _number(value) for key, value in attributes.items()
        }
        child = ET.SubElement(self.element, tag, named)
        child.text = None if text is None else "".join(c for c in text if c.isprintable())
        return Node(child)

    def markup(self) -> str:
        """Return the element as text that HTML takes as it stands."""
        return ET.tostring(self.element, encoding="unicode")


def drawing(width: float, height: float, label: str) -> Node:
    """Return an empty drawing that scales to its place, with a label for screen readers."""
    attributes = {
        "viewBox": f"0 0 {_number(width)} {_number(height)}",
        "role": "img",
        "aria-label": label,
    }
    return Node(ET.Element("svg", attributes))


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value lies, in pixels."""
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class TimeScale:
    """A linear scale from instants to pixels."""

    first: datetime
    last: datetime
    start: float
    end: float

    def __call__(self, instant: datetime) -> float:
        """Return where an instant lies, in pixels; beyond the ends, the end."""
        span = (self.last - self.first).total_seconds() or 1.0
        share = (instant - self.first).total_seconds() / span
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, most: int = 12) -> Iterator[tuple[datetime, str]]:
        """Yield round instants with what to call them."""
        seconds = (self.last - self.first).total_seconds()
        step = next((s for s in TIME_STEPS if seconds / s <= most), TIME_STEPS[-1])
        shape = "%H:%M:%S" if step < 60 else "%H:%M" if seconds < 86400 else "%d %b %H:%M"
        at = math.ceil(self.first.timestamp() / step) * step
        while at <= self.last.timestamp():
            instant = datetime.fromtimestamp(at, UTC)
            yield instant, instant.strftime(shape)
            at += step


def nice_ceiling(value: float, least: float) -> float:
    """Return a round number at or above a value, where an axis may end."""
    value = max(value, least)
    magnitude = 10.0 ** math.floor(math.log10(value))
    return next(
        m * magnitude for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if m * magnitude >= value
    )


def value_ticks(high: float, most: int = 4) -> list[float]:
    """Return round values from zero to the end of an axis."""
    rough = high / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    return [i * step for i in range(math.floor(high / step + 1e-9) + 1)]


def seconds(span: timedelta) -> str:
    """Return a short length of time for a caption: `30 s` or `2 min`."""
    total = span.total_seconds()
    return f"{total:g} s" if total < 120 else f"{total / 60:.3g} min"


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
