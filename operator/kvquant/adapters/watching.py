"""The `Cluster` port with reads from watches: a pass that changes nothing asks the server nothing.

How old a read may be is bounded: a store whose watch is broken for longer than a few seconds is not
read. And being late is harmless, because a status write bears the version that was read, so that a
decision on something stale ends in `Conflict`; what conflicted is read directly the next time.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvquant import telemetry
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.adapters.listwatch import ListWatch
from kvquant.adapters.store import Absence, Store, stripped, substance
from kvquant.api import names
from kvquant.errors import ClusterError, Conflict
from kvquant.ports import Object

logger = logging.getLogger(__name__)

WATCHED = frozenset(
    {names.KIND, "ConfigMap", "Deployment", "HTTPRoute", "HorizontalPodAutoscaler", "Job", "Pod"}
    | {"PodDisruptionBudget", "Service", "ServiceAccount"}
)
"""Kinds that passes read or apply. Others, such as Secrets, are read directly and never kept."""

MOST_WATCHES = 512
"""Watches at a time, each a thread and a connection. Namespaces beyond are read directly."""

UNASKED = 900.0
"""Seconds after which a watch ends that nobody has read. The longest wait between two passes over a
rollout is a minute."""

Changed = Callable[[Object, bool], None]
"""(object, whether more than its status has changed): somebody else has changed an object."""


@dataclass(frozen=True, slots=True)
class _Applied:
    """What was applied, and what the object was like afterwards."""

    wanted: str
    substance: bytes


class WatchedCluster:
    """Watches what is read, each kind in each namespace from the first time on."""

    def __init__(self, connection: Connection, field_validation: str = "Warn") -> None:
        """Make the port; nothing is watched yet.

        Args:
            connection: The API server to talk to.
            field_validation: See `KubernetesCluster`.
        """
        self._connection = connection
        self._direct = KubernetesCluster(connection, field_validation)
        self._lock = threading.Lock()
        self._watches: dict[tuple[str, str], ListWatch] = {}
        self._applied: dict[tuple[str, str, str], _Applied] = {}
        self._swept_at = time.monotonic()
        self.changed: Changed | None = None
        """Called from the watches' threads. It must be quick and call nothing of the port but
        `rollouts`."""

    # The port.

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return the object, or None when there is none."""
        store = self._store(kind, namespace)
        found = Absence.NOT_KEPT if store is None else store.get(name)
        if found is Absence.GONE and kind != names.KIND:
            return None
        # That a rollout is gone or about to go ends its loop: there, no watch is believed.
        if not isinstance(found, Absence) and not _ends(found):
            return found
        telemetry.DIRECT_READS.labels(kind).inc()
        return self._read(kind, namespace, name)

    def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """Return the objects whose labels match all the given ones."""
        store = self._store(kind, namespace)
        if store is not None:
            for name in store.suspects:
                self._read(kind, namespace, name)
            found = store.select(labels)
            if not isinstance(found, Absence):
                return found
        telemetry.DIRECT_READS.labels(kind).inc()
        return [stripped(obj) for obj in self._direct.list(kind, namespace, labels)]

    def apply(self, obj: Object) -> Object:
        """Server-side apply; one that would change nothing is not sent.

        It would change nothing when the same was applied before and nobody has touched the object
        since. A version in the object asks for more than that, and is always sent.
        """
        metadata = obj["metadata"]
        kind, namespace, name = obj["kind"], metadata["namespace"], metadata["name"]
        key = (kind, namespace, name)
        # From now on somebody must tell when the object is touched.
        watch = self._watch(kind, namespace)
        wanted = json.dumps(obj, sort_keys=True)
        before = self._applied.get(key)
        repeated = before is not None and before.wanted == wanted
        if before and repeated and "resourceVersion" not in metadata and watch is not None:
            store = watch.store
            if watch.believable() and store.untouched(name, before.substance):
                found = store.get(name)
                if not isinstance(found, Absence):
                    return found
        try:
            stored = self._note(self._direct.apply(obj))
        except Conflict:
            self._suspect(*key)
            raise
        if kind in WATCHED:
            self._applied[key] = _Applied(wanted, substance(stored))
        return stored

    def patch(self, kind: str, namespace: str, name: str, patch: Object) -> Object:
        """JSON merge patch. With `metadata.resourceVersion` in it, stale raises `Conflict`."""
        try:
            return self._note(self._direct.patch(kind, namespace, name, patch))
        except Conflict:
            self._suspect(kind, namespace, name)
            raise

    def replace_status(self, obj: Object) -> Object:
        """Write the whole status; `metadata.resourceVersion` must be current, else `Conflict`."""
        try:
            return self._note(self._direct.replace_status(obj))
        except Conflict:
            self._suspect(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
            raise

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete the object with its dependents. One that is gone already is no error."""
        self._applied.pop((kind, namespace, name), None)
        self._direct.delete(kind, namespace, name)
        # A finalizer may keep it. Until the watch tells, the next read asks the server.
        self._suspect(kind, namespace, name)

    # Beside the port.

    def rollouts(self, namespace: str) -> Sequence[Object]:
        """Return the rollouts that the watch knows of in a namespace, without asking anybody."""
        with self._lock:
            watch = self._watches.get((names.KIND, namespace))
        found = Absence.GONE if watch is None else watch.store.select({})
        return () if isinstance(found, Absence) else found

    def close(self) -> None:
        """End every watch."""
        with self._lock:
            watches = list(self._watches.values())
            self._watches.clear()
        for watch in watches:
            watch.stop()
        for watch in watches:
            watch.join(2.0)

    def _store(self, kind: str, namespace: str) -> Store | None:
        """Return the store to read from; None when the server must be asked."""
        watch = self._watch(kind, namespace)
        return watch.store if watch is not None and watch.believable() else None

    def _watch(self, kind: str, namespace: str) -> ListWatch | None:
        """Return the watch of a kind in a namespace, begun when there was none."""
        if kind not in WATCHED or not namespace:
            return None
        with self._lock:
            self._sweep()
            watch = self._watches.get((kind, namespace))
            if watch is None:
                if len(self._watches) >= MOST_WATCHES:
                    return None
                watch = ListWatch(self._connection, kind, namespace, Store(self._tell))
                self._watches[kind, namespace] = watch
                telemetry.WATCHES.set(len(self._watches))
                watch.start()
        return watch

    def _sweep(self) -> None:
        """End the watches that nobody has read for long."""
        now = time.monotonic()
        if now - self._swept_at < UNASKED / 10:
            return
        self._swept_at = now
        for key, watch in list(self._watches.items()):
            if now - watch.asked_at > UNASKED:
                logger.info("Nobody asks for %s in %s any more", *key)
                watch.stop()
                del self._watches[key]
                telemetry.WATCHES.set(len(self._watches))
                for applied in [k for k in list(self._applied) if k[:2] == key]:
                    del self._applied[applied]

    def _read(self, kind: str, namespace: str, name: str) -> Object | None:
        """Read directly and keep what came."""
        with self._lock:
            watch = self._watches.get((kind, namespace))
        uid = None if watch is None else watch.store.uid(name)
        found = self._direct.get(kind, namespace, name)
        if found is not None:
            return self._note(found)
        if watch is not None:
            watch.store.note_gone(name, uid)
        return None

    def _note(self, obj: Object) -> Object:
        """Let the next read see what was written, though the watch may not have told yet."""
        obj = stripped(obj)
        with self._lock:
            watch = self._watches.get((obj["kind"], obj["metadata"].get("namespace", "")))
        if watch is not None:
            watch.store.note(obj)
        return obj

    def _suspect(self, kind: str, namespace: str, name: str) -> None:
        with self._lock:
            watch = self._watches.get((kind, namespace))
        if watch is not None:
            watch.store.suspect(name)

    def _tell(self, obj: Object, touched: bool) -> None:
        changed = self.changed
        if changed is not None:
            with suppress(ClusterError):
                changed(obj, touched)


def _ends(obj: Object) -> bool:
    return bool(obj["kind"] == names.KIND and "deletionTimestamp" in obj["metadata"])
