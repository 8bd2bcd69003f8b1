"""An OpenAI-compatible server that behaves like vLLM; only the GPU is simulated."""

ENGINE_VERSION = "0.25.1"
"""The vLLM release whose command line, metrics and answers are followed."""
