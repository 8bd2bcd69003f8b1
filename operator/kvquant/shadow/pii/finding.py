"""What a search finds, and which find wins where two overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from kvquant.shadow.pii.normalising import View

KIND = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
"""What the name of a kind looks like."""

RANK = {
    kind: rank
    for rank, kind in enumerate(
        (
            *("PEM", "URL", "JWT", "API_KEY", "EMAIL", "IBAN", "AADHAAR", "CARD"),
            *("SSN", "NINO", "STEUER_ID", "NIR", "DNI", "FISCALE", "BSN", "PESEL", "CPF"),
            *("IP", "PHONE"),
        )
    )
}
"""The built-in kinds. Of two finds that overlap, the longer names the whole, and of two equally
long ones the earlier in this list."""


class Found(NamedTuple):
    """A stretch of a text that is personal."""

    start: int
    end: int
    kind: str
    value: str
    """In the form that makes two spellings of the same value equal."""


class Finder(Protocol):
    """A further engine, for what no pattern can find, such as names and places."""

    def find(self, text: str) -> Iterable[tuple[int, int, str]]:
        """Return start, end and kind of everything personal in a text."""
        ...


class Search(Protocol):
    """Looks for some kinds in a view; the hint is the JSON key that the text belongs to."""

    def __call__(self, view: View, hint: str) -> Iterable[Found]:
        """Return what is found, in any order."""
        ...


def merged(found: Sequence[Found]) -> list[Found]:
    """Return the finds in the order of the text, with those that overlap made one."""
    one: list[Found] = []
    for find in sorted(found, key=lambda f: (f.start, -f.end)):
        if not one or find.start >= one[-1].end:
            one.append(find)
            continue
        last = one[-1]
        first = min(last, find, key=lambda f: (f.start - f.end, RANK.get(f.kind, -1), f.kind))
        one[-1] = first._replace(start=last.start, end=max(last.end, find.end))
    return one
