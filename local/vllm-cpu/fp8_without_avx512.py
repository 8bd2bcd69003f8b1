"""A plugin of vLLM: an FP8 KV cache for CPUs without AVX-512, so that tests run on any x86-64.

vLLM's CPU kernels hold an FP8 cache with AVX-512 only; on other CPUs the engine refuses to start
with every quantized dtype. This plugin makes such a CPU behave as one with AVX-512 does: `fp8` is
stored in eight bits and read back by plain PyTorch, and other dtypes are accepted without being
implemented. The plugin steps aside where the CPU has AVX-512. It is for tests: slow, and only for
decoders without sliding windows, soft caps, sinks and ALiBi.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from vllm.v1.attention.backends import cpu_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

_STORED = {
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def register() -> None:
    """Take the place of vLLM's CPU backend; called by vLLM in each of its processes."""
    if torch.cpu._is_avx512_supported():
        return
    choose = cpu_attn._get_attn_isa
    if choose.__module__ == __name__:
        return

    def as_if_native(dtype, block_size, head_size=None, _=None):
        # Without the cache's dtype vLLM chooses as for a 16-bit cache, and does not refuse.
        return choose(dtype, block_size, head_size)

    cpu_attn._get_attn_isa = as_if_native
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.Backend")


class Backend(cpu_attn.CPUAttentionBackend):
    """vLLM's CPU backend, but for how an FP8 cache is written and read."""

    @staticmethod
    def get_impl_cls():
        """Return what writes and reads the cache."""
        return Attention

    @staticmethod
    def get_builder_cls():
        """Return what plans a batch."""
        return Planner


class Planner(cpu_attn.CPUAttentionMetadataBuilder):
    """Plans an FP8 batch as if the cache were native: the kernel's own plan is not used then."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.kv_cache_dtype in _STORED:
            self.kv_cache_dtype = "auto"


class Attention(cpu_attn.CPUAttentionBackendImpl):
    """Attention over an FP8 cache in plain PyTorch; anything else is left to vLLM."""

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping) -> None:
        """Store new tokens in eight bits each."""
        if self.kv_cache_dtype not in _STORED:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
            return
        # Padding has no slot.
        (used,) = torch.nonzero(slot_mapping >= 0, as_tuple=True)
        block_size = kv_cache.size(2)
        block = slot_mapping[used] // block_size
        offset = slot_mapping[used] % block_size
        scales = (layer._k_scale_float, layer._v_scale_float)
        for half, new, scale in zip(_halves(kv_cache), (key, value), scales, strict=True):
            stored = (new[used] / scale).to(_STORED[self.kv_cache_dtype])
            half[block, :, offset] = stored.view(torch.uint8)

    def forward(
        self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
    ) -> torch.Tensor:
        """Attend to all tokens of each request, read back from eight bits."""
        if self.kv_cache_dtype not in _STORED or attn_metadata is None:
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
            )
        bounds = attn_metadata.query_start_loc.tolist()
        for request, length in enumerate(attn_metadata.seq_lens.tolist()):
            begin, end = bounds[request : request + 2]
            keys, values = self._context(
                layer, kv_cache, attn_metadata.block_table[request], length, query.dtype
            )
            # The last token of the query sees all; each one before it sees one less.
            seen = torch.ones(end - begin, length, dtype=torch.bool).tril(length - (end - begin))
            attended = scaled_dot_product_attention(
                query[begin:end].transpose(0, 1),
                keys,
                values,
                attn_mask=seen,
                scale=self.scale,
                enable_gqa=True,
            )
            output[begin:end] = attended.transpose(0, 1)
        return output

    def _context(self, layer, kv_cache, blocks, length, dtype):
        """Return keys and values of one request as [heads, tokens, size of a head]."""
        blocks = blocks[: -(-length // kv_cache.size(2))]
        scales = (layer._k_scale_float, layer._v_scale_float)
        for half, scale in zip(_halves(kv_cache), scales, strict=True):
            stored = half[blocks].transpose(0, 1).flatten(1, 2)[:, :length].contiguous()
            yield stored.view(_STORED[self.kv_cache_dtype]).to(dtype) * scale


def _halves(kv_cache):
    """Return keys and values as [blocks, heads, tokens of a block, size of a head] of bytes."""
    blocks, heads, block_size, _ = kv_cache.size()
    both = kv_cache.view(torch.uint8).view(blocks, heads, 2 * block_size, -1)
    return both.chunk(2, dim=2)
