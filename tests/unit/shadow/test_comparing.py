"""Differences between two answers, each looked at from both sides."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kvquant.core.shadow_settings import CITATIONS, ENDINGS, EXACT, JSON, REFUSALS, TOOLS
from kvquant.shadow.answers import Answer, ToolCall
from kvquant.shadow.asking import Asked, read
from kvquant.shadow.comparing import compare
from kvquant.shadow.preparing import CHAT, COMPLETIONS, MESSAGES, RESPONSES

GOOD = Answer("The sky is blue.", finish="stop", answer_tokens=5)
NOTHING = Asked()
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"], "default": "C"}},
    "required": ["city"],
}
TOOLED = Asked(tools={"weather": WEATHER})


def said(text: str, **more: object) -> Answer:
    return replace(GOOD, text=text, **more)  # type: ignore[arg-type]


def called(*calls: tuple[str, object]) -> Answer:
    made = tuple(ToolCall(name, json.dumps(arguments)) for name, arguments in calls)
    return Answer("", calls=made, finish="tool_calls")


def signal(asked: Asked, first: Answer, second: Answer, name: str) -> float | None:
    return compare(asked, first, second).signals.get(name)


def test_the_same_answers_differ_in_nothing() -> None:
    comparison = compare(
        Asked(wants_json=False, tools=TOOLED.tools, markers=frozenset({"1"})),
        said("So it is [1]."),
        said("So it is [1]."),
    )
    assert set(comparison.signals.values()) == {0.0}
    assert comparison.first_character is None
    assert comparison.length_ratio == 1


def test_texts_that_differ_are_not_exact_whichever_comes_first() -> None:
    other = said("The sky is grey.")
    assert signal(NOTHING, GOOD, other, EXACT) == 1
    assert signal(NOTHING, other, GOOD, EXACT) == 1


@pytest.mark.parametrize(
    ("first", "second", "at"),
    [("abc", "abd", 2), ("abc", "abcd", 3), ("abcd", "abc", 3), ("", "x", 0), ("x", "x", None)],
)
def test_the_first_character_that_differs(first: str, second: str, at: int | None) -> None:
    assert compare(NOTHING, said(first), said(second)).first_character == at


def test_the_first_token_that_differs_needs_the_ids_of_both() -> None:
    first = replace(GOOD, answer_ids=(1, 2, 3))
    assert compare(NOTHING, first, replace(GOOD, answer_ids=(1, 9, 3))).first_token == 1
    assert compare(NOTHING, first, GOOD).first_token is None


def test_reasoning_that_differs_is_seen() -> None:
    assert signal(NOTHING, GOOD, replace(GOOD, reasoning="Hm."), EXACT) == 1


def test_lost_json_is_harm_and_won_json_is_relief() -> None:
    asked, good, bad = Asked(wants_json=True), said('{"a": 1}'), said('{"a": 1')
    assert signal(asked, good, bad, JSON) == 1
    assert signal(asked, bad, good, JSON) == -1
    assert signal(asked, bad, bad, JSON) == 0
    assert signal(NOTHING, good, bad, JSON) is None


def test_json_beside_the_schema_is_as_bad_as_none() -> None:
    asked = Asked(wants_json=True, schema=WEATHER)
    good, bad = said('{"city": "Oslo"}'), said('{"town": "Oslo"}')
    assert signal(asked, good, bad, JSON) == 1
    assert signal(asked, bad, good, JSON) == -1


def test_json_that_the_cap_of_the_shadow_cut_on_both_sides_says_nothing() -> None:
    cut = said('{"a": ', finish="length")
    assert signal(Asked(wants_json=True), cut, cut, JSON) is None
    assert signal(Asked(wants_json=True), said("{}"), cut, JSON) == 1


def test_nan_is_no_json() -> None:
    assert signal(Asked(wants_json=True), said("{}"), said('{"a": NaN}'), JSON) == 1


def test_another_tool_or_another_argument_is_another_call() -> None:
    oslo = called(("weather", {"city": "Oslo"}))
    rome = called(("weather", {"city": "Rome"}))
    assert signal(TOOLED, oslo, rome, TOOLS) == 1
    assert signal(TOOLED, oslo, GOOD, TOOLS) == 1
    assert signal(TOOLED, GOOD, oslo, TOOLS) == 1
    assert signal(TOOLED, oslo, oslo, TOOLS) == 0
    assert signal(NOTHING, oslo, rome, TOOLS) is None


def test_the_same_call_in_another_spelling_is_the_same_call() -> None:
    first = Answer("", calls=(ToolCall("weather", '{"city":"Oslo","unit":"C"}'),))
    second = Answer("", calls=(ToolCall("weather", '{ "city": "Oslo" }'),))
    assert signal(TOOLED, first, second, TOOLS) == 0
    two = (("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"}))
    assert signal(TOOLED, called(*two), called(*reversed(two)), TOOLS) == 0
    twice = called(("weather", {"city": "Oslo"}), ("weather", {"city": "Oslo"}))
    assert signal(TOOLED, twice, called(("weather", {"city": "Oslo"})), TOOLS) == 1


def test_calls_are_valid_when_the_tool_was_offered_and_the_arguments_fit() -> None:
    oslo = called(("weather", {"city": "Oslo"}))
    for wrong in (called(("weather", {"unit": "K"})), called(("stocks", {})), _broken()):
        assert compare(TOOLED, oslo, wrong).calls_valid == (True, False)


def _broken() -> Answer:
    return Answer("", calls=(ToolCall("weather", '{"city": "Os'),))


def test_lost_citations_are_harm_and_won_ones_relief() -> None:
    asked = Asked(markers=frozenset({"1", "2", "doc-3"}))
    both, one, none = said("a [1], b [doc-3]"), said("a [1], b"), said("a, b")
    assert signal(asked, both, one, CITATIONS) == 1
    assert signal(asked, one, both, CITATIONS) == -1
    assert signal(asked, none, none, CITATIONS) is None
    assert signal(asked, said("[1]"), said("[2]"), CITATIONS) == 0
    assert signal(NOTHING, both, none, CITATIONS) is None


def test_a_made_up_citation_saves_nothing() -> None:
    asked = Asked(markers=frozenset({"1"}))
    assert signal(asked, said("a [1]"), said("a [7]"), CITATIONS) == 1


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t help with that.",  # noqa: RUF001
        "I cannot assist with this request.",
        "As an AI language model, I do not have opinions.",
        "Lo siento, no puedo ayudarte con eso.",
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "抱歉，我不能提供这些信息。",  # noqa: RUF001
    ],
)
def test_a_refusal_of_one_side_is_a_flip(text: str) -> None:
    assert signal(NOTHING, GOOD, said(text), REFUSALS) == 1
    assert signal(NOTHING, said(text), GOOD, REFUSALS) == -1
    assert signal(NOTHING, said(text), said(text), REFUSALS) == 0


@pytest.mark.parametrize(
    "text",
    [
        "The word is used when one cannot go on.",
        "Sorry, I was late: the answer is 4.",
        "I can't find a mistake in it.",
        "x" * 400 + " I cannot assist with that.",
    ],
)
def test_an_answer_is_no_refusal(text: str) -> None:
    assert signal(NOTHING, GOOD, said(text), REFUSALS) == 0


def test_an_answer_that_the_engine_marked_as_refused_is_one() -> None:
    assert signal(NOTHING, GOOD, replace(GOOD, refused=True), REFUSALS) == 1


@pytest.mark.parametrize("finish", ["length", "max_tokens", "max_output_tokens"])
def test_running_into_the_cap_on_one_side_only(finish: str) -> None:
    cut = replace(GOOD, finish=finish)
    assert signal(NOTHING, GOOD, cut, ENDINGS) == 1
    assert signal(NOTHING, cut, GOOD, ENDINGS) == -1
    assert signal(NOTHING, cut, cut, ENDINGS) == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": WEATHER}}}),
        (COMPLETIONS, {"structured_outputs": {"json": WEATHER}}),
        (COMPLETIONS, {"guided_json": WEATHER}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": WEATHER}}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": WEATHER}}}),
    ],
)
def test_json_is_asked_for_in_many_ways(path: str, body: dict[str, object]) -> None:
    asked = read(path, body)
    assert asked.wants_json
    assert asked.schema == WEATHER


def test_json_without_a_schema() -> None:
    asked = read(CHAT, {"response_format": {"type": "json_object"}})
    assert (asked.wants_json, asked.schema) == (True, None)
    assert not read(CHAT, {"response_format": {"type": "text"}}).wants_json


def test_tools_of_each_endpoint_are_read() -> None:
    chat = {"tools": [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]}
    flat = {"tools": [{"type": "function", "name": "weather", "parameters": WEATHER}]}
    anthropic = {"tools": [{"name": "weather", "input_schema": WEATHER}]}
    for path, body in ((CHAT, chat), (RESPONSES, flat), (MESSAGES, anthropic)):
        assert read(path, body).tools == {"weather": WEATHER}


def test_markers_of_each_endpoint_are_read() -> None:
    for path, body in (
        (COMPLETIONS, {"prompt": "See [1] and [doc-3]."}),
        (CHAT, {"messages": [{"role": "user", "content": "See [1] and [doc-3]."}]}),
        (CHAT, {"messages": [{"content": [{"type": "text", "text": "[1] [doc-3]"}]}]}),
        (RESPONSES, {"instructions": "[1]", "input": "[doc-3]"}),
        (MESSAGES, {"system": "[1]", "messages": [{"role": "user", "content": "[doc-3]"}]}),
    ):
        assert read(path, body).markers == {"1", "doc-3"}
