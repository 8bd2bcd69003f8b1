"""Recordings of real engines as ticks: what the analysis would have been fed while they ran.

A pair is two engines under one stream of requests that was split between them by weight. A solo
pair is two engines that were recorded one after the other under the same requests, laid over one
another at their first scrapes. See `tests/data/recordings/h200-pairs/README.md`.
"""

from __future__ import annotations

import gzip
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Tick
from kvquant.core.envoy_bootstrap import LATENCY_BOUNDS_MS

RECORDINGS = Path(__file__).parent / "data" / "recordings" / "h200-pairs"

ROUTER_BOUNDS = (*(bound / 1000 for bound in LATENCY_BOUNDS_MS), math.inf)
"""Bounds of the routers' latency histograms in seconds."""

SCRAPE = "# SCRAPE "
"""Begins the line before each exposition; the instant follows."""

CUT_OFF = "cancelled"
"""Error of a request that was still running when the recording was ended."""

COUNTERS = {
    "process_started": "process_start_time_seconds",
    "finished": "vllm:request_success_total",
    "preemptions": "vllm:num_preemptions_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generated_tokens": "vllm:generation_tokens_total",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
}
HISTOGRAMS = {
    "e2e": "vllm:e2e_request_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "ttft": "vllm:time_to_first_token_seconds",
    "itl": "vllm:inter_token_latency_seconds",
}


@dataclass(frozen=True, slots=True)
class Scrape:
    """One look at an engine.

    Attributes:
        at: Seconds since the epoch.
        engine: What it said; None when it did not answer.
    """

    at: float
    engine: EngineSample | None


@dataclass(frozen=True, slots=True)
class Request:
    """One request as its client saw it.

    Attributes:
        arm: To which it was sent: `baseline` or `canary`.
        at: When it was sent, in seconds since the epoch.
        seconds: From then to its last byte, or to its failure.
        error: Why it failed, or None.
    """

    arm: str
    at: float
    seconds: float
    error: str | None

    @property
    def end(self) -> float:
        """When it was over; infinite if the recording ended before."""
        return math.inf if self.error == CUT_OFF else self.at + self.seconds


@dataclass(frozen=True, slots=True)
class Pair:
    """Two arms that are compared.

    Attributes:
        baseline: Scrapes of one engine, in order.
        canary: Scrapes of the other.
        steps: When each step of the ladder began, and the canary's weight in it.
        end: When the last request was sent.
        requests: All of them; empty where nobody wrote them down for both arms.
    """

    baseline: Sequence[Scrape]
    canary: Sequence[Scrape]
    steps: Sequence[tuple[float, float]]
    end: float
    requests: Sequence[Request] = field(default=())

    def swapped(self) -> Pair:
        """Return the same pair with the arms' roles exchanged."""
        other = {"baseline": "canary", "canary": "baseline"}
        return Pair(
            baseline=self.canary,
            canary=self.baseline,
            steps=[(at, 100 - weight) for at, weight in self.steps],
            end=self.end,
            requests=[replace(request, arm=other[request.arm]) for request in self.requests],
        )

    def ticks(
        self, *, routers: bool = False, swap: bool = False, drain: bool = False
    ) -> Iterator[Tick]:
        """Yield what the analysis would have been fed.

        Args:
            routers: Make up, from the requests, what a router would have counted too.
            swap: Call the canary baseline and the baseline canary.
            drain: Go on after the last request was sent, while the engines empty.
        """
        if swap:
            yield from self.swapped().ticks(routers=routers, drain=drain)
            return
        counts = {arm: _Router(self.requests, arm) for arm in ("baseline", "canary")}
        for baseline, canary in _side_by_side(self.baseline, self.canary):
            if baseline.at > self.end and not drain:
                return
            now = {
                arm: {"router-0": counts[arm].at(baseline.at)} if routers else {} for arm in counts
            }
            begun = [weight for at, weight in self.steps if at <= baseline.at]
            later = [weight for at, weight in self.steps if at > baseline.at]
            yield Tick(
                at=baseline.at,
                step=len(begun),
                weight=begun[-1] if begun else 0.0,
                baseline=_arm(baseline, now["baseline"]),
                canary=_arm(canary, now["canary"]),
                next_weight=later[0] if later else None,
                next_replicas=1 if later else None,
            )


def pair(name: str) -> Pair:
    """Return two engines that were recorded at once.

    Args:
        name: What its three files' names begin with.
    """
    told = _json(RECORDINGS / f"{name}.requests.json.gz")
    return Pair(
        baseline=_scrapes(RECORDINGS / f"{name}.baseline.metrics.gz"),
        canary=_scrapes(RECORDINGS / f"{name}.canary.metrics.gz"),
        steps=[(at, weight) for at, weight in told["steps"]],
        end=told["end"],
        requests=[
            Request(one["arm"], one["at"], one["e2e"], one["err"]) for one in told["requests"]
        ],
    )


def solo(baseline: str, canary: str) -> Pair:
    """Return two engines that were recorded alone, as if it had been at once.

    Args:
        baseline: KV cache dtype of one of them.
        canary: KV cache dtype of the other.
    """
    one, other = (_scrapes(RECORDINGS / f"solo-{dtype}.metrics.gz") for dtype in (baseline, canary))
    later = one[0].at - other[0].at
    return Pair(
        baseline=one,
        canary=[replace(scrape, at=scrape.at + later) for scrape in other],
        # Between the first scrape and the first request nothing happens.
        steps=[(one[0].at + 0.001, 50.0)],
        end=one[-1].at,
    )


def exposition(name: str, labels: str, later: float = 0.0) -> Iterator[str]:
    """Yield a recording of one engine as lines of samples with instants, for a backfill.

    Args:
        name: What its file's name begins with, such as `auto-int8-calm.canary`.
        labels: What to add to each sample's labels, as in `pod="a"`.
        later: Seconds that are added to each instant.
    """
    with gzip.open(RECORDINGS / f"{name}.metrics.gz", "rt") as file:
        at = ""
        for line in file:
            if line.startswith(SCRAPE):
                at = f"{float(line[len(SCRAPE) :].split()[0]) + later:.3f}"
            elif line.strip() and not line.startswith("#"):
                sample, value = line.rsplit(maxsplit=1)
                metric, _, own = sample.partition("{")
                inner = f"{labels},{own}" if own else f"{labels}}}"
                yield f"{metric}{{{inner} {value} {at}"


def _side_by_side(
    one: Sequence[Scrape], other: Sequence[Scrape]
) -> Iterator[tuple[Scrape, Scrape]]:
    """Yield each scrape of one engine with the nearest of the other, while both were scraped."""
    instants = [scrape.at for scrape in other]
    for scrape in one:
        after = bisect_right(instants, scrape.at)
        near = min(other[max(0, after - 1) : after + 1], key=lambda o: abs(o.at - scrape.at))
        if abs(near.at - scrape.at) < 1:
            yield scrape, near


def _arm(scrape: Scrape, routers: dict[str, RouterSample]) -> Arm:
    return Arm(
        routers=routers,
        engines={} if scrape.engine is None else {"engine-0": scrape.engine},
    )


class _Router:
    """Counts an arm's requests as a router does, instant by instant."""

    def __init__(self, requests: Sequence[Request], arm: str) -> None:
        mine = [request for request in requests if request.arm == arm]
        self._starts = sorted(request.at for request in mine)
        self._ends = sorted(
            (request.end, request.error, request.seconds)
            for request in mine
            if request.end < math.inf
        )

    def at(self, instant: float) -> RouterSample:
        started = bisect_right(self._starts, instant)
        ended = [(error, seconds) for end, error, seconds in self._ends if end <= instant]
        answered = sorted(seconds for error, seconds in ended if error is None)
        failed = len(ended) - len(answered)
        return RouterSample(
            started=started,
            failed=failed,
            unanswered=failed,
            active=started - len(ended),
            latency=Bins(
                ROUTER_BOUNDS,
                tuple(float(bisect_right(answered, bound)) for bound in ROUTER_BOUNDS),
            ),
        )


@cache
def _scrapes(path: Path) -> tuple[Scrape, ...]:
    with gzip.open(path, "rt") as file:
        parts = file.read().split(SCRAPE)[1:]
    return tuple(_scrape(part) for part in parts)


def _scrape(part: str) -> Scrape:
    head, _, body = part.partition("\n")
    at, *error = head.split(maxsplit=1)
    if error:
        return Scrape(float(at), None)
    sums: dict[str, float] = {}
    bins: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                buckets = bins.setdefault(sample.name.removesuffix("_bucket"), {})
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
            else:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    told: dict[str, Any] = {attribute: sums.get(name) for attribute, name in COUNTERS.items()}
    for attribute, name in HISTOGRAMS.items():
        if name in bins:
            bounds, counts = zip(*sorted(bins[name].items()), strict=True)
            told[attribute] = Bins(bounds, counts, sums.get(f"{name}_sum"))
    return Scrape(float(at), EngineSample(**told))


def _json(path: Path) -> Any:
    with gzip.open(path, "rt") as file:
        return json.load(file)
