"""kvquant: a Kubernetes operator that takes LLM serving to a quantized KV cache, step by step."""

__version__ = "0.1.0"
