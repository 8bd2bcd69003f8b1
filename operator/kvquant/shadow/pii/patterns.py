"""Kinds of personal data that the user knows of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import re2

from kvquant.core.shadow_settings import UserPattern
from kvquant.shadow.pii.finding import RANK, Found
from kvquant.shadow.pii.normalising import View


class UserPatterns:
    """Looks for what the user's patterns match."""

    def __init__(self, patterns: Sequence[UserPattern]) -> None:
        self._patterns: list[tuple[str, re2._Regexp]] = []
        quiet = re2.Options()
        quiet.log_errors = False
        names = set()
        for index, pattern in enumerate(patterns):
            field = f"shadow.patterns[{index}]"
            if pattern.name in RANK or pattern.name in names:
                raise ValueError(
                    f"{field}.name: {pattern.name} is taken; choose a name that neither a built-in "
                    "kind nor another pattern has"
                )
            names.add(pattern.name)
            try:
                compiled = re2.compile(pattern.pattern, quiet)
            except re2.error as error:
                told = error.args[0] if error.args else "no reason"
                told = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
                raise ValueError(
                    f"{field}.pattern: not a regular expression of RE2 ({told}); RE2 has no "
                    "look-around and no back-references, see https://github.com/google/re2/wiki/Syntax"
                ) from None
            if compiled.search("") is not None:
                raise ValueError(
                    f"{field}.pattern: matches the empty text, so it would match everywhere; "
                    "demand at least one character, for example with + in place of *"
                )
            self._patterns.append((pattern.name, compiled))

    def __call__(self, view: View, hint: str) -> Iterator[Found]:  # noqa: ARG002
        """Find what the patterns match; an empty match is passed over."""
        for name, pattern in self._patterns:
            for match in pattern.finditer(view.text):
                start, end = match.span()
                if start < end:
                    yield Found(start, end, name, view.text[start:end])
