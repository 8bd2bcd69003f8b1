"""What the metrics can say about the arms of a rollout. None always means: no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative latency histogram, as Prometheus keeps it.

    Attributes:
        bounds: Upper bounds of the buckets in seconds, rising, the last +Inf.
        counts: Requests at or below each bound, never falling.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def total(self) -> float:
        """Number of requests in the histogram."""
        return self.counts[-1] if self.counts else 0.0


@dataclass(frozen=True, slots=True)
class ArmSample:
    """Everything measured of one arm since the step began; counts of the whole pool.

    The router counts what clients saw; the engine is the second witness.

    Attributes:
        completed: Requests that the router finished with an answer of any status.
        errors_5xx: Of these, answers with a 5xx status.
        timeouts: Requests that the router gave up on.
        resets: Requests whose connection broke before the answer was complete.
        active: Requests in flight now.
        healthy: Pods of the arm that every router finds healthy now: the fewest that one knows.
        latency: Seconds from the router's request to the last byte, completed requests only.
        preemptions: KV page faults that the engines counted.
        finished: Requests that the engines finished.
        seconds: Length of the window that the counts are from.
    """

    completed: float | None = None
    errors_5xx: float | None = None
    timeouts: float | None = None
    resets: float | None = None
    active: float | None = None
    healthy: float | None = None
    latency: Histogram | None = None
    preemptions: float | None = None
    finished: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ArmNeed:
    """Which series belong to an arm.

    Attributes:
        slot: The router's cluster of the arm (`blue` or `green`).
        deployment: Deployment whose pods are the arm.
    """

    slot: str
    deployment: str


@dataclass(frozen=True, slots=True)
class EvidenceNeed:
    """What one rollout needs to know; one call of the port takes the needs of many.

    Attributes:
        key: By which the answer is found.
        namespace: Namespace of router and pools.
        router: Name of the router's Deployment.
        baseline: The pool that served when the rollout began.
        canary: The pool with the quantized cache.
        since: When the step in effect began: what is counted, is counted from here.
        baseline_since: With `baseline_until`, the window in which the baseline is measured instead,
            because it gets no requests now: the step before the last.
        baseline_until: End of that window.
    """

    key: str
    namespace: str
    router: str
    baseline: ArmNeed
    canary: ArmNeed
    since: datetime
    baseline_since: datetime | None = None
    baseline_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Both arms at an instant.

    Attributes:
        at: Instant that the samples are from.
        baseline: The pool that served when the rollout began.
        canary: The pool with the quantized cache.
        problems: What could not be read, in sentences; empty when everything was.
        baseline_now: The baseline over the canary's window, when `baseline` is from an earlier one.
    """

    at: datetime
    baseline: ArmSample
    canary: ArmSample
    problems: tuple[str, ...] = ()
    baseline_now: ArmSample | None = None


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What one engine reports of its KV cache (`vllm:cache_config_info`).

    Attributes:
        pod: Name of the pod.
        sampled_at: When Prometheus scraped it; older than the container's start means another
            process said it.
        dtype: KV-cache dtype, as the engine calls it.
        capacity_tokens: Tokens that the cache holds.
        memory_bytes: Bytes of the cache, when the engine was told them.
        prefix_caching: Whether prefix caching is on.
        skip_layers: Layers kept in the model's own dtype, as the engine prints them.
        block_size: Tokens of one block: the capacity is a multiple of it.
    """

    pod: str
    sampled_at: datetime
    dtype: str
    capacity_tokens: int | None = None
    memory_bytes: int | None = None
    prefix_caching: bool | None = None
    skip_layers: str | None = None
    block_size: int | None = None


def worst(problems: Sequence[str]) -> str:
    """Return the problems as one sentence, shortened to what fits a condition."""
    return "; ".join(problems)[:500]
