"""docs/cli.md, written from the verbs and documents themselves.

python -m kvquant.cli.reference > docs/cli.md
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from enum import StrEnum
from types import UnionType
from typing import Any, Union, get_args, get_origin

import click

from kvquant.api.fields import Model
from kvquant.cli.backtest.document import BacktestDocument, SplitsDocument
from kvquant.cli.documents import ListDocument, RolloutDocument
from kvquant.cli.explanation import DecisionDocument, ExplanationDocument
from kvquant.cli.program import kvquant
from kvquant.cli.reading_verbs import VersionDocument
from kvquant.cli.report.document import ReportDocument
from kvquant.evaluation.document import EvaluationDocument

COLUMNS = 100
_SIZE: dict[str, Any] = {"resilient_parsing": True, "terminal_width": COLUMNS}

PRINTED: tuple[tuple[str, type[Model]], ...] = (
    ("status NAME -o json", RolloutDocument),
    ("status -o json", ListDocument),
    ("explain NAME -o json", ExplanationDocument),
    ("explain NAME --decision N -o json", DecisionDocument),
    ("report NAME -o json", ReportDocument),
    ("backtest --canary SELECTOR -o json", BacktestDocument),
    ("backtest -o json", SplitsDocument),
    ("eval -o json", EvaluationDocument),
    ("version -o json", VersionDocument),
)
"""What the reading verbs print, by command line."""

INTRODUCTION = """\
<!-- Written by `python -m kvquant.cli.reference > docs/cli.md`: change the code, not this file. -->
# `kubectl kvquant`

One program under two names: `kvquant`, and `kubectl kvquant` where `kubectl-kvquant` is on the
`PATH`. It reads the kubeconfig that kubectl reads, and writes nothing but annotations of a rollout
and, for `kill --all`, one ConfigMap in the operator's namespace.

Exit status: 0 done; 1 refused, not found or not taken up in time; 2 wrong usage. What goes wrong is
said on stderr in a sentence with its remedy. Colours need a terminal and yield to `NO_COLOR`; into
a pipe, `status --watch` prints a line for each change instead of redrawing.

## Rights

The chart, and `examples/install/operator.yaml`, bring the roles. None of them is cluster-admin.

- **`status`, `report`**: ClusterRole `kvquant-view` in the rollout's namespace; for `-A`, in the
  whole cluster. It is part of the cluster's role `view`.
- **`explain`**: the same, and the right to get ConfigMaps there, which the cluster's role `view`
  holds and `kvquant-view` alone does not. Without it, it tells what the status still knows.
- **`pause`, `resume`, `promote`, `abort`, `retry`, `kill NAME`, `unkill NAME`**: ClusterRole
  `kvquant-edit` in the rollout's namespace. It is part of the cluster's role `edit`.
- **`kill --all`, `unkill --all`**: Role `kvquant-kill-switch` in `kvquant-system`, and
  `kvquant-view` in the whole cluster to see that every rollout has followed.
- **`backtest`**: nothing in the cluster; it only asks Prometheus.
- **`dataset`**: nothing in the cluster; `dataset build` reads the folder or bucket of the log.
- **`eval NAME`**: `kvquant-view`, and the rights to get Deployments, to list pods, and to get and
  create `pods/proxy`, which the cluster's role `edit` holds. With `--baseline` and `--canary`:
  nothing in the cluster.
- **`version`**: nothing. With the right to get the Deployment `kvquant-operator` it also names the
  operator's image.
- **`report --prometheus-service`**: optional, the right to get `services/proxy`, such as below.
  `--prometheus URL` needs none.

```yaml
# For report --prometheus-service monitoring/prometheus:9090, and for nothing else behind the proxy.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: kvquant-report, namespace: monitoring}
rules:
  - apiGroups: [""]
    resources: [services/proxy]
    resourceNames: ["prometheus:9090"]
    verbs: [get]
```
"""

FIELDS = """\
## JSON

Names are stable: a field is never renamed or removed within `v1alpha1`, and new ones may appear.
Instants are RFC 3339 in UTC. A field that is not known is `null`, never absent. `status --watch
-o json` prints one document a line whenever something has changed.
"""


def reference() -> str:
    """Return docs/cli.md."""
    return "\n".join([INTRODUCTION, *_verbs(), FIELDS, *_documents()]).rstrip() + "\n"


def _verbs() -> Iterator[str]:
    yield "## Verbs\n"
    parent = kvquant.make_context("kubectl kvquant", [], **_SIZE)
    for name, command in kvquant.commands.items():
        yield from _verb(name, command, parent)


def _verb(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = command.make_context(name, [], parent, **_SIZE)
    title = context.command_path.removeprefix(f"{parent.find_root().info_name} ")
    yield f"### {title}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    for inner, verb in getattr(command, "commands", {}).items():
        yield from _verb(inner, verb, context)


def _documents() -> Iterator[str]:
    told: list[type[Model]] = []
    for command, document in PRINTED:
        yield f"### `{command}`\n\nA {_link(document)}.\n"
    waiting = [document for _, document in PRINTED]
    while waiting:
        document = waiting.pop(0)
        if document in told:
            continue
        told.append(document)
        yield from _table(document)
        waiting += [inner for inner in _inner(document) if inner not in told]


def _table(document: type[Model]) -> Iterator[str]:
    yield f"### {_name(document)}\n\n{inspect.cleandoc(document.__doc__ or '')}\n"
    yield "| field | type | |\n|---|---|---|"
    for field in document.model_fields.values():
        text = " ".join((field.description or "").split())
        yield f"| `{field.alias}` | {_type(field.annotation)} | {text} |"
    yield ""


def _inner(document: type[Model]) -> list[type[Model]]:
    found: list[type[Model]] = []
    for field in document.model_fields.values():
        parts = (field.annotation, *get_args(field.annotation))
        found += [p for p in parts if isinstance(p, type) and issubclass(p, Model)]
    return found


def _type(annotation: Any) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        known = [part for part in arguments if part is not type(None)]
        null = " or null" if len(known) < len(arguments) else ""
        return " or ".join(_type(part) for part in known) + null
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if arguments:
        return ", ".join(f"`{value}`" for value in arguments)
    if issubclass(annotation, Model):
        return _link(annotation)
    if issubclass(annotation, StrEnum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    words = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return words.get(annotation, "instant")


def _name(document: type[Model]) -> str:
    return document.__name__.removesuffix("Document") or document.__name__


def _link(document: type[Model]) -> str:
    name = _name(document)
    return f"[{name}](#{name.lower()})"


if __name__ == "__main__":
    sys.stdout.write(reference())
