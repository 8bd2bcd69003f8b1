"""Other formats of prompts, brought into ours. Pure, but for reading the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kvquant.evaluation.examples import (
    DatasetError,
    Example,
    Expected,
    ExpectedCall,
    identity,
    json_lines,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
}
_CALLS = frozenset({"tool_calls", "function_call"})


@dataclass(slots=True)
class Imported:
    """What came of a file.

    Attributes:
        format: The format that it was read as.
        examples: What it holds.
        skipped: Entries without a prompt in them.
    """

    format: str
    examples: list[Example]
    skipped: int = 0


class _SkippedError(Exception):
    """An entry that holds no prompt."""


def read(path: Path, name: str = "auto") -> Imported:
    """Return the examples of a file in another format.

    Args:
        path: The file.
        name: One of FORMATS, or `auto` to tell by the first entry.

    Raises:
        DatasetError: It cannot be read, or no format fits.
    """
    entries = list(_entries(path, name))
    if not entries:
        raise DatasetError(f"{path}: there is nothing in it")
    if name == "auto":
        name = _guess(path, entries[0][1])
    imported = Imported(name, [])
    taken: set[str] = set()
    for where, entry in entries:
        try:
            example = FORMATS[name](entry)
        except _SkippedError:
            imported.skipped += 1
            continue
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DatasetError(f"{path}, {where}: {field}: {first['msg']}") from None
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            raise DatasetError(
                f"{path}, {where}: it is no entry of the format {name}. Name another one by "
                f"--format: {', '.join(FORMATS)}"
            ) from None
        if example.id in taken:
            example = example.model_copy(update={"id": _free(example.id, taken)})
        taken.add(example.id)
        imported.examples.append(example)
    if not imported.examples:
        raise DatasetError(f"{path}: none of its {len(entries)} entries holds a prompt")
    return imported


def _entries(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each entry: of lines, or of one array over the whole file."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    if text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, list):
            yield from ((f"entry {number}", entry) for number, entry in enumerate(whole, 1))
            return
    if name in ("auto", "prompts") and not text.lstrip().startswith(("{", '"')):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"line {number}", line.strip()
        return
    for number, entry in json_lines(path):
        yield f"line {number}", entry


def _guess(path: Path, entry: Any) -> str:
    if isinstance(entry, str):
        return "prompts"
    if isinstance(entry, Mapping):
        marks = {
            "openai-batch": "body" in entry and "url" in entry,
            "openai-chat": "messages" in entry,
            "sharegpt": "conversations" in entry or "conversation" in entry,
            "prompts": any(field in entry for field in _PROMPTS),
        }
        found = next((name for name, fits in marks.items() if fits), None)
        if found:
            return found
        if "endpoint" in entry and "body" in entry:
            raise DatasetError(f"{path} is an example set already: use it as it is")
    raise DatasetError(
        f"{path}: no known format begins like this. Name it by --format: {', '.join(FORMATS)}"
    )


def _batch(entry: Any) -> Example:
    """A line of a batch file: {"custom_id", "method", "url", "body"}."""
    endpoint = str(entry["url"]).split("?", 1)[0].rstrip("/")
    # Batch files of some tools name the path below /v1, or the whole URL.
    at = endpoint.find("/v1/")
    endpoint = endpoint[at:] if at >= 0 else f"/v1{endpoint}"
    if endpoint == "/v1/embeddings":
        raise _SkippedError
    return _example(entry.get("custom_id"), endpoint, dict(entry["body"]))


def _chat(entry: Any) -> Example:
    """A line of fine-tuning data, or a request: {"messages": [...], "tools"?, ...}."""
    body = {name: value for name, value in entry.items() if name != "id"}
    messages = [dict(message) for message in body["messages"]]
    expected = _unanswered(messages)
    body["messages"] = messages
    return _example(entry.get("id"), CHAT, body, expected)


def _unanswered(messages: list[dict[str, Any]]) -> Expected | None:
    """Take the last answer away, and return the tool calls in it: they can be expected again."""
    last = None
    while messages and messages[-1].get("role") == "assistant":
        last = messages.pop()
    if not any(message.get("role") in ("user", "tool", "function") for message in messages):
        raise _SkippedError
    if last is None or not _CALLS & last.keys():
        return None
    called = [call["function"] for call in last.get("tool_calls") or ()]
    if last.get("function_call"):
        called.append(last["function_call"])
    return Expected(
        tool_calls=tuple(
            ExpectedCall(name=call["name"], arguments=_arguments(call.get("arguments")))
            for call in called
        )
    )


def _arguments(value: Any) -> Any:
    return json.loads(value or "{}") if isinstance(value, str) else value


def _sharegpt(entry: Any) -> Example:
    """A conversation: {"id"?, "conversations": [{"from": "human", "value": "..."}]}."""
    turns = entry.get("conversations") or entry.get("conversation") or []
    messages = [
        {
            "role": _SHAREGPT_ROLES[turn.get("from") or turn["role"]],
            "content": turn["value"] if "value" in turn else turn["content"],
        }
        for turn in turns
    ]
    if system := entry.get("system"):
        messages.insert(0, {"role": "system", "content": system})
    _unanswered(messages)
    return _example(entry.get("id"), CHAT, {"messages": messages})


_PROMPTS = ("prompt", "text", "question", "instruction")


def _prompt(entry: Any) -> Example:
    """A prompt: a line of text, a JSON string, or an object with a prompt in one of its fields."""
    if isinstance(entry, str):
        text: Any = entry
        known, base = None, False
    else:
        text = next((entry[field] for field in _PROMPTS if entry.get(field)), None)
        known, base = entry.get("id"), "max_tokens" in entry
        if isinstance(entry.get("input"), str) and entry["input"] and "instruction" in entry:
            text = f"{text}\n\n{entry['input']}"
    if not isinstance(text, str) or not text.strip():
        raise _SkippedError
    if base:
        return _example(known, COMPLETIONS, {k: v for k, v in entry.items() if k != "id"})
    return _example(known, CHAT, {"messages": [{"role": "user", "content": text}]})


FORMATS: Mapping[str, Callable[[Any], Example]] = {
    "openai-chat": _chat,
    "openai-batch": _batch,
    "sharegpt": _sharegpt,
    "prompts": _prompt,
}
"""What can be read, by name."""


def _example(
    known: Any, endpoint: str, body: dict[str, Any], expected: Expected | None = None
) -> Example:
    name = str(known) if known not in (None, "") else identity(endpoint, body)
    fields: dict[str, Any] = {"id": name[:200], "endpoint": endpoint, "body": body}
    return Example(**fields) if expected is None else Example(**fields, expect=expected)


def _free(name: str, taken: set[str]) -> str:
    number = 2
    while (candidate := f"{name[:180]}-{number}") in taken:
        number += 1
    return candidate
