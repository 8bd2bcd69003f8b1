"""Digits that belong together, however they are spaced, dashed, dotted or wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import re2

from kvquant.shadow.pii.normalising import View

_LATIN1 = re2.Options()
_LATIN1.encoding = re2.Options.Encoding.LATIN1


def compiled(pattern: str) -> Any:
    """Return a pattern over `View.plain`, whose characters are single bytes."""
    return re2.compile(pattern.encode("latin-1"), _LATIN1)


_RUN = compiled(r"[0-9](?:[ \t\r\n._()/\-]{0,3}[0-9]){6,}")
_GROUP = re.compile(rb"[0-9]+")
_NOISE = compiled(
    # Dates.
    r"\b(?:(?:19|20)[0-9]{2}[\-./](?:0?[1-9]|1[0-2])[\-./](?:0?[1-9]|[12][0-9]|3[01])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])[\-./](?:0?[1-9]|[12][0-9]|3[01])[\-./]"
    r"(?:(?:19|20)[0-9]{2}|[0-9]{2})"
    r")"
    # Decimal fractions.
    r"|\b(?:0\.[0-9]+|(?:0|[1-9][0-9]{0,5})\.[0-9]{5,})"
)
_SECONDS = re.compile(rb"[0-5][0-9]\.[0-9]+")
_HAS_NOISE = re.compile(rb"[0-9][\-./][0-9]")


class Run:
    """Groups of digits with no more than three separators between any two."""

    def __init__(self, view: View, start: int, end: int) -> None:
        self.view = view
        self.start, self.end = start, end
        plain = view.plain
        self.spans = [match.span() for match in _GROUP.finditer(plain, start, end)]
        """Where each group stands."""
        self.groups = [plain[a:b].decode() for a, b in self.spans]
        """Their digits."""
        self.sizes = [b - a for a, b in self.spans]
        self.before = plain[start - 1 : start].decode("latin-1") if start else ""
        """The character before it, or nothing."""
        self.after = plain[end : end + 1].decode("latin-1")
        """The character after it, or nothing."""
        self.joined_before = self.before.isascii() and self.before.isalnum()
        """Whether its first group is the tail of a word, a hash or the like."""
        self.joined_after = self.after.isascii() and self.after.isalnum()
        """Whether its last group is the head of one."""
        self.low = int(self.joined_before)
        """Index of the first group that is not."""
        self.high = len(self.spans) - int(self.joined_after)
        """Index behind the last one that is not."""

    @cached_property
    def separators(self) -> list[str]:
        """What stands between the groups."""
        plain = self.view.plain
        return [
            plain[a:b].decode("latin-1")
            for (_, a), (b, _) in zip(self.spans, self.spans[1:], strict=False)
        ]

    @cached_property
    def wrapped(self) -> bool:
        """Whether there is an end of a line in it."""
        return b"\n" in self.view.plain[self.start : self.end]

    def windows(self, begin: int, longest: int) -> Iterator[tuple[int, str]]:
        """Return what begins with a group: the index of the end, and the digits up to there."""
        digits = ""
        for end in range(begin + 1, self.high + 1):
            digits += self.groups[end - 1]
            if len(digits) > longest:
                return
            yield end, digits

    def is_even(self, begin: int, end: int) -> bool:
        """Whether groups are of one size but for the last, which may be shorter."""
        size = self.sizes[begin]
        return all(one == size for one in self.sizes[begin : end - 1]) and (
            self.sizes[end - 1] <= size
        )


def runs(view: View) -> list[Run]:
    """Return the runs of at least seven digits, without dates and decimal fractions."""
    if view.runs is None:
        view.runs = list(_runs(view))
    return view.runs


def _runs(view: View) -> Iterator[Run]:
    plain = view.plain
    for match in _RUN.finditer(plain):
        start, end = match.span()
        if plain[start - 1 : start] == b":" and _SECONDS.fullmatch(plain, start, end) is not None:
            continue
        at = start
        if _HAS_NOISE.search(plain, start, end) is not None:
            for noise in _NOISE.finditer(plain, start, end):
                begin, stop = noise.span()
                if _goes_on(plain, begin - 1, -1) or _goes_on(plain, stop, 1):
                    continue
                if plain[stop : stop + 1].isdigit():
                    continue
                if begin > at:
                    yield from _piece(view, at, begin)
                at = stop
        if at == start:
            yield Run(view, start, end)
        elif at < end:
            yield from _piece(view, at, end)


def _goes_on(plain: bytes, at: int, step: int) -> bool:
    """Whether what looks like a date is part of a longer number of the same make."""
    beyond = at + step
    return plain[at : at + 1] in (b"-", b".", b"/") and plain[max(beyond, 0) : beyond + 1].isdigit()


def _piece(view: View, start: int, end: int) -> Iterator[Run]:
    for match in _RUN.finditer(view.plain, start, end):
        yield Run(view, *match.span())
