"""Shows the engine's figures under vLLM's metric names, labels and buckets."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .histogram import HTTP_FINE_SECONDS, HTTP_SECONDS, Histogram
from .scheduler import Scheduler
from .settings import Settings
from .stats import Stats

_LABELS = ("model_name", "engine")
_ZERO_COUNTERS = (
    "estimated_flops_per_gpu",
    "estimated_read_bytes_per_gpu",
    "estimated_write_bytes_per_gpu",
    "prefix_cache_hits",
    "external_prefix_cache_queries",
    "external_prefix_cache_hits",
    "mm_cache_queries",
    "mm_cache_hits",
    "prompt_tokens_cached",
)


def cache_config(settings: Settings) -> dict[str, str]:
    """Return the labels of ``vllm:cache_config_info``: vLLM's whole CacheConfig as text."""
    options = settings.options
    return {
        "_block_size_resolved": "True",
        "block_size": str(settings.block_size),
        "cache_dtype": settings.dtype.name,
        "calculate_kv_scales": str(bool(options.calculate_kv_scales)),
        "enable_prefix_caching": str(options.enable_prefix_caching),
        "engine": "0",
        "gpu_memory_utilization": str(options.gpu_memory_utilization),
        "hash_block_size": "None",
        "is_attention_free": "False",
        "kv_cache_dtype_skip_layers": str([str(layer) for layer in settings.skipped]),
        "kv_cache_max_concurrency": str(settings.concurrency),
        "kv_cache_memory_bytes": str(options.kv_cache_memory_bytes),
        "kv_cache_size_tokens": str(settings.capacity),
        "kv_offloading_backend": "native",
        "kv_offloading_size": "None",
        "kv_sharing_fast_prefill": "False",
        "mamba_block_size": "None",
        "mamba_cache_dtype": "auto",
        "mamba_cache_mode": "none",
        "mamba_page_size_padded": "None",
        "mamba_ssm_cache_dtype": "auto",
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(settings.blocks),
        "num_gpu_blocks_override": str(options.num_gpu_blocks_override),
        "prefix_caching_hash_algo": options.prefix_caching_hash_algo or "sha256",
        "skip_page_size_padded": "None",
        "sliding_window": "None",
        "user_specified_block_size": str(options.block_size is not None),
        "user_specified_mamba_block_size": "False",
    }


@dataclass
class HttpStats:
    """What vLLM's HTTP layer counts about answers, by handler and method."""

    requests: dict[tuple[str, str, str], int] = field(default_factory=dict)
    sizes: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    fine: Histogram = field(default_factory=lambda: Histogram(HTTP_FINE_SECONDS))

    def record(
        self, handler: str, method: str, status: int, seconds: float, sent: int, received: int
    ) -> None:
        """Count one answer; a stream that broke counts by its header's status, as in vLLM."""
        key = (handler, method, f"{status // 100}xx")
        self.requests[key] = self.requests.get(key, 0) + 1
        sizes = self.sizes.setdefault(handler, [0.0, 0.0, 0.0])
        for index, value in enumerate((1, received, sent)):
            sizes[index] += value
        self.seconds.setdefault((handler, method), Histogram(HTTP_SECONDS)).observe(seconds)
        self.fine.observe(seconds)


class Exposition(Collector):
    """A Prometheus collector over the live scheduler and the counters."""

    def __init__(
        self, settings: Settings, scheduler: Scheduler, stats: Stats, http: HttpStats
    ) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._stats = stats
        self._http = http
        self._own = (settings.models[0], "0")

    def describe(self) -> list[Metric]:
        """Describe nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family."""
        yield from self._gauges()
        yield from self._counters()
        for name, histogram in self._stats.histograms.items():
            family = HistogramMetricFamily(f"vllm:{name}", f"{name} of requests", labels=_LABELS)
            family.add_metric(self._own, histogram.cumulative(), histogram.sum)
            yield family
        yield from self._http_families()

    def _gauges(self) -> Iterator[Metric]:
        waiting = float(len(self._scheduler.waiting))
        for name, value in (
            ("num_requests_running", float(len(self._scheduler.running))),
            ("num_requests_waiting", waiting),
            ("kv_cache_usage_perc", self._scheduler.pool.usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", f"{name} now", labels=_LABELS)
            gauge.add_metric(self._own, value)
            yield gauge
        yield self._gauge_by(
            "num_requests_waiting_by_reason", "reason", {"capacity": waiting, "deferred": 0.0}
        )
        yield self._gauge_by(
            "engine_sleep_state",
            "sleep_state",
            {"awake": 1.0, "weights_offloaded": 0.0, "discard_all": 0.0},
        )
        config = cache_config(self._settings)
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "Configuration of the KV cache", labels=list(config)
        )
        info.add_metric(list(config.values()), 1.0)
        yield info

    def _gauge_by(self, name: str, label: str, values: dict[str, float]) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", f"{name} now", labels=(*_LABELS, label))
        for key, value in values.items():
            family.add_metric((*self._own, key), value)
        return family

    def _counters(self) -> Iterator[Metric]:
        stats = self._stats
        counted = dict.fromkeys(_ZERO_COUNTERS, 0) | {
            "num_preemptions": stats.preemptions,
            "prompt_tokens": stats.prompt_tokens,
            "generation_tokens": stats.generation_tokens,
            "prefix_cache_queries": stats.prefix_queries,
        }
        for name, value in counted.items():
            counter = CounterMetricFamily(f"vllm:{name}", f"{name} so far", labels=_LABELS)
            counter.add_metric(self._own, float(value))
            yield counter
        sources = {
            "local_compute": stats.prompt_tokens,
            "local_cache_hit": 0,
            "external_kv_transfer": 0,
        }
        yield self._counter_by("prompt_tokens_by_source", "source", sources)
        yield self._counter_by("request_success", "finished_reason", stats.success)

    def _counter_by(self, name: str, label: str, values: dict[str, int]) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", f"{name} so far", labels=(*_LABELS, label))
        for key, value in values.items():
            family.add_metric((*self._own, key), float(value))
        return family

    def _http_families(self) -> Iterator[Metric]:
        http = self._http
        requests = CounterMetricFamily(
            "http_requests", "Answers by status", labels=("handler", "method", "status")
        )
        for key, count in http.requests.items():
            requests.add_metric(key, count)
        yield requests
        for index, name in ((1, "request"), (2, "response")):
            summary = SummaryMetricFamily(
                f"http_{name}_size_bytes", f"Content length of {name}s", labels=("handler",)
            )
            for handler, sizes in http.sizes.items():
                summary.add_metric((handler,), int(sizes[0]), sizes[index])
            yield summary
        fine = HistogramMetricFamily("http_request_duration_highr_seconds", "Duration of requests")
        fine.add_metric((), http.fine.cumulative(), http.fine.sum)
        yield fine
        coarse = HistogramMetricFamily(
            "http_request_duration_seconds", "Duration by handler", labels=("handler", "method")
        )
        for route, histogram in http.seconds.items():
            coarse.add_metric(route, histogram.cumulative(), histogram.sum)
        yield coarse
