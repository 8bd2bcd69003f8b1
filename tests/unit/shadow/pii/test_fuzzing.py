"""Whatever comes in: cleaned or withheld, nothing planted left, and never more than linear time."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from kvquant.core.shadow_settings import UserPattern
from kvquant.shadow.pii import Sanitizer, Withheld

SANITIZER = Sanitizer(b"a key of the tests", seconds=60)
PLANTED = (
    "jo.doe@example.com",
    "4111 1111 1111 1111",
    "4111111111111111",
    "DE89 3704 0044 0532 0130 00",
    "536-90-4399",
    "+1 415 555 2671",
    "192.0.2.17",
    "52998224725",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "postgres://admin:hunter2@db.internal/users",
)
WORDS = st.sampled_from(
    [
        *("the", "-", "@", ".", ",", ":", ";", "12", "2024-01-02", "1.5", "\u200b", "\n", "\t"),
        *("(", ")", "{", "}", "[", "]", "<", ">", '"', "'", "\\", "/", "%", "&", "#", "é", "请"),
        *("0", "7777", "<EMAIL_3f9a07bc>", "<x>", "a@b", "AKIA", "sk-", "eyJ", "-----BEGIN"),
        *("+1", "00", "0x1F", "%40", "&#64;", "\\n", "10.0", "1:2", "::", " "),
    ]
)
TEXTS = st.one_of(st.text(), st.lists(st.one_of(WORDS, st.text(max_size=3))).map("".join))
# What stands directly beside a value must not make it part of something longer.
EDGES = st.sampled_from(["", " ", "\n", ", ", '"', "(", "请", "\t", " - ", "|", ";"])


def digits(text: str) -> str:
    return "".join(c for c in text if c.isascii() and c.isdigit())


@given(TEXTS)
def test_any_text_is_cleaned_and_cleaning_again_changes_nothing(text: str) -> None:
    cleaned, _ = SANITIZER.text(text)

    assert SANITIZER.text(cleaned) == (cleaned, {})


@given(TEXTS, st.sampled_from(PLANTED), EDGES, TEXTS)
def test_a_planted_value_is_never_left(before: str, value: str, edge: str, after: str) -> None:
    before = before.rstrip("0123456789.:-_+/\\%&@#=~^'") if edge == "" else before
    text = f"{before} {edge}{value}{edge} {after}"
    try:
        cleaned, _ = SANITIZER.text(text)
    except Withheld:
        return

    assert value not in cleaned or value in before + after
    if len(digits(value)) > 8 and digits(value) not in digits(before + after):
        assert digits(value) not in digits(cleaned)


def shapes(leaves: st.SearchStrategy[JsonValue]) -> st.SearchStrategy[JsonValue]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.text(max_size=8), inner, max_size=3),
            inner.map(json.dumps),
            inner.map(lambda value: {f"of {PLANTED[0]}": value}),
        ),
        max_leaves=8,
    )


LEAVES: st.SearchStrategy[JsonValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    TEXTS,
    st.sampled_from(PLANTED),
    st.just(4111111111111111),
)


@given(shapes(LEAVES))
def test_a_planted_value_is_never_left_in_a_document(body: JsonValue) -> None:
    before = json.dumps(body)
    try:
        cleaned = SANITIZER.body(body)
    except Withheld:
        return

    assert json.dumps(body) == before
    written = json.dumps(cleaned.body)
    assert not any(value in written for value in PLANTED)
    assert SANITIZER.body(cleaned.body).found == {}


@given(
    st.recursive(
        st.one_of(TEXTS, st.binary(), st.complex_numbers(), st.integers(), st.none()),
        lambda inner: st.one_of(
            st.lists(inner), st.dictionaries(st.one_of(st.text(), st.integers()), inner)
        ),
    )
)
def test_nothing_but_withheld_is_ever_raised(body: JsonValue) -> None:
    with suppress(Withheld):
        SANITIZER.body(body)


HOSTILE = [
    "a",
    "1",
    "1 ",
    "12345 ",
    "4111 ",
    "4111111111111111 ",
    "a@",
    "a@a.",
    "jo@example.com ",
    "jo at ",
    "1.",
    "::",
    "a:b:",
    "+1",
    "(0",
    "-----BEGIN A-----",
    "sk-",
    "eyJaaaaaaaaa.",
    "DE89 ",
    "A B 1 ",
    "token=",
    "http://a:",
    "%40",
    "&#64;",
    "\u200b",
    "\uff11",
    "\\n",
    "<EMAIL_3f9a07bc>",
    "2024-01-02 ",
    "0.12345 ",
    "[",
    '{"a":',
    '"\\"',
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_no_faster_than_the_text(piece: str) -> None:
    def took(size: int) -> float:
        text = piece * (size // len(piece))
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            with suppress(Withheld):
                SANITIZER.text(text)
            best = min(best, time.process_time() - begin)
        return best

    times = [took(size) for size in (8_192, 32_768, 131_072)]

    # Four times the text; quadratic work would take sixteen times as long.
    for short, long in pairwise(times):
        assert long < 9 * short + 0.02


@settings(max_examples=30)
@given(TEXTS)
def test_the_users_patterns_keep_the_promises(text: str) -> None:
    patterns = [
        UserPattern(name="ANY", pattern=r"a.*b"),
        UserPattern(name="N", pattern=r"\d+[^x]"),
    ]
    with suppress(Withheld):
        Sanitizer(b"key", patterns, seconds=60).text(text)


def test_a_users_pattern_that_rescans_is_cut_off_in_time() -> None:
    greedy = UserPattern(name="SLOW", pattern="a[^b]*b|a")
    begin = time.process_time()

    with pytest.raises(Withheld) as caught:
        Sanitizer(b"key", [greedy], seconds=0.3).text("a" * 1_000_000)

    assert caught.value.reason == "timeout"
    assert time.process_time() - begin < 5
