"""Reading requests of the OpenAI API as vLLM does. No I/O."""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from . import tokens
from .answers import Answer, compose, seed_for
from .errors import ApiError, bad
from .quality import Moment, draw, seed_of
from .sequence import Sequence
from .settings import Settings
from .wishes import wish_of

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Call:
    """One understood request.

    Attributes:
        chat: whether it is answered as a chat.
        model: the name it used.
        prompt: its text or its token ids.
        answer: what it is answered.
        sequence: as the scheduler sees it.
        stream: whether the answer comes in events.
        include_usage: whether a stream ends with the token counts.
        return_ids: whether the answer tells token ids.
        prompt_logprobs: how many likely tokens are told for each of the prompt, None for nothing.
        named_tool: whether the client said which tool to call.
        dtype_seed: of what the dtype does to log-probabilities.
        batch_seed: of what the batch does to them.
        request_id: of the answer.
        created: when, in seconds.
    """

    chat: bool
    model: str
    prompt: str | tuple[int, ...]
    answer: Answer
    sequence: Sequence
    stream: bool
    include_usage: bool
    return_ids: bool
    prompt_logprobs: int | None
    named_tool: bool
    dtype_seed: int
    batch_seed: int
    request_id: str
    created: int

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of the prompt."""
        return tokens.encode(self.prompt) if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def called(self) -> bool:
        """Whether a tool was called; one that the client's limit cut off was not."""
        answer = self.answer
        return answer.tool is not None and self.sequence.generated >= answer.natural_tokens

    @property
    def finish_reason(self) -> str:
        """Why the answer ends; as in vLLM a call of a named tool is a plain stop."""
        if self.called and not self.named_tool:
            return "tool_calls"
        return "stop" if self.sequence.stops else "length"


def read(body: object, settings: Settings, moment: Moment, *, chat: bool) -> Call:
    """Understand a request.

    Raises:
        ApiError: it is wrong; the message names the field.
    """
    if not isinstance(body, dict):
        raise bad("the body has to be a JSON object")
    model = body.get("model", settings.models[0])
    if model not in settings.models:
        message = f"The model `{model}` does not exist."
        raise ApiError(404, "NotFoundError", message, "model")
    if body.get("n", 1) != 1:
        raise bad("n: the simulated engine gives one answer a request", "n")
    prompt = _messages(body) if chat else _prompt(body)
    count = tokens.count_tokens(prompt) if isinstance(prompt, str) else len(prompt)
    room = settings.max_model_len - count
    allowed = _max_tokens(body, chat=chat, room=room)
    if count + allowed > settings.max_model_len or room < 1:
        message = (
            f"This model's maximum context length is {settings.max_model_len} tokens. However, you "
            f"requested {allowed} output tokens and your prompt contains {count} input tokens. "
            "Please reduce the length of the input prompt or the number of requested output tokens."
        )
        raise bad(message, "max_tokens")
    stream = bool(body.get("stream", False))
    prompt_logprobs = _prompt_logprobs(body, settings.max_logprobs, stream=stream)
    wish = wish_of(body, chat=chat)
    text = prompt if isinstance(prompt, str) else tokens.decode(prompt)
    seed = seed_for(settings.options.model, text)
    own = seed_of(settings.seed, settings.effective.name, seed)
    answer = compose(text, seed, wish, draw(settings.quality, own, count, moment))
    natural = answer.natural_tokens
    stops = not body.get("ignore_eos", False) and natural < allowed
    options = body.get("stream_options")
    request_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    return Call(
        chat=chat,
        model=str(model),
        prompt=prompt,
        answer=answer,
        sequence=Sequence(
            request_id,
            count,
            natural if stops else allowed,
            max_tokens=allowed,
            stops=stops,
        ),
        stream=stream,
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        return_ids=bool(body.get("return_token_ids", False)),
        prompt_logprobs=prompt_logprobs,
        named_tool=isinstance(body.get("tool_choice"), dict),
        dtype_seed=seed_of(settings.seed, settings.effective.name),
        batch_seed=seed_of(settings.seed, moment.place, moment.number),
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
            raise bad(f"{name} must be at least 1, got {value}.", name)
        return value
    return default


def _prompt_logprobs(body: dict[str, Any], most: int, *, stream: bool) -> int | None:
    name = "prompt_logprobs"
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad(f"`{name}` must be an integer.", name)
    if value < 0:
        raise bad(f"`{name}` must be a positive value.", name)
    if stream and value:
        raise bad(f"`{name}` are not available when `stream=True`.", name)
    if value > most:
        message = f"Requested prompt logprobs of {value}, which is greater than max allowed: {most}"
        raise bad(message, name)
    return None if stream else value


def _prompt(body: dict[str, Any]) -> str | tuple[int, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return tuple(prompt)
    raise bad("prompt: expected one text or one list of token ids", "prompt")


def _messages(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages: expected a list of messages", "messages")
    lines = []
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise bad("messages: each needs a role and a content", "messages")
        lines.append(f"{message['role']}: {_content(message.get('content'))}\n")
    return "".join(lines)


def _content(content: object) -> str:
    """Return the text of a message, of which there may be several parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        if texts and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    return json.dumps(content)
