"""Payment cards and bank accounts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvquant.shadow.pii.checksums import luhn, mod97
from kvquant.shadow.pii.digits import Run, compiled, runs
from kvquant.shadow.pii.finding import Found
from kvquant.shadow.pii.normalising import View

_SHORTEST_CARD, _LONGEST_CARD = 12, 19
_BRANDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"
    r"|35\d{14,17}"
    r"|(?:2131|1800)\d{11}"
    r"|3(?:0[0-5]|[689]\d)\d{11,16}"
    r"|62\d{14,17}"
    r"|(?:50|5[678]|6[37])\d{10,17}|0604\d{8,15}|220[0-4]\d{12,15}"
)
_BY_BRAND = re.compile(r"(?:4-){3,4}[1-4]-|4-6-[45]-")
"""Sizes of the groups in which cards are written."""


def is_card(digits: str) -> bool:
    """Whether digits are the number of a payment card."""
    return _BRANDS.fullmatch(digits) is not None and luhn(digits)


def cards(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find payment cards: the brand's prefix and length, and the check digit."""
    for run in runs(view):
        begin = run.low
        while begin < run.high:
            end, value = _card_at(run, begin)
            if value:
                yield Found(run.spans[begin][0], run.spans[end - 1][1], "CARD", value)
            begin = end


def _card_at(run: Run, begin: int) -> tuple[int, str]:
    """Return where the longest card that begins with a group ends, and its digits."""
    size = run.sizes[begin]
    # Groups of other sizes are a card only if they are all that there is, or were wrapped.
    if size in (5, 6, 7, 8, 9, 10, 11) and begin != run.low and not run.wrapped:
        return begin + 1, ""
    longest = begin + 1, ""
    for end, digits in run.windows(begin, _LONGEST_CARD):
        if len(digits) >= _SHORTEST_CARD and _is_written_so(run, begin, end) and is_card(digits):
            longest = end, digits
    return longest


def _is_written_so(run: Run, begin: int, end: int) -> bool:
    """Whether groups are a card's, rather than neighbours in a table of numbers."""
    if end - begin == 1 or (begin, end) == (run.low, run.high):
        return True
    sizes = run.sizes
    size = sizes[begin]
    if size == 4:
        shape = "".join(f"{size}-" for size in sizes[begin:end])
        if _BY_BRAND.fullmatch(shape) is not None:
            return True
    elif size < 4 and run.is_even(begin, end):
        # Ones, twos and threes are a card only if there are exactly as many of them in a row.
        return (begin == run.low or sizes[begin - 1] != size) and (
            end == run.high or sizes[end] != size
        )
    return all("\n" in separator for separator in run.separators[begin : end - 1])


_COUNTRIES_OF_LENGTH = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_LENGTHS = {
    country: length for length, names in _COUNTRIES_OF_LENGTH.items() for country in names.split()
}
_IBAN_HEAD = compiled(r"(?:\b|_)(?:[A-Z]{2}[ \-]?|[A-Za-z]{2})[0-9]{2}[ \t\r\n.\-]{0,2}[A-Za-z0-9]")
_IBAN_SEPARATORS = " \t\r\n.-"
_SOLID = re.compile(r"[A-Za-z0-9]+")
_SHORTEST_IBAN, _LONGEST_IBAN = 15, 34


def ibans(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find IBANs: the country's length, and the check digits."""
    for match in _IBAN_HEAD.finditer(view.plain):
        start = match.start() + (view.plain[match.start()] == ord("_"))
        length = _LENGTHS.get(view.text[start : start + 2].upper(), 0)
        value, end = _account(view.text, start, length)
        if b"-" in view.plain[start:end] and view.text[start].islower():
            continue
        if not value and view.plain[start - 1 : start] not in (b"+", b"/"):
            # A country or a length that the table does not know, without separators.
            body = _SOLID.match(view.text, start, start + _LONGEST_IBAN + 1)
            value = body.group().upper() if body is not None else ""
            end = start + len(value)
        if _SHORTEST_IBAN <= len(value) <= _LONGEST_IBAN and value[2:4].isdigit() and mod97(value):
            yield Found(start, end, "IBAN", value)


def _account(text: str, start: int, length: int) -> tuple[str, int]:
    """Return so many characters without the separators between them, and where they end."""
    value, at = "", start
    gap = 0
    while at < len(text) and len(value) < length and gap <= 2:
        character = text[at]
        at += 1
        if character.isascii() and character.isalnum():
            value += character.upper()
            gap = 0
        elif character in _IBAN_SEPARATORS:
            gap += 1
        else:
            break
    following = text[at : at + 1]
    if len(value) < length or (following.isascii() and following.isalnum()):
        return "", at
    return value, at
