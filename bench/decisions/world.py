"""Both arms, the routers before them and the Prometheus behind: everything but the decision."""

from __future__ import annotations

import itertools
import math
import pickle
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from bench.decisions.engine import Pod, Profile, Request
from bench.decisions.histogram import ROUTER, Histogram
from bench.decisions.kinds import Kind
from bench.decisions.profiles import AUTO
from bench.decisions.traffic import Traffic
from kvquant.core.analysis.samples import Arm, EngineSample, RouterSample, Tick

SCRAPE = 15.0
"""Seconds between two scrapes of a target, and between two looks at them."""
EPOCH = 1_800_000_000.0
"""Where simulated time begins, in seconds since the epoch."""
ROUTERS = ("router-0", "router-1")
BASELINE, CANARY = 0, 1
_HOP = 0.004
"""Seconds that a request spends between router and engine."""
_TIME_OUT = 900.0
"""Seconds after which a router gives up: the product's default."""
_RESTART = 90.0
"""Seconds until a dead engine serves again: it loads its weights."""
_WARM = 60.0
_DRIFT = 2400.0
"""Seconds over which both arms become slower."""
_STALE = 300.0
"""Seconds for which Prometheus shows the last sample of a target that it cannot scrape."""


class _Counts:
    """What one router pod has counted for one arm."""

    __slots__ = ("active", "failed", "latency", "started", "unanswered")

    def __init__(self) -> None:
        self.started = self.failed = self.unanswered = self.active = 0
        self.latency = Histogram(ROUTER)

    def sample(self) -> RouterSample:
        return RouterSample(
            float(self.started),
            float(self.failed),
            float(self.unanswered),
            float(self.active),
            self.latency.bins(with_sum=False),
        )


class _Side:
    """One arm: its pods, and the routers' counts for it."""

    def __init__(self, name: str, profile: Profile) -> None:
        self.name = name
        self.profile = profile
        self.pods: list[Pod] = []
        self.ready: list[Pod] = []
        self.counts = [_Counts() for _ in ROUTERS]
        self.deaths = 0


class World:
    """A pool that serves, its canary, and what Prometheus has seen of them.

    Attributes:
        now: Simulated seconds.
        weight: Canary's share of the traffic, in per cent.
        onset: When the canary's fault begins; the caller sets it to the rollout's begin, and a
            fault that comes later moves it.
        sent_before: Requests that the canary had been sent before its fault began.
        latencies: Seconds of every answered request of the canary, when somebody wants them.
    """

    def __init__(
        self, kind: Kind, rate: float, mix: str, seed: str, *, profile: Profile = AUTO
    ) -> None:
        self._kind = kind
        self._chance = Random(f"{seed} world")
        self._traffic = Traffic(rate, kind.arrivals, mix, f"{seed} traffic")
        self.now = 0.0
        self.weight = 0.0
        self.onset = 0.0
        self._began = math.inf
        self.sent_before = 0
        self.latencies: list[float] | None = None
        self._numbers = itertools.count()
        self._agenda: list[tuple[float, int, int, Pod]] = []
        self._timers: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self._in_order: deque[tuple[Request, int]] = deque()
        self.sides = (_Side("baseline", profile), _Side("canary", kind.profile))
        self._seen: tuple[dict[str, tuple[float, EngineSample]], ...] = ({}, {})
        self._seen_routers: tuple[dict[str, tuple[float, RouterSample]], ...] = ({}, {})
        self._gap = (math.inf, math.inf)
        self._gap_is = ""
        self._offsets = [self._chance.random() * SCRAPE for _ in ROUTERS]
        for index in range(len(ROUTERS)):
            self._at(self._offsets[index], "_scrape_router", index)
        if kind.drift != 1.0 or kind.arrivals == "diurnal":
            self._at(SCRAPE, "_drift")
        self.scale(BASELINE, kind.pods, cold=False)

    # What the caller does.

    def scale(self, arm: int, pods: int, *, cold: bool = True) -> None:
        """Bring an arm to so many pods; new ones are ready at once."""
        side = self.sides[arm]
        while len(side.pods) < pods:
            name = f"{side.name}-{len(side.pods)}"
            pod = Pod(name, side.profile, len(ROUTERS), self.now)
            side.pods.append(pod)
            self._at(self.now + self._chance.random() * SCRAPE, "_scrape_pod", arm, pod)
            if cold:
                self._warm(pod)
        side.ready = [pod for pod in side.pods if pod.ready]

    def begin(self) -> None:
        """Let the faults of this kind begin to threaten: the canary is about to get traffic."""
        chance, kind, now = self._chance, self._kind, self.now
        self.onset = self._began = now
        if kind.crash == "once":
            self._at(now + 60 * chance.uniform(1, 40), "_crash")
        elif kind.crash == "often":
            self._at(now + 60 * chance.uniform(1, 10), "_crash")
        if kind.hang:
            self.onset = now + 60 * chance.uniform(2, 12)
            self._at(self.onset, "_hang")
        if kind.scrapes == "gap":
            start = now + 60 * chance.uniform(2, 35)
            self._gap = (start, start + 300)
            self._gap_is = chance.choice(("silence", "empty", "unknown"))

    def fork(self, *companions: Any) -> Any:
        """Return a copy of this world, and of the companions, that goes its own way."""
        self._in_order = deque(entry for entry in self._in_order if not entry[0].over)
        return pickle.loads(pickle.dumps((self, *companions), pickle.HIGHEST_PROTOCOL))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._timers and self._timers[0][0] <= until:
            at, _, what, arguments = heappop(self._timers)
            self._serve(at)
            self.now = at
            act: Callable[..., None] = getattr(self, what)
            act(*arguments)
        self._serve(until)
        self.now = until
        self._time_out(until)

    def canary_counts(self) -> tuple[int, int]:
        """Return how many requests the canary has been sent, and how many of them failed."""
        counts = self.sides[CANARY].counts
        return sum(c.started for c in counts), sum(c.failed for c in counts)

    def tick(self, step: int, next_weight: float | None, next_replicas: int | None) -> Tick | None:
        """Return what an operator sees now; None when its Prometheus is not there."""
        if self._in_gap() and self._gap_is == "silence":
            return None
        return Tick(
            at=EPOCH + self.now,
            step=step,
            weight=self.weight,
            baseline=self._arm(BASELINE),
            canary=self._arm(CANARY),
            next_weight=next_weight,
            next_replicas=next_replicas,
        )

    def router_view(self, arm: int) -> dict[str, RouterSample] | None:
        """Return the routers' last samples of an arm; None when there is no Prometheus."""
        if self._in_gap():
            return None
        return {name: sample for name, (_, sample) in self._seen_routers[arm].items()}

    def engine_view(self, arm: int) -> dict[str, EngineSample] | None:
        """Return the engines' last samples of an arm; None when there is no Prometheus."""
        if self._in_gap():
            return None
        return {
            name: sample
            for name, (at, sample) in self._seen[arm].items()
            if self.now - at <= _STALE
        }

    # What happens by itself.

    def _at(self, at: float, what: str, *arguments: Any) -> None:
        heappush(self._timers, (at, next(self._numbers), what, arguments))

    def _in_gap(self) -> bool:
        return self._gap[0] <= self.now < self._gap[1]

    def _arm(self, arm: int) -> Arm:
        side = self.sides[arm]
        engines, routers = self.engine_view(arm), self.router_view(arm)
        if engines is None or routers is None:
            unknown = self._gap_is == "unknown"
            nan = RouterSample(math.nan, math.nan, math.nan, math.nan, None)
            return Arm(
                routers=dict.fromkeys(ROUTERS, nan) if unknown else {},
                engines={pod.name: EngineSample() for pod in side.pods} if unknown else {},
                replicas=len(side.pods),
                deaths=side.deaths,
            )
        return Arm(routers=routers, engines=engines, replicas=len(side.pods), deaths=side.deaths)

    def _serve(self, until: float) -> None:
        """Let requests come and go until then."""
        agenda, traffic = self._agenda, self._traffic
        while True:
            due = agenda[0][0] if agenda else math.inf
            arrival = traffic.next_at
            if arrival <= due:
                if arrival > until:
                    return
                self._arrival(arrival)
                traffic.advance()
                continue
            if due > until:
                return
            _, _, version, pod = heappop(agenda)
            if pod.version != version:
                continue
            for request in pod.due(due):
                self._answered(due, request)
            if pod.due_at < math.inf:
                heappush(agenda, (pod.due_at, next(self._numbers), pod.version, pod))

    def _schedule(self, pod: Pod) -> None:
        if pod.due_at < math.inf:
            heappush(self._agenda, (pod.due_at, next(self._numbers), pod.version, pod))

    def _arrival(self, now: float) -> None:
        prompt, output = self._traffic.lengths()
        chance = self._chance.random
        arm = CANARY if chance() * 100 < self.weight else BASELINE
        router = int(chance() * len(ROUTERS))
        side = self.sides[arm]
        counts = side.counts[router]
        counts.started += 1
        ready = side.ready
        if not ready:
            counts.failed += 1
            counts.unanswered += 1
            return
        if arm == CANARY and self._kind.errors and chance() < self._kind.errors:
            counts.failed += 1
            counts.latency.add(_HOP)
            return
        # Envoy's LEAST_REQUEST: the less busy one, as this router knows it, of two drawn pods.
        pod, other = ready[int(chance() * len(ready))], ready[int(chance() * len(ready))]
        if other.active[router] < pod.active[router]:
            pod = other
        request = Request(now, prompt, output, router)
        pod.active[router] += 1
        counts.active += 1
        self._in_order.append((request, arm))
        if pod.arrive(now, request):
            self._schedule(pod)

    def _answered(self, now: float, request: Request) -> None:
        pod = request.pod
        assert pod is not None
        pod.active[request.router] -= 1
        arm = CANARY if pod.name.startswith("c") else BASELINE
        counts = self.sides[arm].counts[request.router]
        counts.active -= 1
        counts.latency.add(now - request.sent + _HOP)
        if arm == CANARY and self.latencies is not None:
            self.latencies.append(now - request.sent + _HOP)

    def _time_out(self, now: float) -> None:
        waiting = self._in_order
        while waiting and (waiting[0][0].over or waiting[0][0].sent + _TIME_OUT <= now):
            request, arm = waiting.popleft()
            if request.over:
                continue
            counts = self.sides[arm].counts[request.router]
            counts.active -= 1
            counts.failed += 1
            counts.unanswered += 1
            pod = request.pod
            assert pod is not None
            pod.active[request.router] -= 1
            pod.abort(now, request)
            self._schedule(pod)

    def _warm(self, pod: Pod) -> None:
        if self._kind.warm_up != 1.0:
            pod.pace(self.now, self._kind.warm_up)
            self._at(self.now + _WARM, "_pace", pod, 1.0)

    def _pace(self, pod: Pod, slow: float) -> None:
        pod.pace(self.now, slow)
        self._schedule(pod)

    def _drift(self) -> None:
        if self._kind.drift != 1.0 and self.weight:
            passed = max(0.0, min(1.0, (self.now - self._began) / _DRIFT))
            for side in self.sides:
                for pod in side.pods:
                    self._pace(pod, 1 + (self._kind.drift - 1) * passed)
        self._at(self.now + SCRAPE, "_drift")

    def _hang(self) -> None:
        if self.now == self.onset:
            self.sent_before, _ = self.canary_counts()
        for pod in self.sides[CANARY].pods:
            self._pace(pod, math.inf)
        if self.weight:
            self._at(self.now + SCRAPE, "_hang")

    def _crash(self) -> None:
        side = self.sides[CANARY]
        if side.ready:
            self._kill(side, self._chance.choice(side.ready))
        if self._kind.crash == "often":
            self._at(self.now + 60 * self._chance.uniform(8, 12), "_crash")

    def _kill(self, side: _Side, pod: Pod) -> None:
        side.deaths += 1
        for request in pod.die(self.now):
            counts = side.counts[request.router]
            counts.active -= 1
            counts.failed += 1
            counts.unanswered += 1
        side.ready = [other for other in side.pods if other.ready]
        self._at(self.now + _RESTART, "_restart", side, pod)

    def _restart(self, side: _Side, pod: Pod) -> None:
        pod.restart(self.now)
        self._warm(pod)
        side.ready = [other for other in side.pods if other.ready]

    # Prometheus.

    def _missed(self) -> bool:
        late = self._kind.scrapes == "late" and self._chance.random() < 0.2
        return late or self._in_gap()

    def _next_scrape(self) -> float:
        """Return when a target is scraped again: a little off, as it is with a busy Prometheus."""
        late = self._kind.scrapes == "late"
        return self.now + SCRAPE + (self._chance.uniform(-3, 3) if late else 0.0)

    def _scrape_pod(self, arm: int, pod: Pod) -> None:
        if not pod.ready:
            # A target that does not answer is marked stale at once.
            self._seen[arm].pop(pod.name, None)
        elif not self._missed():
            self._seen[arm][pod.name] = (self.now, pod.scrape(self.now, EPOCH))
        self._at(self._next_scrape(), "_scrape_pod", arm, pod)

    def _scrape_router(self, index: int) -> None:
        if not self._missed():
            for arm, side in enumerate(self.sides):
                self._seen_routers[arm][ROUTERS[index]] = (self.now, side.counts[index].sample())
        self._at(self._next_scrape(), "_scrape_router", index)
