"""What the reconciler needs of the world. Adapters fulfil these; tests bring fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from kvquant.core.alerts import Heard, PolledAlert, Watch
from kvquant.core.evidence import CacheConfig
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed
from kvquant.core.ticking import TickNeed, Timeline

Object = dict[str, Any]
"""A Kubernetes object as raw JSON: typed models drop fields that they do not know."""


class Cluster(Protocol):
    """The Kubernetes API. Every call has a time-out and raises only `ClusterError`s."""

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return the object, or None when there is none. `kind` is e.g. `Deployment`."""

    def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """Return the objects whose labels match all the given ones."""

    def apply(self, obj: Object) -> Object:
        """Server-side apply as our field manager, taking over fields of ours that drifted."""

    def patch(self, kind: str, namespace: str, name: str, patch: Object) -> Object:
        """JSON merge patch. With `metadata.resourceVersion` in it, stale raises `Conflict`."""

    def replace_status(self, obj: Object) -> Object:
        """Write the whole status; `metadata.resourceVersion` must be current, else `Conflict`."""

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete the object with its dependents. One that is gone already is no error."""


class LeaseStore(Protocol):
    """One Lease. Every call has a time-out and raises only `ClusterError`s."""

    def read(self) -> Object | None:
        """Return the Lease, or None when there is none."""

    def create(self, spec: Object) -> Object:
        """Create the Lease; raise `Conflict` when somebody has before."""

    def replace(self, lease: Object) -> Object:
        """Write a Lease as it was read, changed; raise `Conflict` when somebody else has before."""


class Metrics(Protocol):
    """Prometheus, or what speaks its language. Raises only `MetricsError`."""

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        """Return each need's ticks from its first instant on, by its key."""

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        """Return the KV-cache configuration that each pod reports; absent means not scraped."""

    def shadows(self, needs: Sequence[ShadowNeed], now: datetime) -> Mapping[str, ShadowEvidence]:
        """Return what the shadow services have counted for each need, by its key."""


@dataclass(frozen=True, slots=True)
class RouterKey:
    """Identity of a router."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """How far the routers have followed.

    Attributes:
        connected: Router pods that hold a stream to the operator.
        applied: Of these, the ones that acknowledged the weights set last.
    """

    connected: int
    applied: int


class Traffic(Protocol):
    """The data plane's weights."""

    def set_weights(self, router: RouterKey, weights: Mapping[str, int], mirror: int = 0) -> None:
        """Send the weights by slot (`{"blue": 90, "green": 10}`) to every pod of the router.

        With them goes the share of requests, in per cent, of which the shadow service gets a copy.
        Idempotent: the same again sends nothing.
        """

    def acknowledged(self, router: RouterKey) -> Acknowledgement:
        """Return how many pods follow the weights set last."""

    def forget(self, router: RouterKey) -> None:
        """Stop driving the router; its pods keep their last weights."""


class Alerts(Protocol):
    """The alerts that fire, as far as anybody has told them. Never waits for an answer."""

    def heard(self, watch: Watch) -> Heard:
        """Return what is known of alerts for a rollout, which is told of news from now on."""

    def stored(self, watch: Watch, mark: int) -> None:
        """Take note that a rollout's status holds what `heard` returned with this mark."""

    def forget(self, namespace: str, rollout: str) -> None:
        """Tell a rollout no more: it is gone."""


class AlertQueries(Protocol):
    """Prometheus as one who knows which alerts fire. Raises only `MetricsError`."""

    def alerts(self, now: datetime) -> Sequence[PolledAlert]:
        """Return every alert that fires or is about to, whomever it concerns, with one query."""


class Archive(Protocol):
    """Where decisions are kept for good. Raises only `ArchiveError`."""

    def put(self, path: str, text: str) -> None:
        """Write an object unless it is there already; the same again changes nothing."""


class Webhook(Protocol):
    """Who is told what happens to rollouts."""

    def post(self, body: bytes, content_type: str) -> None:
        """Send one notification; raise `NotificationError` when it was not taken."""


class Clock(Protocol):
    """The present instant, with time zone."""

    def __call__(self) -> datetime:
        """Return the present instant."""
