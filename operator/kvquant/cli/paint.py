"""Colours and glyphs: only where somebody looks at them, and only what the terminal can show."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

_CODES = {
    "bold": "1",
    "dim": "2",
    "good": "32",
    "bad": "31",
    "warn": "33",
    "baseline": "34",
    "canary": "35",
    "accent": "36",
}
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_PLAIN = {
    "✓": "+",
    "●": "*",
    "◐": "~",
    "○": "o",
    "✗": "x",
    "█": "#",
    "▒": "=",
    "→": ">",
    "·": "-",
    "─": "-",
    "…": "~",
    "■": "!",
}
"""What stands for a glyph where only ASCII can be shown."""


@dataclass(frozen=True, slots=True)
class Paint:
    """How text may look.

    Attributes:
        colour: Whether ANSI colours may be used.
        unicode: Whether more than ASCII may be used.
        interactive: Whether somebody looks, so that a screen may be redrawn in place.
    """

    colour: bool = False
    unicode: bool = True
    interactive: bool = False

    @classmethod
    def of(
        cls, stream: IO[Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> Paint:
        """Return what the stream (default: stdout) can show; see https://no-color.org."""
        stream = stream or sys.stdout
        environment = os.environ if environment is None else environment
        terminal = stream.isatty()
        dumb = environment.get("TERM") == "dumb"
        try:
            "".join(_PLAIN).encode(getattr(stream, "encoding", None) or "ascii")
            unicode = True
        except (UnicodeEncodeError, LookupError):
            unicode = False
        return cls(
            colour=terminal and not dumb and not environment.get("NO_COLOR"),
            unicode=unicode,
            interactive=terminal and not dumb,
        )

    def __call__(self, text: str, *styles: str) -> str:
        """Return the text in these styles, where colours may be used."""
        codes = ";".join(_CODES[style] for style in styles if style)
        if not self.colour or not codes or not text:
            return text
        return f"\x1b[{codes}m{text}\x1b[0m"

    def shown(self, text: str) -> str:
        """Return a line as the stream can show it: glyphs replaced, and controls removed."""
        if not self.unicode:
            for glyph, plain in _PLAIN.items():
                text = text.replace(glyph, plain)
            text = text.encode("ascii", "replace").decode()
        return text


def tame(text: str) -> str:
    """Return text of the cluster on one line, without controls that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def visible(text: str) -> int:
    """Return how many columns a painted text takes."""
    return len(_ESCAPES.sub("", text))


def fit(text: str, width: int) -> str:
    """Cut a plain text to a width, with an ellipsis when something is lost."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def squeeze(name: str, width: int) -> str:
    """Cut a name in its middle: what tells pods apart stands at the end."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def clip(painted: str, width: int) -> str:
    """Cut a painted line to a width, keeping its colours closed."""
    if visible(painted) <= width:
        return painted
    kept, count, position = [], 0, 0
    for match in _ESCAPES.finditer(painted):
        chunk = painted[position : match.start()][: width - count]
        kept += [chunk, match.group()]
        count += len(chunk)
        position = match.end()
    kept.append(painted[position:][: width - count])
    return "".join(kept)
