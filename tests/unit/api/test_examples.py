"""The examples mean what they say, as the models and the simulated engine read them."""

from __future__ import annotations

from typing import Any

import pytest

from engine_sim import args, settings
from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, parse_duration
from kvquant.engines import vllm
from tests import manifests

ROLLOUTS = manifests.of_kind(names.KIND)


@pytest.mark.parametrize("document", [doc for _, doc in ROLLOUTS], ids=[f for f, _ in ROLLOUTS])
def test_every_example_rollout_parses_without_losing_a_field(document: dict[str, Any]) -> None:
    rollout = KVQuantRollout.parse(document)
    said = rollout.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert said == document["spec"]


@pytest.mark.parametrize("document", [doc for _, doc in ROLLOUTS], ids=[f for f, _ in ROLLOUTS])
def test_every_example_ladder_rises_to_100(document: dict[str, Any]) -> None:
    weights = [step.weight for step in KVQuantRollout.parse(document).spec.steps]
    assert weights == sorted(set(weights))
    assert weights[-1] == 100


def test_the_smallest_example_has_ten_lines_at_most() -> None:
    lines = (manifests.EXAMPLES / "fp8-minimal.yaml").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 10


def test_the_demos_second_rollout_begins_where_the_first_ends() -> None:
    (first,) = manifests.documents("demo/rollout-fp8.yaml")
    (second,) = manifests.documents("demo/rollout-int8.yaml")
    pool = f"{first['metadata']['name']}-pool"
    assert second["spec"]["targetRef"]["name"] == pool
    assert second["spec"]["traffic"] == first["spec"]["traffic"]


def test_the_demo_is_quick() -> None:
    for file in ("demo/rollout-fp8.yaml", "demo/rollout-int8.yaml"):
        (document,) = manifests.documents(file)
        spec = KVQuantRollout.parse(document).spec
        assert sum(parse_duration(step.soak).total_seconds() for step in spec.steps) <= 100


def demo_engine() -> dict[str, Any]:
    (deployment,) = (
        doc for doc in manifests.documents("demo/baseline.yaml") if doc["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def test_the_demos_engine_is_recognised_as_vllm() -> None:
    container = demo_engine()
    assert vllm.recognises(container)
    assert (vllm.dtype_of(container), vllm.port_of(container)) == ("auto", 8000)


def test_the_demos_engine_starts_with_every_dtype_and_is_slow_with_int8_alone() -> None:
    container = demo_engine()
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    slowdowns = {}
    for dtype in ("auto", "fp8", vllm.resolve_dtype("int8")):
        canary = vllm.with_dtype(container, dtype, fingerprint="proof")
        words = [*canary["command"][1:], *canary["args"]]
        slowdowns[dtype] = settings.resolve(args.parse(words), environment).faults.decode_slowdown
    assert slowdowns == {"auto": 1, "fp8": 1, "int8_per_token_head": 3}
