"""What this process knows of alerts, and which rollouts it concerns. Safe to share between threads.

Nothing here has to survive: what matters to a rollout stands in its status, and who tells of an
alert is told that it was heard only when it stands there.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from kvquant.api.v1alpha1 import AlertPolicy, AlertSource
from kvquant.core.alerts import NAMESPACE, REPEATED_WITHIN, Alert, Heard, PolledAlert, Watch

Key = tuple[str, str]
"""Namespace and name of a rollout."""

MOST_ALERTS = 1024
"""Alerts of Alertmanager that are kept; what was told longest ago goes first. Those of Prometheus
are bounded by the length of its answer."""

FRESH = timedelta(seconds=30)
"""Age of an answer of Prometheus within which no alert can have begun to fire unseen."""

STEADY = timedelta(seconds=90)
"""Time for which Prometheus must have answered, without telling an alert, before that one is over.
After a restart its rules are evaluated one interval later, and alerts are pending first."""

STALE = timedelta(seconds=150)
"""Age of what a rule has said last beyond which it says nothing of the present."""


Receipt = Mapping[Key, int]
"""The rollouts that some notes concern, each with the mark from which on it has them."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is told of one alert; with an end, it is over. The mark says when that was news."""

    alert: Alert
    ended_at: datetime | None = None
    mark: int = 0


@dataclass(slots=True)
class _Shelf:
    """The alerts of one source by fingerprint, those told longest ago first, and by namespace."""

    most: int | None = None
    by_print: dict[str, Note] = field(default_factory=dict)
    by_namespace: dict[str, dict[str, Note]] = field(default_factory=lambda: defaultdict(dict))

    def put(self, note: Note) -> None:
        self.drop(note.alert.fingerprint)
        self.by_print[note.alert.fingerprint] = note
        self.by_namespace[note.alert.labels.get(NAMESPACE, "")][note.alert.fingerprint] = note
        while self.most is not None and len(self.by_print) > self.most:
            self.drop(next(iter(self.by_print)))

    def drop(self, fingerprint: str) -> None:
        note = self.by_print.pop(fingerprint, None)
        if note is not None:
            namespace = note.alert.labels.get(NAMESPACE, "")
            del self.by_namespace[namespace][fingerprint]
            if not self.by_namespace[namespace]:
                del self.by_namespace[namespace]

    def of(self, watch: Watch) -> list[Note]:
        shelves = (self.by_namespace.get(namespace, {}) for namespace in watch.namespaces)
        return [note for shelf in shelves for note in shelf.values()]


class AlertBoard:
    """The port `Alerts`: keeps what is told and wakes the rollouts that it concerns."""

    def __init__(self, clock: Callable[[], datetime], *, polls: bool = False) -> None:
        """Make a board on which nothing stands.

        Args:
            clock: Returns the present instant.
            polls: Whether somebody will ask Prometheus and call `polled`.
        """
        self.wake: Callable[[str, str], None] = lambda *_: None
        """Begins a rollout's next pass; called from any thread."""
        self._clock = clock
        self._polls = polls
        self._lock = threading.Lock()
        self._told = _Shelf(MOST_ALERTS)
        self._firing = _Shelf()
        self._seen: dict[str, datetime] = {}
        self._lingering: frozenset[str] = frozenset()
        self._polled_at: datetime | None = None
        self._steady_since: datetime | None = None
        self._mark = 0
        self._watches: dict[Key, Watch] = {}
        self._by_namespace: dict[str, set[Key]] = defaultdict(set)
        self._stored: dict[Key, int] = {}

    # For passes: the port.

    def heard(self, watch: Watch) -> Heard:
        """Return what is known of alerts for a rollout, which is told of news from now on."""
        now = self._clock()
        with self._lock:
            self._register(watch)
            notes = [
                note
                for note in self._told.of(watch)
                if now - note.alert.heard_at <= REPEATED_WITHIN
            ]
            firing = [note.alert for note in notes if note.ended_at is None]
            firing += [note.alert for note in self._firing.of(watch)]
            return Heard(
                watch=watch,
                firing=tuple(firing),
                ended={
                    note.alert.fingerprint: note.ended_at
                    for note in notes
                    if note.ended_at is not None
                },
                polls=self._polls,
                polled=self._polled_at is not None and now - self._polled_at <= FRESH,
                steady=self._steady(),
                lingering=self._lingering,
                mark=self._mark,
            )

    def stored(self, watch: Watch, mark: int) -> None:
        """Take note that a rollout's status holds what `heard` returned with this mark."""
        with self._lock:
            key = (watch.namespace, watch.rollout)
            self._stored[key] = max(mark, self._stored.get(key, 0))

    def forget(self, namespace: str, rollout: str) -> None:
        """Tell a rollout no more: it is gone."""
        with self._lock:
            self._unregister((namespace, rollout))
            self._stored.pop((namespace, rollout), None)

    # For those who bring news.

    def tell(self, notes: Iterable[Note]) -> Receipt:
        """Take in what Alertmanager tells, and wake the rollouts for which it is news."""
        news: set[Key] = set()
        receipt: dict[Key, int] = {}
        with self._lock:
            self._mark += 1
            for note in notes:
                kept = self._take(note)
                keys = self._concerned(note.alert)
                receipt |= {key: max(kept, receipt.get(key, 0)) for key in keys}
                if kept == self._mark:
                    news |= keys
        self._wake(news)
        return receipt

    def taken(self, receipt: Receipt) -> bool:
        """Tell whether every rollout that is concerned has stored what was told."""
        with self._lock:
            return all(
                self._stored.get(key, 0) >= mark
                for key, mark in receipt.items()
                if key in self._watches
            )

    def polled(self, alerts: Sequence[PolledAlert] | None) -> None:
        """Take in all that Prometheus tells; None when it did not answer."""
        now = self._clock()
        told = [
            (Alert.of(one.labels, one.since, AlertSource.POLLING, now), one) for one in alerts or ()
        ]
        with self._lock:
            if alerts is None:
                self._steady_since = None
                return
            known = self._polled_at is not None and now - self._polled_at <= FRESH
            self._polled_at = now
            self._steady_since = self._steady_since or now
            news = set() if known else set(self._watches)
            before, self._firing = self._firing.by_print, _Shelf()
            for alert, one in told:
                self._seen[alert.fingerprint] = now
                if one.fires and now - one.told_at <= STALE:
                    self._firing.put(Note(alert))
                    if alert.fingerprint not in before:
                        news |= self._concerned(alert)
            self._seen = {one: at for one, at in self._seen.items() if now - at < STEADY}
            self._lingering = frozenset(self._seen)
        self._wake(news)

    def _take(self, note: Note) -> int:
        """Keep a note, if nothing later is known; return the mark from which on it is known."""
        known = self._told.by_print.get(note.alert.fingerprint)
        if known is not None and _is_later(known, note):
            return known.mark
        news = known is None or (known.ended_at, known.alert.since) != (
            note.ended_at,
            note.alert.since,
        )
        mark = self._mark if news or known is None else known.mark
        self._told.put(replace(note, mark=mark))
        return mark

    def _steady(self) -> bool:
        if self._steady_since is None or self._polled_at is None:
            return False
        return self._polled_at - self._steady_since >= STEADY

    def _concerned(self, alert: Alert) -> set[Key]:
        candidates = self._by_namespace.get(alert.labels.get(NAMESPACE, ""), set())
        return {
            key
            for key in candidates
            if self._watches[key].policy(alert.labels) not in (None, AlertPolicy.IGNORE)
        }

    def _register(self, watch: Watch) -> None:
        key = (watch.namespace, watch.rollout)
        if self._watches.get(key) != watch:
            self._unregister(key)
            self._watches[key] = watch
            for namespace in watch.namespaces:
                self._by_namespace[namespace].add(key)

    def _unregister(self, key: Key) -> None:
        watch = self._watches.pop(key, None)
        for namespace in watch.namespaces if watch is not None else ():
            self._by_namespace[namespace].discard(key)
            if not self._by_namespace[namespace]:
                del self._by_namespace[namespace]

    def _wake(self, keys: Iterable[Key]) -> None:
        for namespace, name in keys:
            self.wake(namespace, name)


def _is_later(known: Note, note: Note) -> bool:
    """Tell whether what is known speaks of a later time: notes may be repeated or come late."""
    if note.ended_at is None:
        return known.ended_at is not None and note.alert.since < known.ended_at
    return known.alert.since > note.ended_at
