"""Reads the recordings of real vLLM that the simulation is fitted to."""

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path

_SAMPLE = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a recording: seconds since the start, and its length in tokens."""

    at: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a set of requests.

    Attributes:
        finished: requests that finished before the end.
        p50: median end-to-end seconds of those.
        p99: 99th percentile of end-to-end seconds.
        first_token: mean seconds to the first token, of all requests that came so far.
        tokens_per_second: output tokens of finished requests over the whole duration.
        preemptions: how often a request lost its KV blocks.
        capacity: tokens that the KV cache holds.
    """

    finished: int
    p50: float
    p99: float
    first_token: float
    tokens_per_second: float
    preemptions: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded server: what arrived, until when it was watched, what came out.

    Attributes:
        dtype: its ``--kv-cache-dtype``.
        arrivals: in order of time.
        duration: seconds.
        latencies: end-to-end seconds of the finished requests.
        firsts: seconds to the first token, in order of arrival; empty where not recorded.
        tokens: output tokens of the finished requests.
        outcome: the figures of these.
    """

    dtype: str
    arrivals: tuple[Arrival, ...]
    duration: float
    latencies: tuple[float, ...]
    firsts: tuple[float, ...]
    tokens: float
    outcome: Outcome


def quantile(values: list[float], share: float) -> float:
    """Return the smallest value with at least this share of the values below it."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def scrapes(path: Path) -> list[tuple[float, str]]:
    """Return the scrapes of a recording as seconds since the first and exposition text."""
    with gzip.open(path, "rt") as file:
        parts = [part for part in file.read().split("# SCRAPE ") if part.strip()]
    times = [float(part.split(maxsplit=1)[0]) for part in parts]
    return [(at - times[0], part.partition("\n")[2]) for at, part in zip(times, parts, strict=True)]


def totals(text: str) -> dict[str, float]:
    """Return each ``vllm:`` sample's value summed over its labels, by name without the prefix."""
    values: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        values[name] = values.get(name, 0.0) + float(value)
    return values


def load(folder: Path, dtype: str) -> Recording:
    """Read the recording of one dtype.

    Where no file of single requests was kept, the arrivals are those of fp8 (the load generator
    had the same seed) and the latencies are taken from the growth of the histogram's sum between
    scrapes.

    Raises:
        FileNotFoundError: the folder holds no recording of this dtype.
    """
    series = scrapes(folder / f"{dtype}.metrics.gz")
    begin, last = totals(series[0][1]), totals(series[-1][1])

    def growth(name: str) -> float:
        # The first scrape holds the two requests that warmed the server up.
        return last[name] - begin[name]

    capacity = re.search(r'kv_cache_size_tokens="(\d+)"', series[-1][1])
    requests = folder / f"{dtype}.requests.json.gz"
    own = requests.exists()
    with gzip.open(requests if own else folder / "fp8.requests.json.gz", "rt") as file:
        rows = sorted(json.load(file)["requests"], key=lambda row: row["t"])
    arrivals = tuple(Arrival(row["t"], row["prompt"], row["out"]) for row in rows)
    if own:
        latencies = [row["e2e"] for row in rows]
        duration = max(row["t"] + row["e2e"] for row in rows)
        firsts = [row["ttft"] for row in rows]
        tokens = float(sum(row["out"] for row in rows))
    else:
        firsts = []
        latencies = _latencies(series)
        duration = series[-1][0]
        tokens = growth("request_generation_tokens_sum")
    return Recording(
        dtype,
        arrivals,
        duration,
        tuple(latencies),
        tuple(firsts),
        tokens,
        Outcome(
            finished=len(latencies),
            p50=quantile(latencies, 0.5),
            p99=quantile(latencies, 0.99),
            first_token=growth("time_to_first_token_seconds_sum")
            / growth("time_to_first_token_seconds_count"),
            tokens_per_second=tokens / duration,
            preemptions=int(growth("num_preemptions_total")),
            capacity=int(capacity.group(1)) if capacity else 0,
        ),
    )


def _latencies(series: list[tuple[float, str]]) -> list[float]:
    """Return end-to-end seconds of each finished request, averaged within a scrape interval."""
    latencies: list[float] = []
    before = totals(series[0][1])
    for _, text in series[1:]:
        after = totals(text)
        count = "e2e_request_latency_seconds_count"
        total = "e2e_request_latency_seconds_sum"
        finished = round(after[count] - before[count])
        if finished:
            latencies += [(after[total] - before[total]) / finished] * finished
        before = after
    return latencies
