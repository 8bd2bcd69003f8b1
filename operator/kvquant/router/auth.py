"""Who calls the weights service: a router is its ServiceAccount, proven by a token."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

from kvquant.core.router_manifests import TOKEN_AUDIENCE
from kvquant.ports import RouterKey

Review = Callable[[str, str], str | None]
"""(token, audience) -> the user that it stands for, or None when it is not good."""

_SERVICE_ACCOUNT = "system:serviceaccount:"


def router_of(username: str) -> RouterKey | None:
    """Return the router that a Kubernetes user is: its ServiceAccount bears the router's name."""
    if not username.startswith(_SERVICE_ACCOUNT):
        return None
    namespace, colon, name = username.removeprefix(_SERVICE_ACCOUNT).partition(":")
    if not (namespace and colon and name) or ":" in name:
        return None
    return RouterKey(namespace, name)


class Authenticator:
    """Turns tokens into routers, asking the API server once a while for each token.

    A cluster that restarts brings all routers at once; the cache keeps their retries from the API
    server. Tokens are kept as hashes only.
    """

    def __init__(
        self,
        review: Review,
        *,
        audience: str = TOKEN_AUDIENCE,
        accepted_for: float = 60.0,
        refused_for: float = 5.0,
        size: int = 4096,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an authenticator.

        Args:
            review: Asks the API server (TokenReview) about a token.
            audience: Audience for which a token must have been issued.
            accepted_for: Seconds for which a good token is believed without asking again.
            refused_for: Seconds for which a bad token is refused without asking again.
            size: Most tokens remembered.
            monotonic: Clock, in seconds.
        """
        self._review = review
        self._audience = audience
        self._accepted_for = accepted_for
        self._refused_for = refused_for
        self._size = size
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[float, RouterKey | None]] = {}

    def __call__(self, token: str) -> RouterKey | None:
        """Return the router that bears the token; None when the token is not good.

        Raises:
            ClusterError: The API server could not be asked; that says nothing about the token.
        """
        digest = hashlib.sha256(token.encode()).digest()
        now = self._monotonic()
        with self._lock:
            until, router = self._known.get(digest, (now, None))
            if now < until:
                return router
        username = self._review(token, self._audience)
        router = router_of(username) if username else None
        lifetime = self._refused_for if router is None else self._accepted_for
        with self._lock:
            self._forget_old(now)
            self._known[digest] = (now + lifetime, router)
        return router

    def _forget_old(self, now: float) -> None:
        if len(self._known) < self._size:
            return
        self._known = {d: known for d, known in self._known.items() if now < known[0]}
        while len(self._known) >= self._size:
            self._known.pop(next(iter(self._known)))
