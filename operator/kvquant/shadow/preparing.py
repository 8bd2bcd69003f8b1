"""What of a mirrored request is replayed. Pure.

Two lists of what may pass, and not one of what may not: a field that nobody here has heard of may
be the one that names the user. What is left out is left out for both arms, so that the comparison
stays fair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvquant.shadow.ports import Dropped

COMPLETIONS, CHAT, RESPONSES, MESSAGES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
)
SEED = 20_260_101
"""Seed of every replay. Greedy decoding needs none; an engine that samples all the same does."""

_ANYWHERE = frozenset(
    {
        *("model", "priority", "truncate_prompt_tokens", "add_special_tokens"),
        *("stop", "stop_token_ids", "ignore_eos", "min_tokens", "include_stop_str_in_output"),
        *("skip_special_tokens", "spaces_between_special_tokens", "repetition_detection"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty"),
        *("logit_bias", "allowed_token_ids", "bad_words", "top_k", "min_p"),
        *("response_format", "structured_outputs", "structural_tag", "guided_json"),
        *("guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
        "guided_whitespace_pattern",
    }
)
_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"})
FIELDS: Mapping[str, frozenset[str]] = {
    COMPLETIONS: _ANYWHERE | {"prompt", "suffix", "max_tokens"},
    CHAT: _ANYWHERE
    | _TOOLS
    | {
        *("max_completion_tokens", "max_tokens"),
        *("messages", "documents", "chat_template", "chat_template_kwargs"),
        *("add_generation_prompt", "continue_final_message"),
        *("reasoning_effort", "include_reasoning", "thinking", "verbosity"),
    },
    RESPONSES: _ANYWHERE
    | _TOOLS
    | {
        *("input", "instructions", "text", "reasoning", "truncation"),
        *("max_output_tokens", "max_tool_calls"),
    },
    MESSAGES: _ANYWHERE
    | _TOOLS
    | {
        *("messages", "system", "stop_sequences", "thinking", "output_config", "output_format"),
        "max_tokens",
    },
}
"""Fields of a request that are replayed, by endpoint; every other one is removed."""

_STATEFUL = ("previous_response_id", "conversation")
_LIMITS: Mapping[str, tuple[str, ...]] = {
    COMPLETIONS: ("max_tokens",),
    CHAT: ("max_completion_tokens", "max_tokens"),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
}
_TEXT_PARTS = frozenset(
    {
        *("text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking"),
        *("reasoning", "reasoning_text", "summary_text", "tool_use", "tool_result"),
    }
)
"""Types of the parts of a content that are text; images, sounds and files are not."""
_ITEMS = frozenset({"message", "function_call", "function_call_output", "reasoning"})
"""Types of the items of a Responses input that are replayed."""
_OWN_TOOLS = frozenset({"function", "custom"})
"""Types of tools that the caller runs. An engine runs the others, and a copy must not act."""


def stripped(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request without what must not be kept: who asked, attachments, side effects.

    Args:
        path: Its endpoint, one of GENERATION_PATHS.
        body: The request.

    Raises:
        Dropped: What is left would be another question, or cannot be read for personal data.
    """
    if any(body.get(name) is not None for name in _STATEFUL):
        raise Dropped("stateful")
    kept = {name: value for name, value in body.items() if name in FIELDS[path]}
    if path == COMPLETIONS:
        kept["prompt"] = _prompt(body.get("prompt"))
    elif path == RESPONSES:
        kept["input"] = _items(body.get("input"))
    else:
        kept["messages"] = _messages(body.get("messages"))
    if isinstance(system := kept.get("system"), list):
        kept["system"] = _parts(system, path)
    if isinstance(tools := kept.get("tools"), list):
        kept["tools"] = [tool for tool in tools if _is_run_by_caller(tool)]
        if not kept["tools"]:
            # An empty list is refused by engines, as is a choice among no tools.
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                kept.pop(name, None)
    return kept


def replayed(path: str, body: Mapping[str, Any], most_tokens: int) -> dict[str, Any]:
    """Return a stripped and sanitized request as both arms are asked it: greedy, short, at once.

    Args:
        path: Its endpoint.
        body: The request.
        most_tokens: Longest answer that is asked for.
    """
    asked = dict(body)
    limits = [name for name in _LIMITS[path] if name in body] or [_LIMITS[path][-1]]
    for name in limits:
        asked[name] = _capped(body.get(name), most_tokens)
    if isinstance(least := asked.get("min_tokens"), int):
        asked["min_tokens"] = min(least, asked[limits[0]])
    asked |= {"stream": False, "temperature": 0, "top_p": 1}
    if path != MESSAGES:
        asked["seed"] = SEED
    if path in (COMPLETIONS, CHAT):
        # The ids make the first token that differs visible, and the answer scorable.
        asked |= {"n": 1, "return_token_ids": True}
    if path == RESPONSES:
        # The raw messages are how this endpoint tells token ids.
        asked |= {"store": False, "enable_response_messages": True}
    return asked


def _capped(value: object, most: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < most:
        return value
    return most


def _prompt(prompt: object) -> str:
    """Return the text of a prompt; of a batch, the first one."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list):
        # Personal data in token ids cannot be found: fail closed.
        raise Dropped("tokens")
    if not isinstance(prompt, str):
        raise Dropped("unreadable")
    return prompt


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Dropped("unreadable")
    return [_message(message, CHAT) for message in messages]


def _message(message: Mapping[str, Any], path: str) -> dict[str, Any]:
    kept = dict(message)
    if message.get("role") not in ("tool", "function"):
        kept.pop("name", None)  # of a person; that of a tool's answer is the tool's
    kept.pop("audio", None)
    if isinstance(content := message.get("content"), list):
        kept["content"] = _parts(content, path)
    return kept


def _items(items: object) -> str | list[dict[str, Any]]:
    if isinstance(items, str):
        return items
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Dropped("unreadable")
    if any(item.get("type") == "item_reference" for item in items):
        raise Dropped("stateful")
    kept = []
    for item in items:
        if _kind(item, "message") not in _ITEMS:
            continue
        item = _message(item, RESPONSES)
        item.pop("encrypted_content", None)
        if isinstance(output := item.get("output"), list):
            item["output"] = _parts(output, RESPONSES)
        kept.append(item)
    return kept


def _parts(parts: list[Any], path: str) -> list[Any]:
    """Return the parts of a content, with a word in place of each that is no text."""
    kept: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            kept.append(part)
        elif isinstance(part, dict) and (kind := _kind(part, "text")) in _TEXT_PARTS:
            if kind == "tool_result" and isinstance(inner := part.get("content"), list):
                part = {**part, "content": _parts(inner, path)}
            kept.append(part)
        else:
            text = "input_text" if path == RESPONSES else "text"
            kept.append({"type": text, "text": "<ATTACHMENT>"})
    return kept


def _is_run_by_caller(tool: object) -> bool:
    return isinstance(tool, dict) and _kind(tool, "custom") in _OWN_TOOLS


def _kind(thing: Mapping[str, Any], default: str) -> str:
    kind = thing.get("type", default)
    return kind if isinstance(kind, str) else ""
