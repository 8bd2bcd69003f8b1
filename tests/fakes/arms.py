"""Two arms made of requests: when each began, how long it took, and what scrapes show of it.

Nothing of the operator's code is used to make them, so that a test cannot share its mistakes. A
request waits, has its prompt read and then gets its tokens; what routers and engines count follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heapreplace
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Analysis, Report, Settings
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Tick

Array = NDArray[np.float64]

EPOCH = 1_800_000_000.0
"""When the arms begin to serve, in seconds since the epoch; requests count from it."""

SCRAPE = 15.0
"""Seconds between two ticks."""

ROUTER = (
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 70.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, math.inf),
)
REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, math.inf),
)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, math.inf),
)
TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, math.inf)


@dataclass(frozen=True, slots=True)
class Stage:
    """What was in effect from an instant on.

    Attributes:
        since: Seconds since the arms began.
        step: Step of the ladder; 0 before the canary gets traffic.
        weight: Canary's share of the traffic, in per cent.
        next_weight: Canary's weight in the next step; None in the last.
        next_replicas: Canary pods that are planned for it.
    """

    since: float
    step: int
    weight: float
    next_weight: float | None = None
    next_replicas: int | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """The requests of one arm, one number each; all times are seconds since the arms began.

    Attributes:
        at: When the request came.
        wait: Seconds in the engine's queue.
        prefill: Seconds until the first token from then on.
        tokens: Tokens generated.
        token_time: Seconds between two of them.
        failed: Whether it ended badly, without an answer.
        preempted: How often it was thrown out of the cache.
        pods: Pods of the arm; requests are dealt out in turn.
    """

    at: Array
    wait: Array
    prefill: Array
    tokens: Array
    token_time: Array
    failed: NDArray[np.bool_]
    preempted: Array
    pods: int = 1

    @property
    def seconds(self) -> Array:
        """How long each request took."""
        return self.wait + self.prefill + self.tokens * self.token_time

    def only(self, chosen: NDArray[np.bool_]) -> Work:
        """Return some of the requests."""
        return replace(
            self,
            at=self.at[chosen],
            wait=self.wait[chosen],
            prefill=self.prefill[chosen],
            tokens=self.tokens[chosen],
            token_time=self.token_time[chosen],
            failed=self.failed[chosen],
            preempted=self.preempted[chosen],
        )

    def slowed(self, factor: float | Array) -> Work:
        """Return the requests with an engine that takes so many times as long for each."""
        return replace(self, prefill=self.prefill * factor, token_time=self.token_time * factor)

    def after(self, instant: float, other: Work) -> Work:
        """Return these requests until an instant, and the other's that came from then on."""
        one, two = self.only(self.at < instant), other.only(other.at >= instant)
        return replace(
            self,
            at=np.concatenate((one.at, two.at)),
            wait=np.concatenate((one.wait, two.wait)),
            prefill=np.concatenate((one.prefill, two.prefill)),
            tokens=np.concatenate((one.tokens, two.tokens)),
            token_time=np.concatenate((one.token_time, two.token_time)),
            failed=np.concatenate((one.failed, two.failed)),
            preempted=np.concatenate((one.preempted, two.preempted)),
        )

    def queued(self, slots: int) -> Work:
        """Return the requests as pods that serve so many at once would serve them in turn."""
        wait = np.zeros(len(self.at))
        service = self.prefill + self.tokens * self.token_time
        for pod in range(self.pods):
            free = [-math.inf] * slots
            heapify(free)
            for i in range(pod, len(self.at), self.pods):
                begin = max(self.at[i], free[0])
                wait[i] = begin - self.at[i]
                heapreplace(free, begin + service[i])
        return replace(self, wait=wait)


def arrivals(rng: Generator, begin: float, end: float, rate: float) -> Array:
    """Return when requests come, independently of one another.

    Args:
        rng: Source of chance.
        begin: Seconds since the arms began.
        end: The same.
        rate: Requests per second.
    """
    count = rng.poisson(rate * (end - begin))
    return np.sort(rng.uniform(begin, end, count))


def work(
    rng: Generator,
    at: Array,
    *,
    pods: int = 1,
    seconds: float = 2.0,
    prompt: float = 0.2,
    failures: float = 0.0,
    page_faults: float = 0.0,
) -> Work:
    """Return what an engine makes of requests while it is not at its limit.

    Args:
        rng: Source of chance.
        at: When the requests come.
        pods: Pods of the arm.
        seconds: Seconds of a request in the median, of which the most go into tokens.
        prompt: Seconds of a prefill in the median. One prompt in ten is ten times as long.
        failures: Share of the requests that end badly.
        page_faults: Preemptions per request.
    """
    n = len(at)
    long = np.where(rng.random(n) < 0.1, 10.0, 1.0)
    tokens = np.ceil(rng.lognormal(math.log(80), 0.5, n))
    return Work(
        at=at,
        wait=np.zeros(n),
        prefill=prompt * long * rng.lognormal(0, 0.25, n),
        tokens=tokens,
        token_time=(seconds - prompt) / 80 * rng.lognormal(0, 0.1, n),
        failed=rng.random(n) < failures,
        preempted=rng.poisson(page_faults, n).astype(np.float64),
        pods=pods,
    )


def split(rng: Generator, at: Array, stages: Sequence[Stage]) -> tuple[Array, Array]:
    """Return which requests the baseline gets and which the canary, by the weights in effect."""
    weights = np.zeros(len(at))
    for stage in stages:
        weights[at >= stage.since] = stage.weight
    ours = rng.random(len(at)) * 100 < weights
    return at[~ours], at[ours]


@dataclass(slots=True)
class Traffic:
    """Both arms of a rollout, to be told as ticks.

    Attributes:
        baseline: The requests of the one arm.
        canary: Those of the other.
        stages: What was in effect when.
        end: Seconds since the arms began at which the telling ends.
        interval: Seconds between two ticks.
        routers: Whether routers are scraped.
        told_deaths: Instants at which Kubernetes counts a death of a canary's engine.
        restarts: Instants at which a process of the canary's first pod began anew.
        router_restarts: Instants at which the router began anew.
    """

    baseline: Work
    canary: Work
    stages: Sequence[Stage]
    end: float
    interval: float = SCRAPE
    routers: bool = True
    told_deaths: Sequence[float] | None = None
    restarts: Sequence[float] = field(default=())
    router_restarts: Sequence[float] = field(default=())

    def ticks(self) -> Iterator[Tick]:
        """Yield what is seen, instant by instant."""
        instants = np.arange(0.0, self.end + 1e-9, self.interval)
        arms = [
            _arms(self.baseline, "baseline", instants, self, canary=False),
            _arms(self.canary, "canary", instants, self, canary=True),
        ]
        for index, instant in enumerate(instants):
            stage = max((s for s in self.stages if s.since <= instant), key=lambda s: s.since)
            yield Tick(
                at=EPOCH + float(instant),
                step=stage.step,
                weight=stage.weight,
                baseline=arms[0][index],
                canary=arms[1][index],
                next_weight=stage.next_weight,
                next_replicas=stage.next_replicas,
            )


def _arms(done: Work, name: str, instants: Array, traffic: Traffic, *, canary: bool) -> list[Arm]:
    pods = [
        _engine(
            done.only(_dealt(done, pod)), instants, traffic.restarts if canary and pod == 0 else ()
        )
        for pod in range(done.pods)
    ]
    router = _router(done, instants, traffic.router_restarts) if traffic.routers else None
    told = traffic.told_deaths if canary else ()
    found = []
    for index, instant in enumerate(instants):
        found.append(
            Arm(
                routers={} if router is None else {"router-0": router[index]},
                engines={f"{name}-{pod}": samples[index] for pod, samples in enumerate(pods)},
                replicas=done.pods,
                deaths=None
                if traffic.told_deaths is None
                else sum(1 for d in told or () if d <= instant),
            )
        )
    return found


def _dealt(done: Work, pod: int) -> NDArray[np.bool_]:
    chosen: NDArray[np.bool_] = np.arange(len(done.at)) % done.pods == pod
    return chosen


def _epochs(instants: Array, restarts: Sequence[float]) -> Iterator[tuple[float, slice]]:
    """Yield when a process began, and at which instants it is the one that is seen."""
    begins = (-math.inf, *restarts, math.inf)
    for begin, end in pairwise(begins):
        yield begin, slice(*np.searchsorted(instants, (begin, end)))


def _router(done: Work, instants: Array, restarts: Sequence[float]) -> list[RouterSample]:
    ended = done.at + done.seconds
    found: list[RouterSample] = []
    for begin, seen in _epochs(instants, restarts):
        # A router that begins anew drops what it was passing on.
        own = done.only(done.at >= begin)
        over = ended[done.at >= begin]
        now = instants[seen]
        started = _so_far(own.at, now)
        finished = _so_far(over, now)
        failed = _so_far(over[own.failed], now)
        latency = _histogram(own.seconds[~own.failed], over[~own.failed], now, ROUTER)
        found += [
            RouterSample(
                started=started[i],
                failed=failed[i],
                unanswered=failed[i],
                active=started[i] - finished[i],
                latency=Bins(ROUTER, tuple(latency[i].tolist())),
            )
            for i in range(len(now))
        ]
    return found


def _engine(done: Work, instants: Array, restarts: Sequence[float]) -> list[EngineSample]:
    ended = done.at + done.seconds
    found: list[EngineSample] = []
    for begin, seen in _epochs(instants, restarts):
        alive = done.at >= begin
        own, over, now = done.only(alive), ended[alive], instants[seen]
        finished = _so_far(over, now)
        admitted = _so_far(own.at + own.wait, now)
        started = _so_far(own.at, now)
        kept = {
            "e2e": (own.seconds, REQUEST),
            "queue": (own.wait, REQUEST),
            "prefill": (own.prefill, REQUEST),
            "ttft": (own.wait + own.prefill, FIRST_TOKEN),
        }
        bins = {
            name: _bins(values, np.ones(len(values)), over, now, bounds)
            for name, (values, bounds) in kept.items()
        }
        bins["itl"] = _bins(own.token_time, own.tokens, over, now, TOKEN)
        tokens = _so_far(over, now, own.tokens)
        prompts = _so_far(over, now, own.prefill * 1000)
        faults = _so_far(over, now, own.preempted)
        found += [
            EngineSample(
                process_started=EPOCH + (-1000.0 if math.isinf(begin) else begin),
                finished=finished[i],
                preemptions=faults[i],
                prompt_tokens=prompts[i],
                generated_tokens=tokens[i],
                running=admitted[i] - finished[i],
                waiting=started[i] - admitted[i],
                e2e=bins["e2e"][i],
                queue=bins["queue"][i],
                prefill=bins["prefill"][i],
                ttft=bins["ttft"][i],
                itl=bins["itl"][i],
            )
            for i in range(len(now))
        ]
    return found


def _so_far(events: Array, instants: Array, worth: Array | None = None) -> list[float]:
    order = np.argsort(events)
    count = np.searchsorted(events[order], instants, side="right")
    if worth is None:
        return [float(n) for n in count]
    summed = np.concatenate(([0.0], np.cumsum(worth[order])))
    return [float(total) for total in summed[count]]


def _histogram(
    values: Array,
    ended: Array,
    instants: Array,
    bounds: tuple[float, ...],
    worth: Array | None = None,
) -> Array:
    """Return what a cumulative histogram shows at each instant, a row each."""
    buckets = np.searchsorted(np.array(bounds), values, side="left")
    rows = np.searchsorted(instants, ended, side="left")
    grid = np.zeros((len(instants) + 1, len(bounds)))
    np.add.at(grid, (rows, buckets), 1.0 if worth is None else worth)
    result: Array = grid.cumsum(axis=0)[:-1].cumsum(axis=1)
    return result


def _bins(
    values: Array, worth: Array, ended: Array, instants: Array, bounds: tuple[float, ...]
) -> list[Bins]:
    counts = _histogram(values, ended, instants, bounds, worth)
    sums = _so_far(ended, instants, values * worth)
    return [
        Bins(bounds, tuple(row.tolist()), total) for row, total in zip(counts, sums, strict=True)
    ]


def watch(ticks: Iterable[Tick], settings: Settings | None = None) -> list[Report]:
    """Return what the analysis says at every instant."""
    analysis = Analysis(settings)
    return [analysis.observe(tick) for tick in ticks]


def when(reports: Iterable[Report], verdict: Verdict) -> float | None:
    """Return the first instant of a verdict in seconds since the arms began; None if never."""
    return next((r.at - EPOCH for r in reports if r.verdict is verdict), None)


def guilty(reports: Iterable[Report]) -> set[str]:
    """Return the names of all signals that ever failed."""
    return {s.name for r in reports for s in r.signals if s.verdict is Verdict.FAIL}
