"""Instants and lengths of time, as people read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def length(span: timedelta) -> str:
    """Return a length of time with its two largest units, such as `1h 5m` or `40s`."""
    seconds = max(0, round(span.total_seconds()))
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    first = next((i for i, (amount, _) in enumerate(units) if amount), 3)
    shown = [f"{amount}{unit}" for amount, unit in units[first : first + 2] if amount]
    return " ".join(shown) or "0s"


def ago(instant: datetime, now: datetime) -> str:
    """Return how long ago an instant was; a clock that runs ahead of ours counts as now."""
    span = now - instant
    if span < timedelta(seconds=1):
        return "now"
    return f"{coarse(span)} ago"


def coarse(span: timedelta) -> str:
    """Return a length of time by its largest unit that is fit: `45s`, `12m`, `5h`, `3d`."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 120 * 60:
        return f"{seconds // 60}m"
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h"
    return f"{seconds // 86400}d"


def stamp(instant: datetime) -> str:
    """Return an instant in UTC to the second, as Kubernetes writes it."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Seconds(click.ParamType[float]):
    """A length of time on the command line: `30`, `30s`, `1m30s`; kubectl's way."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds.

        Raises:
            click.BadParameter: The text is no length of time.
        """
        if isinstance(value, (int, float)):
            return float(value)
        text = value.strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        parts = _PARTS.findall(text)
        if not parts or "".join(f"{n}{u}" for n, u in parts) != text:
            self.fail(f"{value!r} is no length of time: write it like 30s, 2m or 1m30s", param, ctx)
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
