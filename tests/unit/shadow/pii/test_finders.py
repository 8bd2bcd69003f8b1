"""Further engines beside the patterns, presidio among them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kvquant.shadow.pii import Finder, Sanitizer, Withheld
from kvquant.shadow.pii.presidio_finder import PresidioFinder


class Names:
    """Finds one name."""

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        at = text.find("Jo Doe")
        if at >= 0:
            yield at, at + len("Jo Doe"), "PERSON"


def test_what_a_finder_finds_is_replaced_like_everything_else() -> None:
    finder: Finder = Names()

    cleaned, found = Sanitizer(b"key", finders=[finder]).text("I am Jo Doe, jo@example.com.")

    assert found == {"EMAIL": 1, "PERSON": 1}
    assert cleaned.startswith("I am <PERSON_")


@pytest.mark.parametrize("span", [(-1, 2, "PERSON"), (0, 99, "PERSON"), (0, 2, "a person")])
def test_a_finder_that_answers_nonsense_withholds_the_text(span: tuple[int, int, str]) -> None:
    class Nonsense:
        def find(self, text: str) -> list[tuple[int, int, str]]:
            return [span]

    with pytest.raises(Withheld) as caught:
        Sanitizer(b"key", finders=[Nonsense()]).text("short")
    assert caught.value.reason == "error"


def test_without_presidio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)

    with pytest.raises(ValueError, match=r"kvquant\[presidio\]"):
        PresidioFinder()


def test_presidios_results_become_placeholders() -> None:
    @dataclass
    class Result:
        start: int
        end: int
        entity_type: str

    class Analyzer:
        def analyze(self, *, text: str, **options: object) -> list[Result]:
            assert options["entities"] == ["PERSON"]
            at = text.find("Jo")
            return [Result(at, at + 2, "PERSON")] if at >= 0 else []

    finder = PresidioFinder(["PERSON"], analyzer=Analyzer())

    assert Sanitizer(b"key", finders=[finder]).text("I am Jo")[1] == {"PERSON": 1}
    assert list(finder.find("nobody")) == []
