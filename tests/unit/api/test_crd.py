"""The generator of the CRD: what comes out is structural, current, and teaches."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from kvquant.api import crd
from kvquant.api.v1alpha1 import Model

CRDS = Path(__file__).parents[3] / "crds"

FORBIDDEN = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "uniqueItems"}
"""Keywords that the API server refuses in a structural schema, or drops without a word."""


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema node with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


@pytest.fixture(scope="module")
def root() -> dict[str, Any]:
    (version,) = crd.custom_resource_definition()["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def test_the_committed_crd_is_the_one_that_the_models_make() -> None:
    assert crd.main(["--check", str(CRDS)]) == 0


def test_check_names_the_command_that_repairs_a_stale_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / crd.FILE_NAME).write_text("stale")
    assert crd.main(["--check", str(tmp_path)]) == 1
    assert f"python -m kvquant.api.crd {tmp_path}" in capsys.readouterr().err

    assert crd.main([str(tmp_path)]) == 0
    assert crd.main(["--check", str(tmp_path)]) == 0
    assert yaml.safe_load((tmp_path / crd.FILE_NAME).read_text()) == (
        crd.custom_resource_definition()
    )


def test_every_node_is_structural(root: dict[str, Any]) -> None:
    for path, node in nodes(root):
        assert not FORBIDDEN & node.keys(), path
        assert "type" in node, path
        assert node.get("additionalProperties") is not False, path
        assert node.get("default", "") is not None, path


def test_every_field_is_explained(root: dict[str, Any]) -> None:
    silent = [
        path
        for path, node in nodes(root)
        if path not in ("", ".metadata") and len(node.get("description", "")) < 10
    ]
    assert silent == []


def test_descriptions_tell_the_defaults_of_scalars(root: dict[str, Any]) -> None:
    soak = root["properties"]["spec"]["properties"]["steps"]["items"]["properties"]["soak"]
    assert soak["default"] == "15m"
    assert soak["description"].endswith("Default: 15m.")


def test_parents_default_to_an_empty_object_so_that_nested_defaults_fill_in(
    root: dict[str, Any],
) -> None:
    spec = root["properties"]["spec"]["properties"]
    assert spec["analysis"]["default"] == {}
    assert spec["analysis"]["properties"]["p99"]["default"] == {}
    assert spec["engine"]["default"] == {}


def test_the_status_gets_no_defaults_because_the_operator_writes_what_it_saw(
    root: dict[str, Any],
) -> None:
    status = root["properties"]["status"]
    assert [path for path, node in nodes(status) if "default" in node] == []


def test_lists_and_strings_that_rules_walk_are_bounded(root: dict[str, Any]) -> None:
    for path, node in nodes(root["properties"]["spec"]):
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "string" and "enum" not in node:
            assert "maxLength" in node, path


class Colour(StrEnum):
    RED = "red"


class Odd(Model):
    exact: Literal["one"] = "one"
    above: Annotated[int, Field(gt=0)] = 1
    maybe: str | None = None
    colour: Colour = Colour.RED
    labels: dict[str, str] = Field(default_factory=dict)


def test_keywords_without_a_structural_form_are_rewritten() -> None:
    fields = crd.structural(Odd, defaults=True)["properties"]
    assert fields["exact"]["enum"] == ["one"]
    assert (fields["above"]["minimum"], fields["above"]["exclusiveMinimum"]) == (0, True)
    assert fields["maybe"] == {"type": "string"}
    assert (fields["colour"]["enum"], fields["colour"]["default"]) == (["red"], "red")
    assert fields["labels"]["additionalProperties"] == {"type": "string"}


class Either(Model):
    value: int | str


class Tree(Model):
    children: tuple[Tree, ...] = ()


def test_a_union_is_refused() -> None:
    with pytest.raises(TypeError, match="union"):
        crd.structural(Either, defaults=True)


def test_recursion_is_refused() -> None:
    with pytest.raises(TypeError, match="Tree contains itself"):
        crd.structural(Tree, defaults=True)


class Inner(Model):
    a: int = 1
    b: str | None = None


class Outer(Model):
    plain: Inner = Inner()
    changed: Inner = Inner(a=5)


def test_a_parents_default_keeps_only_what_its_fields_do_not_fill_in() -> None:
    fields = crd.structural(Outer, defaults=True)["properties"]
    assert fields["plain"]["default"] == {}
    assert fields["changed"]["default"] == {"a": 5}
