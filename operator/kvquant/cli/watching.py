"""`status --watch`: a screen redrawn in place, or a line per change where nobody looks."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

import click

from kvquant.cli.documents import RolloutDocument
from kvquant.cli.paint import Paint, clip, tame
from kvquant.cli.times import stamp

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""Terminals that know synchronized updates show a frame at once; the others ignore these."""


@dataclass(slots=True)
class Frame:
    """A part of a terminal that is redrawn in place.

    Every line is overwritten where it stands and only its rest is erased, in one write, so that
    nothing flickers and the scrollback stays as it was.
    """

    stream: IO[Any] = field(default_factory=lambda: sys.stdout)
    size: Callable[[], os.terminal_size] = shutil.get_terminal_size
    _drawn: int = 0

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines instead of the ones before, cut to the terminal."""
        width, height = self.size()
        # The cursor rests below the frame; a frame as high as the terminal would scroll.
        shown = [clip(line, width) for line in lines[: max(1, height - 1)]]
        up = f"\x1b[{min(self._drawn, height - 1)}A" if self._drawn else ""
        body = "".join(f"\r{line}\x1b[K\n" for line in shown)
        self.stream.write(f"{BEGIN}{HIDE}{up}{body}\x1b[J{END}")
        self.stream.flush()
        self._drawn = len(shown)

    def close(self) -> None:
        """Give the cursor back, and wipe the `^C` that the terminal wrote below the frame."""
        with suppress(OSError, ValueError):
            self.stream.write(f"\r\x1b[K{SHOW}")
            self.stream.flush()


@dataclass(slots=True)
class Log:
    """Says in one line each what has changed since it was told last; for pipes and files."""

    paint: Paint
    _said: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def tell(self, document: RolloutDocument, now_text: str) -> None:
        """Print a line when something that matters has changed."""
        known = self._state(document)
        key = f"{document.namespace}/{document.name}"
        if self._said.get(key) == known:
            return
        self._said[key] = known
        step = f"step {document.step}/{document.total_steps}"
        why = document.cause or (document.waiting.message if document.waiting else None)
        text = tame(why or document.verdict or "")
        flags = "".join(
            f" {flag}"
            for flag, on in (("KILLED", document.killed), ("PAUSED", document.paused))
            if on
        )
        line = (
            f"{now_text} {key} {document.phase.value}{flags} {step} "
            f"canary {document.weights.canary} % {text}"
        )
        click.echo(self.paint.shown(line.rstrip()))
        sys.stdout.flush()

    def _state(self, document: RolloutDocument) -> tuple[str, ...]:
        """Return what a new line is worth: not every count of requests."""
        last = document.decisions[-1] if document.decisions else None
        return (
            document.phase.value,
            str(document.step),
            str(document.weights.canary),
            document.paused or "",
            document.killed or "",
            document.waiting.reason if document.waiting else "",
            document.analysis.verdict.value if document.analysis else "",
            document.shadow.verdict.value if document.shadow else "",
            stamp(last.at) + last.reason if last else "",
        )
