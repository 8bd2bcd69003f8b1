"""The OpenAI API as vLLM speaks it: reading requests, writing answers. No I/O."""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from .sequence import Sequence
from .settings import Settings
from .text import Answer, count_tokens

DEFAULT_COMPLETION_TOKENS = 16


class ApiError(Exception):
    """An error answer.

    Attributes:
        status: the HTTP status.
        kind: vLLM's name of the error.
        field: the parameter at fault, None when it is none.
    """

    def __init__(self, status: int, kind: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.field = field

    def body(self) -> dict[str, Any]:
        """Return the JSON that clients get."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.field,
            "code": self.status,
        }
        return {"error": error}


def dead() -> ApiError:
    """Return the error of every request once the engine core has died."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return ApiError(500, "InternalServerError", message)


def _bad(message: str, field: str | None = None) -> ApiError:
    return ApiError(400, "BadRequestError", message, field)


@dataclass(frozen=True, slots=True)
class Call:
    """One understood request."""

    chat: bool
    model: str
    answer: Answer
    sequence: Sequence
    stream: bool
    include_usage: bool
    request_id: str
    created: int

    @property
    def finish_reason(self) -> str:
        """Why the answer ends."""
        return "stop" if self.sequence.stops else "length"


def read(body: object, settings: Settings, *, chat: bool) -> Call:
    """Understand a request.

    Raises:
        ApiError: it is wrong; the message names the field.
    """
    if not isinstance(body, dict):
        raise _bad("the body has to be a JSON object")
    model = body.get("model", settings.models[0])
    if model not in settings.models:
        message = f"The model `{model}` does not exist."
        raise ApiError(404, "NotFoundError", message, "model")
    if body.get("n", 1) != 1:
        raise _bad("n: the simulated engine gives one answer a request", "n")
    prompt = _messages(body) if chat else _prompt(body)
    tokens = count_tokens(prompt) if isinstance(prompt, str) else len(prompt)
    room = settings.max_model_len - tokens
    allowed = _max_tokens(body, chat=chat, room=room)
    if tokens + allowed > settings.max_model_len or room < 1:
        message = (
            f"This model's maximum context length is {settings.max_model_len} tokens. However, you "
            f"requested {allowed} output tokens and your prompt contains {tokens} input tokens. "
            "Please reduce the length of the input prompt or the number of requested output tokens."
        )
        raise _bad(message, "max_tokens")
    answer = Answer(prompt)
    natural = answer.natural_tokens
    stops = not body.get("ignore_eos", False) and natural < allowed
    options = body.get("stream_options")
    request_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    return Call(
        chat=chat,
        model=str(model),
        answer=answer,
        sequence=Sequence(
            request_id,
            tokens,
            natural if stops else allowed,
            max_tokens=allowed,
            stops=stops,
        ),
        stream=bool(body.get("stream", False)),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        request_id=request_id,
        created=int(time.time()),
    )


def _max_tokens(body: dict[str, Any], *, chat: bool, room: int) -> int:
    default = max(1, room) if chat else DEFAULT_COMPLETION_TOKENS
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _bad(f"{name} must be at least 1, got {value}.", name)
        return value
    return default


def _prompt(body: dict[str, Any]) -> str | tuple[int, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return tuple(prompt)
    raise _bad("prompt: expected one text or one list of token ids", "prompt")


def _messages(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _bad("messages: expected a list of messages", "messages")
    lines = []
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise _bad("messages: each needs a role and a content", "messages")
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content)
        lines.append(f"{message['role']}: {text}\n")
    return "".join(lines)


def usage(call: Call) -> dict[str, int]:
    """Return the token counts of a request so far."""
    sequence = call.sequence
    return {
        "prompt_tokens": sequence.prompt_tokens,
        "total_tokens": sequence.prompt_tokens + sequence.generated,
        "completion_tokens": sequence.generated,
    }


def whole(call: Call, fingerprint: str | None) -> dict[str, Any]:
    """Return the answer to a request that does not stream."""
    text = call.answer.words(0, call.sequence.generated)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": call.finish_reason}
    if call.chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return {
        "id": call.request_id,
        "object": "chat.completion" if call.chat else "text_completion",
        "created": call.created,
        "model": call.model,
        "choices": [choice],
        "usage": usage(call),
        "system_fingerprint": fingerprint,
    }


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
        text = json.dumps(self._call.answer.words(self._sent, count))
        first = not self._sent
        self._sent += count
        if self._call.chat:
            role = '"role":"assistant",' if first else ""
            delta = f'"delta":{{{role}"content":{text}}}'
        else:
            delta = f'"text":{text}'
        reason = f'"{self._call.finish_reason}"' if finished else "null"
        choice = f'{{"index":0,{delta},"logprobs":null,"finish_reason":{reason}}}'
        mark = f',"system_fingerprint":{json.dumps(self._fingerprint)}' if finished else ""
        return f'{self._head},"choices":[{choice}]{mark}}}\n\n'

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
