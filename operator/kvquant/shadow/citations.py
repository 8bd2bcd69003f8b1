"""Citation markers: what a prompt offers to cite, and what of it an answer cites. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST_MARKERS = 4096
"""Markers that are looked at; a prompt with more is a table of numbers."""

_ID = r"[A-Za-z]{0,12}[-_:. ]?\d{1,6}(?:[-_:.]\d{1,6})*"
_SQUARE = re.compile(rf"\[(\^?{_ID}(?:\s?[,;]\s?\^?{_ID}){{0,9}})\](?!\()")
"""`[1]`, `[doc-3]`, `[^2]`, `[1, 4]`, but not the text of a link."""
_LENTICULAR = re.compile(r"【([^【】\n]{1,64})】")
"""`【1】`, `【4:0†source】`."""


def markers(text: str) -> frozenset[str]:
    """Return the citation markers of a text, in one spelling: without brackets, in lower case.

    `[1, 4]` is two. An index in code (`cell[3]`) looks like one where a word stands right before
    it, and so does a citation in some styles (`sky[3]`): both count, because only markers that
    stand in the prompt and in an answer matter in the end.
    """
    found: set[str] = set()
    for inner in _inside(text):
        found.update(part.strip().lstrip("^").lower() for part in re.split(r"[,;]", inner))
        if len(found) > MOST_MARKERS:
            break
    found.discard("")
    return frozenset(found)


def _inside(text: str) -> Iterable[str]:
    for match in _SQUARE.finditer(text):
        yield match.group(1)
    for match in _LENTICULAR.finditer(text):
        yield match.group(1).split("†")[0]


def kept(offered: frozenset[str], answer: str) -> frozenset[str]:
    """Return which of the prompt's markers an answer has."""
    return markers(answer) & offered if offered else frozenset()
