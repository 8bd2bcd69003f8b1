"""The answers of the four endpoints, as engines write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.core.shadow_settings import GENERATION_PATHS
from kvquant.shadow.answers import Answer, ToolCall, UnreadableAnswerError, read
from kvquant.shadow.preparing import CHAT, COMPLETIONS, MESSAGES, RESPONSES

COMPLETION: dict[str, Any] = {
    "choices": [
        {
            "index": 0,
            "text": " blue",
            "finish_reason": "length",
            "token_ids": [7, 8],
            "prompt_token_ids": [1, 2, 3],
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "system_fingerprint": "kvq-1",
}


def test_a_completion() -> None:
    assert read(COMPLETIONS, COMPLETION) == Answer(
        " blue",
        finish="length",
        prompt_tokens=3,
        answer_tokens=2,
        fingerprint="kvq-1",
        prompt_ids=(1, 2, 3),
        answer_ids=(7, 8),
    )


def test_a_chat_completion() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Hm.",
        "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
    }
    choice = {"message": message, "finish_reason": "tool_calls", "token_ids": [7]}
    answer = read(CHAT, {"choices": [choice], "prompt_token_ids": [1, 2]})
    assert answer == Answer(
        "",
        reasoning="Hm.",
        calls=(ToolCall("weather", '{"city": "Oslo"}'),),
        finish="tool_calls",
        prompt_ids=(1, 2),
        answer_ids=(7,),
    )


def test_a_refusal_of_a_chat_completion() -> None:
    message = {"content": None, "refusal": "I cannot."}
    answer = read(CHAT, {"choices": [{"message": message, "finish_reason": "stop"}]})
    assert (answer.text, answer.refused) == ("I cannot.", True)


def test_a_response() -> None:
    output = [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "name": "weather", "arguments": "{}"},
        {"type": "message", "content": [{"type": "output_text", "text": "Blue."}]},
    ]
    body = {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": output,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    answer = read(RESPONSES, body)
    assert answer == Answer(
        "Blue.",
        reasoning="Hm.",
        calls=(ToolCall("weather", "{}"),),
        finish="max_output_tokens",
        prompt_tokens=3,
        answer_tokens=2,
    )
    assert answer.cut


def raw(*tokens: int) -> dict[str, Any]:
    """A message as vLLM gives it to those who ask for the raw ones."""
    return {"message": "Hm", "tokens": list(tokens), "type": "raw_message_tokens"}


def test_a_response_with_its_raw_messages_has_token_ids() -> None:
    body = {"output": [], "input_messages": [raw(1, 2)], "output_messages": [raw(3)]}
    answer = read(RESPONSES, body)
    assert (answer.prompt_ids, answer.answer_ids) == ((1, 2), (3,))


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        [raw(1), raw(2)],  # rounds of tools between them: they are not one prompt and its answer
        [{"author": {"role": "user"}, "content": [{"text": "Hm"}]}],  # as parsed for Harmony
        ["x"],
        [raw() | {"tokens": ["1"]}],
    ],
)
def test_messages_that_do_not_tell_all_ids_tell_none(messages: object) -> None:
    body = {"output": [], "input_messages": messages, "output_messages": messages}
    answer = read(RESPONSES, body)
    assert (answer.prompt_ids, answer.answer_ids) == ((), ())


def test_a_message_that_was_cut_or_declined() -> None:
    content = [{"type": "text", "text": "Blue"}, {"type": "redacted_thinking", "data": "x"}]
    cut = read(MESSAGES, {"content": content, "stop_reason": "max_tokens"})
    assert (cut.text, cut.cut, cut.refused) == ("Blue", True, False)
    declined = read(MESSAGES, {"content": [], "stop_reason": "refusal"})
    assert (declined.cut, declined.refused) == (False, True)


def test_a_message() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "Blue."},
        {"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}},
    ]
    body = {"content": content, "stop_reason": "tool_use", "usage": {"input_tokens": 3}}
    assert read(MESSAGES, body) == Answer(
        "Blue.",
        reasoning="Hm.",
        calls=(ToolCall("weather", '{"city": "Oslo"}'),),
        finish="tool_use",
        prompt_tokens=3,
    )


@pytest.mark.parametrize("path", GENERATION_PATHS)
@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "PLANTED",
        {},
        {"choices": []},
        {"error": {"message": "PLANTED"}},
        {"choices": [{"text": 5, "message": {"content": 5}}]},
        {"output": [{"type": "message", "content": 5}], "content": [{"type": "text", "text": 5}]},
    ],
)
def test_what_is_no_answer_is_unreadable_and_not_quoted(path: str, document: object) -> None:
    with pytest.raises(UnreadableAnswerError) as raised:
        read(path, document)
    assert "PLANTED" not in repr(raised.value)


@given(
    path=st.sampled_from(GENERATION_PATHS),
    document=st.recursive(
        st.none() | st.text(max_size=4) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "text",
                        "message",
                        "content",
                        "type",
                        "output",
                        "usage",
                        "tool_calls",
                    ]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
)
def test_any_json_is_an_answer_or_unreadable(path: str, document: object) -> None:
    try:
        read(path, document)
    except UnreadableAnswerError:
        return
