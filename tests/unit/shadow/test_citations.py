"""Citation markers in prompts and answers."""

from __future__ import annotations

import pytest

from kvquant.shadow.citations import kept, markers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("as shown [1].", {"1"}),
        ("[doc-3] says", {"doc-3"}),
        ("[Doc 12]", {"doc 12"}),
        ("[S1][S2]", {"s1", "s2"}),
        ("[1, 4; 7]", {"1", "4", "7"}),
        ("a note[^2]", {"2"}),
        ("【1】", {"1"}),
        ("【4:0†source】", {"4:0"}),
        ("[a link](https://example.org)", set()),
        ("[12](https://example.org)", set()),
        ("[see below]", set()),
        ("[]", set()),
        ("a list: [1, 2", set()),
    ],
)
def test_what_is_a_marker(text: str, found: set[str]) -> None:
    assert markers(text) == found


def test_only_markers_of_the_prompt_are_kept() -> None:
    assert kept(markers("[1] [2]"), "So [2] and [3].") == {"2"}
    assert kept(frozenset(), "So [2].") == frozenset()


def test_a_prompt_full_of_brackets_is_read_in_linear_time() -> None:
    assert markers("[" * 200_000 + "1" * 200_000) == frozenset()
