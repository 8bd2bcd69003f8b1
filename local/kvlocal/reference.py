"""docs/reference: fields, metrics, reasons and labels, written from the code itself.

`python -m kvlocal.reference` writes the pages anew.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.metrics import MetricWrapperBase

from kvlocal.cache import REPOSITORY
from kvquant import telemetry
from kvquant.api import names

FOLDER = REPOSITORY / "docs" / "reference"
CODE = REPOSITORY / "operator" / "kvquant"
TOLD_BY = frozenset(
    {"hold", "record", "roll_back", "Problem", "TemplateError", "Announcement", "_wait", "Trouble"}
)
"""Calls that are given a reason and a sentence."""
NAMED = frozenset({"CONDITION", "REASON", "UNDECIDED"})
"""Constants that are reasons."""
UNTOLD = frozenset(
    {"EvaluationBroken", "EvaluationDeadlineExceeded", "EvaluationInterrupted"}
    | {"EvaluationNotStarted", "EvaluationOutOfMemory", "EvaluationUnreadable"}
    | {"RefusedByAPIServer"}
)
"""Reasons whose sentences are somebody else's: an engine's, a Job's, the API server's."""
TYPES = frozenset({"Normal", "Warning"})
"""What stands in the place of a reason, and is the type of an Event."""
REASON = re.compile(r"([A-Z][a-z0-9]+){1,}[A-Za-z]*")
NOTE = "<!-- Written by `make reference`: change the code, not this file. -->\n"


def pages() -> dict[str, str]:
    """Return the text of each page, by the name of its file."""
    return {
        "fields.md": fields(),
        "metrics.md": metrics(),
        "reasons.md": reasons(),
        "labels.md": labels(),
    }


def fields() -> str:
    """Return the page of a KVQuantRollout's spec and status."""
    crd = yaml.safe_load((REPOSITORY / "crds" / "kvquant.dev_kvquantrollouts.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    lines = [NOTE + "# Fields of a KVQuantRollout", "", "As `kubectl explain kvqr` tells them."]
    for part in ("spec", "status"):
        lines += [
            "",
            f"## {part}",
            "",
            "| field | type | default | what it says |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{path}` | {type_} | {default} | {text} |"
            for path, type_, default, text in _fields(schema[part], part)
        ]
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, str, str]]:
    for name, one in sorted(schema.get("properties", {}).items()):
        where, inner = f"{path}.{name}", one
        if one.get("type") == "array":
            where, inner = f"{path}.{name}[]", one["items"]
        type_ = inner.get("type", "any")
        if "enum" in inner:
            type_ = " \\| ".join(f"`{value}`" for value in inner["enum"])
        default = f"`{one['default']}`" if "default" in one and type_ != "object" else ""
        required = " (required)" if name in schema.get("required", ()) else ""
        text = one.get("description", inner.get("description", "")).replace("|", "\\|")
        yield where, type_ + required, default, text
        yield from _fields(inner, where)


def metrics() -> str:
    """Return the page of the operator's own metrics."""
    lines = [
        NOTE + "# Metrics of the operator",
        "",
        "On port 9100, `/metrics`. What they are good for: [dashboard](../dashboard.md).",
        "",
        "| metric | type | labels | what it says |",
        "|---|---|---|---|",
    ]
    found = [one for one in vars(telemetry).values() if isinstance(one, MetricWrapperBase)]
    for metric in sorted({id(one): one for one in found}.values(), key=lambda one: one._name):
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        told = ", ".join(f"`{label}`" for label in metric._labelnames)
        lines.append(f"| `{name}` | {family.type} | {told} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def labels() -> str:
    """Return the page of our names on a cluster."""
    tree = ast.parse(Path(names.__file__).read_text())
    lines = [
        NOTE + "# Labels and annotations",
        "",
        "| name | what it says |",
        "|---|---|",
    ]
    for assigned, doc in itertools.pairwise(tree.body):
        if not isinstance(assigned, ast.Assign) or not isinstance(assigned.targets[0], ast.Name):
            continue
        constant = assigned.targets[0].id
        if not constant.startswith(("LABEL_", "ANNOTATION_")):
            continue
        text = ""
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            text = " ".join(str(doc.value.value).split()).replace("|", "\\|")
        lines.append(f"| `{getattr(names, constant)}` | {text} |")
    return "\n".join(lines) + "\n"


def reasons() -> str:
    """Return the page of the reasons of Events, conditions and decisions."""
    lines = [
        NOTE + "# Reasons",
        "",
        "Of Events, conditions (`Held`, `Stalled`, `Adopted`) and decisions in status and record,",
        "with the sentences that come with them; … is what is filled in. What to do about each:",
        "[failure modes](../failure-modes.md).",
        "",
        "| reason | sentence |",
        "|---|---|",
    ]
    for reason, sentences in sorted(told().items()):
        lines.append(f"| `{reason}` | {'<br>'.join(sorted(sentences))} |")
    return "\n".join(lines) + "\n"


@cache
def told() -> Mapping[str, set[str]]:
    """Return every reason in the code, with its sentences, as far as those are written there."""
    found: dict[str, set[str]] = {}
    for path in sorted(CODE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for reason, sentence in _pairs(node):
                known = found.setdefault(reason, set())
                if " " in sentence:
                    known.add(sentence.replace("|", "\\|"))
    return found


def _pairs(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what a piece of code tells: reasons and the sentences beside them."""
    if isinstance(node, ast.Call) and _called(node) in TOLD_BY:
        for first, second in itertools.pairwise([*node.args, ast.Constant("")]):
            if REASON.fullmatch(_text(first)) and _text(first) not in TYPES:
                yield _text(first), _text(second)
    elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
        reason, sentence = map(_text, node.elts)
        if REASON.fullmatch(reason) and " " in sentence:
            yield reason, sentence
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        reason = _text(next(iter(node.value.elts), ast.Constant("")))
        if REASON.fullmatch(reason):
            yield reason, ""
    elif isinstance(node, ast.Constant) and node.value in UNTOLD:
        yield str(node.value), ""
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        constant = node.targets[0].id
        if constant in NAMED and REASON.fullmatch(_text(node.value)):
            yield _text(node.value), ""


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _text(node: ast.expr) -> str:
    """Return the text of a literal, with … for what is filled in; nothing for anything else."""
    if isinstance(node, ast.Constant):
        return node.value.strip() if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        parts = (str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
        return "".join(parts).strip()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{_text(node.left)} {_text(node.right)}".strip()
    return ""


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
        sys.stdout.write(f"wrote {(FOLDER / name).relative_to(REPOSITORY)}\n")
