"""JSON against a user's schema, in bounded time: no fetching, no patterns, few references."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_REFERENCES = 1000
"""References that are followed; a schema that branches through them could take for ever."""


class _TooMuchError(Exception):
    pass


def document(text: str) -> tuple[bool, Any]:
    """Return whether a text is one JSON document, and which."""
    try:
        return True, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def _refuse(_constant: str) -> None:
    raise ValueError("not JSON")


def fits(value: object, schema: object) -> bool:
    """Return whether a value fits a schema.

    A schema that cannot be used forbids nothing: it is the same for both arms. `pattern`s are not
    looked at, because a user's regular expression can take for ever.
    """
    if isinstance(schema, str):
        schema = document(schema)[1]
    if not isinstance(schema, Mapping) or not schema:
        return True
    try:
        return not any(_validator(schema).iter_errors(value))
    except (SchemaError, ValidationError, Unresolvable, _TooMuchError, RecursionError):
        return True
    except Exception:
        # jsonschema raises whatever a malformed keyword makes it stumble over.
        return True


def _validator(schema: Mapping[str, Any]) -> Any:
    left = MOST_REFERENCES
    original = Draft202012Validator.VALIDATORS

    def counted(name: str) -> Any:
        def follow(validator: Any, target: Any, value: Any, inside: Any) -> Iterator[Any]:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooMuchError
            yield from original[name](validator, target, value, inside) or ()

        return follow

    def nothing(_validator: Any, _pattern: Any, _value: Any, _inside: Any) -> Iterator[Any]:
        return iter(())

    bounded: Any = extend(
        Draft202012Validator,
        {
            "pattern": nothing,
            "patternProperties": nothing,
            **{name: counted(name) for name in ("$ref", "$dynamicRef")},
        },
    )
    return bounded(schema, registry=Registry())


def canonical(value: object) -> str:
    """Return one spelling of a JSON value: keys sorted, 1.0 as 1."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def with_defaults(value: object, schema: object) -> object:
    """Return arguments with what the schema's defaults add: left out and spelt out are the same."""
    if not isinstance(value, Mapping) or not isinstance(schema, Mapping):
        return value
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return value
    defaults = {
        name: inner["default"]
        for name, inner in properties.items()
        if isinstance(inner, Mapping) and "default" in inner
    }
    return {**defaults, **value}
