"""What a request asks for, as far as answers to it can be judged by it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvquant.shadow import citations
from kvquant.shadow.preparing import COMPLETIONS, RESPONSES


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer has to be like.

    Attributes:
        wants_json: It has to be JSON.
        schema: JSON schema of the answer; None: any.
        tools: Schemas of the arguments of the tools that were offered, by name.
        markers: Citation markers in the prompt.
    """

    wants_json: bool = False
    schema: Any = None
    tools: Mapping[str, Any] = field(default_factory=dict)
    markers: frozenset[str] = frozenset()


def read(path: str, body: Mapping[str, Any]) -> Asked:
    """Return what a request asks for."""
    wants_json, schema = _json(path, body)
    return Asked(
        wants_json=wants_json,
        schema=schema,
        tools=dict(_tools(body)),
        markers=citations.markers("\n".join(_texts(path, body))),
    )


def _json(path: str, body: Mapping[str, Any]) -> tuple[bool, Any]:
    form = body.get("response_format")
    if path == RESPONSES and isinstance(text := body.get("text"), Mapping):
        form = text.get("format")
    if form is None and isinstance(config := body.get("output_config"), Mapping):
        form = config.get("format")
    if form is None:
        form = body.get("output_format")
    if isinstance(form, Mapping):
        if form.get("type") == "json_object":
            return True, None
        if form.get("type") == "json_schema":
            inner = form.get("json_schema")
            return True, (inner if isinstance(inner, Mapping) else form).get("schema")
    for name, holder in (("guided_json", body), ("json", body.get("structured_outputs"))):
        if isinstance(holder, Mapping) and holder.get(name):
            return True, holder[name]
    structured = body.get("structured_outputs")
    if isinstance(structured, Mapping) and structured.get("json_object"):
        return True, None
    return False, None


def _tools(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    offered = [*_list(body.get("tools")), *_list(body.get("functions"))]
    for tool in offered:
        if not isinstance(tool, Mapping):
            continue
        inner = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
        if isinstance(name := inner.get("name"), str):
            yield name, inner.get("parameters", inner.get("input_schema"))


def _texts(path: str, body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a prompt: what people, tools and documents said, and not the schemas."""
    if path == COMPLETIONS:
        yield from _leaves(body.get("prompt"))
        return
    for name in ("messages", "input", "instructions", "system", "documents"):
        yield from _leaves(body.get(name))


def _leaves(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
