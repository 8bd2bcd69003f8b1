"""What the engine runs with: the command line and the environment, worked out and checked."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from . import ENGINE_VERSION, faults
from .cost import StepCost, cost_of
from .faults import Faults
from .kvdtype import DTYPES, KVDtype, blocks_in, bytes_per_token, skipped_layers
from .quality import LONG_TOKENS, Quality, quality_of
from .scheduler import Limits
from .shapes import ModelShape, shape_of

GPU_BYTES = 140 << 30
"""Memory of the simulated H200, as the driver reports it."""
OVERHEAD_BYTES = 4 << 30
"""What activations and captured graphs take of it."""

_MAX_LOGPROBS = 20


class StartError(Exception):
    """The engine cannot start; real vLLM exits with code 1 for the same reason."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the server needs to know, worked out.

    Attributes:
        models: names that requests may use, the first is shown in metrics.
        dtype: the KV cache dtype that was asked for and is reported.
        effective: the dtype that the cache really has.
        skipped: layers that stay 16-bit.
        shape: of the model.
        block_size: tokens of one block.
        blocks: KV blocks on one GPU.
        pool_bytes: KV bytes on one GPU.
        max_model_len: longest context in tokens.
        limits: of the scheduler.
        cost: of a step, faults included.
        faults: that apply to the dtype.
        quality: of answers, faults included.
        place: names the pod; where an answer is given changes it now and then.
        fingerprint: ``system_fingerprint`` of each answer.
        time_scale: how much quicker than real time the engine runs.
        startup_seconds: wall seconds before it listens.
        seed: of the random choices.
        oom_bytes: what the memory fault takes at most, None for the container's limit.
        options: the command line.
    """

    models: tuple[str, ...]
    dtype: KVDtype
    effective: KVDtype
    skipped: tuple[int, ...]
    shape: ModelShape
    block_size: int
    blocks: int
    pool_bytes: float
    max_model_len: int
    limits: Limits
    cost: StepCost
    faults: Faults
    quality: Quality
    place: str
    fingerprint: str | None
    time_scale: float
    startup_seconds: float
    seed: int
    oom_bytes: int | None
    options: argparse.Namespace

    @property
    def capacity(self) -> int:
        """Tokens that the KV cache holds."""
        return self.blocks * self.block_size

    @property
    def max_logprobs(self) -> int:
        """Most tokens whose log-probabilities a request may ask for, for each position."""
        asked = str(self.options.max_logprobs or "")
        return int(asked) if asked.isdigit() else _MAX_LOGPROBS

    @property
    def concurrency(self) -> float:
        """How many requests of the longest context fit at once."""
        return self.blocks / -(-self.max_model_len // self.block_size)


def resolve(options: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Work out the settings.

    Raises:
        StartError: they do not fit together, or an environment variable is wrong.
    """
    try:
        wrong = faults.parse(environment.get("KVSIM_FAULTS", ""), options.kv_cache_dtype)
    except faults.FaultSyntaxError as error:
        raise StartError(str(error)) from None
    dtype = DTYPES[options.kv_cache_dtype]
    if dtype.unsupported:
        msg = (
            f"No valid attention backend found for cuda with kv_cache_dtype={dtype.name}: "
            f"{dtype.name} {dtype.unsupported}"
        )
        raise StartError(msg)
    effective = DTYPES["auto"] if wrong.ignore_dtype else dtype
    shape = shape_of(options.model)
    asked = tuple(int(layer) for layer in options.kv_cache_dtype_skip_layers if layer.isdigit())
    skipped = skipped_layers(effective, shape, asked)
    block_size = options.block_size or 16
    parallel = options.tensor_parallel_size
    token_bytes = bytes_per_token(effective, shape, skipped, parallel)
    weights = shape.weight_bytes / parallel
    pool_bytes = options.kv_cache_memory_bytes or (
        GPU_BYTES * options.gpu_memory_utilization - weights - OVERHEAD_BYTES
    )
    blocks = options.num_gpu_blocks_override or blocks_in(pool_bytes, token_bytes, block_size)
    if blocks < 1:
        msg = (
            "No available memory for the cache blocks. "
            "Try increasing `gpu_memory_utilization` when initializing the engine."
        )
        raise StartError(msg)
    longest = options.max_model_len or shape.max_position
    if longest > blocks * block_size:
        needed, available = (
            tokens * token_bytes / 2**30 for tokens in (longest, blocks * block_size)
        )
        msg = (
            f"To serve at least one request with the models's max seq len ({longest}), "
            f"({needed:.2f} GiB KV cache is needed, which is larger than the available KV cache "
            f"memory ({available:.2f} GiB). Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len`."
        )
        raise StartError(msg)
    long_tokens = int(_number(environment, "KVSIM_LONG_TOKENS", LONG_TOKENS, least=1.0, most=1e9))
    cost = cost_of(effective.name).for_shape(shape, parallel)
    return Settings(
        models=tuple(options.served_model_name or (options.model,)),
        dtype=dtype,
        effective=effective,
        skipped=skipped,
        shape=shape,
        block_size=block_size,
        blocks=blocks,
        pool_bytes=pool_bytes,
        max_model_len=longest,
        limits=Limits(
            options.max_num_seqs,
            options.max_num_batched_tokens,
            options.scheduler_reserve_full_isl,
            options.watermark,
        ),
        cost=cost.scaled(
            decode=wrong.decode_slowdown,
            prefill=wrong.prefill_slowdown,
            crowd=wrong.crowd_slowdown,
        ),
        faults=wrong,
        quality=quality_of(effective.name, wrong, long_tokens),
        place=environment.get("HOSTNAME", ""),
        fingerprint=_fingerprint(options),
        time_scale=_number(environment, "KVSIM_TIME_SCALE", 1.0, least=0.01),
        startup_seconds=_number(environment, "KVSIM_STARTUP_SECONDS", 0.0, least=0.0),
        seed=int(_number(environment, "KVSIM_SEED", 0.0, least=0.0)),
        oom_bytes=int(_number(environment, "KVSIM_OOM_BYTES", 0.0, least=0.0, most=1e15)) or None,
        options=options,
    )


def _number(
    environment: Mapping[str, str], name: str, default: float, least: float, most: float = 1e6
) -> float:
    text = environment.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        msg = f"{name}: expected a number from {least:g} to {most:.0f}, got {text!r}"
        raise StartError(msg)
    return value


def _fingerprint(options: argparse.Namespace) -> str | None:
    """Return vLLM's ``system_fingerprint``: release and a hash of the configuration."""
    if options.fingerprint_mode == "none":
        return None
    if options.fingerprint_mode == "custom":
        return str(options.fingerprint_value)
    names = ("model", "kv_cache_dtype", "kv_cache_dtype_skip_layers", "tensor_parallel_size")
    config = json.dumps({name: getattr(options, name) for name in names}, sort_keys=True)
    digest = hashlib.sha256(config.encode()).hexdigest()[:8]
    if options.fingerprint_mode == "hash":
        return digest
    parallel = options.tensor_parallel_size
    return f"vllm-{ENGINE_VERSION}-{f'tp{parallel}-' if parallel > 1 else ''}{digest}"
