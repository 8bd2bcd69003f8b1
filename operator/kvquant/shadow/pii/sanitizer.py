"""The way through all searches: a text or a JSON document in, the same without the personal out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from pydantic import JsonValue

from kvquant.core.shadow_settings import UserPattern
from kvquant.shadow.pii.accounts import cards, ibans
from kvquant.shadow.pii.addresses import ips, mails, urls
from kvquant.shadow.pii.bodies import cleaned_body
from kvquant.shadow.pii.budget import ERROR, Budget, Withheld
from kvquant.shadow.pii.finding import KIND, Finder, Found, Search, merged
from kvquant.shadow.pii.national import lettered_numbers, numbers
from kvquant.shadow.pii.normalising import View
from kvquant.shadow.pii.patterns import UserPatterns
from kvquant.shadow.pii.phones import phones
from kvquant.shadow.pii.placeholders import Placeholders
from kvquant.shadow.pii.secrets import jwts, pems, tokens

SEARCHES: tuple[Search, ...] = (
    *(pems, urls, jwts, tokens, mails, ibans, cards),
    *(numbers, lettered_numbers, ips, phones),
)
_PASSES = 6
_FINDS_PER_CHECK = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Cleaned:
    """A document without personal data."""

    body: JsonValue
    found: Mapping[str, int]
    """How many finds of each kind were replaced."""


class Sanitizer:
    """Replaces personal data by placeholders, or withholds the text: there is no third way.

    Safe to share between threads. Whatever goes wrong is `Withheld`, whose message tells nothing.
    """

    def __init__(
        self,
        key: bytes,
        patterns: Sequence[UserPattern] = (),
        *,
        seconds: float = 2.0,
        most_characters: int = 32 * 1024 * 1024,
        finders: Sequence[Finder] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the key of the placeholders, and what one call may take.

        Args:
            key: secret of the rollout; the same key makes the same placeholders.
            patterns: kinds that the user knows of, beside the built-in ones.
            seconds: longest time for one call, a whole document included.
            most_characters: most characters in one call, keys included.
            finders: further engines, such as `PresidioFinder`.
            clock: what the time is measured by, in seconds.

        Raises:
            ValueError: a pattern cannot be used; the message names the field and the remedy.
        """
        if not key:
            raise ValueError("key: must not be empty; draw one with secrets.token_bytes(32)")
        self._placeholders = Placeholders(key)
        self._searches: tuple[Search, ...] = (*SEARCHES, UserPatterns(patterns))
        self._seconds = seconds
        self._most = most_characters
        self._finders = tuple(finders)
        self._clock = clock

    def text(self, text: str) -> tuple[str, Mapping[str, int]]:
        """Return a text without personal data, and how many finds of each kind there were.

        Raises:
            Withheld: the text could not be cleaned.
        """
        counts: Counter[str] = Counter()
        return self._guarded(lambda budget: self._clean(text, "", counts, budget)), _frozen(counts)

    def find(self, text: str) -> Sequence[Found]:
        """Return what is personal in a text, in order and without overlaps, as it stands there.

        Raises:
            Withheld: the text could not be searched.
        """

        def find_all(budget: Budget) -> Sequence[Found]:
            budget.take(text)
            return self._found(text, "", budget)

        return self._guarded(find_all)

    def body(self, body: JsonValue) -> Cleaned:
        """Return a JSON document without personal data; the given one stays as it is.

        Raises:
            Withheld: the document could not be cleaned.
        """
        counts: Counter[str] = Counter()

        def clean_all(budget: Budget) -> JsonValue:
            return cleaned_body(body, lambda text, hint: self._clean(text, hint, counts, budget))

        return Cleaned(self._guarded(clean_all), _frozen(counts))

    def _guarded(self, work: Callable[[Budget], T]) -> T:
        reason = ERROR
        try:
            return work(Budget(self._clock, self._seconds, self._most))
        except Withheld as withheld:
            reason = withheld.reason
        except Exception:  # noqa: S110 (nothing may be told: the message may quote the text)
            pass
        # Outside of the handler, so that no traceback and no context leads back to the text.
        raise Withheld(reason)

    def _clean(self, text: str, hint: str, counts: Counter[str], budget: Budget) -> str:
        budget.take(text)
        # What is left may look different once its neighbour is gone, hence until nothing is found.
        for _ in range(_PASSES):
            found = self._found(text, hint, budget)
            if not found:
                return text
            parts: list[str] = []
            at = 0
            for find in found:
                parts += (text[at : find.start], self._placeholders.of(find.kind, find.value))
                at = find.end
                counts[find.kind] += 1
            text = "".join((*parts, text[at:]))
        raise Withheld(ERROR)

    def _found(self, text: str, hint: str, budget: Budget) -> list[Found]:
        view = View(text)
        found: list[Found] = []
        for search in self._searches:
            budget.check()
            for find in search(view, hint):
                if len(found) % _FINDS_PER_CHECK == 0:
                    budget.check()
                start, end = view.original(find.start, find.end)
                found.append(find._replace(start=start, end=end))
        for finder in self._finders:
            budget.check()
            for start, end, kind in finder.find(text):
                if not (0 <= start < end <= len(text) and KIND.fullmatch(kind)):
                    raise ValueError("a finder's span is outside of the text, or its kind is none")
                found.append(Found(start, end, kind, text[start:end]))
        budget.check()
        return merged(found)


def _frozen(counts: Counter[str]) -> Mapping[str, int]:
    return MappingProxyType(dict(sorted(counts.items())))
