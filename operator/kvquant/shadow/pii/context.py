"""Words nearby, for numbers that mean somebody only because of what is said of them."""

from __future__ import annotations

import re
from typing import Any

from kvquant.shadow.pii.digits import compiled
from kvquant.shadow.pii.normalising import View

_BEFORE, _AFTER, _NEAR = 48, 24, 8
_LONGEST_VALUE = 64
_END = re.compile(r"[0-9.;!?\n]")


class Words:
    """Words that say what a number is.

    They count when they stand shortly before the number without another number or the end of a
    sentence between, or right behind it, or in the JSON key that it belongs to.
    """

    def __init__(self, words: str, further: tuple[str, ...] = ()) -> None:
        """Take words as a pattern, and words of scripts beyond Latin-1 as they are written."""
        self._before: Any = compiled(rf"(?i)(?:{words})(?:[^0-9.;!?]|\bn[or]\.){{0,28}}\z")
        self._after: Any = compiled(
            rf"(?i)\A[ )]{{0,2}}(?:(?:is|was|ist|est|es) )?(?:[a-z]+ )?(?:{words})"
        )
        self._hint: Any = compiled(rf"(?i)(?:{words})")
        self._further = further

    def near(self, view: View, start: int, end: int, hint: str) -> bool:
        """Whether one of the words says what stands from start to end."""
        if hint and len(view.plain) <= _LONGEST_VALUE and self._names(hint):
            return True
        before = view.plain[max(0, start - _BEFORE) : start]
        if self._before.search(before) is not None:
            return True
        before_it = _END.split(view.text[max(0, start - _NEAR) : start])[-1]
        behind_it = _END.split(view.text[end : end + _NEAR])[0]
        if any(word in before_it or word in behind_it for word in self._further):
            return True
        return self._after.search(view.plain[end : end + _AFTER]) is not None

    def _names(self, hint: str) -> bool:
        plain = hint.replace("_", " ").encode("latin-1", "replace")
        return self._hint.search(plain) is not None or any(word in hint for word in self._further)


OF_A_PHONE = Words(
    r"phone|t\x80l(?:\b\.?|\x80)|\btel(?:\b\.?|e[fp])|mobie?l|\bcell|\bcall\b|\bcalling|\bfax"
    r"|whats ?app|\bsms\b|\bhandy|rufnummer|\bruf\b|anruf|telef|kontakt|contact|\bcelular"
    r"|\bll[a\x80]m|\bappel|portable|cellulare|chiam|\bligue|\bdzwo|zadzwo|\bkom\.|\bnumer\b"
    r"|\bbel\b|\bring\b|\bdial|\btext me|\breach\b|hotline|\bnumer[oi] di|\bvoicemail"
    r"|my number|signal|viber|\bph\b\.?|\bmob\b\.?",
    (
        *("电话", "電話", "手机", "手機", "携帯", "联系", "连絡", "連絡"),
        *("전화", "फ़ोन", "फोन", "телефон", "тел"),
    ),
)
OF_A_THING = Words(
    r"order|invoice|\bref\b|reference|\bid\b|\bno\b|nr\b|#|ticket|tracking|\bsku\b|serial|isbn|issn"
    r"|\bdoi\b|arxiv|account|acct|transaction|\btxn\b|\bcase\b|\bpart\b|model|version|build|epoch"
    r"|timestamp|commit|hash|article|\bean\b|\bgtin|\bupc\b|barcode|parcel|shipment|batch|\blot\b"
)
