"""Whether an arm can spare what a replay costs: read from the metrics of its own pods."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

SCRAPE_SECONDS = 2.0
SCRAPE_WITHIN = 2.0
LONGEST_ANSWER = 16 * 2**20
_SAMPLE = re.compile(
    r"^vllm:(kv_cache_usage_perc|num_requests_waiting|num_requests_running|request_success_total)"
    r"(?:\{[^}\n]*\})?[ \t]+(\S+)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a pod is.

    Attributes:
        kv_usage: Share of its KV cache that is in use.
        waiting: Requests that wait in it.
        finished: Requests that it has finished since its process started; None: it does not tell.
        running: Requests that it is working on; None: it does not tell.
    """

    kv_usage: float
    waiting: float
    finished: float | None = None
    running: float | None = None


def read(exposition: str) -> Load | None:
    """Return the load that a pod's metrics tell; None: they do not.

    An engine in parts (data parallel) has a series for each: the fullest cache counts, and all
    that wait.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in _SAMPLE.findall(exposition):
        try:
            number = float(value)
        except ValueError:
            return None
        found[name].append(number)
    usage, waiting = found["kv_cache_usage_perc"], found["num_requests_waiting"]
    if not usage or not waiting:
        return None
    finished, running = (
        sum(found[name]) if found[name] else None
        for name in ("request_success_total", "num_requests_running")
    )
    load = Load(max(usage), sum(waiting), finished, running)
    return load if math.isfinite(load.kv_usage) and math.isfinite(load.waiting) else None


def busy(loads: Sequence[Load | None], kv_usage: float, waiting: float) -> str | None:
    """Return why an arm has nothing to spare, in a word; None: it has.

    Args:
        loads: Load of each of its pods; None: unknown, which counts as busy.
        kv_usage: Share of the KV cache that may be in use.
        waiting: Requests that may wait.
    """
    if not loads:
        return "no pod"
    if any(load is None for load in loads):
        return "load not measured"
    known = [load for load in loads if load is not None]
    if max(load.kv_usage for load in known) > kv_usage:
        return "kv cache"
    if max(load.waiting for load in known) > waiting:
        return "queue"
    return None


async def scrape(client: aiohttp.ClientSession, url: str) -> Load | None:
    """Return the load of a pod; None: it does not tell."""
    try:
        async with asyncio.timeout(SCRAPE_WITHIN), client.get(f"{url}/metrics") as answer:
            if answer.status != 200:
                return None
            content = await answer.content.read(LONGEST_ANSWER)
            while not answer.content.at_eof() and len(content) < LONGEST_ANSWER:
                content += await answer.content.read(LONGEST_ANSWER)
    except (OSError, aiohttp.ClientError):
        return None
    return read(content.decode("utf-8", "replace"))
