"""Reads from a request whether it wants JSON or offers tools."""

import json
from typing import Any

from .answers import Tool, Wish
from .errors import bad


def wish_of(body: dict[str, Any], *, chat: bool) -> Wish:
    """Return what a request wants besides words.

    Raises:
        ApiError: it cannot be understood.
    """
    schema = _json_schema(body)
    if not chat:
        return Wish(json_schema=schema)
    tools = _tools(body)
    choice = body.get("tool_choice") or "auto"
    if not tools or choice == "none":
        return Wish(json_schema=schema)
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        tools = tuple(tool for tool in tools if tool.name == name)
        if not tools:
            raise bad(f"tool_choice: no tool is called {name!r}", "tool_choice")
    elif choice not in ("auto", "required"):
        raise bad(f"tool_choice: expected auto, none, required or a tool, got {choice!r}")
    if _is_answer_to_call(body):
        # The result of a call is there: a model now tells it in words.
        return Wish(json_schema=schema)
    return Wish(schema, tools, must_call=choice != "auto")


def _json_schema(body: dict[str, Any]) -> object:
    """Return the schema of the JSON that is wanted, {} for any object, None for no JSON."""
    wanted = body.get("response_format")
    if isinstance(wanted, dict):
        kind = wanted.get("type")
        if kind == "json_object":
            return {}
        if kind == "json_schema":
            inner = wanted.get("json_schema")
            if not isinstance(inner, dict):
                raise bad("response_format: json_schema needs a schema", "response_format")
            return inner.get("schema") or {}
    guided = body.get("guided_json")
    structured = body.get("structured_outputs")
    if guided is None and isinstance(structured, dict):
        guided = structured.get("json")
        if guided is None and structured.get("json_object"):
            return {}
    if isinstance(guided, str):
        try:
            guided = json.loads(guided)
        except ValueError:
            raise bad("guided_json: the schema is not JSON", "guided_json") from None
    return guided


def _tools(body: dict[str, Any]) -> tuple[Tool, ...]:
    offered = body.get("tools") or ()
    if not isinstance(offered, list | tuple):
        raise bad("tools: expected a list of functions", "tools")
    found = []
    for tool in offered:
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise bad("tools: each needs a function with a name", "tools")
        found.append(Tool(name, function.get("parameters")))
    return tuple(found)


def _is_answer_to_call(body: dict[str, Any]) -> bool:
    last = body["messages"][-1]
    return body.get("tool_choice") != "required" and last["role"] in ("tool", "function")
