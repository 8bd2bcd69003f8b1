"""The strings of a JSON document, wherever they are: values, keys, JSON inside strings, numbers."""

from __future__ import annotations

import json
from collections.abc import Callable

from pydantic import JsonValue

from kvquant.shadow.pii.budget import UNREADABLE, Withheld

DEEPEST = 128
"""Levels of nesting, those of JSON inside strings included."""
_SHORTEST_NUMBER = 10**6

Clean = Callable[[str, str], str]
"""Cleans one text, given the key that it belongs to."""


def cleaned_body(body: JsonValue, clean: Clean, hint: str = "", depth: int = 0) -> JsonValue:
    """Return a copy of a document with every string in it cleaned.

    Numbers are searched too, because a card number may well be sent as one; what is found becomes a
    string. Two keys that become the same are told apart by a suffix.
    """
    if depth > DEEPEST:
        raise Withheld(UNREADABLE)
    if isinstance(body, str):
        return _string(body, clean, hint, depth)
    if isinstance(body, dict):
        result: dict[str, JsonValue] = {}
        for key, value in body.items():
            name = unique = clean(key, "")
            count = 1
            while unique in result:
                count += 1
                unique = f"{name}_{count}"
            result[unique] = cleaned_body(value, clean, key, depth + 1)
        return result
    if isinstance(body, (list, tuple)):
        return [cleaned_body(item, clean, hint, depth + 1) for item in body]
    if isinstance(body, (int, float)) and not isinstance(body, bool):
        return _number(body, clean, hint)
    if body is None or isinstance(body, bool):
        return body
    # Not JSON at all; what it would become in writing cannot be known.
    raise Withheld(UNREADABLE)


def _number(number: int | float, clean: Clean, hint: str) -> JsonValue:
    if abs(number) < _SHORTEST_NUMBER or number != number:
        return number
    if isinstance(number, float):
        if not number.is_integer():
            return number
        text = f"{number:.0f}"
    else:
        try:
            text = str(number)
        except ValueError:
            raise Withheld(UNREADABLE) from None
    found = clean(text, hint)
    return number if found == text else found


def _string(text: str, clean: Clean, hint: str, depth: int) -> str:
    head = text.lstrip()[:1]
    if head in ("{", "[", '"') and text.rstrip()[-1:] in ("}", "]", '"'):
        try:
            inner = json.loads(text)
        except RecursionError:
            inner = None
            depth = DEEPEST + 1
        except ValueError:
            inner = None
        if depth > DEEPEST:
            raise Withheld(UNREADABLE)
        if isinstance(inner, (dict, list, str)):
            cleaned = cleaned_body(inner, clean, hint, depth + 1)
            if cleaned != inner:
                text = _written_like(text, inner, cleaned)
    # Once more as it stands: a key that is there twice, or an escape, is lost in reading.
    return clean(text, hint)


def _written_like(text: str, inner: JsonValue, cleaned: JsonValue) -> str:
    """Write a cleaned document with the spaces and the escapes of the original."""
    plain = text.isascii()
    for separators in ((", ", ": "), (",", ":")):
        if json.dumps(inner, ensure_ascii=plain, separators=separators) == text.strip():
            return json.dumps(cleaned, ensure_ascii=plain, separators=separators)
    return json.dumps(cleaned, ensure_ascii=plain, indent=2 if "\n" in text else None)
