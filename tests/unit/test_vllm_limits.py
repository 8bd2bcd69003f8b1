"""Which dtypes an engine, a GPU or a model's shape lacks, and what an engine's last words mean."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api.v1alpha1 import Dtype
from kvquant.engines import vllm, vllm_limits
from kvquant.errors import TemplateError

IMAGE = "vllm/vllm-openai:v0.32.0"


def gpu(name: str) -> dict[str, Any]:
    return {"nodeSelector": {"nvidia.com/gpu.product": name}}


def affine(*names: str, operator: str = "In") -> dict[str, Any]:
    expression = {
        "key": "cloud.google.com/gke-accelerator",
        "operator": operator,
        "values": list(names),
    }
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    return {"affinity": {"nodeAffinity": required}}


def refuse(
    dtype: str,
    image: str = IMAGE,
    args: list[str] | None = None,
    pod: dict[str, Any] | None = None,
    head_dim: int = 128,
    fingerprint: bool = True,
) -> None:
    container = {"name": "vllm", "image": image, "args": args or []}
    vllm_limits.refuse(
        "llama", pod or {}, container, vllm.resolve_dtype(dtype), head_dim, fingerprint
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a dtype that is younger than the engine": (
        {"dtype": "int8", "image": "vllm/vllm-openai:v0.24.1"},
        "its image is vLLM 0.24, and the dtype is known from 0.25 on",
    ),
    "another registry and a build's suffix": (
        {"dtype": "nvfp4", "image": "r.example:5000/ml/vllm-openai:0.9.2-cu129@sha256:0ab"},
        "its image is vLLM 0.9",
    ),
    "the CPU build, which only pretends": (
        {"dtype": "int8", "image": "vllm/vllm-openai-cpu:v0.32.0"},
        "accepts the flag, ignores it and dies on long prompts. Ask for fp8",
    ),
    "a backend that was chosen by hand": (
        {"dtype": "int4", "args": ["--attention-backend", "FLASH_ATTN"]},
        "only TRITON_ATTN can. Take the flag from the target's arguments",
    ),
    "the backend's short flag": (
        {"dtype": "nvfp4", "args": ["-ac.backend=flash_attn"]},
        "only FLASHINFER can",
    ),
    "blocks that are no multiple of 16": (
        {"dtype": "int8", "args": ["--block-size=8"]},
        "its blocks are multiples of 16 tokens",
    ),
    "a GPU without FP8": (
        {"dtype": "fp8_per_token_head", "pod": gpu("NVIDIA-A100-SXM4-80GB")},
        "it needs compute capability 8.9, and its pods may only run on NVIDIA-A100-SXM4-80GB (8.0)",
    ),
    "a GPU without bfloat16": ({"dtype": "bfloat16", "pod": gpu("Tesla-T4")}, "capability 8.0"),
    "several GPUs that all lack it": (
        {"dtype": "fp8_per_token_head", "pod": affine("nvidia-tesla-a100", "nvidia-a10g")},
        "nvidia-a10g, nvidia-tesla-a100 (8.6)",
    ),
    "heads of 64 on a GPU that has no kernel for them": (
        {"dtype": "nvfp4", "pod": gpu("NVIDIA-H100-80GB-HBM3"), "head_dim": 64},
        "spec.kvCache.headDim 64 on NVIDIA-H100-80GB-HBM3",
    ),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_known_to_be_missing_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        refuse(**given)
    assert caught.value.reason == "DtypeNotSupported"
    assert str(caught.value).startswith("spec.kvCache.dtype: ")
    assert words in str(caught.value)


def test_an_engine_that_cannot_mark_its_answers_is_refused_with_the_field_to_change() -> None:
    with pytest.raises(TemplateError, match=r"set spec\.engine\.fingerprint to false") as caught:
        refuse("fp8", image="vllm/vllm-openai:v0.20.0")
    assert caught.value.reason == "EngineTooOld"
    refuse("fp8", image="vllm/vllm-openai:v0.20.0", fingerprint=False)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"image": "vllm/vllm-openai:latest"},
        {"image": "vllm/vllm-openai"},
        {"image": "vllm/vllm-openai:nightly-0.1"},
        {"image": "mine/engine:v0.1.0"},
        {"image": "r.example:5000/engine@sha256:0ab"},
        {"pod": gpu("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb")},
        {"pod": gpu("A-GPU-of-tomorrow")},
        {"pod": affine("nvidia-tesla-t4", operator="NotIn")},
        {"pod": affine("nvidia-tesla-t4", "nvidia-h100-80gb")},
        {"pod": {"nodeSelector": {"pool": "a100"}, "affinity": {}}},
        {"args": ["--block-size", "many"]},
    ],
)
def test_what_nobody_knows_is_not_refused(dtype: Dtype, given: dict[str, Any]) -> None:
    refuse(dtype.value, **given)


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA-H200", 9.0),
        ("NVIDIA-L40S", 8.9),
        ("nvidia-l4", 8.9),
        ("NVIDIA-A10G", 8.6),
        ("a100", 8.0),
        ("NVIDIA-B200", 10.0),
        ("AMD-Instinct-MI300X", None),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_its_node_label(name: str, capability: float | None) -> None:
    assert vllm_limits.capability_of(name) == capability


TRACEBACK = """(EngineCore pid=71) Traceback (most recent call last):
(EngineCore pid=71)   File "cuda.py", line 407, in get_attn_backend_cls
(EngineCore pid=71) ValueError: No valid attention backend found for cuda with AttentionSelectorCo
(APIServer pid=1) RuntimeError: Engine core initialization failed.
"""


@pytest.mark.parametrize(
    ("log", "hopeless", "words"),
    [
        (TRACEBACK, True, "No valid attention backend found for cuda"),
        (
            "api_server.py: error: argument --kv-cache-dtype: invalid choice: 'nvfp4'",
            True,
            "this version lacks the dtype",
        ),
        (
            "error: unrecognized arguments: --fingerprint-mode custom",
            True,
            "set spec.engine.fingerprint to false",
        ),
        (
            "ValueError: fp8_per_token_head needs SM89",
            True,
            "the engine refuses this dtype here",
        ),
        ("ValueError: No available memory for the cache blocks.", True, "--gpu-memory-utilization"),
        ("torch.OutOfMemoryError: CUDA out of memory.\n\n", False, "CUDA out of memory."),
        ("x" * 5000, False, "x" * 300),
    ],
)
def test_last_words_tell_whether_a_restart_can_help(log: str, hopeless: bool, words: str) -> None:
    death = vllm_limits.reason_of_death(log)
    assert death is not None
    assert death.hopeless is hopeless
    assert words in death.sentence
    assert len(death.sentence) < 450


@pytest.mark.parametrize("log", ["", " \n\t\n"])
def test_an_engine_without_last_words_is_not_explained(log: str) -> None:
    assert vllm_limits.reason_of_death(log) is None
