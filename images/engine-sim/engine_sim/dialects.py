"""The other two ways to ask that vLLM knows, /v1/responses and /v1/messages, as far as they go.

Both are turned into a chat and its answer is told in their words. Neither streams here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import bad
from .protocol import tool_call_of
from .request import Call

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask.

    Attributes:
        to_chat: turns a request into that of a chat; raises ApiError.
        told: turns the finished call into the answer.
    """

    to_chat: Callable[[object], Body]
    told: Callable[[Call], Body]


def _opened(body: object) -> Body:
    if not isinstance(body, dict):
        raise bad("the body has to be a JSON object")
    if body.get("stream"):
        raise bad("stream: the simulated engine streams completions and chats only", "stream")
    kept = ("model", "temperature", "top_p", "seed", "ignore_eos")
    return {name: body[name] for name in kept if name in body}


def _responses_to_chat(body: object) -> Body:
    chat = _opened(body)
    asked: Any = body
    said = asked.get("input")
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
    if not isinstance(messages, list) or not messages:
        raise bad("input: expected a text or a list of messages", "input")
    if asked.get("instructions"):
        messages = [{"role": "system", "content": asked["instructions"]}, *messages]
    chat["messages"] = [_message_of_item(item) for item in messages]
    chat["max_completion_tokens"] = asked.get("max_output_tokens")
    chat["return_token_ids"] = asked.get("enable_response_messages")
    chat["tools"] = [{"type": "function", "function": tool} for tool in asked.get("tools") or ()]
    choice = asked.get("tool_choice")
    chat["tool_choice"] = {"function": choice} if isinstance(choice, dict) else choice
    text = asked.get("text")
    wanted = text.get("format") if isinstance(text, dict) else None
    if isinstance(wanted, dict):
        chat["response_format"] = {"type": wanted.get("type"), "json_schema": wanted}
    return chat


def _message_of_item(item: object) -> object:
    """Return a message for an item of a conversation; calls and their results are items too."""
    if not isinstance(item, dict) or "role" in item:
        return item
    result = item.get("type") == "function_call_output"
    content = item.get("output") if result else json.dumps(item)
    return {"role": "tool" if result else "assistant", "content": content}


def _told_as_response(call: Call) -> Body:
    cut = call.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    identity = call.request_id.rpartition("-")[2]
    if call.called:
        made = tool_call_of(call)
        item = {
            "type": "function_call",
            "id": f"fc_{identity}",
            "call_id": made["id"],
            "status": status,
            **made["function"],
        }
    else:
        text = call.answer.text(0, call.sequence.generated)
        item = {
            "type": "message",
            "id": f"msg_{identity}",
            "role": "assistant",
            "status": status,
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }
    return {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": call.created,
        "model": call.model,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [item],
        "input_messages": _raw(call, call.prompt_ids, ""),
        "output_messages": _raw(
            call,
            call.answer.ids(0, call.sequence.generated),
            call.answer.text(0, call.sequence.generated),
        ),
        "usage": {
            "input_tokens": call.sequence.prompt_tokens,
            "output_tokens": call.sequence.generated,
            "total_tokens": call.sequence.total,
        },
    }


def _raw(call: Call, ids: list[int], text: str) -> list[Body] | None:
    """Return a message with its tokens, as those get who ask for the raw messages."""
    if not call.return_ids:
        return None
    return [{"type": "raw_message_tokens", "message": text, "tokens": ids}]


_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def _messages_to_chat(body: object) -> Body:
    chat = _opened(body)
    asked: Any = body
    if asked.get("max_tokens") is None:
        raise bad("max_tokens: Field required", "max_tokens")
    chat["max_tokens"] = asked["max_tokens"]
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages: expected a list of messages", "messages")
    system = asked.get("system")
    first = [{"role": "system", "content": system}] if system else []
    chat["messages"] = [*first, *(_message_of_turn(turn) for turn in messages)]
    chat["tools"] = [
        {"function": {"name": tool.get("name"), "parameters": tool.get("input_schema")}}
        for tool in asked.get("tools") or ()
        if isinstance(tool, dict)
    ]
    choice = asked.get("tool_choice")
    if isinstance(choice, dict):
        kind = choice.get("type")
        chat["tool_choice"] = {"function": choice} if kind == "tool" else _CHOICES.get(str(kind))
    return chat


def _message_of_turn(turn: object) -> object:
    """Return the message of a turn; one that brings the result of a call has the role tool."""
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
        return turn
    kinds = [part.get("type") for part in turn["content"] if isinstance(part, dict)]
    return {**turn, "role": "tool"} if "tool_result" in kinds else turn


_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _told_as_message(call: Call) -> Body:
    reason = "tool_use" if call.called else _STOP_REASONS[call.finish_reason]
    content: Body = {"type": "text", "text": call.answer.text(0, call.sequence.generated)}
    if call.called:
        made = tool_call_of(call)
        content = {
            "type": "tool_use",
            "id": made["id"],
            "name": call.answer.tool,
            "input": _read_arguments(call.answer.arguments),
        }
    return {
        "id": f"msg_{call.request_id.rpartition('-')[2]}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [content],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": call.sequence.prompt_tokens,
            "output_tokens": call.sequence.generated,
        },
    }


def _read_arguments(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        # A call that a broken engine wrote: there is nothing to pass on.
        return {}


RESPONSES = Dialect(_responses_to_chat, _told_as_response)
MESSAGES = Dialect(_messages_to_chat, _told_as_message)
