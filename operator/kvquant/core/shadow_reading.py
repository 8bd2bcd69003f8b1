"""What the shadow services have counted: which series tell it, and what they say.

Two queries serve all rollouts together. A shadow service's series bear its rollout, attempt and
process, and rise for as long as the process lives: their latest values add up to everything that
was counted, across restarts. How many requests of each length the clients sent is counted by the
routers.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from kvquant.api import names
from kvquant.core import queries, shadow_settings
from kvquant.core.counters import Series, increase, process_of
from kvquant.core.queries import Window
from kvquant.core.router_manifests import shadow_name
from kvquant.core.scope import EVERYWHERE, Scope
from kvquant.core.shadow_settings import BUCKETS

BODIES = "envoy_cluster_upstream_rq_body_size_bucket"

COUNTERS = (
    shadow_settings.RECEIVED,
    shadow_settings.DROPPED,
    shadow_settings.FOUND,
    shadow_settings.SCORED,
    shadow_settings.HARM,
    shadow_settings.RELIEF,
    shadow_settings.SQUARES,
)
LABELS = ("rollout", "attempt", "run", "pair", "signal", "bucket", "reason", "kind")

COARSEST = 60
"""Seconds to which the length of the look back is rounded up, so that the same question is the
same text for a while."""


@dataclass(frozen=True, slots=True)
class ShadowNeed:
    """What one rollout needs to know of its shadowed requests.

    Attributes:
        key: By which the answer is found.
        namespace: Namespace of router and shadow service.
        router: Name of the router.
        uid: The rollout's, which its series bear.
        attempt: Likewise.
        since: When the copying began.
    """

    key: str
    namespace: str
    router: str
    uid: str
    attempt: int
    since: datetime


@dataclass(slots=True)
class Sums:
    """Paired differences: how many, and the sums of the positive, the negative and all squares."""

    count: float = 0.0
    harm: float = 0.0
    relief: float = 0.0
    squares: float = 0.0

    def add(self, other: Sums) -> None:
        """Take in what was counted elsewhere."""
        self.count += other.count
        self.harm += other.harm
        self.relief += other.relief
        self.squares += other.squares

    @property
    def mean(self) -> float:
        """Mean of the differences; 0 without any."""
        return (self.harm - self.relief) / self.count if self.count > 0 else 0.0


@dataclass(slots=True)
class ShadowEvidence:
    """What was counted of one attempt.

    Attributes:
        received: Copies that arrived, by bucket.
        dropped: Copies that were not compared, by reason.
        replaced: Values of personal data for which placeholders stand.
        sums: Differences by pair, signal and bucket.
        live: Requests that clients sent, by bucket; empty when the routers do not tell.
        runs: Processes of the shadow service that have counted.
    """

    received: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, float] = field(default_factory=dict)
    replaced: float = 0.0
    sums: dict[tuple[str, str, str], Sums] = field(default_factory=dict)
    live: Mapping[str, float] = field(default_factory=dict)
    runs: int = 0

    def pooled(self, pair: str, signal: str) -> Sums:
        """Return the differences of a signal over all buckets."""
        total = Sums()
        for (whose, what, _), sums in self.sums.items():
            if (whose, what) == (pair, signal):
                total.add(sums)
        return total

    def by_bucket(self, pair: str, signal: str) -> dict[str, Sums]:
        """Return the differences of a signal by bucket."""
        mine = (pair, signal)
        return {bucket: sums for (*whose, bucket), sums in self.sums.items() if (*whose,) == mine}


def counters_text(needs: Sequence[ShadowNeed], now: datetime, scope: Scope = EVERYWHERE) -> str:
    """Ask for the latest value of everything that the shadow services have counted.

    Args:
        needs: The rollouts; at least one.
        now: The present instant.
        scope: How Prometheus labels the pods.
    """
    longest = max((now - need.since).total_seconds() for need in needs)
    back = max(COARSEST, math.ceil(longest / COARSEST) * COARSEST)
    selector = scope.select(
        f'__name__=~"{"|".join(COUNTERS)}"',
        queries.one_of(scope.namespace, [need.namespace for need in needs]),
        queries.any_pod_of(scope.pod, [shadow_name(need.router) for need in needs]),
    )
    # `last_over_time` keeps the metrics' names, and finds what a process counted before it ended.
    return f"max by(__name__,{','.join(LABELS)})(last_over_time({selector}[{back}s]))"


def bodies_text(needs: Sequence[ShadowNeed], scope: Scope = EVERYWHERE) -> str:
    """Ask how many requests of which length the routers have passed on, arms taken together."""
    selector = scope.select(
        queries.one_of(scope.namespace, [need.namespace for need in needs]),
        queries.any_pod_of(scope.pod, [need.router for need in needs]),
        queries.one_of(queries.CLUSTER_LABEL, names.SLOTS),
    )
    by = f"{scope.namespace},{scope.pod},{queries.CLUSTER_LABEL},le"
    return f"max by({by})({BODIES}{selector})"


def evidence(
    needs: Sequence[ShadowNeed],
    counters: Iterable[tuple[Mapping[str, str], float]],
    bodies: Iterable[Series],
    window: Window,
) -> dict[str, ShadowEvidence]:
    """Return what was counted for each need, by its key.

    Args:
        needs: The rollouts.
        counters: Answer to `counters_text`: labels and value.
        bodies: Answer to `bodies_text` over the window.
        window: Range over which the bodies were read.

    Raises:
        KeyError, ValueError: The answers are not what was asked for.
    """
    by_attempt: dict[tuple[str, str], ShadowEvidence] = defaultdict(ShadowEvidence)
    runs: dict[tuple[str, str], set[str]] = defaultdict(set)
    for labels, value in counters:
        whose = labels["rollout"], labels["attempt"]
        runs[whose].add(labels["run"])
        if math.isfinite(value) and value >= 0:
            _count(by_attempt[whose], labels, value)
    bodies = list(bodies)
    found = {}
    for need in needs:
        whose = need.uid, str(need.attempt)
        one = by_attempt.get(whose, ShadowEvidence())
        one.runs = len(runs.get(whose, ()))
        one.live = _live(need, bodies, window)
        found[need.key] = one
    return found


def _count(evidence: ShadowEvidence, labels: Mapping[str, str], value: float) -> None:
    name = labels["__name__"]
    if name == shadow_settings.RECEIVED:
        bucket = labels["bucket"]
        evidence.received[bucket] = evidence.received.get(bucket, 0.0) + value
    elif name == shadow_settings.DROPPED:
        reason = labels["reason"]
        evidence.dropped[reason] = evidence.dropped.get(reason, 0.0) + value
    elif name == shadow_settings.FOUND:
        evidence.replaced += value
    else:
        key = labels["pair"], labels["signal"], labels["bucket"]
        sums = evidence.sums.setdefault(key, Sums())
        part = _PARTS[name]
        setattr(sums, part, getattr(sums, part) + value)


_PARTS = {
    shadow_settings.SCORED: "count",
    shadow_settings.HARM: "harm",
    shadow_settings.RELIEF: "relief",
    shadow_settings.SQUARES: "squares",
}


def _live(need: ShadowNeed, bodies: Sequence[Series], window: Window) -> dict[str, float]:
    """Return how many requests of each bucket were sent since the copying began."""
    router = re.compile(queries.pods_of(need.router))
    own = [
        one
        for one in bodies
        if one.labels["namespace"] == need.namespace and router.fullmatch(one.labels["pod"])
    ]
    below: dict[float, float] = {}
    for series in own:
        bound = float(series.labels["le"])
        rise = increase(series, process_of([series], {}), need.since.timestamp(), window.end)
        if rise is not None and math.isfinite(rise):
            below[bound] = below.get(bound, 0.0) + rise
    if not {bound for _, bound in BUCKETS} <= below.keys():
        return {}
    edges = [(None, 0.0), *((name, below[bound]) for name, bound in BUCKETS)]
    return {name: max(0.0, high - low) for (_, low), (name, high) in pairwise(edges) if name}
