"""Phone numbers: international ones, national ones in their usual looks, and what is called so."""

from __future__ import annotations

from collections.abc import Iterator

from kvquant.shadow.pii.context import OF_A_PHONE, OF_A_THING
from kvquant.shadow.pii.digits import Run, compiled, runs
from kvquant.shadow.pii.finding import Found
from kvquant.shadow.pii.normalising import View

_SHORTEST, _LONGEST = 7, 15
_COUNTRIES_2 = frozenset(
    (
        *("20", "27", "30", "31", "32", "33", "34", "36", "39", "40", "41", "43", "44", "45", "46"),
        *("47", "48", "49", "51", "52", "53", "54", "55", "56", "57", "58", "60", "61", "62", "63"),
        *("64", "65", "66", "81", "82", "84", "86", "90", "91", "92", "93", "94", "95", "98"),
    )
)
_COUNTRIES_3 = frozenset(
    (
        *("21", "22", "23", "24", "25", "26", "29", "35", "37", "38", "42", "50", "59", "67", "68"),
        *("69", "80", "85", "87", "88", "96", "97", "99"),
    )
)
"""How the country codes of three digits begin."""
_MOST_DIGITS = {
    **dict.fromkeys(("45", "47"), 10),
    **dict.fromkeys(("31", "32", "33", "34", "41", "46", "48", "61"), 11),
    **dict.fromkeys(("39", "44", "81", "82", "90", "91"), 12),
    **dict.fromkeys(("55", "86"), 13),
}
"""Digits with the country code, where nobody's number is longer."""
_MOST_ELSEWHERE = 14

_NATIONAL = compiled(
    # North America.
    r"(?:(?:00)?1[ .\-]{1,2})?(?:\([2-9][0-9]{2}\)[ .\-]{0,2}|[2-9][0-9]{2}[ .\-]{1,2})"
    r"[2-9][0-9]{2}[ .\-]{1,2}[0-9]{4}"
    # In pairs: France, Belgium, Denmark.
    r"|0[1-9](?:[ .\-][0-9]{2}){4}"
    # A trunk prefix of 0 and separators: most of Europe, Japan, Korea, Australia.
    r"|\(?0[1-9][0-9]{0,4}\)?(?:[ ./\-]{1,3}|\)[ ./\-]{0,2})[0-9]{2,8}(?:[ .\-][0-9]{2,5}){0,3}"
    # Russia and its neighbours, with a trunk prefix of 8.
    r"|8[ \-]?\(?[0-9]{3}\)?[ \-][0-9]{3}[ \-][0-9]{2}[ \-]?[0-9]{2}"
    # Spain, Portugal, Poland, Czechia.
    r"|(?:\([2-4][0-9]{2}\) ?)?[2-9][0-9]{2} [0-9]{3} [0-9]{3}|\([2-4][0-9]{2}\) ?[0-9]{9}"
    # Brazil, Japan without the 0, India, China.
    r"|(?:\([1-9][0-9]\) ?|[1-9][0-9] )9?[0-9]{4}-[0-9]{4}|[1-9][0-9]-[0-9]{4}-[0-9]{4}"
    r"|[6-9][0-9]{4}[ \-][0-9]{5}|1[3-9][0-9][ \-][0-9]{4}[ \-][0-9]{4}"
)
_AMOUNT = compiled(
    r"(?i)\A\)? ?(?:[$\x81%]|eur|usd|gbp|pln|z\x80|kc|czk|sek|huf|rub|dollars?|people|users|tokens"
    r"|bytes|kb|mb|inhabitants|habitants|einwohner|units|rows|[.,][0-9])"
)
_SHORTEST_NATIONAL, _LONGEST_NATIONAL = 8, 13
_BARE = compiled(r"0[1-9][0-9]{8,9}|1[3-9][0-9]{9}")
_SPACED = compiled(r"[0-9 ]*")
_NEAR = 12
_EXTENSION = compiled(r"(?i)\A ?(?:x|ext\.? ?|extension )[0-9]{1,6}\b")


def phones(view: View, hint: str) -> Iterator[Found]:
    """Find phone numbers."""
    for run in runs(view):
        if run.joined_before:
            continue
        for start, end in _international(run) or _called(run, hint) or _national(run, hint):
            stop = _with_extension(view, end)
            yield Found(_with_sign(view, start, end), stop, "PHONE", _digits(view, start, stop))


def _digits(view: View, start: int, end: int) -> str:
    return "".join(c for c in view.text[start:end] if c.isdigit())


def _with_sign(view: View, start: int, end: int) -> int:
    """Return where a number begins with its sign, and with the bracket that it closes."""
    plain = view.plain
    closes = plain.find(b")", start, end) >= 0 and plain.find(b"(", start, end) < 0
    if closes and plain[start - 1 : start] == b"(":
        start -= 1
    if start and plain[start - 1] == ord("+"):
        start -= 1
    if closes and plain[start : start + 1] == b"+" and plain[start - 1 : start] == b"(":
        start -= 1
    return start


def _with_extension(view: View, end: int) -> int:
    extension = _EXTENSION.search(view.plain[end : end + 20])
    return end if extension is None else end + int(extension.end())


def _international(run: Run) -> list[tuple[int, int]]:
    """Numbers with + and a country's code, or 00 and one."""
    before = run.view.plain[max(0, run.start - 3) : run.start]
    digits = "".join(run.groups[:6])
    skipped = 0
    if b"+" in before:
        if before[: before.rindex(b"+")][-1:].isalnum():
            return []
    elif digits.startswith("00") and len(run.groups) > 1 and "\n" not in run.separators[0]:
        skipped = 2
    else:
        return []
    code = digits[skipped:]
    if code[:1] == "1":
        most = least = 11
        if code[1:2] < "2" or code[4:5] < "2":
            return []
    elif code[:2] in _COUNTRIES_2:
        most, least = _MOST_DIGITS.get(code[:2], _MOST_ELSEWHERE), 8
    elif code[:1] == "7":
        most, least = 11, 11
    elif code[:2] in _COUNTRIES_3:
        most, least = 13, 8
    else:
        return []
    # A trunk zero in brackets, as in +44 (0)20, is written but not counted.
    most += skipped + ("0" in run.groups[1:3])
    end = _most_groups(run, most, least + skipped)
    return [(run.start, end)] if end else []


def _most_groups(run: Run, most: int, least: int) -> int:
    """Return where as many groups end as one number can have, or 0 when there are too few."""
    count = end = 0
    for index, (_, stop) in enumerate(run.spans):
        whole = count + run.sizes[index]
        if count >= least and (whole > most or "\n" in run.separators[index - 1]):
            break
        if whole > _LONGEST:
            break
        count, end = whole, stop
    return end if count >= least else 0


def _called(run: Run, hint: str) -> list[tuple[int, int]]:
    """Numbers that a word nearby says are of a phone."""
    if not OF_A_PHONE.near(run.view, run.start, run.end, hint):
        return []
    end = _most_groups(run, _LONGEST, _SHORTEST)
    return [(run.start, end)] if end else []


def _national(run: Run, hint: str) -> Iterator[tuple[int, int]]:
    plain = run.view.plain
    if run.before in ("-", "_", "#", "/") and plain[run.start - 2 : run.start - 1].isalnum():
        return
    low = run.start - (run.before == "(")
    for match in _NATIONAL.finditer(plain, low, run.end):
        start, end = match.span()
        # A bracket that the number does not close is not its own.
        start += plain[start] == ord("(") and plain.find(b")", start, end) < 0
        if (
            _SHORTEST_NATIONAL <= len(_digits(run.view, start, end)) <= _LONGEST_NATIONAL
            and (start in (low, run.start) or plain[start - 1] in b" \t\r\n(")
            and (end == run.end or plain[end] in b" \t\r\n)")
            and _AMOUNT.search(plain[end : end + 16]) is None
            and not (_SPACED.fullmatch(plain[start:end]) and _in_table(run, start, end))
        ):
            yield start, end
    if _BARE.fullmatch(plain[run.start : run.end]) is None or run.joined_after:
        return
    if not OF_A_THING.near(run.view, run.start, run.end, hint):
        yield run.start, run.end


def _in_table(run: Run, start: int, end: int) -> bool:
    """Whether there are further numbers on the same line, so that it may be a table."""
    plain = run.view.plain
    left = plain[max(run.start, start - _NEAR) : start].rpartition(b"\n")[2].split()
    right = plain[end : min(run.end, end + _NEAR)].partition(b"\n")[0].split()
    return len(left) > 1 or len(right) > 1 or bool(left and right)
