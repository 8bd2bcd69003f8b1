"""The CustomResourceDefinition, made from the models: `python -m kvquant.api.crd [--check]`.

The API server takes only "structural" schemas, a strict subset of what pydantic writes: no `$ref`,
no `const`, no union with null. `structural` rewrites one into the other and raises on whatever has
no counterpart, because a constraint that vanishes silently is worse than a build that fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, Spec, Status

Schema = dict[str, Any]

FILE_NAME = f"{names.GROUP}_{names.PLURAL}.yaml"
DIRECTORIES = (Path("crds"), Path("charts/kvquant-operator/files/crds"))
"""For `kubectl apply`, and for the chart, which cannot reach beyond its own folder."""

HEADER = "# Generated from the models in operator/kvquant/api by `python -m kvquant.api.crd`.\n"

PRINTER_COLUMNS = (
    ("Target", "string", ".spec.targetRef.name", "Deployment that is rolled out."),
    ("Dtype", "string", ".spec.kvCache.dtype", "KV-cache dtype of the canary."),
    ("Phase", "string", ".status.phase", "Where the rollout stands."),
    ("Step", "string", ".status.stepLabel", "Step in effect, of all steps."),
    ("Weight", "integer", ".status.weights.canary", "Share of the canary, in per cent."),
    ("Verdict", "string", ".status.verdict", "Latest verdict, or why the rollout waits."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the rollout was made."),
)

NAME_RULE = {
    # The pool's Deployment, its Services and its labels carry the name with a suffix.
    "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$')",
    "message": "metadata.name becomes part of Service names and labels: use at most 52 lower-case "
    "letters, digits and '-', beginning with a letter",
}


class _Generator(GenerateJsonSchema):
    """JSON schema with what Kubernetes says differently: an optional field is absent, not null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        document = super().default_schema(schema)
        if "default" in document and document["default"] is None:
            del document["default"]
        return document


def structural(model: type[BaseModel], *, defaults: bool) -> Schema:
    """Return the structural OpenAPI v3 schema of a model.

    Args:
        model: The model to describe.
        defaults: Whether the API server fills in the models' defaults. Not for the status, which
            is written as a whole by the operator: a filled-in status would state what nobody saw.

    Raises:
        TypeError: The model recurses, or has a union that has no structural form.
    """
    raw = model.model_json_schema(by_alias=True, schema_generator=_Generator, mode="validation")
    definitions: Mapping[str, Schema] = raw.pop("$defs", {})
    return _walk(raw, definitions, (), defaults)


def _walk(
    node: Schema, definitions: Mapping[str, Schema], trail: tuple[str, ...], defaults: bool
) -> Schema:
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        if name in trail:
            raise TypeError(f"{name} contains itself: a structural schema cannot recurse")
        # What the field says (its description, its default) wins over what its type says.
        siblings = {key: value for key, value in node.items() if key != "$ref"}
        return _walk({**definitions[name], **siblings}, definitions, (*trail, name), defaults)
    if "anyOf" in node or "oneOf" in node or "allOf" in node:
        raise TypeError(f"{node} is a union, which has no structural form")
    out = {key: value for key, value in node.items() if key not in _REWRITTEN}
    if "const" in node:
        out["enum"] = [node["const"]]
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in node:
            out[plain], out[bound] = node[bound], True
    # `false` may not stand beside `properties`, and the API server prunes unknown fields anyway.
    if isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = _walk(
            node["additionalProperties"], definitions, trail, defaults
        )
    if "items" in node:
        out["items"] = _walk(node["items"], definitions, trail, defaults)
    if "properties" in node:
        out["properties"] = {
            field: _walk(schema, definitions, trail, defaults)
            for field, schema in node["properties"].items()
        }
    if "description" in node:
        out["description"] = " ".join(node["description"].split())
    if defaults and "default" in node:
        out["default"] = _lean_default(node["default"], out)
        _tell_default(out)
    return _ordered(out)


_REWRITTEN = frozenset(
    {"$defs", "additionalProperties", "const", "default", "description", "exclusiveMaximum"}
    | {"exclusiveMinimum", "items", "properties", "title"}
)


def _lean_default(value: Any, schema: Schema) -> Any:
    """Leave out of a parent's default what its fields' own defaults fill in.

    A nested default takes effect only where the parent exists; `{}` on the parent makes it exist.
    """
    if not isinstance(value, dict):
        return value
    fields: Mapping[str, Schema] = schema.get("properties", {})
    lean = {}
    for key, inner in value.items():
        if inner is None:
            continue
        short = _lean_default(inner, fields.get(key, {}))
        if short != fields.get(key, {}).get("default"):
            lean[key] = short
    return lean


def _tell_default(schema: Schema) -> None:
    """Say the default in the description too, for `kubectl explain` does not show it."""
    default = schema["default"]
    if isinstance(default, (dict, list)) or "description" not in schema:
        return
    text = str(default).lower() if isinstance(default, bool) else str(default)
    schema["description"] += f" Default: {text}."


_ORDER = ("description", "type", "format", "enum", "default")


def _ordered(schema: Schema) -> Schema:
    """Put what a reader looks for first at the top."""
    first = {key: schema[key] for key in _ORDER if key in schema}
    return {**first, **{key: value for key, value in schema.items() if key not in first}}


def custom_resource_definition() -> dict[str, Any]:
    """Return the CRD as it is applied."""
    spec = structural(Spec, defaults=True)
    status = structural(Status, defaults=False)
    description = " ".join((KVQuantRollout.__doc__ or "").split())
    root = {
        "description": description,
        "type": "object",
        "required": ["spec"],
        "x-kubernetes-validations": [NAME_RULE],
        "properties": {
            "apiVersion": {
                "description": f"Version of this API: {names.API_VERSION}.",
                "type": "string",
            },
            "kind": {"description": f"Kind of the object: {names.KIND}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    columns = [
        {"name": name, "type": type_, "jsonPath": path, "description": text}
        for name, type_, path, text in PRINTER_COLUMNS
    ]
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": root},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": ["kvqr"],
            },
            "versions": [version],
        },
    }


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which people who read a CRD do not expect."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True


def render() -> str:
    """Return the CRD as the text of its file."""
    document = yaml.dump(
        custom_resource_definition(), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True
    )
    return HEADER + document


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the CRD's files, or check that they are current. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kvquant.api.crd",
        description="Write the CustomResourceDefinition that belongs to the models.",
    )
    parser.add_argument(
        "directories",
        nargs="*",
        default=DIRECTORIES,
        type=Path,
        help=f"where the file lies (default: {' '.join(str(path) for path in DIRECTORIES)})",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is out of date"
    )
    options = parser.parse_args(arguments)
    text = render()
    stale = 0
    for directory in options.directories:
        path: Path = directory / FILE_NAME
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale = 1
            sys.stderr.write(
                f"{path} does not match the models in operator/kvquant/api: "
                f"run `python -m kvquant.api.crd {directory}` and commit the result\n"
            )
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
