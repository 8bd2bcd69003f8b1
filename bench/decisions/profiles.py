"""Engines that were recorded, and by what they were fitted.

Recorded: vLLM 0.25.1 with the shape of Llama-3-8B and a KV pool of 6 GiB on an H200, 1.8 requests/s
offered, 80 requests (`tests/data/recordings` has them; `python -m bench.decisions.calibrate`
replays them). The floor is what a step of one or two sequences took. Reading the cache costs bytes
over bandwidth: 128 KiB a token at about 5 TB/s for bf16, half of it for fp8. Of int8 the recordings
say that a step grows with the context more than ten times as fast as with bf16 (Triton's kernel
instead of FlashAttention 3), and that prefill takes four times as long.
"""

from __future__ import annotations

from bench.decisions.engine import Profile

AUTO = Profile(
    capacity=49_152,
    floor=0.0050,
    sequence=0.00005,
    context=2.6e-8,
    prompt=2.6e-5,
    attention=4.5e-10,
)
FP8 = Profile(
    capacity=98_304,
    floor=0.0050,
    sequence=0.00005,
    context=1.3e-8,
    prompt=2.8e-5,
    attention=4.5e-10,
)
INT8 = Profile(
    capacity=95_312,
    floor=0.0050,
    sequence=0.00005,
    context=3.0e-7,
    prompt=6.0e-5,
    attention=3.0e-9,
)
