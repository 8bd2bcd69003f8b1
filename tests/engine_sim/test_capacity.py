"""How many tokens the cache holds, by dtype, model and bytes."""

from __future__ import annotations

import re

import pytest

from engine_sim import args, settings
from engine_sim.recording import load
from tests.engine_sim.running import RECORDINGS, resolved

GIBIBYTES_40 = str(40 << 30)


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        ("float16", 1.0),
        ("bfloat16", 1.0),
        ("fp8", 2.0),
        ("fp8_e4m3", 2.0),
        ("fp8_e5m2", 2.0),
        ("int8_per_token_head", 1.94),
        ("fp8_per_token_head", 1.94),
        ("int4_per_token_head", 3.76),
        ("nvfp4", 3.56),
        # Four layers of the 32 stay 16-bit.
        ("turboquant_k8v4", 2.17),
        ("turboquant_4bit_nc", 2.82),
        ("turboquant_3bit_nc", 3.34),
    ],
)
def test_equal_bytes_hold_as_many_times_more_tokens_as_vllm_says(dtype: str, factor: float) -> None:
    baseline = resolved("--kv-cache-memory-bytes", GIBIBYTES_40)
    quantized = resolved("--kv-cache-memory-bytes", GIBIBYTES_40, "--kv-cache-dtype", dtype)
    assert baseline.capacity == 327_680
    assert quantized.capacity / baseline.capacity == pytest.approx(factor, abs=0.005)


@pytest.mark.parametrize("dtype", ["auto", "fp8", "int8_per_token_head"])
def test_the_recorded_servers_held_exactly_as_many_tokens(dtype: str) -> None:
    recorded = load(RECORDINGS, dtype).outcome.capacity
    assert resolved("--kv-cache-dtype", dtype).capacity == recorded


def test_the_int4_server_of_the_recordings_table_held_exactly_as_many_tokens() -> None:
    table = (RECORDINGS.parent / "README.md").read_text()
    (row,) = re.findall(r"^\| int4_per_token_head \|.*\| ([\d,]+) \|", table, re.MULTILINE)
    capacity = resolved("--kv-cache-dtype", "int4_per_token_head").capacity
    assert f"{capacity:,}" == row


@pytest.mark.parametrize(
    ("model", "parallel", "dtype", "factor"),
    [
        # vLLM's own figures for TurboQuant.
        ("meta-llama/Llama-3.3-70B-Instruct", "4", "turboquant_k8v4", 2.42),
        ("meta-llama/Llama-3.3-70B-Instruct", "4", "turboquant_4bit_nc", 3.35),
        ("Qwen/Qwen3-30B-A3B", "1", "turboquant_k8v4", 2.30),
        ("Qwen/Qwen3-30B-A3B", "1", "turboquant_3bit_nc", 3.76),
        ("Qwen/Qwen3-4B", "1", "fp8", 2.00),
    ],
)
def test_the_factor_follows_the_models_shape(
    model: str, parallel: str, dtype: str, factor: float
) -> None:
    flags = ("--kv-cache-memory-bytes", GIBIBYTES_40, "-tp", parallel, "--model", model)

    def capacity(dtype: str) -> int:
        chosen = args.parse([*flags, "--kv-cache-dtype", dtype], command=False)
        return settings.resolve(chosen, {}).capacity

    assert capacity(dtype) / capacity("auto") == pytest.approx(factor, abs=0.005)


def test_skipped_layers_keep_16_bits_and_are_reported() -> None:
    chosen = resolved("--kv-cache-dtype", "fp8", "--kv-cache-dtype-skip-layers", "0", "31", "99")
    assert chosen.skipped == (0, 31)
    plain = resolved("--kv-cache-dtype", "fp8").capacity
    assert chosen.capacity / plain == pytest.approx(32 / 34, rel=1e-3)


def test_tensor_parallel_halves_the_bytes_of_a_token_but_never_splits_a_head() -> None:
    def capacity(parallel: str) -> int:
        return resolved("--tensor-parallel-size", parallel).capacity

    assert capacity("2") == 2 * capacity("1")
    assert capacity("16") == capacity("8")


def test_without_bytes_the_cache_takes_what_the_weights_leave_of_the_gpu() -> None:
    def pool(*words: str) -> float:
        return settings.resolve(args.parse(["serve", "m", *words]), {}).pool_bytes

    assert pool() / 2**30 == pytest.approx(140 * 0.92 - 8.03e9 * 2 / 2**30 - 4)
    assert pool() - pool("--gpu-memory-utilization", "0.5") == pytest.approx(140 * 0.42 * 2**30)


def test_a_block_override_beats_the_bytes() -> None:
    chosen = resolved("--num-gpu-blocks-override", "64", "--max-model-len", "1024")
    assert (chosen.blocks, chosen.capacity) == (64, 1024)


def test_the_ignored_dtype_has_the_plain_capacity_under_the_asked_label() -> None:
    lying = resolved("--kv-cache-dtype", "fp8", faults="fp8:ignore_dtype")
    honest = resolved("--kv-cache-dtype", "auto", faults="fp8:ignore_dtype")
    assert lying.capacity == honest.capacity == 49_152
    assert (lying.dtype.name, lying.cost) == ("fp8", honest.cost)
