"""Writing answers of the OpenAI API as vLLM does. No I/O."""

import json
from typing import Any

from .errors import ApiError
from .request import Call


def usage(call: Call) -> dict[str, int]:
    """Return the token counts of a request so far."""
    sequence = call.sequence
    return {
        "prompt_tokens": sequence.prompt_tokens,
        "total_tokens": sequence.prompt_tokens + sequence.generated,
        "completion_tokens": sequence.generated,
    }


def whole(call: Call, fingerprint: str | None, prompt_logprobs: str | None = None) -> str:
    """Return the answer to a request that does not stream.

    Args:
        call: the request, which is finished.
        fingerprint: of the engine.
        prompt_logprobs: those of the prompt, as JSON.
    """
    count = call.sequence.generated
    # They were encoded piece by piece, so they come to stand where this name is now.
    place = f"prompt_logprobs of {call.request_id}"
    prompt: dict[str, Any] = {
        "prompt_logprobs": None if prompt_logprobs is None else place,
        "prompt_token_ids": call.prompt_ids if call.return_ids else None,
    }
    choice: dict[str, Any] = {
        "index": 0,
        "logprobs": None,
        "finish_reason": call.finish_reason,
        "stop_reason": None,
        "token_ids": call.answer.ids(0, count) if call.return_ids else None,
    }
    if call.chat:
        choice["message"] = message_of(call)
    else:
        choice = {**choice, "text": call.answer.text(0, count), **prompt}
    answer = {
        "id": call.request_id,
        "object": "chat.completion" if call.chat else "text_completion",
        "created": call.created,
        "model": call.model,
        "choices": [choice],
        "usage": usage(call),
        "system_fingerprint": fingerprint,
    }
    # vLLM tells of a chat's prompt beside the choices, of a completion's within them.
    text = json.dumps({**answer, **prompt} if call.chat else answer)
    return text if prompt_logprobs is None else text.replace(f'"{place}"', prompt_logprobs)


def message_of(call: Call) -> dict[str, Any]:
    """Return the assistant's message of a chat."""
    if call.called:
        return {"role": "assistant", "content": None, "tool_calls": [tool_call_of(call)]}
    return {"role": "assistant", "content": call.answer.text(0, call.sequence.generated)}


def tool_call_of(call: Call) -> dict[str, Any]:
    """Return the call of a tool."""
    function = {"name": call.answer.tool, "arguments": call.answer.arguments}
    identity = f"chatcmpl-tool-{call.request_id.rpartition('-')[2]}"
    return {"id": identity, "type": "function", "function": function}


class StreamWriter:
    """Writes the events of one stream; the part that never changes is encoded once."""

    def __init__(self, call: Call, fingerprint: str | None) -> None:
        self._call = call
        self._fingerprint = fingerprint
        self._sent = 0
        kind = "chat.completion.chunk" if call.chat else "text_completion"
        head = {
            "id": call.request_id,
            "object": kind,
            "created": call.created,
            "model": call.model,
        }
        self._head = "data: " + json.dumps(head, separators=(",", ":"))[:-1]

    def tokens(self, count: int, *, finished: bool) -> str:
        """Return the event of some new tokens; the last one tells why and by which engine."""
        call, start = self._call, self._sent
        self._sent += count
        if call.answer.tool is not None:
            delta = self._tool_delta(first=not start, finished=finished)
        elif call.chat:
            role = '"role":"assistant",' if not start else ""
            delta = f'"delta":{{{role}"content":{json.dumps(call.answer.text(start, count))}}}'
        else:
            delta = f'"text":{json.dumps(call.answer.text(start, count))}'
        reason = f'"{call.finish_reason}"' if finished else "null"
        ids = prompt_ids = ""
        if call.return_ids:
            ids = f',"token_ids":{json.dumps(call.answer.ids(start, count))}'
            prompt_ids = "" if start else f',"prompt_token_ids":{json.dumps(call.prompt_ids)}'
        inner, outer = ("", prompt_ids) if call.chat else (prompt_ids, "")
        choice = f'{{"index":0,{delta},"logprobs":null,"finish_reason":{reason}{ids}{inner}}}'
        mark = f',"system_fingerprint":{json.dumps(self._fingerprint)}' if finished else ""
        return f'{self._head},"choices":[{choice}]{outer}{mark}}}\n\n'

    def _tool_delta(self, *, first: bool, finished: bool) -> str:
        """Return the part of a call: all of it at the end, vLLM's parsers hold back much too."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if finished and self._call.called:
            delta["tool_calls"] = [{"index": 0, **tool_call_of(self._call)}]
        elif finished:
            delta["content"] = self._call.answer.text(0, self._sent)
        return f'"delta":{json.dumps(delta)}'

    def end(self) -> str:
        """Return what follows the last token."""
        tail = ""
        if self._call.include_usage:
            counts = json.dumps(usage(self._call))
            mark = json.dumps(self._fingerprint)
            tail = f'{self._head},"choices":[],"usage":{counts},"system_fingerprint":{mark}}}\n\n'
        return tail + "data: [DONE]\n\n"

    @staticmethod
    def broken(error: ApiError) -> str:
        """Return how a stream ends whose header was sent before the engine died."""
        return f"data: {json.dumps(error.body())}\n\ndata: [DONE]\n\n"
