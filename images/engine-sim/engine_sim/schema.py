"""Made-up JSON values that follow a JSON schema, always the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_NOUNS = (
    "cache", "token", "page", "model", "answer", "window", "prompt", "batch", "layer", "query",
)  # fmt: skip
# What a schema may ask for at most: it comes from a client and must not take the engine's memory.
_DEEPEST = 6
_MOST_ITEMS = 20
_MOST_VALUES = 500
_MOST_CHARACTERS = 4096
_LARGEST = 1e12

Value = Any
RandomAt = Callable[[], random.Random]


def value_of(schema: object, random_at: RandomAt) -> Value:
    """Return a value for a schema.

    Keywords that need a search (``pattern``, ``not``, ``if``) are not looked at.

    Args:
        schema: as the client sent it; anything that is no schema gives a short text.
        random_at: returns the source of chance for the next value, so that an answer can turn from
            some value on and stay valid.
    """
    return _Maker(schema, random_at).value(schema, 0)


class _Maker:
    def __init__(self, root: object, random_at: RandomAt) -> None:
        self._root = root
        self._random_at = random_at
        self._made = 0

    def value(self, schema: object, depth: int) -> Value:
        self._made += 1
        if self._made > _MOST_VALUES:
            return None
        if not isinstance(schema, dict):
            return self._text({})
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        choices = schema.get("enum")
        if isinstance(choices, list) and choices:
            return self._random_at().choice(choices)
        kind = _kind(schema)
        if depth > _DEEPEST:
            return {"object": {}, "array": []}.get(kind)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        if kind == "boolean":
            return self._random_at().random() < 0.5
        return None if kind == "null" else self._text(schema)

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follow references and take the first of the alternatives."""
        for _ in range(_DEEPEST):
            reference = schema.get("$ref")
            if isinstance(reference, str):
                schema = self._referred(reference)
                continue
            for name in ("anyOf", "oneOf", "allOf"):
                options = schema.get(name)
                if isinstance(options, list) and options and isinstance(options[0], dict):
                    schema = {**{k: v for k, v in schema.items() if k != name}, **options[0]}
                    break
            else:
                break
        return schema

    def _referred(self, reference: str) -> dict[str, Any]:
        found: Any = self._root
        for name in reference.removeprefix("#").strip("/").split("/"):
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Value]:
        properties = schema.get("properties")
        made = {}
        if isinstance(properties, dict):
            made = {str(name): self.value(part, depth + 1) for name, part in properties.items()}
        required = schema.get("required")
        for name in required if isinstance(required, list) else ():
            made.setdefault(str(name), self._text({}))
        return made

    def _array(self, schema: dict[str, Any], depth: int) -> list[Value]:
        least, most = _bound(schema, "minItems", 0), _bound(schema, "maxItems", _MOST_ITEMS)
        count = max(least, min(2, most))
        return [self.value(schema.get("items"), depth + 1) for _ in range(min(count, _MOST_ITEMS))]

    def _number(self, schema: dict[str, Any], *, whole: bool) -> int | float:
        least = _usable(schema.get("minimum", schema.get("exclusiveMinimum")), 0)
        most = _usable(schema.get("maximum", schema.get("exclusiveMaximum")), least + 100)
        drawn = least + (most - least) * (0.1 + 0.8 * self._random_at().random())
        return max(int(least), min(int(most), round(drawn))) if whole else round(drawn, 3)

    def _text(self, schema: dict[str, Any]) -> str:
        chance = self._random_at()
        formatted = schema.get("format")
        if formatted in ("date", "date-time"):
            day = f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
            return day if formatted == "date" else f"{day}T12:00:00Z"
        text = " ".join(chance.choice(_NOUNS) for _ in range(2))
        text = text.ljust(_bound(schema, "minLength", 0), "x")
        return text[: _bound(schema, "maxLength", len(text))]


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _bound(schema: dict[str, Any], name: str, default: int) -> int:
    value = schema.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        return default
    return max(0, min(value, _MOST_CHARACTERS))


def _usable(value: object, default: float) -> float:
    if isinstance(value, int | float) and abs(value) <= _LARGEST:
        return value
    return default
