"""What of a mirrored request is replayed, and what is not."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.core.shadow_settings import GENERATION_PATHS
from kvquant.shadow.decoding import decoded, parsed
from kvquant.shadow.ports import Dropped
from kvquant.shadow.preparing import (
    CHAT,
    COMPLETIONS,
    FIELDS,
    MESSAGES,
    RESPONSES,
    SEED,
    replayed,
    stripped,
)

PLAIN: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "m", "prompt": "Hello"},
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
    RESPONSES: {"model": "m", "input": "Hello"},
    MESSAGES: {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
}
PERSONAL = (
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "store", "request_id"),
    *("cache_salt", "session_id", "extra_headers", "never_heard_of", "kv_transfer_params"),
    *("best_of", "use_beam_search", "logprobs", "top_logprobs", "echo", "stream_options"),
    *("mcp_servers", "container", "background", "prompt_embeds", "service_tier"),
)


@pytest.mark.parametrize("path", GENERATION_PATHS)
def test_each_endpoint_keeps_its_question_and_loses_who_asked(path: str) -> None:
    planted = dict.fromkeys(PERSONAL, "PLANTED")
    kept = stripped(path, {**PLAIN[path], **planted})
    assert kept == PLAIN[path]
    assert "PLANTED" not in json.dumps(replayed(path, kept, 256))


def test_every_endpoint_that_is_mirrored_has_its_fields() -> None:
    assert set(FIELDS) == set(GENERATION_PATHS)


@pytest.mark.parametrize("path", GENERATION_PATHS)
def test_a_replay_is_greedy_short_and_whole(path: str) -> None:
    asked = replayed(path, {**PLAIN[path], "temperature": 1.5, "top_p": 0.3, "stream": True}, 256)
    assert (asked["temperature"], asked["top_p"], asked["stream"]) == (0, 1, False)
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    assert asked[limit] == 256
    assert asked.get("seed") == (None if path == MESSAGES else SEED)
    assert asked.get("n") == (1 if path in (COMPLETIONS, CHAT) else None)
    assert asked.get("return_token_ids") == (True if path in (COMPLETIONS, CHAT) else None)
    assert asked.get("enable_response_messages") == (True if path == RESPONSES else None)


@pytest.mark.parametrize(
    ("given_limit", "asked_limit"),
    [(10, 10), (256, 256), (257, 256), (0, 256), (-1, 256), (None, 256), ("9", 256), (True, 256)],
)
def test_the_limit_of_tokens_is_capped(given_limit: object, asked_limit: int) -> None:
    kept = stripped(CHAT, {**PLAIN[CHAT], "max_completion_tokens": given_limit})
    asked = replayed(CHAT, kept, 256)
    assert asked["max_completion_tokens"] == asked_limit
    assert "max_tokens" not in asked


@pytest.mark.parametrize("path", GENERATION_PATHS)
def test_a_limit_below_the_cap_stays(path: str) -> None:
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    assert replayed(path, stripped(path, {**PLAIN[path], limit: 40}), 256)[limit] == 40


def test_the_least_number_of_tokens_never_exceeds_the_most() -> None:
    assert replayed(CHAT, {"min_tokens": 500}, 256)["min_tokens"] == 256
    assert replayed(CHAT, {"min_tokens": 0}, 256)["min_tokens"] == 0
    assert replayed(CHAT, {"min_tokens": 50, "max_tokens": 20}, 256)["min_tokens"] == 20


def test_names_of_people_are_removed_and_those_of_tools_stay() -> None:
    messages = [
        {"role": "user", "name": "PLANTED", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]},
        {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "{}"},
    ]
    kept = stripped(CHAT, {"messages": messages})["messages"]
    assert "PLANTED" not in json.dumps(kept)
    assert kept[2]["name"] == "weather"
    assert kept[1]["tool_calls"] == [{"id": "c1"}]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (CHAT, {"type": "image_url", "image_url": {"url": "data:image/png;base64,PLANTED"}}),
        (CHAT, {"type": "input_audio", "input_audio": {"data": "PLANTED"}}),
        (CHAT, {"type": "file", "file": {"file_data": "PLANTED"}}),
        (CHAT, {"type": "video_url", "video_url": {"url": "https://PLANTED"}}),
        (CHAT, {"type": "not_invented_yet", "data": "PLANTED"}),
        (CHAT, {"type": ["text"], "data": "PLANTED"}),
        (RESPONSES, {"type": "input_image", "image_url": "https://PLANTED"}),
        (RESPONSES, {"type": "input_file", "file_id": "PLANTED"}),
        (MESSAGES, {"type": "image", "source": {"type": "base64", "data": "PLANTED"}}),
        (MESSAGES, {"type": "document", "source": {"type": "url", "url": "https://PLANTED"}}),
        (
            MESSAGES,
            {"type": "tool_result", "content": [{"type": "image", "source": {"data": "PLANTED"}}]},
        ),
    ],
)
def test_attachments_are_replaced_by_a_word(path: str, part: dict[str, Any]) -> None:
    text = {"type": "input_text" if path == RESPONSES else "text", "text": "What is it?"}
    field = "input" if path == RESPONSES else "messages"
    kept = stripped(path, {field: [{"role": "user", "content": [text, part]}]})
    content = kept[field][0]["content"]
    assert content[0] == text
    assert len(content) == 2
    assert "PLANTED" not in json.dumps(kept)
    assert "<ATTACHMENT>" in json.dumps(kept)


def test_tools_that_an_engine_would_run_by_itself_are_not_replayed() -> None:
    own = {"type": "function", "name": "weather", "parameters": {}}
    acting = {"type": "mcp", "server_url": "https://PLANTED", "authorization": "PLANTED"}
    assert stripped(RESPONSES, {"input": "x", "tools": [own, acting]})["tools"] == [own]
    alone = stripped(RESPONSES, {"input": "x", "tools": [acting], "tool_choice": "required"})
    assert alone == {"input": "x"}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (COMPLETIONS, {"prompt": [1, 2, 3]}, "tokens"),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, "tokens"),
        (COMPLETIONS, {"prompt_embeds": "AAAA"}, "unreadable"),
        (COMPLETIONS, {"prompt": {"text": "x"}}, "unreadable"),
        (CHAT, {"messages": "x"}, "unreadable"),
        (CHAT, {"messages": ["x"]}, "unreadable"),
        (RESPONSES, {"input": None}, "unreadable"),
        (RESPONSES, {"input": "x", "previous_response_id": "resp_1"}, "stateful"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "stateful"),
    ],
)
def test_what_cannot_be_replayed_is_dropped(path: str, body: dict[str, Any], reason: str) -> None:
    with pytest.raises(Dropped) as raised:
        stripped(path, body)
    assert raised.value.reason == reason


def test_of_a_batch_the_first_prompt_is_replayed() -> None:
    assert stripped(COMPLETIONS, {"prompt": ["one", "two"]})["prompt"] == "one"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "output"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    path=st.sampled_from(GENERATION_PATHS),
    body=st.dictionaries(
        st.sampled_from(["prompt", "messages", "input", "tools", "system", "min_tokens", "user"]),
        JSON_VALUES,
        max_size=3,
    ),
)
def test_any_json_is_prepared_or_dropped(path: str, body: dict[str, Any]) -> None:
    before = json.dumps(body)
    try:
        asked = replayed(path, stripped(path, body), 256)
    except Dropped:
        return
    assert set(asked) - FIELDS[path] <= {
        *("stream", "temperature", "top_p", "seed", "n", "return_token_ids", "store"),
        *("max_tokens", "max_output_tokens", "enable_response_messages"),
    }
    assert json.dumps(body) == before


TEXT = b'{"prompt": "Hello"}'


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (TEXT, ""),
        (TEXT, "identity"),
        (gzip.compress(TEXT), "gzip"),
        (gzip.compress(TEXT), " GZIP "),
        (zlib.compress(TEXT), "deflate"),
        (zlib.compress(TEXT)[2:-4], "deflate"),
    ],
)
def test_bodies_are_decoded(body: bytes, encoding: str) -> None:
    assert decoded(body, encoding, 1000) == TEXT


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (TEXT, "br", "encoding"),
        (TEXT, "gzip, gzip", "encoding"),
        (TEXT, "gzip", "encoding"),
        (gzip.compress(TEXT)[:-9], "gzip", "encoding"),
        (gzip.compress(b"0" * 10_000_000), "gzip", "size"),
        (zlib.compress(b"0" * 10_000_000), "deflate", "size"),
    ],
)
def test_bombs_and_rubbish_are_dropped(body: bytes, encoding: str, reason: str) -> None:
    with pytest.raises(Dropped) as raised:
        decoded(body, encoding, 1000)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1]", b'"x"', b"nul", b"\xff\xfe\x00", b'{"a": NaN}', b"[" * 100_000,
     b'{"a": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object_is_unreadable(text: bytes) -> None:
    with pytest.raises(Dropped, match="unreadable"):
        parsed(text)
