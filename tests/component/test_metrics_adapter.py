"""The metrics adapter against a server that answers as Prometheus does, and as it should not."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.core.custom_signals import Selector, ShareQuery
from kvquant.core.evidence import ArmNeed, ArmSample, Evidence, EvidenceNeed
from kvquant.core.ticking import TickNeed
from kvquant.errors import MetricsError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SINCE = NOW - timedelta(seconds=60)
NEED = EvidenceNeed(
    key="ns/r",
    namespace="ns",
    router="llama-router",
    baseline=ArmNeed("blue", "llama"),
    canary=ArmNeed("green", "llama-pool"),
    since=SINCE,
)
TICKS = TickNeed("ns/r", "ns", "llama-router", NEED.baseline, NEED.canary, SINCE)
ROUTER_POD = "llama-router-7d9f8b6c5-abcde"
BASE_POD = "llama-7d9f8b6c5-abcde"
POOL_POD = "llama-pool-7d9f8b6c5-abcde"

Answer = tuple[int, bytes]


class Stub:
    """An HTTP server that answers by its `answer` and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[str, dict[str, str]], Answer] = lambda path, query: vector([])
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.release = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                text = self.rfile.read(length).decode()
                query = {k: v[0] for k, v in parse_qs(text).items()}
                stub.asked.append((self.path, query))
                status, body = stub.answer(self.path, query)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After", "3600")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self) -> Stub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture
def metrics(stub: Stub) -> Iterator[PrometheusMetrics]:
    metrics = PrometheusMetrics(f"{stub.url}/", timeout=0.5)
    yield metrics
    metrics.close()


def reply(data: Any, **more: Any) -> Answer:
    return 200, json.dumps({"status": "success", "data": data, **more}).encode()


def vector(result: list[Any]) -> Answer:
    return reply({"resultType": "vector", "result": result})


def matrix(result: list[Any]) -> Answer:
    return reply({"resultType": "matrix", "result": result})


def line(name: str, pod: str, first: float | str, last: float | str, **labels: str) -> Any:
    """A series with a sample at either end of the window."""
    return {
        "metric": {"__name__": name, "namespace": "ns", "pod": pod, **labels},
        "values": [[SINCE.timestamp(), str(first)], [NOW.timestamp(), str(last)]],
    }


def router_series(slot: str, completed: float) -> list[Any]:
    label = {"envoy_cluster_name": slot}
    prefix = "envoy_cluster_upstream"
    return [
        line(f"{prefix}_rq_timeout", ROUTER_POD, 3, 4, **label),
        line(f"{prefix}_rq_completed", ROUTER_POD, 100, 100 + completed, **label),
        line(f"{prefix}_rq_active", ROUTER_POD, 9, 2, **label),
        line("envoy_cluster_membership_healthy", ROUTER_POD, 0, 3, **label),
        line(f"{prefix}_cx_destroy_remote_with_active_rq", ROUTER_POD, 0, 6, **label),
        line(f"{prefix}_rq_xx", ROUTER_POD, 0, 12, **label, envoy_response_code_class="5"),
        line(f"{prefix}_rq", ROUTER_POD, 0, 5, **label, envoy_response_code="503"),
        line(f"{prefix}_rq", ROUTER_POD, 0, 1, **label, envoy_response_code="504"),
    ]


def healthy(path: str, query: dict[str, str]) -> Answer:
    """What Prometheus says of a router with 500 and 60 requests, and of engines."""
    if "rq_time_bucket" in query["query"]:
        bucket = "envoy_cluster_upstream_rq_time_bucket"
        return matrix(
            [
                line(bucket, ROUTER_POD, 10, 10 + n, envoy_cluster_name="blue", le=le)
                for le, n in (("500", 400), ("1000", 480), ("+Inf", 490))
            ]
        )
    if "preemptions" in query["query"]:
        return matrix(
            [
                line("vllm:num_preemptions_total", BASE_POD, 5, 25, engine="0"),
                line("vllm:request_success_total", BASE_POD, 0, 300, finished_reason="stop"),
                line("vllm:request_success_total", BASE_POD, 0, 190, finished_reason="length"),
                line("vllm:num_preemptions_total", POOL_POD, 0, 1, engine="0"),
                line("vllm:request_success_total", POOL_POD, 0, 59, finished_reason="stop"),
            ]
        )
    return matrix([*router_series("blue", 500), *router_series("green", 60)])


def evidence(metrics: PrometheusMetrics) -> Evidence:
    return metrics.evidence([NEED], NOW)[NEED.key]


def test_both_arms_are_read_with_disjoint_failures(stub: Stub, metrics: PrometheusMetrics) -> None:
    stub.answer = healthy
    found = evidence(metrics)
    assert found.at == NOW
    assert found.problems == ()
    base = found.baseline
    # Of 500, 1 timed out and 6 were cut; of their 5xx 1 and 5 are among the 12.
    assert (base.completed, base.errors_5xx, base.timeouts, base.resets) == (493, 6, 1, 6)
    assert (base.active, base.healthy, base.preemptions, base.finished) == (2, 3, 20, 490)
    assert base.seconds == pytest.approx(60)
    assert base.latency is not None
    assert base.latency.bounds == (0.5, 1.0, float("inf"))
    assert base.latency.counts == (400, 480, 490)
    assert found.canary.completed == 53
    assert found.canary.latency is None
    assert found.canary.finished == 59


def test_one_call_sends_three_queries_for_any_number_of_rollouts(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    needs = [
        EvidenceNeed(f"ns/{i}", "ns", f"r{i}", ArmNeed("blue", "a"), ArmNeed("green", "b"), SINCE)
        for i in range(50)
    ]
    assert set(metrics.evidence(needs, NOW)) == {need.key for need in needs}
    assert len(stub.asked) == 3
    assert metrics.evidence([], NOW) == {}
    assert len(stub.asked) == 3


def test_the_queries_name_their_instants(stub: Stub, metrics: PrometheusMetrics) -> None:
    evidence(metrics)
    for path, query in stub.asked:
        assert path == "/api/v1/query_range"
        assert float(query["end"]) == NOW.timestamp()
        assert float(query["start"]) == SINCE.timestamp()
        assert query["step"] == "1000ms", "seconds would be cut to a millisecond less at times"
    metrics.cache_configs("ns", ["a"], NOW)
    path, query = stub.asked[-1]
    assert path == "/api/v1/query"
    assert float(query["time"]) == NOW.timestamp()


def test_ticks_are_asked_for_at_the_instants_of_the_grid(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    late = NOW + timedelta(seconds=0.9)
    found = metrics.ticks([replace(TICKS, since=SINCE + timedelta(seconds=1))], late)[TICKS.key]
    assert [tick.at for tick in found.ticks] == [NOW.timestamp() - 15 * n for n in (3, 2, 1)]
    for path, query in stub.asked:
        assert path == "/api/v1/query_range"
        assert float(query["start"]) == SINCE.timestamp() + 15
        assert float(query["end"]) == NOW.timestamp() - 15
        assert query["step"] == "15000ms"


def test_a_users_signal_that_is_refused_is_that_rollouts_problem_alone(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    def answer(path: str, query: dict[str, str]) -> Answer:
        if "mine_total" in query["query"]:
            return 400, b'{"status":"error","error":"invalid regular expression"}'
        return matrix([])

    stub.answer = answer
    selector = Selector.parse('mine_total{a=~"("}')
    own = replace(TICKS, key="own", signals=(ShareQuery("mine", selector, selector),))
    found = metrics.ticks([TICKS, own], NOW)
    assert found[TICKS.key].problems == ()
    assert found[TICKS.key].ticks
    assert "signal mine: Prometheus at" in found["own"].problems[0]
    assert "invalid regular expression" in found["own"].problems[0]


def test_there_are_no_ticks_of_the_future_or_of_nobody(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    assert metrics.ticks([replace(TICKS, since=NOW)], NOW)[TICKS.key].ticks == ()
    assert metrics.ticks([], NOW) == {}
    assert stub.asked == []


def test_a_set_of_queries_does_not_take_many_time_outs(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    def slow(path: str, query: dict[str, str]) -> Answer:
        stub.release.wait(0.4)
        return matrix([])

    stub.answer = slow
    started = time.monotonic()
    with pytest.raises(MetricsError, match="takes too long over a set of queries"):
        metrics.ticks([TICKS], NOW)
    assert time.monotonic() - started < 3
    assert len(stub.asked) < 8


def test_nothing_scraped_is_no_data(stub: Stub, metrics: PrometheusMetrics) -> None:
    found = evidence(metrics)
    assert found.problems == ()
    assert found.baseline == found.canary == ArmSample(seconds=found.canary.seconds)


def test_nan_and_infinity_are_no_data(stub: Stub, metrics: PrometheusMetrics) -> None:
    for bad in ("NaN", "+Inf", "-Inf", "-1"):
        stub.answer = lambda path, query, bad=bad: matrix(  # type: ignore[misc]
            [
                {**one, "values": [[t, bad] for t, _ in one["values"]]}
                for one in _series(path, query)
            ]
        )
        found = evidence(metrics)
        for sample in (found.baseline, found.canary):
            assert sample.completed is None
            assert sample.latency is None


def _series(path: str, query: dict[str, str]) -> list[Any]:
    result: list[Any] = json.loads(healthy(path, query)[1])["data"]["result"]
    return result


def test_a_router_that_is_scraped_no_longer_is_a_problem(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    stub.answer = lambda path, query: matrix(
        [{**one, "values": one["values"][:1]} for one in _series(path, query)]
    )
    found = evidence(metrics)
    assert found.canary.completed is None
    assert found.canary.finished is None
    assert found.problems == (
        "Prometheus has not scraped router llama-router since 11:59:00 UTC: look at its targets",
    )


def test_series_of_other_pods_and_namespaces_do_not_count(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    def with_strangers(path: str, query: dict[str, str]) -> Answer:
        own = _series(path, query)
        strangers = [
            {**one, "metric": {**one["metric"], **other}}
            for one in own
            for other in ({"pod": "llama-pool-b-7d9f8b6c5-abcde"}, {"namespace": "elsewhere"})
        ]
        return matrix([*strangers, *own])

    stub.answer = healthy
    alone = evidence(metrics)
    stub.answer = with_strangers
    assert evidence(metrics) == alone


def test_many_routers_and_engines_are_added_up(stub: Stub, metrics: PrometheusMetrics) -> None:
    def doubled(path: str, query: dict[str, str]) -> Answer:
        own = _series(path, query)
        more = [
            {**one, "metric": {**one["metric"], "pod": one["metric"]["pod"][:-5] + suffix}}
            for one in own
            for suffix in ("bbbbb", "ccccc")
        ]
        return matrix([*own, *more])

    stub.answer = doubled
    found = evidence(metrics)
    assert found.baseline.completed == 3 * 493
    assert found.baseline.preemptions == 60
    assert found.baseline.latency is not None
    assert found.baseline.latency.counts == (1200, 1440, 1470)


def test_an_answer_in_part_is_an_error(stub: Stub, metrics: PrometheusMetrics) -> None:
    stub.answer = lambda path, query: reply(
        {"resultType": "matrix", "result": []}, warnings=["store 10.0.0.1 did not answer"]
    )
    with pytest.raises(MetricsError, match=r"only in part.*store 10\.0\.0\.1 did not answer"):
        evidence(metrics)


def test_infos_are_no_warnings(stub: Stub, metrics: PrometheusMetrics) -> None:
    stub.answer = lambda path, query: reply(
        {"resultType": "matrix", "result": []}, warnings=[], infos=["might not be a counter"]
    )
    assert evidence(metrics).canary.completed is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"status":"error","error":"parse error"}'),
        (422, b'{"status":"error","error":"too many samples"}'),
        (500, b"oops"),
        (503, b"starting"),
    ],
)
def test_an_error_status_is_an_error_that_quotes_it(
    stub: Stub, metrics: PrometheusMetrics, status: int, body: bytes
) -> None:
    stub.answer = lambda path, query: (status, body)
    started = time.monotonic()
    for call in (lambda: evidence(metrics), lambda: metrics.cache_configs("ns", ["a"], NOW)):
        with pytest.raises(MetricsError, match=f"refused a query: .*{status}"):
            call()
    assert time.monotonic() - started < 5, "a server must not say how long we wait"
    assert len(stub.asked) <= 4


@pytest.mark.parametrize(
    "body",
    [
        b"<html>login</html>",
        b"",
        b"[]",
        b'{"status":"success"}',
        b'{"status":"success","data":{"result":"x"}}',
        b'{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}',
        b'{"status":"success","data":{"result":[{"metric":{"pod":"p"}}]}}',
        b'{"status":"success","data":{"result":[{"metric":{},"values":[[1]],"value":[1]}]}}',
        b'{"status":"success","data":{"result":[{"metric":{"pod":"p"},"values":[["x","y"]],'
        b'"value":[1,"y"]}]}}',
        b'{"status":"success","data":{"result":[{"metric":7,"values":[],"value":[1,"1e999"]}]}}',
        b'{"status":"success","data":{"result":[{"metric":[],"values":[[1,"1"]],"value":[1,"1"]}]}}',
        b'{"status":"success","data":{"result":[7]}}',
    ],
)
def test_garbage_is_an_error_that_doubts_the_address(
    stub: Stub, metrics: PrometheusMetrics, body: bytes
) -> None:
    stub.answer = lambda path, query: (200, body)
    for call in (
        lambda: evidence(metrics),
        lambda: metrics.cache_configs("ns", ["a"], NOW),
        lambda: metrics.ticks([TICKS], NOW),
    ):
        with pytest.raises(MetricsError, match="does not speak like Prometheus"):
            call()


def test_a_server_that_does_not_answer_is_given_up_in_time(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    def hang(path: str, query: dict[str, str]) -> Answer:
        stub.release.wait(30)
        return vector([])

    stub.answer = hang
    started = time.monotonic()
    with pytest.raises(MetricsError, match=r"did not answer within 0\.5 s"):
        evidence(metrics)
    assert time.monotonic() - started < 3
    assert len(stub.asked) == 1, "a slow server is not asked twice"


def test_no_server_at_all_is_an_error_that_names_the_address() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    metrics = PrometheusMetrics(f"http://{address}", timeout=1)
    with pytest.raises(MetricsError, match=f"{address} cannot be reached .*refused"):
        evidence(metrics)
    metrics.close()


def test_a_proxy_that_reloads_is_asked_once_more(stub: Stub, metrics: PrometheusMetrics) -> None:
    stub.answer = lambda path, query: (503, b"") if len(stub.asked) == 1 else healthy(path, query)
    assert evidence(metrics).baseline.completed == 493


def info(pod: str, sampled: float | str, **labels: str) -> Any:
    told = {
        "namespace": "ns",
        "pod": pod,
        "engine": "0",
        "block_size": "16",
        "cache_dtype": "fp8",
        "kv_cache_size_tokens": "98304",
        "kv_cache_memory_bytes": "6442450944",
        "enable_prefix_caching": "False",
        "kv_cache_dtype_skip_layers": "[]",
        "num_gpu_blocks": "6144",
    }
    return {"metric": told | labels, "value": [NOW.timestamp(), str(sampled)]}


def test_the_cache_config_comes_with_the_time_of_its_sample(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    sampled = SINCE.timestamp() + 0.25
    stub.answer = lambda path, query: vector([info("p", sampled)])
    found = metrics.cache_configs("ns", ["p", "q"], NOW)
    assert list(found) == ["p"]
    config = found["p"]
    assert config.sampled_at == SINCE + timedelta(seconds=0.25)
    assert (config.dtype, config.capacity_tokens, config.memory_bytes) == ("fp8", 98304, 6 * 2**30)
    assert (config.prefix_caching, config.skip_layers, config.block_size) == (False, None, 16)


def test_what_an_engine_does_not_know_is_unknown(stub: Stub, metrics: PrometheusMetrics) -> None:
    unknown = {
        "kv_cache_memory_bytes": "None",
        "enable_prefix_caching": "None",
        "kv_cache_size_tokens": "None",
        "kv_cache_dtype_skip_layers": "['0']",
    }
    stub.answer = lambda path, query: vector([info("p", 1, **unknown)])
    config = metrics.cache_configs("ns", ["p"], NOW)["p"]
    assert (config.memory_bytes, config.prefix_caching) == (None, None)
    assert config.capacity_tokens == 6144 * 16
    assert config.skip_layers == "['0']"


def test_after_a_restart_the_younger_config_of_a_pod_counts(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    old, new = info("p", 100, cache_dtype="auto"), info("p", 200)
    for order in ([old, new], [new, old]):
        stub.answer = lambda path, query, order=order: vector(order)  # type: ignore[misc]
        assert metrics.cache_configs("ns", ["p"], NOW)["p"].dtype == "fp8"


def test_of_several_engines_in_a_pod_the_smallest_speaks(
    stub: Stub, metrics: PrometheusMetrics
) -> None:
    stub.answer = lambda path, query: vector(
        [info("p", 200), info("p", 100, engine="1", kv_cache_size_tokens="49152")]
    )
    config = metrics.cache_configs("ns", ["p"], NOW)["p"]
    assert config.capacity_tokens == 49152
    assert config.sampled_at.timestamp() == 100
