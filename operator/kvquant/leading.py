"""Which of several operators decides: the one that holds a Lease, and nobody but it.

Followers do nothing but wait. A leader that could not renew its Lease for longer than `deadline`
may not write any more, though it goes on trying: when the API server is back and nobody else has
taken the Lease, it leads on. Others wait for `duration`, which is longer, from when they have last
seen the Lease change; so there are never two. No clock of another machine is believed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from kvquant import telemetry
from kvquant.api import names
from kvquant.errors import ClusterError, Conflict, Unavailable
from kvquant.ports import Cluster, LeaseStore, Object

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """How patient candidates are, in seconds.

    Attributes:
        duration: A follower takes over from a leader that is silent for so long.
        deadline: A leader that could not renew for so long writes no more.
        retry: Time between two attempts, of leader and followers.
    """

    duration: float
    deadline: float
    retry: float

    @classmethod
    def of(cls, duration: float) -> Terms:
        """Return terms in the proportion of Kubernetes' own components, only with more attempts."""
        return cls(duration, duration * 2 / 3, duration / 6)


def boot_clock() -> float:
    """Return seconds since the machine was booted; they pass while it is suspended, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leadership:
    """One candidate's claim to the Lease."""

    def __init__(
        self,
        lease: LeaseStore,
        identity: str,
        terms: Terms,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """Make a candidate that does nothing yet.

        Args:
            lease: Where the Lease is kept.
            identity: Who this is. Two processes never have the same, or one would renew what the
                other holds.
            terms: How patient it is.
            clock: Seconds that pass evenly.
        """
        self._lease = lease
        self._identity = identity
        self._terms = terms
        self._clock = clock
        self._held: Object | None = None
        self._renewed_at = -float("inf")
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        """Wait until this candidate leads; False when it was told to stop before."""
        logger.info("Waiting for the Lease as %s", self._identity)
        while not self._stopping.is_set():
            try:
                if self.attempt():
                    logger.info("Leading as %s", self._identity)
                    telemetry.LEADER.set(1)
                    return True
            except ClusterError as error:
                logger.warning("The Lease cannot be had yet: %s", error)
            self.pause()
        return False

    def start(self, lost: Callable[[str], None]) -> None:
        """Renew the Lease from now on.

        Args:
            lost: Called with the new leader's name when somebody else has taken the Lease. Nothing
                may be done after that.
        """

        def keep() -> None:
            while not self.pause():
                try:
                    if not self.attempt():
                        telemetry.LEADER.set(0)
                        lost(self._seen[0] if self._seen else "nobody")
                        return
                except ClusterError as error:
                    logger.warning("The Lease is not renewed: %s", error)
                except Exception:
                    logger.exception("The Lease is not renewed")

        self._thread = threading.Thread(target=keep, name="lease", daemon=True)
        self._thread.start()

    def attempt(self) -> bool:
        """Take or renew the Lease if that is possible now; tell whether this candidate holds it.

        Raises:
            ClusterError: The API server did not say.
        """
        now = self._clock()
        held = self._held
        if held is not None:
            try:
                return self._write(held, now)
            except Conflict:
                # Somebody has touched it: perhaps only an annotation.
                self._held = None
        found = self._lease.read()
        if found is None:
            try:
                self._held = self._lease.create(self._spec({}))
            except Conflict:
                return False
            self._renewed_at = now
            return True
        spec = found.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        seen = (holder, str(found["metadata"]["resourceVersion"]))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        patience = float(spec.get("leaseDurationSeconds") or self._terms.duration)
        if holder not in ("", self._identity) and now < self._seen_at + patience:
            return False
        try:
            return self._write(found, now)
        except Conflict:
            return False

    def check(self) -> None:
        """Let a write pass only while the Lease is surely held.

        Raises:
            Unavailable: It was not renewed in time; perhaps somebody else leads by now.
        """
        if self._clock() >= self._renewed_at + self._terms.deadline:
            raise Unavailable(
                "not sent, because this operator could not renew its Lease and another may lead"
            )

    def pause(self) -> bool:
        """Wait for as long as between two attempts; tell whether this candidate was stopped."""
        return self._stopping.wait(self._terms.retry)

    def stop(self) -> None:
        """Stop waiting or renewing, and leave the Lease as it is."""
        self._stopping.set()

    def release(self) -> None:
        """Give the Lease back, so that the next leader need not wait for its end."""
        self.stop()
        if self._thread is not None:
            self._thread.join(2 * self._terms.retry)
        held, self._held = self._held, None
        self._renewed_at = -float("inf")
        telemetry.LEADER.set(0)
        if held is None:
            return
        try:
            self._lease.replace({**held, "spec": {**held["spec"], "holderIdentity": ""}})
        except ClusterError as error:
            logger.warning("The Lease is not given back and ends by itself: %s", error)

    def _write(self, found: Object, now: float) -> bool:
        self._held = self._lease.replace({**found, "spec": self._spec(found.get("spec") or {})})
        # Counted from before the request: whoever sees it, sees it later.
        self._renewed_at = now
        return True

    def _spec(self, before: Object) -> Object:
        stamp = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        ours = before.get("holderIdentity") == self._identity
        changes = int(before.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._terms.duration)),
            "acquireTime": before.get("acquireTime", stamp) if ours else stamp,
            "renewTime": stamp,
            "leaseTransitions": changes if ours else changes + 1,
        }


def show_leader(cluster: Cluster, namespace: str, pod: str) -> None:
    """Let the Services of the operator lead to one of its pods only, or to none.

    The pod's name may be one that is not there, as when an operator runs outside a cluster.

    Raises:
        ClusterError: A label could not be set.
    """
    for other in cluster.list("Pod", namespace, {names.LABEL_LEADER: "true"}):
        if other["metadata"]["name"] != pod:
            _label(cluster, namespace, other["metadata"]["name"], None)
    if cluster.get("Pod", namespace, pod) is not None:
        _label(cluster, namespace, pod, "true")


def _label(cluster: Cluster, namespace: str, pod: str, value: str | None) -> None:
    # A pod that goes in the meantime needs no label any more.
    with suppress(Conflict):
        cluster.patch("Pod", namespace, pod, {"metadata": {"labels": {names.LABEL_LEADER: value}}})
