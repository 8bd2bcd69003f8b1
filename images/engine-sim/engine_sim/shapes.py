"""The model shapes whose KV cache the engine can size."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the size of weights and KV cache depends on.

    Attributes:
        name: what the log calls it.
        layers: number of attention layers.
        kv_heads: KV heads before any tensor parallel split.
        head_dim: elements of one head.
        parameters: number of weights, two bytes each.
        max_position: longest context the model was made for, in tokens.
    """

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    parameters: float
    max_position: int

    @property
    def weight_bytes(self) -> float:
        """Bytes of the 16-bit weights."""
        return 2.0 * self.parameters


LLAMA_8B = ModelShape("Llama 8B", 32, 8, 128, 8.03e9, 131072)
"""The shape that was recorded; every speed is scaled from it."""

_KNOWN: tuple[tuple[tuple[str, ...], ModelShape], ...] = (
    (("llama", "70b"), ModelShape("Llama 70B", 80, 8, 128, 70.6e9, 131072)),
    (("qwen3", "30b"), ModelShape("Qwen3 30B A3B", 48, 4, 128, 30.5e9, 40960)),
    (("qwen3", "4b"), ModelShape("Qwen3 4B", 36, 8, 128, 4.0e9, 40960)),
    (("qwen3", "8b"), ModelShape("Qwen3 8B", 36, 8, 128, 8.2e9, 40960)),
)


def shape_of(model: str) -> ModelShape:
    """Return the shape that a model's name suggests, the recorded one when unknown."""
    name = model.lower()
    for words, shape in _KNOWN:
        if all(word in name for word in words):
            return shape
    return LLAMA_8B
