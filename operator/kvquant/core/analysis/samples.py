"""What the analysis is fed, tick by tick: cumulative counts, as the exporters show them.

Nothing here is a rate or a difference. Whoever has Prometheus, a file of scrapes or a simulator
hands over what is counted *so far*; resets, gaps and restarts are the analysis' own business.
None always means: not known. NaN, infinite and negative values are taken for None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Bins:
    """A cumulative histogram, as Prometheus keeps it.

    Attributes:
        bounds: Upper bounds of the buckets, rising, the last +Inf; seconds for all of ours.
        counts: Observations at or below each bound, never falling from bound to bound.
        sum: Sum of all observations; None when the exporter does not keep it (Envoy's is not used).
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    sum: float | None = None


@dataclass(frozen=True, slots=True)
class RouterSample:
    """What one router pod has counted for one arm since the router started.

    Attributes:
        started: Requests sent to the arm, whether ended or not.
        failed: Requests that ended badly: answered with 5xx, timed out, or broken off.
        unanswered: Of these, the ones that are in no histogram, because they never got an answer.
        active: Requests in flight now (a gauge).
        latency: Seconds from the router's request to the last byte, of the answered requests.
    """

    started: float | None = None
    failed: float | None = None
    unanswered: float | None = None
    active: float | None = None
    latency: Bins | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A signal of the user's: two cumulative counts, of which the first is part of the second."""

    events: float | None
    total: float | None


@dataclass(frozen=True, slots=True)
class EngineSample:
    """What one engine pod has counted since its process started.

    Names in brackets are vLLM's.

    Attributes:
        process_started: When the process started, in seconds since the epoch.
        finished: Requests finished (`request_success_total`, all reasons).
        preemptions: KV page faults (`num_preemptions_total`).
        prompt_tokens: Prompt tokens computed (`prompt_tokens_total`).
        generated_tokens: Tokens generated (`generation_tokens_total`).
        running: Requests being served now (`num_requests_running`).
        waiting: Requests in the engine's queue now (`num_requests_waiting`).
        e2e: Seconds from arrival to the last token (`e2e_request_latency_seconds`).
        queue: Seconds in the queue per request (`request_queue_time_seconds`).
        prefill: Seconds of prefill per request (`request_prefill_time_seconds`).
        ttft: Seconds to the first token (`time_to_first_token_seconds`).
        itl: Seconds between two tokens (`inter_token_latency_seconds`).
        custom: Signals of the user's that this pod exports, by name.
    """

    process_started: float | None = None
    finished: float | None = None
    preemptions: float | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    running: float | None = None
    waiting: float | None = None
    e2e: Bins | None = None
    queue: Bins | None = None
    prefill: Bins | None = None
    ttft: Bins | None = None
    itl: Bins | None = None
    custom: Mapping[str, Share | Bins] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm at one instant.

    Attributes:
        routers: What each router pod has counted for this arm, by the pod's name. Empty when no
            router is scraped: the engines' own latencies stand in for it then.
        engines: What each engine pod has counted, by the pod's name.
        replicas: Pods that the arm has, scraped or not.
        deaths: Engine deaths of any exit code, counted up since the rollout began, when
            Kubernetes tells them. Process starts and vanished counts are found without it.
        custom: Signals of the user's that no pod of the arm exports itself, by name.
    """

    routers: Mapping[str, RouterSample] = field(default_factory=dict)
    engines: Mapping[str, EngineSample] = field(default_factory=dict)
    replicas: int = 1
    deaths: int | None = None
    custom: Mapping[str, Share | Bins] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tick:
    """Both arms at one instant, and what was in effect then.

    Attributes:
        at: Seconds since the epoch. Ticks come in order; one that is not later is ignored.
        step: Step of the ladder in effect, counted from 1; 0 before the canary gets traffic.
        weight: Canary's share of the traffic in effect, in per cent.
        baseline: The pool that serves today.
        canary: The pool with the quantized cache.
        next_weight: Canary's weight in the next step, in per cent; None in the last.
        next_replicas: Canary pods that are planned for the next step.
    """

    at: float
    step: int
    weight: float
    baseline: Arm
    canary: Arm
    next_weight: float | None = None
    next_replicas: int | None = None
