"""The regime proof: which capacities and reports prove a dtype, contradict it, or say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api.v1alpha1 import PodProof, Verdict
from kvquant.core.evidence import CacheConfig
from kvquant.core.regime import canonical, expected_factor, prove

STARTED = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = STARTED + timedelta(seconds=7)
GIB = 2**30
# As an H200 reported them, 6 GiB of KV memory each (tests/data holds the recordings).
AUTO = CacheConfig("base", LATER, "auto", 49_152, 6 * GIB, False, block_size=16)
FP8 = CacheConfig("pod", LATER, "fp8", 98_304, 6 * GIB, False, block_size=16)
INT8 = CacheConfig("pod", LATER, "int8_per_token_head", 95_312, 6 * GIB, False, block_size=16)
INT4 = CacheConfig("pod", LATER, "int4_per_token_head", 185_040, 6 * GIB, False, block_size=16)


def proof(
    config: CacheConfig | None,
    asked: str,
    baseline: Sequence[CacheConfig] = (AUTO,),
    running: str = "auto",
    head_dim: int = 128,
    started: datetime | None = STARTED,
) -> PodProof:
    return prove("pod", "containerd://1", started, config, baseline, asked, running, head_dim)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "factor"),
    [
        ("fp8", 128, 2.0),
        ("fp8_e4m3", 64, 2.0),
        ("int8_per_token_head", 64, 1.88),
        ("int8", 128, 1.94),
        ("int8_per_token_head", 256, 1.97),
        ("int4_per_token_head", 64, 3.56),
        ("int4_per_token_head", 128, 3.76),
        ("int4", 256, 3.88),
        ("nvfp4", 128, 3.56),
        ("bfloat16", 128, 1.0),
    ],
)
def test_the_expected_factor_is_that_of_the_cache_layout(
    dtype: str, head_dim: int, factor: float
) -> None:
    assert expected_factor("auto", dtype, head_dim) == pytest.approx(factor, abs=0.005)


@pytest.mark.parametrize(("config", "asked"), [(FP8, "fp8"), (INT8, "int8"), (INT4, "int4")])
def test_what_real_engines_reported_proves_them(config: CacheConfig, asked: str) -> None:
    outcome = proof(config, asked)
    assert outcome.verdict is Verdict.PASS
    assert outcome.capacity_tokens == config.capacity_tokens
    assert (outcome.pod, outcome.container_id) == ("pod", "containerd://1")


def test_aliases_of_one_dtype_are_the_same() -> None:
    assert canonical("fp8_e4m3") == canonical("fp8")
    assert proof(replace(FP8, dtype="fp8_e4m3"), "fp8").verdict is Verdict.PASS
    assert proof(FP8, "fp8_e4m3").verdict is Verdict.PASS


def test_another_dtype_than_asked_for_fails() -> None:
    outcome = proof(replace(FP8, dtype="auto"), "fp8")
    assert outcome.verdict is Verdict.FAIL
    assert "asked for a fp8 KV cache and reports auto" in outcome.message


def test_a_flag_that_was_accepted_and_ignored_fails() -> None:
    outcome = proof(replace(AUTO, dtype="fp8"), "fp8")
    assert outcome.verdict is Verdict.FAIL
    assert "accepted the flag and ignored it" in outcome.message
    assert (outcome.factor, outcome.expected_factor) == ("1.00", "2.00")


def test_the_capacity_of_another_dtype_fails() -> None:
    # vLLM on CPU says int8 and allocates as for fp8: 1536 tokens instead of 1365, with heads of 32.
    baseline = CacheConfig("base", LATER, "auto", 768, 393_216, block_size=32)
    config = CacheConfig("pod", LATER, "int8_per_token_head", 1536, 393_216, block_size=32)
    assert proof(config, "int8", [baseline], head_dim=32).verdict is Verdict.FAIL
    assert proof(config, "int8", [baseline], head_dim=64).verdict is Verdict.FAIL


def test_whole_blocks_of_a_small_cache_are_no_contradiction() -> None:
    baseline = CacheConfig("base", LATER, "auto", 768, 393_216, block_size=32)
    rounded_down = CacheConfig("pod", LATER, "int4_per_token_head", 2432, 393_216, block_size=32)
    assert proof(rounded_down, "int4", [baseline], head_dim=32).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("config", "started"),
    [(None, STARTED), (FP8, None), (FP8, LATER), (FP8, LATER + timedelta(seconds=1))],
)
def test_nothing_sampled_since_the_container_started_says_nothing(
    config: CacheConfig | None, started: datetime | None
) -> None:
    outcome = proof(config, "fp8", started=started)
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert outcome.dtype is None


def test_a_wrong_report_of_an_earlier_container_does_not_fail_the_new_one() -> None:
    outcome = proof(replace(FP8, dtype="auto"), "fp8", started=LATER)
    assert outcome.verdict is Verdict.INCONCLUSIVE


def test_without_a_yardstick_nothing_is_proven() -> None:
    for baseline in ([], [replace(AUTO, capacity_tokens=None)]):
        assert proof(FP8, "fp8", baseline).verdict is Verdict.INCONCLUSIVE
    assert proof(replace(FP8, capacity_tokens=None), "fp8").verdict is Verdict.INCONCLUSIVE


def test_an_unknown_layout_is_never_proven() -> None:
    outcome = proof(replace(FP8, dtype="turboquant_k8v4"), "turboquant_k8v4")
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert "is not known" in outcome.message


@pytest.mark.parametrize("memory", [3 * GIB, 7 * GIB])
def test_unequal_memory_fails_and_names_the_flag(memory: int) -> None:
    fitting = FP8.capacity_tokens * memory // (6 * GIB)  # type: ignore[operator]
    outcome = proof(replace(FP8, capacity_tokens=fitting, memory_bytes=memory), "fp8")
    assert outcome.verdict is Verdict.FAIL
    assert f"has {memory / GIB:.1f} GiB of KV memory, the baseline's 6.0 GiB" in outcome.message
    assert "Set --kv-cache-memory-bytes" in outcome.message


def test_a_page_more_or_less_of_memory_is_taken_into_account() -> None:
    fitting = FP8.capacity_tokens * 59 // 60  # type: ignore[operator]
    config = replace(FP8, capacity_tokens=fitting, memory_bytes=6 * GIB * 59 // 60)
    assert proof(config, "fp8").verdict is Verdict.PASS


def test_unknown_memory_is_taken_to_be_equal_and_said_to_be() -> None:
    outcome = proof(replace(FP8, memory_bytes=None), "fp8")
    assert outcome.verdict is Verdict.PASS
    assert "equally much KV memory" in outcome.message


def test_the_median_of_the_baseline_counts() -> None:
    odd = replace(AUTO, capacity_tokens=10)
    assert proof(FP8, "fp8", [AUTO, odd, AUTO]).verdict is Verdict.PASS


def test_dtypes_of_like_capacity_are_told_apart_by_the_engines_word_alone() -> None:
    outcome = proof(INT8, "int8", [FP8], running="fp8")
    assert outcome.verdict is Verdict.PASS
    assert outcome.expected_factor == "0.97"
    assert "rests on the engine's word" in outcome.message
    assert "rests on" not in proof(FP8, "fp8").message


def test_what_the_baseline_reports_counts_more_than_its_arguments() -> None:
    assert proof(INT8, "int8", [FP8], running="auto").verdict is Verdict.PASS


@pytest.mark.parametrize("on", [True, False])
def test_unequal_prefix_caching_fails_and_names_the_flag(on: bool) -> None:
    outcome = proof(replace(FP8, prefix_caching=on), "fp8", [replace(AUTO, prefix_caching=not on)])
    assert outcome.verdict is Verdict.FAIL
    assert f"runs as with --{'' if on else 'no-'}enable-prefix-caching," in outcome.message
    unknown = replace(AUTO, prefix_caching=None)
    assert proof(FP8, "fp8", [unknown]).verdict is Verdict.PASS


def test_layers_left_out_of_the_quantization_are_told() -> None:
    assert "['0', '31']" in proof(replace(FP8, skip_layers="['0', '31']"), "fp8").message


@given(st.integers(1000, 10**8), st.floats(0.5, 4))
def test_only_capacities_near_the_expected_one_pass(capacity: int, factor: float) -> None:
    baseline = replace(AUTO, capacity_tokens=capacity, block_size=None)
    config = replace(FP8, capacity_tokens=round(capacity * factor), block_size=None)
    verdict = proof(config, "fp8", [baseline]).verdict
    if abs(factor / 2 - 1) < 0.029:
        assert verdict is Verdict.PASS
    if abs(factor / 2 - 1) > 0.031:
        assert verdict is Verdict.FAIL
