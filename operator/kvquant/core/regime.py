"""Regime proof: is the quantized KV cache that was asked for really on?

Engines accept a dtype that they do not implement, and report it too. What cannot lie is the
capacity: from the bytes that one token takes follows how many tokens fit into the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from statistics import median

from kvquant.api.v1alpha1 import PodProof, Verdict
from kvquant.core.evidence import CacheConfig

TOLERANCE = 0.03
"""Relative error of the capacity factor that still counts as a match."""

TELLING = 0.06
"""Relative difference of two dtypes' capacities below which capacity cannot tell them apart."""

_ALIASES = {
    "fp8_e4m3": "fp8",
    "int8": "int8_per_token_head",
    "int4": "int4_per_token_head",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}

# Bytes per token and KV head, K and V together with their scales, by size D of the head.
# Source: the cache layouts of vLLM 0.32 (kv_cache_interface and the attention backends). Layouts
# that keep some layers unquantized (turboquant) are missing: their size depends on the model.
_BYTES: dict[str, Callable[[int], float]] = {
    "auto": lambda d: 4 * d,
    "bfloat16": lambda d: 4 * d,
    "float16": lambda d: 4 * d,
    "fp8": lambda d: 2 * d,
    "fp8_e5m2": lambda d: 2 * d,
    "fp8_inc": lambda d: 2 * d,
    "fp8_per_token_head": lambda d: 2 * d + 8,
    "int8_per_token_head": lambda d: 2 * d + 8,
    "int4_per_token_head": lambda d: d + 8,
    "nvfp4": lambda d: 2 * (d / 2 + d / 16),
    "nvfp4_4over6": lambda d: 2 * (d / 2 + d / 16),
}


def canonical(dtype: str) -> str:
    """Return one name for dtypes that engines call differently but store alike."""
    return _ALIASES.get(dtype, dtype)


def expected_factor(baseline_dtype: str, canary_dtype: str, head_dim: int) -> float | None:
    """Return tokens per byte of the canary's cache divided by those of the baseline's.

    Args:
        baseline_dtype: KV-cache dtype of the baseline, by any of its names.
        canary_dtype: KV-cache dtype of the canary.
        head_dim: Size of one attention head of the model.

    Returns:
        None when the layout of one of them is not known.
    """
    baseline = _BYTES.get(canonical(baseline_dtype))
    canary = _BYTES.get(canonical(canary_dtype))
    if baseline is None or canary is None:
        return None
    return baseline(head_dim) / canary(head_dim)


def prove(
    pod: str,
    container_id: str,
    container_started_at: datetime | None,
    config: CacheConfig | None,
    baseline: Sequence[CacheConfig],
    asked_dtype: str,
    baseline_dtype: str,
    head_dim: int,
    yardstick: str = "the baseline",
) -> PodProof:
    """Prove one canary pod, or one of a target that has adopted the promoted dtype.

    Args:
        pod: Name of the pod.
        container_id: The engine's container.
        container_started_at: When it started; what was sampled earlier speaks of another process.
        config: What the pod reports; None while Prometheus has not scraped it.
        baseline: What the baseline's pods report.
        asked_dtype: KV-cache dtype that the canary was started with.
        baseline_dtype: KV-cache dtype that the baseline was started with.
        head_dim: Size of one attention head of the model.
        yardstick: What the baseline is called in sentences.

    Returns:
        PASS when the reported dtype and the measured capacity are what was asked for, FAIL when
        one contradicts it, INCONCLUSIVE while something has not been measured.
    """

    def outcome(
        verdict: Verdict, message: str, factor: float | None = None, expected: float | None = None
    ) -> PodProof:
        fresh = config if verdict is not Verdict.INCONCLUSIVE or factor is not None else None
        return PodProof(
            pod=pod,
            container_id=container_id,
            verdict=verdict,
            dtype=fresh.dtype if fresh else None,
            capacity_tokens=fresh.capacity_tokens if fresh else None,
            factor=None if factor is None else f"{factor:.2f}",
            expected_factor=None if expected is None else f"{expected:.2f}",
            message=message,
        )

    if config is None:
        return outcome(Verdict.INCONCLUSIVE, "Prometheus has not scraped its cache config yet.")
    if container_started_at is None or config.sampled_at <= container_started_at:
        return outcome(
            Verdict.INCONCLUSIVE,
            "Prometheus has not scraped it since its container started; waiting for the next one.",
        )
    if canonical(config.dtype) != canonical(asked_dtype):
        return outcome(
            Verdict.FAIL,
            f"The engine was asked for a {asked_dtype} KV cache and reports {config.dtype}: this "
            "image or hardware does not implement it. Use another engine version or dtype.",
        )
    unequal = _different_flags(config, baseline, yardstick)
    unequal = unequal or _different_memory(config, baseline, yardstick)
    if unequal is not None:
        return outcome(Verdict.FAIL, unequal)
    # What the baseline reports is nearer to the truth than its arguments: some checkpoints turn
    # `auto` into a quantized cache.
    running = baseline[0].dtype if baseline else baseline_dtype
    expected = expected_factor(running, asked_dtype, head_dim)
    if expected is None:
        return outcome(
            Verdict.INCONCLUSIVE,
            f"The cache layout of {running} or {asked_dtype} is not known, so that the capacity "
            "cannot be checked. Ask for another dtype.",
        )
    measured = _measured_factor(config, baseline)
    if measured is None:
        return outcome(Verdict.INCONCLUSIVE, _unmeasured(config, baseline), expected=expected)
    factor, assumed = measured
    told = f"Capacity per byte is {factor:.2f} times {yardstick}'s ({running}), " + (
        f"expected {expected:.2f} for {asked_dtype} with heads of {head_dim}."
    )
    if assumed:
        told += " Both pools are taken to have equally much KV memory, as no pod reports its bytes."
    if config.skip_layers:
        told += f" Layers not quantized: {config.skip_layers}."
    if not _matches(factor, expected, config, baseline):
        told += _remedy(factor, assumed)
        return outcome(Verdict.FAIL, told, factor, expected)
    # Against a pod of the same dtype, which was proven itself, it is capacity that tells.
    same = canonical(running) == canonical(asked_dtype)
    if abs(expected - 1) < TELLING and not same:
        told += (
            f" The two dtypes differ too little for capacity to tell them apart: that it is "
            f"{asked_dtype} rests on the engine's word."
        )
    return outcome(Verdict.PASS, told, factor, expected)


def _different_flags(
    config: CacheConfig, baseline: Sequence[CacheConfig], yardstick: str
) -> str | None:
    """Return what makes the arms incomparable, if anything does."""
    theirs = {c.prefix_caching for c in baseline if c.prefix_caching is not None}
    if config.prefix_caching is None or not theirs or config.prefix_caching in theirs:
        return None
    flag = "--enable-prefix-caching"
    canary, other = (flag, f"--no-{flag[2:]}")[:: 1 if config.prefix_caching else -1]
    return (
        f"The engine runs as with {canary}, {yardstick} as with {other}: the arms could not be "
        f"compared. Set {flag} or --no-enable-prefix-caching explicitly in the target's arguments."
    )


def _different_memory(
    config: CacheConfig, baseline: Sequence[CacheConfig], yardstick: str
) -> str | None:
    """Return how unequal the arms' KV memory is, if it is: the larger one wins by that alone."""
    theirs = [c.memory_bytes for c in baseline if c.memory_bytes]
    if not config.memory_bytes or not theirs:
        return None
    other = median(theirs)
    if abs(config.memory_bytes / other - 1) <= TOLERANCE:
        return None
    return (
        f"The engine has {config.memory_bytes / 2**30:.1f} GiB of KV memory, {yardstick}'s "
        f"{other / 2**30:.1f} GiB: the arms could not be compared. Set --kv-cache-memory-bytes in "
        "the target's arguments, and run both pools on the same kind of node."
    )


def _measured_factor(
    config: CacheConfig, baseline: Sequence[CacheConfig]
) -> tuple[float, bool] | None:
    """Return the measured factor, and whether equal memory had to be assumed."""
    known = [c for c in baseline if c.capacity_tokens]
    if not config.capacity_tokens or not known:
        return None
    if config.memory_bytes and all(c.memory_bytes for c in known):
        per_byte = [(c.capacity_tokens or 0) / (c.memory_bytes or 1) for c in known]
        return config.capacity_tokens / config.memory_bytes / median(per_byte), False
    return config.capacity_tokens / median(c.capacity_tokens or 0 for c in known), True


def _unmeasured(config: CacheConfig, baseline: Sequence[CacheConfig]) -> str:
    if not baseline:
        return "No baseline pod's cache config has been scraped yet, so there is no yardstick."
    whose = "The baseline's" if config.capacity_tokens else "This"
    return (
        f"{whose} engine does not report how many tokens its KV cache holds "
        "(kv_cache_size_tokens of vllm:cache_config_info): use vLLM 0.25 or newer."
    )


def _matches(
    factor: float, expected: float, config: CacheConfig, baseline: Sequence[CacheConfig]
) -> bool:
    """Tell whether the factor is right within tolerance, or within what whole blocks allow."""
    if abs(factor / expected - 1) <= TOLERANCE:
        return True
    smallest = min(c.capacity_tokens for c in baseline if c.capacity_tokens)
    grain = (config.block_size or 0) / smallest
    # Both capacities are rounded down to whole blocks, which shows in very small caches only.
    return expected - grain <= factor <= expected * (1 + grain)


def _remedy(factor: float, assumed: bool) -> str:
    cause = " So the engine does something else than it says"
    if abs(factor - 1) <= TOLERANCE:
        cause = " So the engine accepted the flag and ignored it"
    other = (
        ", or the pools have unequal KV memory (give both --kv-cache-memory-bytes)"
        if assumed
        else ""
    )
    return f"{cause}{other}, or spec.kvCache.headDim is not the model's."
