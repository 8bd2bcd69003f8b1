"""A view of a text in which disguised values look plain, with the way back to the original.

Full-width and other digits become ASCII ones, zero-width characters vanish, `%40` and `&#64;`
become `@`. The patterns look at the view, and what they find is mapped back to offsets of the
original, so that everything else stays as it was, byte for byte.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import re2

from kvquant.shadow.pii.placeholders import PLACEHOLDER

if TYPE_CHECKING:
    from kvquant.shadow.pii.digits import Run

LETTER = "\x80"
"""Stands for a letter that is not ASCII, of a script whose words are set apart by spaces."""
OTHER = "\x81"
"""Stands for a character that is neither ASCII nor a letter."""
GLYPH = "\x82"
"""Stands for a letter of a script without spaces between words, such as Han, Kana, Hangul, Thai."""

_DROPPED = "\x00"
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1100, 0x11FF),
    (0x1780, 0x17FF),
    (0x2E80, 0xA4CF),
    (0xA960, 0xD7FF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFFDC),
    (0x20000, 0x3FFFF),
)
_LIKE_ASCII = {"\u3002": ".", "\u00b7": ".", "\u2212": "-", "\u2028": "\n", "\u2029": "\n"}


class _Table(dict[int, str]):
    """What `str.translate` puts for a character; computed when a character is first met."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        put = self._rule(chr(code))
        self[code] = put
        return put


def _folded(character: str) -> str:
    """One character for one: the ASCII one that it looks like, or itself."""
    if character.isascii():
        return character
    if character in _LIKE_ASCII:
        return _LIKE_ASCII[character]
    category = unicodedata.category(character)
    if category in ("Cf", "Mn", "Me") or character in "\u115f\u1160\u3164\uffa0\u180b\u2800":
        return _DROPPED
    if category == "Cs":
        return "\ufffd"
    if (digit := unicodedata.digit(character, None)) is not None:
        return str(digit)
    if category == "Zs":
        return " "
    if category == "Pd":
        return "-"
    plain = unicodedata.normalize("NFKC", character)
    # A ligature or a unit becomes several characters; it stays what it is, as one letter.
    return plain if len(plain) == 1 and plain.isascii() else character


def _class_of(character: str) -> str:
    if character.isascii():
        return character
    if character.isalpha():
        code = ord(character)
        return GLYPH if any(low <= code <= high for low, high in _UNSPACED) else LETTER
    return OTHER


_FOLD = _Table(_folded)
_CLASS = _Table(_class_of)

_ESCAPE = re2.compile(
    r"%[2-7][0-9A-Fa-f]|%0[9AaDd]"
    r"|&#0{0,4}[0-9]{2,3};?|&#[xX]0{0,4}[0-9A-Fa-f]{2};?"
    r"|&(?:commat|period|amp|nbsp|lt|gt|quot|plus|colon|lowbar|hyphen|shy|ZeroWidthSpace);"
    r"|\\u00[2-7][0-9A-Fa-f]|\\x[2-7][0-9A-Fa-f]|\\[ntr]"
)
_NAMED = {
    "commat": "@",
    "period": ".",
    "amp": "&",
    "nbsp": " ",
    "lt": "<",
    "gt": ">",
    "quot": '"',
    "plus": "+",
    "colon": ":",
    "lowbar": "_",
    "hyphen": "-",
    "shy": "",
    "ZeroWidthSpace": "",
}


def _decoded(escape: str) -> str | None:
    """Return the one character (or none) that an escape stands for; None: leave it."""
    if escape[0] == "\\":
        return (
            {"n": "\n", "t": "\t", "r": "\r"}[escape[1]]
            if len(escape) == 2
            else chr(int(escape[-2:], 16))
        )
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    inner = escape[1:].rstrip(";")
    if not inner.startswith("#"):
        return _NAMED[inner]
    code = int(inner[2:], 16) if inner[1] in "xX" else int(inner[1:])
    if code in (173, 160):
        return "" if code == 173 else " "
    return chr(code) if 0x20 <= code < 0x7F else None


class _Offsets:
    """The way back over edits, each of which put at most one character for a longer stretch."""

    def __init__(self) -> None:
        self._after: list[int] = []
        self._shifts: list[int] = []
        self._ends: list[int] = []
        """Where the stretch ended that a character was put for; -1 where it just vanished."""

    def add(self, start: int, end: int, put: str) -> None:
        """Take the next edit, in the order of the text."""
        shift = (self._shifts[-1] if self._shifts else 0) + end - start - len(put)
        self._after.append(end - shift)
        self._shifts.append(shift)
        self._ends.append(end if put else -1)

    def back(self, start: int, end: int) -> tuple[int, int]:
        """Return where a span that is not empty came from, without what vanished around it."""
        last = bisect_right(self._after, end - 1)
        replaced = last < len(self._after) and self._after[last] == end and self._ends[last] >= 0
        return self._one(start), self._ends[last] if replaced else self._one(end - 1) + 1

    def _one(self, position: int) -> int:
        index = bisect_right(self._after, position)
        return position + (self._shifts[index - 1] if index else 0)


class View:
    """A text as the patterns see it."""

    text: str
    """The normalised text."""
    plain: bytes
    """The same with one byte a character, those of `LETTER`, `OTHER` and `GLYPH` included."""
    runs: list[Run] | None = None
    """Its runs of digits, once somebody has looked for them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._ways: list[_Offsets] = []
        # In most texts no character looks like another one; to see that costs little.
        if _DROPPED in text or not (
            text.isascii() or all(_FOLD[code] == chr(code) for code in map(ord, set(text)))
        ):
            self._fold()
        if "%" in self.text or "&" in self.text or "\\" in self.text:
            self._decode()
        text = self.text
        self.plain = (text if text.isascii() else text.translate(_CLASS)).encode("latin-1")
        if b"<" in self.plain:
            self._blank()

    def _blank(self) -> None:
        """Put line ends for placeholders, which are done with, so that nothing reaches across."""
        spans = [match.span() for match in PLACEHOLDER.finditer(self.plain)]
        texts: list[str] = []
        at = 0
        for start, end in spans:
            texts += (self.text[at:start], "\n" * (end - start))
            at = end
        self.text = "".join((*texts, self.text[at:]))
        self.plain = PLACEHOLDER.sub(lambda match: b"\n" * len(match.group()), self.plain)

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of the original text that a span of the view came from."""
        for way in reversed(self._ways):
            start, end = way.back(start, end)
        return start, end

    def _fold(self) -> None:
        folded = self.text.translate(_FOLD)
        edits = []
        at = folded.find(_DROPPED)
        while at >= 0:
            edits.append((at, at + 1, ""))
            at = folded.find(_DROPPED, at + 1)
        self._edit(folded, edits)

    def _decode(self) -> None:
        edits = []
        for match in _ESCAPE.finditer(self.text):
            put = _decoded(match.group())
            if put is not None:
                edits.append((match.start(), match.end(), put))
        self._edit(self.text, edits)

    def _edit(self, text: str, edits: Sequence[tuple[int, int, str]]) -> None:
        if not edits:
            self.text = text
            return
        way = _Offsets()
        parts: list[str] = []
        at = 0
        for start, end, put in edits:
            way.add(start, end, put)
            parts += (text[at:start], put)
            at = end
        self._ways.append(way)
        self.text = "".join((*parts, text[at:]))
