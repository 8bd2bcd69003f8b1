"""Whether the baseline has something to spare, read from metrics as vLLM writes them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kvquant.core.shadow_settings import ArmSettings
from kvquant.shadow.pods import Pods
from kvquant.shadow.throttle import Load, busy, read

RECORDING = Path(__file__).parents[2] / "data/recordings/h200/auto.metrics.gz"
ARM = ArmSettings(host="llama", port=8000, deployment="llama", dtype="auto")


def test_metrics_of_a_real_engine_are_read() -> None:
    load = read(gzip.decompress(RECORDING.read_bytes()).decode())
    assert load is not None
    assert 0 <= load.kv_usage <= 1


def test_an_engine_in_parts_counts_its_fullest_cache_and_all_that_wait() -> None:
    exposition = (
        "# HELP vllm:kv_cache_usage_perc x\n"
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n'
        'vllm:num_requests_waiting{engine="1",model_name="m"} 3.0\n'
        'vllm:num_requests_waiting_by_reason{engine="1",reason="capacity"} 9.0\n'
    )
    assert read(exposition) == Load(0.5, 5)


@pytest.mark.parametrize(
    "exposition",
    [
        "",
        "vllm:kv_cache_usage_perc 0.5\n",
        "vllm:kv_cache_usage_perc NaN\nvllm:num_requests_waiting 0\n",
        "vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_waiting +Inf\n",
        "vllm:kv_cache_usage_perc many\nvllm:num_requests_waiting 0\n",
        "<html>sorry</html>",
    ],
)
def test_metrics_that_do_not_tell_it(exposition: str) -> None:
    assert read(exposition) is None


@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        ([Load(0.8, 0)], None),
        ([Load(0.1, 0), Load(0.81, 0)], "kv cache"),
        ([Load(0.1, 1), Load(0.1, 0)], "queue"),
        ([Load(0.1, 0), None], "load not measured"),
        ([], "no pod"),
    ],
)
def test_the_busiest_pod_decides(loads: list[Load | None], reason: str | None) -> None:
    assert busy(loads, 0.8, 0) == reason


async def test_pods_take_turns() -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["10.0.0.1", "10.0.0.2", "fd00::3"]

    pods = Pods(ARM, resolve)
    assert pods.pick() is None
    await pods.refresh()
    turns = [pods.pick() for _ in range(6)]
    assert set(turns[:3]) == {
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
        "http://[fd00::3]:8000",
    }
    assert turns[:3] == turns[3:]


async def test_a_pod_is_avoided_where_there_is_another() -> None:
    addresses = ["10.0.0.1", "10.0.0.2"]

    async def resolve(_host: str, _port: int) -> list[str]:
        return addresses

    pods = Pods(ARM, resolve)
    await pods.refresh()
    first = "http://10.0.0.1:8000"
    assert {pods.pick({first}) for _ in range(4)} == {"http://10.0.0.2:8000"}
    addresses.pop()
    await pods.refresh()
    assert pods.pick({first}) == first


async def test_a_name_service_that_is_away_changes_nothing() -> None:
    answers: list[list[str] | Exception] = [["10.0.0.1"], OSError("away"), TimeoutError(), []]

    async def resolve(_host: str, _port: int) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pods = Pods(ARM, resolve)
    known = []
    for _ in range(4):
        await pods.refresh()
        known.append(len(pods.urls))
    assert known == [1, 1, 1, 0]
