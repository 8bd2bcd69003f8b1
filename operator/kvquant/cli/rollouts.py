"""Find rollouts on the cluster, and say which ones there are when the name is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from kvquant import __version__, errors
from kvquant.api import names
from kvquant.api.v1alpha1 import AdoptionStage, KVQuantRollout, Spec, Status
from kvquant.cli.errors import Failure
from kvquant.ports import Cluster, Object


class Unreadable(Failure):
    """A rollout does not fit what this version knows."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A rollout as it was read.

    Attributes:
        rollout: The rollout.
        raw: The same as the API server returned it.
    """

    rollout: KVQuantRollout
    raw: Object = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the rollout."""
        return self.rollout.metadata.name

    @property
    def namespace(self) -> str:
        """Namespace of the rollout."""
        return self.rollout.metadata.namespace

    @property
    def spec(self) -> Spec:
        """What was asked for."""
        return self.rollout.spec

    @property
    def status(self) -> Status:
        """What the operator says of it."""
        return self.rollout.status

    @property
    def created_at(self) -> datetime | None:
        """When the rollout was created."""
        text = self.raw["metadata"].get("creationTimestamp")
        return datetime.fromisoformat(text) if text else None

    @property
    def deleting(self) -> bool:
        """Whether somebody has deleted it, so that it only winds down."""
        return self.rollout.metadata.deletion_timestamp is not None

    @property
    def resource_version(self) -> str:
        """Version of the object that was read."""
        return self.rollout.metadata.resource_version

    def asked(self, annotation: str) -> str | None:
        """Return what a level annotation says; None while it is absent or false."""
        text = self.rollout.metadata.annotations.get(annotation)
        return None if text is None or text.strip().lower() in ("", "false") else text


def read(raw: Object) -> Seen:
    """Read an object of the API server.

    Raises:
        Unreadable: It does not fit what this version knows.
    """
    try:
        return Seen(KVQuantRollout.parse(raw), raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Unreadable(
            f"rollout {_name(raw)} cannot be read by this version ({__version__}): {where}: "
            f"{first['msg']}. Use the version of the CLI that came with the operator"
        ) from error


def find(cluster: Cluster, namespace: str, name: str) -> Seen:
    """Return the rollout of that name.

    Raises:
        Failure: There is none; the message tells which ones there are.
    """
    return read(find_raw(cluster, namespace, name))


def find_raw(cluster: Cluster, namespace: str, name: str) -> Object:
    """Return the rollout of that name as the API server returns it.

    Raises:
        Failure: There is none; the message tells which ones there are.
    """
    raw = cluster.get(names.KIND, namespace, name)
    if raw is None:
        raise Failure(_none_such(cluster, namespace, name))
    return raw


def everything(cluster: Cluster, namespace: str) -> list[Seen]:
    """Return the rollouts of a namespace, or of all of them when it is empty, in order."""
    found = [read(raw) for raw in cluster.list(names.KIND, namespace, {})]
    return sorted(found, key=lambda seen: (seen.namespace, seen.name))


def status_of(raw: Object) -> dict[str, Any]:
    """Return the status of an unread object, where one bad field must not stop an emergency."""
    status = raw.get("status")
    return status if isinstance(status, dict) else {}


def is_adopting(status: Mapping[str, Any]) -> bool:
    """Tell of an unread status whether a promoted pool is giving its traffic to the target."""
    stage = (status.get("adoption") or {}).get("stage")
    return stage in (AdoptionStage.PROVING, AdoptionStage.HANDING_OVER)


def obeys_kill(status: Mapping[str, Any]) -> bool:
    """Tell of an unread status whether the operator has taken a kill switch up."""
    if not is_adopting(status):
        return bool(status.get("killed"))
    conditions = status.get("conditions") or ()
    return any(c.get("type") == "Adopted" and c.get("reason") == "Killed" for c in conditions)


def kill_holds(status: Mapping[str, Any]) -> bool:
    """Tell of an unread status whether every request goes where the kill switch sends it.

    That is the baseline; of a rollout that is adopted, it is the promoted pool.
    """
    canary = (status.get("weights") or {}).get("canary", 0)
    return obeys_kill(status) and canary == (100 if is_adopting(status) else 0)


def _none_such(cluster: Cluster, namespace: str, name: str) -> str:
    text = f"there is no rollout {name!r} in namespace {namespace}"
    here = _listed(cluster, namespace)
    if here:
        close = difflib.get_close_matches(name, here, n=1)
        guess = f" Did you mean {close[0]}?" if close else ""
        return f"{text}. There are: {_enumerated(here)}.{guess}"
    elsewhere = _listed(cluster, "")
    if elsewhere:
        return f"{text}, which has none. There are: {_enumerated(elsewhere)}. Name it with -n"
    return f"{text}, which has none. All that you may see: kubectl get kvqr -A"


def _listed(cluster: Cluster, namespace: str) -> list[str]:
    """Return names, with the namespace where it is not given; none when it is not allowed."""
    try:
        raws = cluster.list(names.KIND, namespace, {})
    except errors.ClusterError:
        # This only adds to a message about something else.
        return []
    return sorted(raw["metadata"]["name"] if namespace else _name(raw) for raw in raws)


def _enumerated(items: Sequence[str]) -> str:
    shown = ", ".join(items[:10])
    return shown if len(items) <= 10 else f"{shown} and {len(items) - 10} more"


def _name(raw: Object) -> str:
    return f"{raw['metadata'].get('namespace', '')}/{raw['metadata'].get('name', '')}"
