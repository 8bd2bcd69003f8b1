"""The `Cluster` port in memory, faithful where the reconciler could notice the difference.

The contract suite (tests/contract) runs the same tests against this and against a real API server.
What it leaves out: CEL rules, the defaults of built-in kinds, owner garbage collection, and every
controller. Tests play the controllers with `put`, `edit` and `set_status`.
"""

from __future__ import annotations

import copy
import itertools
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from kvquant.api import names
from kvquant.errors import ClusterError, Conflict, Refused
from kvquant.ports import Object
from tests.fakes import merging, schema

KINDS = frozenset(
    {names.KIND, "ConfigMap", "Deployment", "Event", "HorizontalPodAutoscaler", "Job"}
    | {"Gateway", "GatewayClass", "HTTPRoute"}
    | {"Pod", "PodDisruptionBudget", "ReplicaSet", "Secret", "Service", "ServiceAccount"}
)

STATUS_SUBRESOURCE = frozenset(
    {names.KIND, "Deployment", "HTTPRoute", "HorizontalPodAutoscaler", "Job", "Pod"}
    | {"PodDisruptionBudget", "ReplicaSet", "Service"}
)
"""Kinds whose status cannot be written through the object itself."""

COUNTS_GENERATIONS = STATUS_SUBRESOURCE - {"HorizontalPodAutoscaler", "Service"}

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

Key = tuple[str, str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the port, in the order in which they came."""

    verb: str
    kind: str
    namespace: str
    name: str

    @property
    def writes(self) -> bool:
        """Whether the call asked for a change."""
        return self.verb not in ("get", "list")


@dataclass(slots=True)
class Fault:
    """Lets calls fail.

    Attributes:
        error: What to raise.
        verb: Only calls of this verb (get, list, apply, patch, replace_status, delete).
        kind: Only calls about this kind.
        skip: Matching calls that go through before the first failure.
        times: Matching calls that fail.
        late: The call takes effect and only its answer is lost, as with a read time-out.
    """

    error: ClusterError
    verb: str | None = None
    kind: str | None = None
    skip: int = 0
    times: int = 1
    late: bool = False

    def strikes(self, call: Call) -> bool:
        """Whether this call is one that fails; counts it."""
        if self.verb not in (None, call.verb) or self.kind not in (None, call.kind):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return self.times >= 0


class FakeCluster:
    """Objects in memory.

    Attributes:
        calls: Every call of the port so far.
        faults: Faults that are armed; append to inject.
    """

    def __init__(self, now: Callable[[], datetime] = lambda: EPOCH) -> None:
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self._now = now
        self._objects: dict[Key, Object] = {}
        self._applied: dict[Key, Object] = {}
        self._versions = itertools.count(1)
        self._lock = threading.RLock()

    # The port.

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self._call(
            Call("get", kind, namespace, name),
            lambda: copy.deepcopy(self._objects.get((kind, namespace, name))),
        )

    def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        def find() -> Sequence[Object]:
            return [
                copy.deepcopy(obj)
                for (its_kind, its_namespace, _), obj in sorted(self._objects.items())
                if its_kind == kind
                and namespace in ("", its_namespace)
                and labels.items() <= obj["metadata"].get("labels", {}).items()
            ]

        return [*self._call(Call("list", kind, namespace, ""), find)]

    def apply(self, obj: Object) -> Object:
        key = _key(obj)

        def change() -> Object:
            wanted = copy.deepcopy(obj)
            if key[0] in STATUS_SUBRESOURCE:
                wanted.pop("status", None)
            live = self._objects.get(key)
            self._guard(wanted, live)
            merged = merging.apply(live or {}, self._applied.get(key, {}), wanted)
            stored = self._store(key, merged)
            self._applied[key] = wanted
            return stored

        return self._call(Call("apply", *key), change)

    def patch(self, kind: str, namespace: str, name: str, patch: Object) -> Object:
        key = (kind, namespace, name)

        def change() -> Object:
            live = self._existing(key)
            self._guard(patch, live)
            merged = merging.merge_patch(live, patch)
            if kind in STATUS_SUBRESOURCE:
                _restore(merged, live, "status")
            return self._store(key, merged)

        return self._call(Call("patch", *key), change)

    def replace_status(self, obj: Object) -> Object:
        key = _key(obj)

        def change() -> Object:
            live = self._existing(key)
            if not obj["metadata"].get("resourceVersion"):
                raise Refused("metadata.resourceVersion: must be specified for an update")
            self._guard(obj, live)
            changed = copy.deepcopy(live)
            _restore(changed, copy.deepcopy(obj), "status")
            return self._store(key, changed)

        return self._call(Call("replace_status", *key), change)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        key = (kind, namespace, name)

        def change() -> None:
            live = self._objects.get(key)
            if live is None:
                return
            if not live["metadata"].get("finalizers"):
                self._remove(key)
            elif "deletionTimestamp" not in live["metadata"]:
                doomed = copy.deepcopy(live)
                doomed["metadata"]["deletionTimestamp"] = _text(self._now())
                if "generation" in doomed["metadata"]:
                    doomed["metadata"]["generation"] += 1
                self._objects[key] = self._versioned(doomed)

        self._call(Call("delete", *key), change)

    # What the rest of the world does: not logged as calls, not hit by faults.

    def put(self, obj: Object) -> Object:
        """Place an object as it stands, its status included, replacing what was there."""
        with self._lock:
            key = _key(obj)
            self._applied.pop(key, None)
            return self._store(key, copy.deepcopy(obj))

    def edit(self, kind: str, namespace: str, name: str, change: Callable[[Object], None]) -> None:
        """Let somebody else change an object in place."""
        with self._lock:
            obj = copy.deepcopy(self._existing((kind, namespace, name)))
            change(obj)
            self._store((kind, namespace, name), obj)

    def set_status(self, kind: str, namespace: str, name: str, status: Object) -> None:
        """Let a controller or the kubelet report."""
        self.edit(kind, namespace, name, lambda obj: obj.update(status=copy.deepcopy(status)))

    def vanish(self, kind: str, namespace: str, name: str) -> None:
        """Let an object be gone at once, finalizers or not."""
        with self._lock:
            self._remove((kind, namespace, name))

    def objects(self, kind: str) -> Sequence[Object]:
        """Return every object of a kind, to assert on."""
        with self._lock:
            return [copy.deepcopy(obj) for key, obj in self._objects.items() if key[0] == kind]

    # The workings.

    def _call(self, call: Call, act: Callable[[], T]) -> T:
        if call.kind not in KINDS:
            raise ValueError(f"no path is known for kind {call.kind!r}")
        with self._lock:
            self.calls.append(call)
            struck = next((fault for fault in self.faults if fault.strikes(call)), None)
            if struck is None:
                return act()
            if struck.late:
                act()
            raise struck.error

    def _existing(self, key: Key) -> Object:
        live = self._objects.get(key)
        if live is None:
            raise Conflict("{} {}/{} is gone".format(*key))
        return live

    def _guard(self, wanted: Object, live: Object | None) -> None:
        """Refuse a write whose resourceVersion is not the current one."""
        version = wanted.get("metadata", {}).get("resourceVersion")
        if version and (live is None or version != live["metadata"]["resourceVersion"]):
            raise Conflict("the object has been modified; read it and try again")

    def _store(self, key: Key, obj: Object) -> Object:
        kind, namespace, name = key
        live = self._objects.get(key)
        if kind == names.KIND:
            obj, faults = schema.admit(obj)
            if faults:
                raise Refused(f'{kind} "{name}" is invalid: {"; ".join(faults)}')
        if kind == "Deployment" and live is not None:
            selector = live.get("spec", {}).get("selector")
            if obj.get("spec", {}).get("selector") != selector:
                raise Refused(f'{kind} "{name}" is invalid: spec.selector: field is immutable')
        if kind == "Job" and live is not None:
            template = live.get("spec", {}).get("template")
            if obj.get("spec", {}).get("template") != template:
                raise Refused(f'{kind} "{name}" is invalid: spec.template: field is immutable')
        if kind == "Secret" and live is not None and live.get("type") != obj.get("type"):
            raise Refused(f'{kind} "{name}" is invalid: type: field is immutable')
        metadata = obj["metadata"]
        if live is None:
            metadata.setdefault("uid", str(uuid.UUID(int=next(self._versions))))
            metadata.setdefault("creationTimestamp", _text(self._now()))
        # The server alone writes these.
        for field in ("uid", "creationTimestamp", "generation", "resourceVersion"):
            if live is not None:
                _restore(metadata, live["metadata"], field)
        metadata["namespace"], metadata["name"] = namespace, name
        if kind in COUNTS_GENERATIONS:
            if live is None:
                metadata.setdefault("generation", 1)
            elif _substance(obj) != _substance(live):
                metadata["generation"] = live["metadata"].get("generation", 0) + 1
        if obj == live:
            return copy.deepcopy(obj)
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._remove(key)
            return copy.deepcopy(obj)
        self._objects[key] = self._versioned(obj)
        return copy.deepcopy(self._objects[key])

    def _versioned(self, obj: Object) -> Object:
        obj["metadata"]["resourceVersion"] = str(next(self._versions))
        return obj

    def _remove(self, key: Key) -> None:
        self._objects.pop(key, None)
        self._applied.pop(key, None)


def _key(obj: Object) -> Key:
    return obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]


def _substance(obj: Object) -> Object:
    """Everything that a change of makes a new generation."""
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def _restore(target: Object, source: Object, field: str) -> None:
    """Let the target's field be as the source's, absence included."""
    if field in source:
        target[field] = source[field]
    else:
        target.pop(field, None)


def _text(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
