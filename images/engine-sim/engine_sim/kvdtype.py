"""Every value of ``--kv-cache-dtype`` and how many bytes and blocks it makes.

The formulas are those of vLLM's own allocator for dense models: with D the head dimension, one
token of one KV head takes K and V in the dtype plus its scales.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .shapes import ModelShape


@dataclass(frozen=True, slots=True)
class KVDtype:
    """One KV cache dtype.

    Attributes:
        name: the value of ``--kv-cache-dtype``.
        bytes_per_head: bytes of K and V of one token and head, scales included, given head_dim.
        native_layers: layers that stay 16-bit at each end of the model whatever the flag says.
        backend: the attention kernel that vLLM picks for it on a Hopper GPU.
        unsupported: why a Hopper GPU cannot run it, None when it can.
    """

    name: str
    bytes_per_head: Callable[[int], float]
    native_layers: int = 0
    backend: str = "FLASH_ATTN"
    unsupported: str | None = None


def _native(dim: int) -> float:
    return 4.0 * dim


def _byte(dim: int) -> float:
    return 2.0 * dim


def _byte_scaled(dim: int) -> float:
    # K and V each carry one fp32 scale per token and head.
    return 2.0 * dim + 8.0


def _fp4(dim: int) -> float:
    # Half a byte an element and one scale byte per 16 elements.
    return 2.0 * (dim / 2 + dim / 16)


_SM100 = "needs a Blackwell GPU"
_MLA = "needs a model with multi-head latent attention"

DTYPES: dict[str, KVDtype] = {
    dtype.name: dtype
    for dtype in (
        KVDtype("auto", _native),
        KVDtype("float16", _native),
        KVDtype("bfloat16", _native),
        KVDtype("fp8", _byte),
        KVDtype("fp8_e4m3", _byte),
        KVDtype("fp8_e5m2", _byte, backend="FLASHINFER"),
        KVDtype("fp8_inc", _byte, unsupported="needs a Gaudi accelerator"),
        KVDtype("fp8_ds_mla", _byte, unsupported=_MLA),
        KVDtype("nvfp4_ds_mla", _fp4, unsupported=_MLA),
        KVDtype("int8_per_token_head", _byte_scaled, backend="TRITON_ATTN"),
        KVDtype("fp8_per_token_head", _byte_scaled, backend="TRITON_ATTN"),
        KVDtype("int4_per_token_head", lambda dim: dim + 8.0, backend="TRITON_ATTN"),
        KVDtype("nvfp4", _fp4, backend="FLASHINFER"),
        KVDtype("nvfp4_4over6", _fp4, unsupported=_SM100),
        KVDtype("turboquant_k8v4", lambda d: d + d / 2 + 4, 2, "TURBOQUANT"),
        KVDtype("turboquant_4bit_nc", lambda d: d + 6.0, 2, "TURBOQUANT"),
        KVDtype("turboquant_k3v4_nc", lambda d: d * 7 / 8 + 6, 2, "TURBOQUANT"),
        KVDtype("turboquant_3bit_nc", lambda d: d * 6 / 8 + 6, 2, "TURBOQUANT"),
        KVDtype("ultraquant_4bit", lambda d: d + 2 * d / 32, unsupported="needs an AMD GPU"),
    )
}


def skipped_layers(dtype: KVDtype, shape: ModelShape, asked: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers that keep 16 bits: those asked for and those the dtype adds by itself."""
    ends = min(dtype.native_layers, shape.layers // 2)
    own = (*range(ends), *range(shape.layers - ends, shape.layers))
    return tuple(sorted({layer for layer in (*asked, *own) if 0 <= layer < shape.layers}))


def bytes_per_token(
    dtype: KVDtype, shape: ModelShape, skipped: tuple[int, ...] = (), tensor_parallel: int = 1
) -> float:
    """Return the KV bytes of one token on one GPU.

    This is ``(Hkv / TP) * ((L - s) * b + s * 4D)`` with s the layers that keep 16 bits.
    """
    heads = max(1, shape.kv_heads // tensor_parallel)
    kept = len(skipped)
    quantized = (shape.layers - kept) * dtype.bytes_per_head(shape.head_dim)
    return heads * (quantized + kept * _native(shape.head_dim))


def blocks_in(pool_bytes: float, token_bytes: float, block_size: int) -> int:
    """Return how many whole blocks a pool holds."""
    return int(pool_bytes // (token_bytes * block_size))
