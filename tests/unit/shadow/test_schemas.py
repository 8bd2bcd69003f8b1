"""Users' schemas: what fits, and how little they can make the service do."""

from __future__ import annotations

import time

import pytest

from kvquant.shadow.schemas import canonical, fits, with_defaults

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_what_fits_and_what_does_not() -> None:
    assert fits({"n": 1}, SCHEMA)
    assert not fits({"n": "1"}, SCHEMA)
    assert not fits({}, SCHEMA)
    assert not fits({}, '{"required": ["n"]}')


def test_references_within_the_schema_are_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}}
    assert fits({"n": 1}, schema)
    assert not fits({"n": "1"}, schema)


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        [],
        "no schema",
        {"type": "nonsense"},
        {"properties": 5},
        {"required": 5},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"minimum": "x", "multipleOf": 0},
    ],
)
def test_a_schema_that_cannot_be_used_forbids_nothing(schema: object) -> None:
    assert fits({"n": 1}, schema)
    assert fits(5, schema)


def test_a_schema_that_branches_for_ever_ends_soon() -> None:
    definitions = {
        f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
        for i in range(40)
    }
    schema = {"$defs": {**definitions, "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}
    began = time.monotonic()
    assert fits(5, schema)
    assert time.monotonic() - began < 5


def test_a_pattern_that_takes_for_ever_is_not_looked_at() -> None:
    schema = {"pattern": "^(a+)+$", "patternProperties": {"^(a+)+$": False}}
    began = time.monotonic()
    assert fits("a" * 40 + "b", schema)
    assert fits({"a" * 40 + "b": 1}, schema)
    assert time.monotonic() - began < 5


def test_one_spelling() -> None:
    assert canonical({"b": 1.0, "a": [True, None]}) == canonical({"a": [True, None], "b": 1})
    assert canonical(True) != canonical(1)


def test_defaults_are_filled_in() -> None:
    schema = {"properties": {"unit": {"default": "C"}, "city": {}}}
    assert with_defaults({"city": "Oslo"}, schema) == {"city": "Oslo", "unit": "C"}
    assert with_defaults({"unit": "F"}, schema) == {"unit": "F"}
    assert with_defaults([1], schema) == [1]
