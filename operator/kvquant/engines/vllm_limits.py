"""What a version of vLLM, a GPU or a model's shape is known to lack, said before any pod starts.

Only what is certain is refused here, from the target's own pod template. What the template does
not tell is left to the engine: see `reason_of_death`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.engines.vllm import IMAGE, option_of
from kvquant.errors import TemplateError

Object = Mapping[str, Any]

FIRST_VERSION = (0, 25)
"""The oldest vLLM whose dtypes and flags are known; it reports what the regime proof needs."""

_SINCE_FIRST = frozenset(
    {"int8_per_token_head", "int4_per_token_head", "fp8_per_token_head", "nvfp4"}
)

_TAG = re.compile(r":v?(\d+)\.(\d+)(?:[.+-].*)?$")

_ON_CPU = frozenset({"auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"})
"""Dtypes that the CPU build implements. It accepts the others, too, and dies on long prompts."""

_BACKENDS: Mapping[str, frozenset[str]] = {
    "int8_per_token_head": frozenset({"TRITON_ATTN"}),
    "int4_per_token_head": frozenset({"TRITON_ATTN"}),
    "fp8_per_token_head": frozenset({"TRITON_ATTN"}),
    "fp8_e5m2": frozenset({"FLASHINFER", "TRITON_ATTN"}),
    "nvfp4": frozenset({"FLASHINFER"}),
}
"""Attention backends for NVIDIA GPUs that implement a dtype, where not nearly all of them do."""

_BLOCKS_OF_16 = frozenset({"int8_per_token_head", "int4_per_token_head"})

_NEEDS_CAPABILITY: Mapping[str, float] = {
    "bfloat16": 8.0,
    "fp8": 8.0,
    "fp8_e4m3": 8.0,
    "fp8_e5m2": 8.0,
    "fp8_per_token_head": 8.9,
    "nvfp4": 8.0,
}
"""CUDA compute capability that a dtype's kernels need at least."""

_GPU_LABELS = frozenset(
    {
        "nvidia.com/gpu.product",
        "cloud.google.com/gke-accelerator",
        "karpenter.k8s.aws/instance-gpu-name",
    }
)
"""Node labels whose value names a GPU."""

_CAPABILITY = (
    (7.0, "v100"),
    (7.5, "t4"),
    (8.0, "a100", "a30"),
    (8.6, "a10", "a10g", "a16", "a40", "a2", "a5000", "a6000"),
    (8.9, "l4", "l40", "l40s"),
    (9.0, "h100", "h200", "h20", "gh200"),
    (10.0, "b200", "gb200"),
)


@dataclass(frozen=True, slots=True)
class Death:
    """Why an engine ended: a sentence, and whether starting it again could ever help."""

    sentence: str
    hopeless: bool


def refuse(
    deployment: str, pod: Object, container: Object, dtype: str, head_dim: int, fingerprint: bool
) -> None:
    """Refuse a dtype that the engine of a pod template is known to lack.

    Args:
        deployment: Name of the Deployment, for people.
        pod: The pod template's spec.
        container: The engine's container in it.
        dtype: What vLLM calls the dtype.
        head_dim: Size of one attention head of the model.
        fingerprint: Whether the canary is to be started with `--fingerprint-mode`.

    Raises:
        TemplateError: It lacks it; the message names the field and the remedy.
    """
    for why in _lacks(pod, container, dtype, head_dim):
        raise TemplateError(
            "DtypeNotSupported", f"spec.kvCache.dtype: Deployment {deployment} cannot run {why}"
        )
    version = version_of(container)
    if fingerprint and version is not None and version < FIRST_VERSION:
        raise TemplateError(
            "EngineTooOld",
            f"spec.engine.fingerprint: Deployment {deployment} runs vLLM {_text(version)}, which "
            f"has no --fingerprint-mode: use vLLM {_text(FIRST_VERSION)} or newer, or set "
            "spec.engine.fingerprint to false.",
        )


def version_of(container: Object) -> tuple[int, int] | None:
    """Return vLLM's version by the image's tag; None when the tag does not tell."""
    image = str(container.get("image", "")).split("@", 1)[0]
    tag = _TAG.search(image)
    return (int(tag[1]), int(tag[2])) if tag and IMAGE.search(image) else None


def reason_of_death(message: str) -> Death | None:
    """Return what the last words of an engine say; None when it left none.

    Args:
        message: Its termination message: the end of its log.
    """
    for pattern, remedy in _LAST_WORDS:
        found = re.search(pattern, message, re.IGNORECASE)
        if found:
            return Death(f"{found.group().strip()[:300]}{remedy}", hopeless=True)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return Death(lines[-1][:300], hopeless=False) if lines else None


_LAST_WORDS = (
    (
        r"No valid attention backend[^\n]*",
        " - this GPU or model has no kernel for the dtype: ask for another spec.kvCache.dtype",
    ),
    (
        r"argument --kv-cache-dtype[^\n]*",
        " - this version lacks the dtype: use a newer image or another spec.kvCache.dtype",
    ),
    (
        r"unrecognized arguments:[^\n]*--fingerprint[^\n]*",
        " - this version cannot mark its answers: set spec.engine.fingerprint to false",
    ),
    (
        r"ValueError:[^\n]*(kv[ _-]?cache|fp8|int8|int4|nvfp4|head[ _]size|block[ _]size)[^\n]*",
        " - the engine refuses this dtype here: ask for another spec.kvCache.dtype",
    ),
    (
        r"[^\n]*No available memory for the cache blocks[^\n]*",
        " - raise --gpu-memory-utilization in the target's arguments",
    ),
)
"""What vLLM says at its start when no restart will help, and what will."""


def _lacks(pod: Object, container: Object, dtype: str, head_dim: int) -> Iterator[str]:
    version = version_of(container)
    if version is not None and version < FIRST_VERSION and dtype in _SINCE_FIRST:
        yield (
            f"{dtype}: its image is vLLM {_text(version)}, and the dtype is known from "
            f"{_text(FIRST_VERSION)} on. Use a newer image, or fp8."
        )
    image = str(container.get("image", "")).split("@", 1)[0].rsplit("/", 1)[-1]
    if IMAGE.search(image) and "cpu" in image.split(":", 1)[0].split("-") and dtype not in _ON_CPU:
        yield (
            f"{dtype}: vLLM for CPUs accepts the flag, ignores it and dies on long prompts. "
            "Ask for fp8."
        )
    backend = option_of(container, "--attention-backend", "-ac.backend")
    able = _BACKENDS.get(dtype)
    if backend is not None and able is not None and backend.upper() not in able:
        yield (
            f"{dtype} with --attention-backend {backend}: only {' and '.join(sorted(able))} can. "
            "Take the flag from the target's arguments, or ask for another dtype."
        )
    block = option_of(container, "--block-size")
    if block is not None and block.isdigit() and int(block) % 16 and dtype in _BLOCKS_OF_16:
        yield (
            f"{dtype} with --block-size {block}: its blocks are multiples of 16 tokens. Change the "
            "flag in the target's arguments, or ask for another dtype."
        )
    known = {name: capability_of(name) for name in _gpus(pod)}
    needed = _NEEDS_CAPABILITY.get(dtype, 0.0)
    found = [capability for capability in known.values() if capability is not None]
    if not known or len(found) < len(known):
        return
    if max(found) < needed:
        yield (
            f"{dtype}: it needs compute capability {needed}, and its pods may only run on "
            f"{', '.join(sorted(known))} ({max(found)}). Ask for int8, or for other nodes."
        )
    if dtype == "nvfp4" and head_dim == 64 and not any(10.0 <= c < 11.0 for c in found):
        yield (
            f"nvfp4 with spec.kvCache.headDim 64 on {', '.join(sorted(known))}: heads of 64 need "
            "compute capability 10. Ask for int4."
        )


def capability_of(gpu: str) -> float | None:
    """Return the compute capability of a GPU by its name in a node label; None when unknown."""
    words = set(re.split(r"[^a-z0-9]+", gpu.lower()))
    for capability, *models in _CAPABILITY:
        if words & set(models):
            return float(capability)
    return None


def _gpus(pod: Object) -> Iterator[str]:
    """Name the GPUs that a pod asks for by node selector or required node affinity."""
    for label, value in (pod.get("nodeSelector") or {}).items():
        if label in _GPU_LABELS:
            yield str(value)
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for expression in term.get("matchExpressions") or ():
            if expression.get("key") in _GPU_LABELS and expression.get("operator") == "In":
                yield from (str(value) for value in expression.get("values") or ())


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
