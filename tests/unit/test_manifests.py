import copy
from typing import Any

import pytest

from kvquant.api import names
from kvquant.core.manifests import (
    PoolIdentity,
    canary_deployment,
    engine_container,
    selects,
    target_selector,
)
from kvquant.errors import TemplateError

IDENTITY = PoolIdentity("llama-fp8-pool", "llama-fp8", "llama-router", "green", "uid/1")


def a_target() -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "llama", "namespace": "inference", "uid": "u", "labels": {"a": "b"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "llama"}},
            "template": {
                "metadata": {
                    "labels": {"app": "llama", "team": "ml"},
                    "annotations": {"prometheus.io/scrape": "true"},
                },
                "spec": {
                    "containers": [
                        {"name": "proxy", "image": "envoyproxy/envoy:1"},
                        {
                            "name": "engine",
                            "image": "vllm/vllm-openai:v0.32.0",
                            "args": ["m", "--kv-cache-dtype", "auto"],
                            "fieldOfTomorrow": 1,
                        },
                    ],
                    "affinity": {
                        "podAntiAffinity": {
                            "requiredDuringSchedulingIgnoredDuringExecution": [
                                {
                                    "labelSelector": {"matchLabels": {"app": "llama", "x": "y"}},
                                    "topologyKey": "kubernetes.io/hostname",
                                }
                            ]
                        }
                    },
                },
            },
        },
    }


def the_canary(target: dict[str, Any]) -> dict[str, Any]:
    return canary_deployment(target, 1, IDENTITY, "fp8", 1, "kvq-abc")


def test_the_canary_differs_only_in_kv_arguments_names_and_labels() -> None:
    target = a_target()
    before = copy.deepcopy(target)
    canary = the_canary(target)
    assert target == before
    pod = canary["spec"]["template"]["spec"]
    assert pod["containers"][0] == before["spec"]["template"]["spec"]["containers"][0]
    engine = pod["containers"][1]
    assert engine["fieldOfTomorrow"] == 1
    assert engine["args"][:1] == ["m"]
    assert engine["args"][1:3] == ["--kv-cache-dtype", "fp8"]
    assert canary["spec"]["template"]["metadata"]["annotations"] == {"prometheus.io/scrape": "true"}


def test_neither_the_target_nor_its_services_take_canary_pods_for_their_own() -> None:
    labels = the_canary(a_target())["spec"]["template"]["metadata"]["labels"]
    assert not selects({"app": "llama"}, labels)
    assert labels["team"] == "ml"
    assert selects({names.LABEL_POOL: "llama-fp8-pool"}, labels)
    assert names.LABEL_SERVING not in labels, "no pod serves before it is proven"


def test_rules_about_the_pools_own_pods_speak_of_the_canary() -> None:
    pod = the_canary(a_target())["spec"]["template"]["spec"]
    rule = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert rule["labelSelector"]["matchLabels"] == {"app": "llama-fp8-pool", "x": "y"}


def test_a_promoted_pool_can_be_a_target_again() -> None:
    first = the_canary(a_target())
    first["spec"]["template"]["metadata"]["labels"][names.LABEL_SERVING] = "true"
    second = canary_deployment(
        first, 1, PoolIdentity("next-pool", "next", "llama-router", "blue", "v/1"), "int8", 1, None
    )
    labels = second["spec"]["template"]["metadata"]["labels"]
    assert labels[names.LABEL_POOL] == "next-pool"
    assert not selects(target_selector(first), labels)
    assert names.LABEL_SERVING not in labels
    args = second["spec"]["template"]["spec"]["containers"][1]["args"]
    assert args.count("--kv-cache-dtype") == 1
    assert args[args.index("--kv-cache-dtype") + 1] == "int8"


def test_finds_the_engine_among_the_containers() -> None:
    assert engine_container(a_target(), None) == 1
    assert engine_container(a_target(), "engine") == 1


@pytest.mark.parametrize(
    ("named", "reason", "message"),
    [
        ("proxy", "EngineNotRecognised", "'proxy' of Deployment llama does not start vLLM"),
        ("nope", "EngineNotRecognised", "no container 'nope'; it has 'proxy', 'engine'"),
    ],
)
def test_a_wrong_container_name_is_refused(named: str, reason: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        engine_container(a_target(), named)
    assert caught.value.reason == reason


def test_no_engine_and_two_engines_are_refused() -> None:
    target = a_target()
    containers = target["spec"]["template"]["spec"]["containers"]
    engine = containers.pop()
    with pytest.raises(TemplateError, match="No container of Deployment llama") as caught:
        engine_container(target, None)
    assert caught.value.reason == "EngineNotRecognised"
    containers += [engine, {**engine, "name": "second"}]
    with pytest.raises(TemplateError, match=r"spec\.engine\.container") as caught:
        engine_container(target, None)
    assert caught.value.reason == "EngineAmbiguous"


def test_a_target_that_selects_by_expressions_is_refused() -> None:
    target = a_target()
    target["spec"]["selector"] = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
    with pytest.raises(TemplateError, match=r"spec\.selector\.matchLabels"):
        target_selector(target)
