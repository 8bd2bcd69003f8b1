"""Digits that belong together, however they are spaced, dashed, dotted or wrapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import re2

from kvquant.shadow.pii.normalising import View

_LATIN1 = re2.Options()
_LATIN1.encoding = re2.Options.Encoding.LATIN1


def compiled(pattern: str) -> re2._Regexp:
    """Return a pattern over `View.plain`, whose characters are single bytes."""
    return re2.compile(pattern.encode("latin-1"), _LATIN1)


_RUN = compiled(r"[0-9](?:[ \t\r\n._()/\-]{0,3}[0-9]){6,}")
_GROUP = compiled(r"[0-9]+")
_DATE = compiled(
    r"\b(?:(?:19|20)[0-9]{2}([\-./])(?:0?[1-9]|1[0-2])[\-./](?:0?[1-9]|[12][0-9]|3[01])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])[\-./](?:0?[1-9]|[12][0-9]|3[01])[\-./](?:(?:19|20)[0-9]{2}|[0-9]{2}))\b"
)


@dataclass(frozen=True)
class Group:
    """Digits without a separator between them."""

    start: int
    end: int
    digits: str


class Run:
    """Groups of digits with no more than three separators between any two."""

    def __init__(self, view: View, start: int, end: int) -> None:
        self.view = view
        self.start, self.end = start, end
        self.groups = [
            Group(m.start(), m.end(), view.plain[m.start() : m.end()].decode())
            for m in _GROUP.finditer(view.plain, start, end)
        ]

    @cached_property
    def digits(self) -> str:
        """All of them."""
        return "".join(group.digits for group in self.groups)

    @cached_property
    def separators(self) -> list[str]:
        """What stands between the groups."""
        return [
            self.view.plain[a.end : b.start].decode("latin-1")
            for a, b in zip(self.groups, self.groups[1:], strict=False)
        ]

    @cached_property
    def text(self) -> str:
        """The run as it stands in the view."""
        return self.view.plain[self.start : self.end].decode("latin-1")

    @property
    def before(self) -> str:
        """The character before it, or nothing."""
        return self.view.plain[max(0, self.start - 1) : self.start].decode("latin-1")

    @property
    def after(self) -> str:
        """The character after it, or nothing."""
        return self.view.plain[self.end : self.end + 1].decode("latin-1")

    @cached_property
    def joined_before(self) -> bool:
        """Whether its first group is the tail of a word, a hash or the like."""
        return self.before.isascii() and self.before.isalnum()

    @cached_property
    def joined_after(self) -> bool:
        """Whether its last group is the head of one."""
        return self.after.isascii() and self.after.isalnum()

    @property
    def is_fraction(self) -> bool:
        """Whether it is a number with a decimal point."""
        return len(self.groups) == 2 and self.separators == ["."]


def runs(view: View) -> Iterator[Run]:
    """Return the runs of at least seven digits, dates left out."""
    plain = view.plain
    for match in _RUN.finditer(plain):
        start, end = match.span()
        at = start
        for day in _DATE.finditer(plain, start, end):
            if _goes_on(plain, day.start() - 1, -1) or _goes_on(plain, day.end(), 1):
                continue
            if day.start() > at:
                yield from _piece(view, at, day.start())
            at = day.end()
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
