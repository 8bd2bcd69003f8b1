"""Numbers that a state gives to a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvquant.shadow.pii import checksums
from kvquant.shadow.pii.context import OF_A_PHONE, Words
from kvquant.shadow.pii.digits import Run, compiled, runs
from kvquant.shadow.pii.finding import Found
from kvquant.shadow.pii.normalising import View


@dataclass(frozen=True)
class _Numeric:
    """A number of digits alone."""

    kind: str
    shapes: frozenset[tuple[int, ...]]
    """Sizes of the groups in which it is written and known by itself."""
    check: Callable[[str], bool]
    words: Words
    """Words that say what it is, for when its look does not."""


def _shapes(*shapes: tuple[int, ...]) -> frozenset[tuple[int, ...]]:
    return frozenset(shapes)


def _aadhaar(digits: str) -> bool:
    return digits[0] >= "2" and checksums.verhoeff(digits)


_NUMERIC = {
    9: (
        _Numeric(
            "SSN",
            _shapes((3, 2, 4)),
            checksums.ssn,
            Words(r"\bssn\b|social[ _\-]?sec(?:urity)?|\bss#|\btax ?id\b|\bitin\b"),
        ),
        _Numeric(
            "BSN",
            _shapes((4, 2, 3)),
            checksums.bsn,
            Words(r"\bbsn\b|burger ?service|\bsofi|persoonsnummer"),
        ),
    ),
    11: (
        _Numeric(
            "CPF",
            _shapes((11,), (3, 3, 3, 2), (9, 2)),
            checksums.cpf,
            Words(r"\bcpf\b|contribuinte"),
        ),
        _Numeric(
            "STEUER_ID",
            _shapes((11,), (2, 3, 3, 3)),
            checksums.steuer_id,
            Words(r"steuer|\btin\b|\bidnr\b|tax ?id"),
        ),
        _Numeric("PESEL", _shapes((11,), (6, 5)), checksums.pesel, Words(r"pesel")),
    ),
    12: (_Numeric("AADHAAR", _shapes((4, 4, 4)), _aadhaar, Words(r"aadh?aa?r|\buid(?:ai)?\b")),),
    15: (
        _Numeric(
            "NIR",
            _shapes((15,), (13, 2), (1, 2, 2, 2, 3, 3, 2)),
            checksums.nir,
            Words(r"s\x80cu|secu|\bnir\b|\binsee\b"),
        ),
    ),
}
_LONGEST = max(_NUMERIC)
_FIRST = {
    size
    for length, numbers_of_length in _NUMERIC.items()
    for number in numbers_of_length
    for size in (length, *(shape[0] for shape in number.shapes))
}
"""Sizes of the first group."""
# With 9 or 12 digits, one in ten or more has the right check digit by chance.
_WEAK = ("SSN", "BSN", "AADHAAR")


def numbers(view: View, hint: str) -> Iterator[Found]:
    """Find national ids of digits: by check digits and shape, or by check digits and a word."""
    for run in runs(view):
        begin = run.low
        while begin < run.high:
            longest = begin + 1, "", ""
            # What begins otherwise is a number only if it is all that there is.
            if begin == run.low or run.sizes[begin] in _FIRST:
                for end, digits in run.windows(begin, _LONGEST):
                    kind = _kind(run, begin, end, digits, hint)
                    if kind:
                        longest = end, kind, digits
            end, kind, value = longest
            if kind:
                yield Found(run.spans[begin][0], run.spans[end - 1][1], kind, value)
            begin = end


def _kind(run: Run, begin: int, end: int, digits: str, hint: str) -> str:
    """Return the kind of number that groups most likely are, or nothing."""
    sizes = tuple(run.sizes[begin:end])
    likely = (0, "")
    for number in _NUMERIC.get(len(digits), ()):
        whole = (begin, end) == (run.low, run.high)
        if (whole or len(sizes) == 1 or sizes in number.shapes) and number.check(digits):
            sure = _certainty(run, begin, end, number, hint)
            if sure > likely[0]:
                likely = sure, number.kind
    return likely[1]


def _certainty(run: Run, begin: int, end: int, number: _Numeric, hint: str) -> int:
    """Return 2 when a word says what groups are, 1 when their look does, else 0."""
    whole = (begin, end) == (run.low, run.high)
    start, stop = run.spans[begin][0], run.spans[end - 1][1]
    if number.words.near(run.view, start, stop, hint):
        return 2
    sizes = tuple(run.sizes[begin:end])
    separators = set(run.separators[begin : end - 1])
    if sizes in number.shapes and len(separators) <= (2 if number.kind == "CPF" else 1):
        if number.kind in _WEAK and not whole and not _stands_out(run, begin, end, separators):
            return 0
        like_a_phone = len(sizes) == 1 and stop - start < _LONGEST
        return int(not (like_a_phone and OF_A_PHONE.near(run.view, start, stop, hint)))
    # Spaced or wrapped evenly, which no phone number is.
    even = whole and number.kind not in _WEAK and len(sizes) > 1 and run.is_even(begin, end)
    return int(even)


_FEW = 2
"""Other numbers beside one that are no table yet."""


def _stands_out(run: Run, begin: int, end: int, separators: set[str]) -> bool:
    """Whether groups are no part of a longer number, nor of a row of a table."""
    around = run.separators[max(0, begin - 1) : begin] + run.separators[end - 1 : end]
    if separators == {" "}:
        return len(run.sizes) <= end - begin + _FEW or all("\n" in one for one in around)
    return all(any(c.isspace() for c in separator) for separator in around)


_S = r"[ \t\r\n.\-]{0,2}"
_NINO = compiled(rf"(?i)\b[A-CEGHJ-PR-TW-Z]{_S}[A-CEGHJ-NPR-TW-Z](?:{_S}[0-9]){{6}}{_S}[A-D]\b")
_NINO_NEVER = ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")
_DNI = compiled(
    r"(?i)\b(?:[0-9]{8}|[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}|[XYZ][ .\-]?[0-9]{7}|[XYZ]-[0-9.]{9}"
    r"|[0-9](?:[ \-\r\n][0-9]){7}|[0-9]{1,7}[\r\n]{1,2}[0-9]{1,7})[ .\-]?[A-Z]\b"
)
_DNI_LENGTH = 9
_FEWEST_DIGITS = 3
_CORSICAN = compiled(rf"(?i)\b[12]{_S}[0-9]{{2}}{_S}[0-9]{{2}}{_S}2[AB](?:{_S}[0-9]){{8}}\b")
_N = r"[0-9LMNP-V]"
_FISCALE = compiled(
    rf"(?i)\b[A-Z](?:{_S}[A-Z]){{5}}{_S}{_N}{_S}{_N}{_S}[ABCDEHLMPRST]{_S}{_N}{_S}{_N}"
    rf"{_S}[A-Z](?:{_S}{_N}){{3}}{_S}[A-Z]\b"
)


def lettered_numbers(view: View, hint: str) -> Iterator[Found]:  # noqa: ARG001
    """Find national ids with letters in them."""
    for match in _NINO.finditer(view.plain):
        value = _bare(view, match.span())
        if value[:2] not in _NINO_NEVER:
            yield Found(match.start(), match.end(), "NINO", value)
    for pattern, kind, check in (
        (_DNI, "DNI", lambda v: len(v) == _DNI_LENGTH and checksums.dni(v)),
        (_CORSICAN, "NIR", checksums.nir),
        (_FISCALE, "FISCALE", checksums.codice_fiscale),
    ):
        for match in pattern.finditer(view.plain):
            value = _bare(view, match.span())
            if view.plain[match.start() - 1 : match.start()] == b"-":
                continue
            # Some digits of an Italian code may be letters, but words have no digits at all.
            if sum(c.isdigit() for c in value) >= _FEWEST_DIGITS and check(value):
                yield Found(match.start(), match.end(), kind, value)


def _bare(view: View, span: tuple[int, int]) -> str:
    return "".join(c for c in view.text[slice(*span)] if c.isalnum()).upper()
