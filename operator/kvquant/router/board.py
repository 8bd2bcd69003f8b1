"""What every router should follow, and how far each of its pods has: plain state, thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvquant.core.envoy_bootstrap import check_mirror, check_weights
from kvquant.ports import Acknowledgement, RouterKey


@dataclass(frozen=True, slots=True)
class Posting:
    """Split of one router's traffic, numbered in the order in which they were set."""

    version: int
    weights: Mapping[str, int]
    mirror: int = 0


@dataclass(slots=True, eq=False)
class Follower:
    """One router pod's stream.

    Attributes:
        router: The router that it is, by its token.
        node: The pod's own name of itself.
        wake: Called, from any thread, when there may be news.
        end: Called, from any thread, when a newer stream of the same pod has taken over.
        acknowledged: Highest version that the pod has applied.
    """

    router: RouterKey
    node: str
    wake: Callable[[], None]
    end: Callable[[], None]
    acknowledged: int = 0


class Board:
    """The weights set last for each router, and the streams that follow them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = 0
        self._postings: dict[RouterKey, Posting] = {}
        self._followers: dict[RouterKey, dict[str, Follower]] = {}

    def post(self, router: RouterKey, weights: Mapping[str, int], mirror: int = 0) -> None:
        """Set a router's split and wake its streams; the same again does nothing.

        Raises:
            ValueError: The weights are not per cents of both slots that sum to 100, or the mirror
                is none.
        """
        check_weights(weights)
        check_mirror(mirror)
        with self._lock:
            posted = self._postings.get(router)
            if posted is not None and (posted.weights, posted.mirror) == (weights, mirror):
                return
            self._version += 1
            self._postings[router] = Posting(self._version, dict(weights), mirror)
            followers = list(self._followers.get(router, {}).values())
        for follower in followers:
            follower.wake()

    def read(self, router: RouterKey) -> Posting | None:
        """Return the weights set last; None when none are set."""
        with self._lock:
            return self._postings.get(router)

    def remove(self, router: RouterKey) -> None:
        """Forget a router's weights; its streams stay and are told nothing."""
        with self._lock:
            self._postings.pop(router, None)

    def join(self, follower: Follower) -> None:
        """Count a stream. An older one of the same pod is ended: its connection is dead."""
        with self._lock:
            pods = self._followers.setdefault(follower.router, {})
            older = pods.get(follower.node)
            pods[follower.node] = follower
        if older is not None:
            older.end()

    def leave(self, follower: Follower) -> None:
        """Stop counting a stream."""
        with self._lock:
            pods = self._followers.get(follower.router, {})
            if pods.get(follower.node) is follower:
                del pods[follower.node]
            if not pods:
                self._followers.pop(follower.router, None)

    def acknowledge(self, follower: Follower, version: int) -> None:
        """Note that a pod applies a version."""
        with self._lock:
            follower.acknowledged = max(follower.acknowledged, version)

    def everybody(self) -> dict[RouterKey, Acknowledgement]:
        """Return every router that has weights, and how far its pods are."""
        with self._lock:
            routers = list(self._postings)
        return {router: self.acknowledged(router) for router in routers}

    def acknowledged(self, router: RouterKey) -> Acknowledgement:
        """Return how many pods are connected, and how many apply the weights set last."""
        with self._lock:
            posted = self._postings.get(router)
            pods = self._followers.get(router, {}).values()
            applied = sum(1 for p in pods if posted and p.acknowledged >= posted.version)
            return Acknowledgement(connected=len(pods), applied=applied)
