"""The answers of the four endpoints, read into one shape. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.shadow.preparing import CHAT, COMPLETIONS, RESPONSES


class UnreadableAnswerError(ValueError):
    """A document that is no answer of this endpoint. It says nothing of what the document holds."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model proposes.

    Attributes:
        name: The tool.
        arguments: JSON, as the model wrote it.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine answered.

    Attributes:
        text: What the user would read.
        reasoning: What the model thought before, where the engine tells it apart.
        calls: The tools that it calls.
        finish: Why it ended, in the engine's word.
        refused: The engine or the model marked it as a refusal.
        prompt_tokens: Length of the prompt.
        answer_tokens: Length of the answer.
        fingerprint: `system_fingerprint`.
        prompt_ids: Token ids of the prompt; empty: not told.
        answer_ids: Token ids of the answer; empty: not told.
    """

    text: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = ""
    refused: bool = False
    prompt_tokens: int = 0
    answer_tokens: int = 0
    fingerprint: str = ""
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()

    @property
    def whole(self) -> str:
        """Everything that was generated as text, in its order."""
        return self.reasoning + self.text

    @property
    def cut(self) -> bool:
        """Whether it ran into the cap of tokens."""
        return self.finish in _CUT


_CUT = frozenset({"length", "max_tokens", "max_output_tokens"})


def read(path: str, document: object) -> Answer:
    """Return the answer in a document.

    Args:
        path: The endpoint that was asked.
        document: The JSON that it answered with status 200.

    Raises:
        UnreadableAnswerError: It is none.
    """
    try:
        body = _object(document)
        if path == COMPLETIONS:
            return _completion(body)
        if path == CHAT:
            return _chat(body)
        return _response(body) if path == RESPONSES else _message(body)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise UnreadableAnswerError from None


def _completion(body: Mapping[str, Any]) -> Answer:
    choice = _object(body["choices"][0])
    return Answer(
        text=_text(choice["text"]),
        finish=_text(choice.get("finish_reason")),
        refused=choice.get("finish_reason") == "content_filter",
        prompt_ids=_ids(choice.get("prompt_token_ids")),
        answer_ids=_ids(choice.get("token_ids")),
        **_common(body, "prompt_tokens", "completion_tokens"),
    )


def _chat(body: Mapping[str, Any]) -> Answer:
    choice = _object(body["choices"][0])
    message = _object(choice["message"])
    calls = [_object(call["function"]) for call in message.get("tool_calls") or ()]
    if isinstance(old := message.get("function_call"), Mapping):
        calls.append(old)
    return Answer(
        text=_text(message.get("content")) + _text(message.get("refusal")),
        reasoning=_text(message.get("reasoning") or message.get("reasoning_content")),
        calls=tuple(ToolCall(_text(c["name"]), _text(c.get("arguments"))) for c in calls),
        finish=_text(choice.get("finish_reason")),
        refused=bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter",
        prompt_ids=_ids(body.get("prompt_token_ids")),
        answer_ids=_ids(choice.get("token_ids")),
        **_common(body, "prompt_tokens", "completion_tokens"),
    )


def _response(body: Mapping[str, Any]) -> Answer:
    if body.get("status") == "failed":
        raise ValueError
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    refused = False
    for item in body["output"]:
        if item["type"] == "function_call":
            calls.append(ToolCall(_text(item["name"]), _text(item.get("arguments"))))
            continue
        into = thoughts if item["type"] == "reasoning" else texts
        for part in item.get("content") or ():
            into.append(_text(part.get("text")) + _text(part.get("refusal")))
            refused = refused or part["type"] == "refusal"
    cause = _text((body.get("incomplete_details") or {}).get("reason"))
    return Answer(
        text="".join(texts),
        reasoning="".join(thoughts),
        calls=tuple(calls),
        finish=cause or _text(body.get("status")),
        refused=refused or cause == "content_filter",
        prompt_ids=_raw_ids(body.get("input_messages")),
        answer_ids=_raw_ids(body.get("output_messages")),
        **_common(body, "input_tokens", "output_tokens"),
    )


def _raw_ids(messages: object) -> tuple[int, ...]:
    """Return the token ids of raw messages; of several, or parsed ones, the whole is not known."""
    if not isinstance(messages, list) or len(messages) != 1:
        return ()
    (only,) = messages
    return _ids(only.get("tokens")) if isinstance(only, Mapping) else ()


def _message(body: Mapping[str, Any]) -> Answer:
    texts, thoughts, calls = [], [], []
    for part in body["content"]:
        if part["type"] == "text":
            texts.append(_text(part["text"]))
        elif part["type"] == "thinking":
            thoughts.append(_text(part["thinking"]))
        elif part["type"] == "tool_use":
            calls.append(ToolCall(_text(part["name"]), json.dumps(part.get("input"))))
    finish = _text(body.get("stop_reason"))
    return Answer(
        text="".join(texts),
        reasoning="".join(thoughts),
        calls=tuple(calls),
        finish=finish,
        refused=finish == "refusal",
        **_common(body, "input_tokens", "output_tokens"),
    )


def _common(body: Mapping[str, Any], prompt: str, answer: str) -> dict[str, Any]:
    usage = _object(body.get("usage") or {})
    return {
        "prompt_tokens": _count(usage.get(prompt)),
        "answer_tokens": _count(usage.get(answer)),
        "fingerprint": _text(body.get("system_fingerprint")),
    }


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return value


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        return ()
    return tuple(value)
