"""Words nearby, for numbers that mean somebody only because of what is said of them."""

from __future__ import annotations

from typing import Any

from kvquant.shadow.pii.digits import compiled
from kvquant.shadow.pii.normalising import View

_BEFORE, _AFTER = 48, 24
_LONGEST_VALUE = 64


class Words:
    """Words that say what a number is.

    They count when they stand before the number without another number between, or right behind
    it, or in the JSON key that it belongs to.
    """

    def __init__(self, words: str, further: tuple[str, ...] = ()) -> None:
        """Take words as a pattern, and words of scripts beyond Latin-1 as they are written."""
        self._before: Any = compiled(rf"(?i)(?:{words})[^0-9]*\z")
        self._after: Any = compiled(rf"(?i)\A[^0-9A-Za-z.;\n]{{0,4}}(?:[a-z]+ ){{0,2}}(?:{words})")
        self._hint: Any = compiled(rf"(?i)(?:{words})")
        self._further = further

    def near(self, view: View, start: int, end: int, hint: str) -> bool:
        """Whether one of the words says what stands from start to end."""
        if hint and len(view.plain) <= _LONGEST_VALUE and self._names(hint):
            return True
        before = view.plain[max(0, start - _BEFORE) : start]
        if self._before.search(before) is not None:
            return True
        if any(word in view.text[max(0, start - _BEFORE) : end + _AFTER] for word in self._further):
            return True
        return self._after.search(view.plain[end : end + _AFTER]) is not None

    def _names(self, hint: str) -> bool:
        plain = hint.replace("_", " ").encode("latin-1", "replace")
        return self._hint.search(plain) is not None or any(word in hint for word in self._further)


OF_A_PHONE = Words(
    r"phone|\btel(?:\b|e[fp]|\.|:)|mobil|\bcell|\bcall\b|\bcalling|\bfax|whats ?app|\bsms\b|handy"
    r"|rufnummer|\bruf\b|anruf|telef|kontakt|contact|\bcelular|llam|\bappel|portable|cellulare"
    r"|chiam|\bligue|\bdzwo|zadzwo|\bkom\.|\bnumer\b|\bbel\b|\bring\b|\bdial|\btext me|\breach\b"
    r"|hotline|\bnumer[oi] di|\bvoicemail|my number|signal|viber|\bph\b|\bmob\b",
    (
        "电话",
        "電話",
        "手机",
        "手機",
        "携帯",
        "联系",
        "전화",
        "连絡",
        "連絡",
        "फ़ोन",
        "फोन",
        "телефон",
        "тел.",
    ),
)
OF_A_THING = Words(
    r"order|invoice|\bref\b|reference|\bid\b|\bno\b|nr\b|#|ticket|tracking|\bsku\b|serial|isbn|issn"
    r"|\bdoi\b|arxiv|account|acct|transaction|\btxn\b|\bcase\b|\bpart\b|model|version|build|epoch"
    r"|timestamp|commit|hash|article|\bean\b|\bgtin|\bupc\b|barcode|parcel|shipment|batch|\blot\b"
)
