"""How long one step takes on the simulated GPU.

A step reads the weights once (``base``), computes prompt tokens (linear and, through attention, in
tokens times context), and for each decoding request spends a little (``per_decode``) and reads its
context from the KV cache (``per_context``).
"""

from dataclasses import dataclass, replace

from .scheduler import Batch
from .shapes import LLAMA_8B, ModelShape


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of an H200 with an 8B model, by what a step contains.

    Attributes:
        base: each step.
        prefill_step: on top, each step that computes prompt tokens (no captured graph fits it).
        per_prefill: each prompt token.
        per_attended: each pair of a prompt token and a token it attends to.
        per_decode: each request that decodes.
        per_context: each token of context that decoding reads from the KV cache.
        measured: False where the parameters come from published ratios, not from a recording.
    """

    base: float
    prefill_step: float
    per_prefill: float
    per_attended: float
    per_decode: float
    per_context: float
    measured: bool = True

    def seconds(self, batch: Batch) -> float:
        """Return the duration of a step, repeats included.

        Each repeat of a decode step reads one token of context more per request.
        """
        once = self.base + self.per_decode * batch.decodes + self.per_context * batch.decode_context
        if batch.prefill_tokens:
            return (
                once
                + self.prefill_step
                + self.per_prefill * batch.prefill_tokens
                + self.per_attended * batch.attended
            )
        growth = self.per_context * batch.decodes * batch.repeats * (batch.repeats - 1) / 2
        return once * batch.repeats + growth

    def scaled(
        self, *, decode: float = 1.0, prefill: float = 1.0, crowd: float = 1.0
    ) -> "StepCost":
        """Return the cost with decoding, prefilling and each request in a batch slower."""
        return replace(
            self,
            base=self.base * decode,
            per_decode=self.per_decode * decode * crowd,
            per_context=self.per_context * decode * crowd,
            prefill_step=self.prefill_step * prefill,
            per_prefill=self.per_prefill * prefill,
            per_attended=self.per_attended * prefill,
        )

    def for_shape(self, shape: ModelShape, tensor_parallel: int) -> "StepCost":
        """Return the cost for another model shape, by bytes and arithmetic; a rough estimate."""
        weights = shape.parameters / LLAMA_8B.parameters / tensor_parallel
        kv = shape.layers * shape.kv_heads * shape.head_dim / tensor_parallel
        kv /= LLAMA_8B.layers * LLAMA_8B.kv_heads * LLAMA_8B.head_dim
        return replace(
            self,
            base=self.base * weights,
            per_prefill=self.per_prefill * weights,
            per_attended=self.per_attended * kv,
            per_context=self.per_context * kv,
        )


_BASE, _PREFILL_STEP, _PER_PREFILL = 4.30e-3, 6.80e-3, 2.27e-5


def _cost(attended: float, decode: float, context: float, *, measured: bool) -> StepCost:
    return StepCost(_BASE, _PREFILL_STEP, _PER_PREFILL, attended, decode, context, measured)


# The first three come from ``python -m engine_sim.calibrate --fit``. INT4 was only recorded as a
# table (output tokens/s and p99), so two of its parameters are guided by those two numbers alone.
BF16 = _cost(1.20e-9, 8.80e-5, 3.06e-8, measured=True)
FP8 = _cost(6.78e-10, 5.51e-5, 3.26e-8, measured=True)
INT8_PER_TOKEN_HEAD = _cost(2.36e-8, 6.84e-5, 5.05e-8, measured=True)
INT4_PER_TOKEN_HEAD = _cost(3.20e-8, 6.80e-5, 7.00e-8, measured=False)
# Published throughput of TurboQuant is 66 to 80 % of bf16's; other dtypes borrow a neighbour.
TURBOQUANT = _cost(3.0e-9, 1.0e-4, 6.0e-8, measured=False)

_BY_DTYPE = {
    "auto": BF16,
    "float16": BF16,
    "bfloat16": BF16,
    "fp8": FP8,
    "fp8_e4m3": FP8,
    "int8_per_token_head": INT8_PER_TOKEN_HEAD,
    "fp8_per_token_head": replace(INT8_PER_TOKEN_HEAD, measured=False),
    "int4_per_token_head": INT4_PER_TOKEN_HEAD,
}


def cost_of(dtype: str) -> StepCost:
    """Return the step cost of a ``--kv-cache-dtype``; estimated ones say so in ``measured``."""
    if dtype.startswith("turboquant"):
        return TURBOQUANT
    return _BY_DTYPE.get(dtype) or replace(FP8, measured=False)
