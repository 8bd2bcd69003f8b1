"""The objects of one kind in one namespace, as a watch tells them. Plain state, thread-safe.

An object is kept as JSON text. To parse it again for each reader is quicker than to copy a tree of
dictionaries, takes a fraction of the memory, and no reader can change what another one gets.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from kvquant.api import names
from kvquant.ports import Object

LARGEST_OBJECT = 256 * 2**10
"""Bytes of the largest object that is kept; a larger one is only known to be there."""

LARGEST_STORE = 64 * 2**20
"""Bytes that one store keeps. What comes beyond them is only known to be there."""


class Absence(Enum):
    """Why a store returns no object."""

    GONE = auto()
    """There is none."""
    NOT_KEPT = auto()
    """There is one that is too large to be kept, or may be one: ask the API server."""


@dataclass(slots=True)
class Entry:
    """One object.

    Attributes:
        version: Its resourceVersion. Later states have higher ones.
        uid: Tells it from another object that had its name before.
        labels: What lists select by.
        text: The object as JSON; None when it is too large to be kept.
        substance: Digest of everything that its owner decides, see `substance`.
    """

    version: int
    uid: str
    labels: Mapping[str, str]
    text: bytes | None
    substance: bytes


Told = Callable[[Object, bool], None]
"""(object, whether more than its status has changed); an object that is gone has changed."""


class Store:
    """Objects by name."""

    def __init__(self, told: Told | None = None) -> None:
        """Make an empty store.

        Args:
            told: Called after the store has taken in what others have changed. Of what we have
                written ourselves it hears only when the watch was quicker than the answer.
        """
        self._told = told
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._bytes = 0
        self._doomed: dict[str, str] = {}
        self._suspects: set[str] = set()

    def get(self, name: str) -> Object | Absence:
        """Return an object of the reader's own."""
        with self._lock:
            entry = self._entries.get(name)
            if name in self._suspects or (entry is not None and entry.text is None):
                return Absence.NOT_KEPT
        if entry is None or entry.text is None:
            return Absence.GONE
        found: Object = json.loads(entry.text)
        return found

    def select(self, labels: Mapping[str, str]) -> list[Object] | Absence:
        """Return the objects that bear all the labels, by name."""
        with self._lock:
            if self._suspects:
                return Absence.NOT_KEPT
            texts = [
                entry.text
                for _, entry in sorted(self._entries.items())
                if labels.items() <= entry.labels.items()
            ]
        if None in texts:
            return Absence.NOT_KEPT
        return [json.loads(text) for text in texts if text is not None]

    def untouched(self, name: str, substance_then: bytes) -> bool:
        """Tell whether nobody has changed more than an object's status since it was like that."""
        with self._lock:
            entry = self._entries.get(name)
            return (
                entry is not None
                and name not in self._suspects
                and entry.substance == substance_then
            )

    def note(self, obj: Object) -> None:
        """Take in what a write or a direct read has returned, when it is newer."""
        with self._lock:
            self._put(obj)
            self._suspects.discard(obj["metadata"]["name"])

    def uid(self, name: str) -> str | None:
        """Return which object bears the name, by what is known."""
        with self._lock:
            entry = self._entries.get(name)
            return None if entry is None else entry.uid

    def note_gone(self, name: str, uid: str | None) -> None:
        """Take in that a direct read has found nothing.

        Late news of the object that was known before the read count no more. Another one may have
        been made under its name since, and stays.
        """
        with self._lock:
            self._suspects.discard(name)
            entry = self._entries.get(name)
            if entry is not None and entry.uid == uid:
                self._drop(name)
                self._doomed[name] = entry.uid

    def suspect(self, name: str) -> None:
        """Let an object be read directly next time: a write has shown that another one is newer."""
        with self._lock:
            self._suspects.add(name)

    @property
    def suspects(self) -> tuple[str, ...]:
        """Names of the objects that must be read directly."""
        with self._lock:
            return tuple(self._suspects)

    def changed(self, obj: Object) -> None:
        """Take in an object that a watch tells of."""
        with self._lock:
            before = self._entries.get(obj["metadata"]["name"])
            after = self._put(obj)
        if after is not None:
            self._tell(obj, before is None or before.substance != after.substance)

    def deleted(self, obj: Object) -> None:
        """Take in that a watch tells of an object's end."""
        name, version = obj["metadata"]["name"], int(obj["metadata"]["resourceVersion"])
        with self._lock:
            self._doomed.pop(name, None)
            before = self._entries.get(name)
            if before is None or before.version > version:
                return
            self._drop(name)
        self._tell(obj, True)

    def replace(self, objects: Iterable[Object], version: int) -> None:
        """Take in a whole list, which was true at a version."""
        told: list[tuple[Object, bool]] = []
        listed: set[str] = set()
        with self._lock:
            for obj in objects:
                name = obj["metadata"]["name"]
                listed.add(name)
                before = self._entries.get(name)
                after = self._put(obj)
                if after is not None:
                    told.append((obj, before is None or before.substance != after.substance))
            for name in [n for n, entry in self._entries.items() if n not in listed]:
                # What we wrote after the list was made is not in it.
                if self._entries[name].version <= version:
                    entry = self._drop(name)
                    if entry is not None and entry.text is not None:
                        told.append((json.loads(entry.text), True))
            self._doomed = {n: uid for n, uid in self._doomed.items() if n in listed}
        for obj, touched in told:
            self._tell(obj, touched)

    def _put(self, obj: Object) -> Entry | None:
        """Keep an object unless something as new is kept; return what is kept now."""
        metadata = obj["metadata"]
        name, version = metadata["name"], int(metadata["resourceVersion"])
        before = self._entries.get(name)
        if before is not None and before.version >= version:
            return None
        uid = metadata.get("uid", "")
        if self._doomed.get(name) == uid:
            return None
        self._drop(name)
        text: bytes | None = json.dumps(obj, separators=(",", ":")).encode()
        if text is not None and len(text) > min(LARGEST_OBJECT, LARGEST_STORE - self._bytes):
            text = None
        self._bytes += len(text or b"")
        entry = Entry(version, uid, dict(metadata.get("labels") or {}), text, substance(obj))
        self._entries[name] = entry
        return entry

    def _drop(self, name: str) -> Entry | None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._bytes -= len(entry.text or b"")
        return entry

    def _tell(self, obj: Object, touched: bool) -> None:
        if self._told is not None:
            self._told(obj, touched)


def substance(obj: Object) -> bytes:
    """Return a digest of an object without what the server and controllers report about it."""
    metadata = {
        key: value
        for key, value in obj["metadata"].items()
        if key not in ("resourceVersion", "managedFields", "generation")
    }
    rest = {key: value for key, value in obj.items() if key not in ("metadata", "status")}
    text = json.dumps([metadata, rest], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def stripped(obj: Object) -> Object:
    """Return an object without what is large and what no pass reads.

    That is managedFields, half of an object's size, and what stands in the records of decisions.
    Of an HTTPRoute, who writes to it matters, and there are few.
    """
    if obj.get("kind") == "HTTPRoute":
        return obj
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    if names.LABEL_RECORD in (metadata.get("labels") or {}):
        return {**{key: value for key, value in obj.items() if key != "data"}, "metadata": metadata}
    return {**obj, "metadata": metadata}
