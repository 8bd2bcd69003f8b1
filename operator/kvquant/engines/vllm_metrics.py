"""vLLM's own names for what the analysis reads of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SCALARS: Mapping[str, str] = MappingProxyType(
    {
        "vllm:request_success_total": "finished",
        "vllm:num_preemptions_total": "preemptions",
        "vllm:prompt_tokens_total": "prompt_tokens",
        "vllm:generation_tokens_total": "generated_tokens",
        "vllm:num_requests_running": "running",
        "vllm:num_requests_waiting": "waiting",
    }
)
"""Counters and gauges, and the fields of `EngineSample` that they fill."""

HISTOGRAMS: Mapping[str, str] = MappingProxyType(
    {
        "vllm:e2e_request_latency_seconds": "e2e",
        "vllm:time_to_first_token_seconds": "ttft",
        "vllm:request_prefill_time_seconds": "prefill",
    }
)
"""Histograms without their endings, and the fields of `EngineSample` that they fill."""

MEANS: Mapping[str, str] = MappingProxyType(
    {
        "vllm:request_queue_time_seconds": "queue",
        "vllm:inter_token_latency_seconds": "itl",
    }
)
"""Histograms of which only count and sum are read: the analysis compares their means, and many pods
have many buckets."""

WITNESS = "vllm:num_requests_running"
"""Shown from an engine's start whatever it does: who shows it is an engine and is scraped."""

PARTS = ("model_name", "engine", "finished_reason")
"""Labels that split what one process counts; everything else that differs is another scrape."""
