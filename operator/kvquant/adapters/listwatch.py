"""Keep one store as the API server has it: list, then watch, and again whenever that breaks."""

from __future__ import annotations

import json
import logging
import random
import threading
import time

from kvquant import errors
from kvquant.adapters.cluster import RESOURCES
from kvquant.adapters.connection import Connection, Stream, raise_for
from kvquant.adapters.store import Store, stripped
from kvquant.ports import Object

logger = logging.getLogger(__name__)

WATCH_SECONDS = (240, 300)
"""Between these the server ends a watch, each at another moment: not all come back at once."""

SILENCE = 90.0
"""Seconds without a byte after which a watch counts as broken. Bookmarks come every minute."""

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds between attempts that fail: the first wait, doubled up to the longest."""

SHORTEST_WATCH = 1.0
"""A watch that ends sooner, without a word, counts as failed: else it would be opened in a loop."""

BEARABLE_BREAK = 5.0
"""Seconds for which a store without a watch is still believed."""

FIRST_LIST = 3.0
"""Longest wait of a reader for a store that has just begun, in seconds."""


class _Gone(errors.ClusterError):
    """The server does not remember as far back as we were: list again."""


class ListWatch:
    """A thread that feeds one store.

    Attributes:
        store: The store.
        asked_at: When somebody has last read it, by the monotonic clock.
    """

    def __init__(self, connection: Connection, kind: str, namespace: str, store: Store) -> None:
        self._connection = connection
        self._kind = kind
        self._path = RESOURCES[kind].path(namespace)
        self._subject = f"{kind} in {namespace}"
        self.store = store
        self.asked_at = time.monotonic()
        self._begun = self.asked_at
        self._version: str | None = None
        self._synced = False
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._broken_since: float | None = self._begun
        self._stream: Stream | None = None
        self._heard = False
        self._said = ""
        self._thread = threading.Thread(target=self._run, name=f"watch {kind}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does so within moments."""
        self._stopping.set()
        stream = self._stream
        if stream is not None:
            stream.abandon()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout)

    def believable(self) -> bool:
        """Tell whether the store may be read, waiting a moment when it has just begun."""
        now = self.asked_at = time.monotonic()
        if not self._synced:
            self._tried.wait(max(0.0, self._begun + FIRST_LIST - now))
        broken = self._broken_since
        return self._synced and (broken is None or time.monotonic() - broken < BEARABLE_BREAK)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stopping.is_set():
            began, self._heard = time.monotonic(), False
            try:
                if self._version is None:
                    self._version = self._list()
                self._watch(self._version)
                if not self._heard and time.monotonic() - began < SHORTEST_WATCH:
                    raise errors.Unavailable("it ended at once, without a word")
            except _Gone as error:
                logger.info("Listing %s again: %s", self._subject, error)
                self._version = None
            except errors.ClusterError as error:
                self._say(str(error))
            except Exception as error:
                # Whatever a server may say, the thread must go on; readers ask directly meanwhile.
                self._say(f"what it brings cannot be used: {error!r}")
                self._version = None
            else:
                backoff = FIRST_BACKOFF
                continue
            self._break()
            self._tried.set()
            if self._heard:
                backoff = FIRST_BACKOFF
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not secrecy
            self._stopping.wait(backoff * jitter)
            backoff = min(backoff * 2, LONGEST_BACKOFF)

    def _say(self, problem: str) -> None:
        """Log a problem once, however often it comes again with other details."""
        kind = problem.split(": ")[0]
        if kind != self._said and not self._stopping.is_set():
            self._said = kind
            logger.warning("No watch of %s, which is read directly: %s", self._subject, problem)

    def _break(self) -> None:
        if self._broken_since is None:
            self._broken_since = time.monotonic()

    def _list(self) -> str:
        """Fill the store and return the version from which to watch."""
        query = {"limit": str(RESOURCES[self._kind].page)}
        objects: list[Object] = []
        while True:
            answer = self._connection.request("GET", self._path, query=query)
            if answer.status == 410:
                raise _Gone(answer.message)
            raise_for(answer, f"list of {self._subject}")
            metadata = answer.document["metadata"]
            objects += [self._whole(item) for item in answer.document.get("items") or ()]
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        version: str = metadata["resourceVersion"]
        self.store.replace(objects, int(version))
        return version

    def _watch(self, version: str) -> None:
        """Follow until the server ends the watch."""
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),  # noqa: S311 - as above
        }
        stream = self._connection.stream(self._path, query, SILENCE)
        self._stream = stream
        try:
            if stream.status == 410:
                raise _Gone("the server has forgotten the version")
            if stream.status != 200:
                raise_for(stream.whole(), f"watch of {self._subject}")
            self._synced, self._broken_since, self._said = True, None, ""
            self._tried.set()
            for line in stream.lines():
                if self._stopping.is_set():
                    return
                self._take(json.loads(line))
        finally:
            self._break()
            self._stream = None
            stream.close()

    def _take(self, event: Object) -> None:
        """Take in one event. A watch that breaks later is taken up after it."""
        type_, obj = event["type"], event["object"]
        if type_ == "ERROR":
            if obj.get("code") == 410:
                raise _Gone(obj.get("message", ""))
            raise errors.ClusterError(f"watch of {self._subject}: {obj.get('message')}")
        if type_ in ("ADDED", "MODIFIED"):
            self.store.changed(self._whole(obj))
        elif type_ == "DELETED":
            self.store.deleted(self._whole(obj))
        self._version = obj["metadata"]["resourceVersion"]
        self._heard = True

    def _whole(self, obj: Object) -> Object:
        return stripped(
            {**obj, "apiVersion": RESOURCES[self._kind].api_version, "kind": self._kind}
        )
