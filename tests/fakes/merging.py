"""The two ways in which writes are merged: JSON merge patch, and server-side apply."""

from __future__ import annotations

import copy
from typing import Any

MERGE_KEYS = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("port", "containerPort"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists that server-side apply merges item by item, with the fields that may identify an item.
Every other list is replaced as a whole."""

_ATOMIC = frozenset({"selector", "nodeSelector"})
"""Maps that belong to one manager as a whole: what others put into them goes away."""

_SETS = frozenset({"finalizers"})


def merge_patch(target: Any, patch: Any) -> Any:
    """Return the target with a JSON merge patch (RFC 7396) applied."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def apply(live: Any, before: Any, wanted: Any, field: str = "") -> Any:
    """Return the live value after one manager applies `wanted` with force.

    Args:
        live: What is stored.
        before: What the same manager applied last; what it no longer names goes away.
        wanted: What it applies now.
        field: Name of the field that holds the value.
    """
    if isinstance(wanted, dict) and field not in _ATOMIC:
        live = live if isinstance(live, dict) else {}
        before = before if isinstance(before, dict) else {}
        merged = {}
        for key, value in live.items():
            if key in wanted:
                continue
            if isinstance(value, dict) and isinstance(before.get(key), dict):
                # Of what is dropped, only the leaves that were ours go; others' leaves stay.
                rest = apply(value, before[key], {})
                if rest:
                    merged[key] = rest
            elif key not in before or value != before[key]:
                # A value that somebody has changed since is theirs now.
                merged[key] = copy.deepcopy(value)
        for key, value in wanted.items():
            merged[key] = apply(live.get(key), before.get(key), value, key)
        return merged
    if isinstance(wanted, list) and field in _SETS:
        others = [item for item in live or [] if item not in (before or [])]
        return [*others, *(item for item in wanted if item not in others)]
    if isinstance(wanted, list) and _identify(wanted, field):
        return _apply_items(live, before, wanted, field)
    return copy.deepcopy(wanted)


def _identify(items: list[Any], field: str) -> str | None:
    """Return the field by which all these items are told apart, if the list is such a one."""
    return next(
        (
            key
            for key in MERGE_KEYS.get(field, ())
            if items and all(isinstance(item, dict) and key in item for item in items)
        ),
        None,
    )


def _apply_items(live: Any, before: Any, wanted: list[Any], field: str) -> list[Any]:
    key = _identify(wanted, field)
    if key is None:
        return copy.deepcopy(wanted)
    live_by = {item[key]: item for item in live or [] if key in item}
    before_by = {item[key]: item for item in before or [] if key in item}
    ours = {item[key]: item for item in wanted}
    others = [
        copy.deepcopy(item)
        for name, item in live_by.items()
        if name not in ours and name not in before_by
    ]
    applied = [apply(live_by.get(name), before_by.get(name), item) for name, item in ours.items()]
    return [*applied, *others]
