"""What the API server does to a custom resource with a structural schema, short of CEL.

Pruning of unknown fields, defaults, and the plain checks: type, enum, pattern, bounds, required.
The contract suite holds this against a real API server.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Any

from kvquant.api import crd

Schema = dict[str, Any]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


@cache
def rollout_schema() -> Schema:
    """Return the schema of KVQuantRollout."""
    (version,) = crd.custom_resource_definition()["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def admit(obj: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the object as it would be stored, and what is wrong with it.

    apiVersion, kind and metadata pass as they are.
    """
    schema = rollout_schema()
    stored = dict(obj)
    for part in ("spec", "status"):
        if part in stored:
            stored[part] = _fill(stored[part], schema["properties"][part])
    faults = [f"{field}: Required value" for field in schema["required"] if field not in stored]
    for part in ("spec", "status"):
        if part in stored:
            faults += _faults(stored[part], schema["properties"][part], part)
    return stored, faults


def _fill(value: Any, schema: Schema) -> Any:
    """Prune and default, depth first, as the API server does before it validates."""
    if isinstance(value, dict) and "properties" in schema:
        kept = {
            name: _fill(value[name], inner)
            for name, inner in schema["properties"].items()
            if value.get(name) is not None
        }
        for name, inner in schema["properties"].items():
            if name not in kept and "default" in inner:
                kept[name] = _fill(copy.deepcopy(inner["default"]), inner)
        return kept
    if isinstance(value, list) and "items" in schema:
        return [_fill(item, schema["items"]) for item in value]
    return value


def _faults(value: Any, schema: Schema, path: str) -> Iterator[str]:
    type_ = schema["type"]
    if not isinstance(value, _TYPES[type_]) or (type_ == "integer" and isinstance(value, bool)):
        yield f"{path}: Invalid value: must be of type {type_}"
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(f'"{choice}"' for choice in schema["enum"])
        yield f'{path}: Unsupported value: "{value}": supported values: {supported}'
    if isinstance(value, dict):
        yield from _bounds(len(value), schema, "minProperties", "maxProperties", path)
        if isinstance(schema.get("additionalProperties"), dict):
            for name, inner_value in value.items():
                yield from _faults(inner_value, schema["additionalProperties"], f"{path}.{name}")
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{path}.{name}: Required value"
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from _faults(value[name], inner, f"{path}.{name}")
    elif isinstance(value, list):
        yield from _bounds(len(value), schema, "minItems", "maxItems", path)
        for index, item in enumerate(value):
            yield from _faults(item, schema["items"], f"{path}[{index}]")
    elif isinstance(value, str):
        yield from _bounds(len(value), schema, "minLength", "maxLength", path)
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path}: Invalid value: should match '{schema['pattern']}'"
        if schema.get("format") == "date-time" and not _is_instant(value):
            yield f"{path}: Invalid value: must be of type date-time"
    elif isinstance(value, (int, float)):
        yield from _bounds(value, schema, "minimum", "maximum", path)


def _bounds(size: float, schema: Schema, least: str, most: str, path: str) -> Iterator[str]:
    if least in schema and size < schema[least]:
        yield f"{path}: Invalid value: {least} is {schema[least]}"
    if most in schema and size > schema[most]:
        yield f"{path}: Invalid value: {most} is {schema[most]}"


def _is_instant(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
