"""The shadow service's objects: restricted, owned by the rollout, renewed with each attempt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kvquant.api import names
from kvquant.core.router_manifests import shadow_selector
from kvquant.core.shadow_manifests import ANNOTATION_CONFIG, ShadowSpec, shadow_objects
from kvquant.core.shadow_settings import ENGINE_KEY_FILE, ArmSettings, LogSettings, ShadowSettings

SETTINGS = ShadowSettings(
    namespace="inference",
    rollout="llama-fp8",
    uid="u1",
    attempt=1,
    baseline=ArmSettings(host="llama-router-blue", port=8000, deployment="llama", dtype="auto"),
    canary=ArmSettings(host="llama-router-green", port=8000, deployment="pool", dtype="fp8"),
    log=LogSettings(url="file:///var/log/kvquant"),
)
SPEC = ShadowSpec(
    router="llama-router",
    rollout="llama-fp8",
    owner={"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "llama-fp8", "uid": "u1"},
    image="registry.example/kvquant/shadow:1",
    image_pull_policy="IfNotPresent",
    settings=SETTINGS,
)


def pod(spec: ShadowSpec = SPEC) -> dict[str, Any]:
    template: dict[str, Any] = shadow_objects(spec)[-1]["spec"]["template"]
    return template


def test_everything_is_owned_by_the_rollout_and_goes_with_it() -> None:
    for obj in shadow_objects(SPEC):
        assert obj["metadata"]["ownerReferences"] == [SPEC.owner]
        assert obj["metadata"]["namespace"] == "inference"
        assert obj["metadata"]["labels"][names.LABEL_ROLLOUT] == "llama-fp8"


def test_the_pod_is_restricted_and_may_ask_the_api_server_nothing() -> None:
    spec = pod()["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


def test_the_service_of_the_router_finds_the_pod() -> None:
    assert shadow_selector("llama-router").items() <= pod()["metadata"]["labels"].items()
    assert names.LABEL_POOL not in pod()["metadata"]["labels"], "it is no engine"


def test_the_settings_can_be_read_back() -> None:
    config = shadow_objects(SPEC)[1]
    assert ShadowSettings.model_validate_json(config["data"]["shadow.json"]) == SETTINGS
    assert json.loads(config["data"]["shadow.json"])["attempt"] == 1


@pytest.mark.parametrize("change", [{"attempt": 2}, {"noise_percent": 50}, {"uid": "u2"}])
def test_another_attempt_gets_another_process(change: dict[str, Any]) -> None:
    other = replace(SPEC, settings=SETTINGS.model_copy(update=change))
    marks = [pod(spec)["metadata"]["annotations"][ANNOTATION_CONFIG] for spec in (SPEC, other)]
    assert marks[0] != marks[1]


def test_the_log_is_on_a_bounded_volume_or_on_the_users_claim() -> None:
    def log(spec: ShadowSpec) -> dict[str, Any]:
        return next(v for v in pod(spec)["spec"]["volumes"] if v["name"] == "log")

    assert log(SPEC)["emptyDir"] == {"sizeLimit": "4096Mi"}
    claimed = log(replace(SPEC, claim_name="evaluations"))
    assert claimed["persistentVolumeClaim"] == {"claimName": "evaluations"}


def test_credentials_come_from_the_secret_and_stand_nowhere_else() -> None:
    assert "envFrom" not in pod()["spec"]["containers"][0]
    (container,) = pod(replace(SPEC, secret_name="bucket"))["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]


def test_the_engines_key_is_a_file_of_one_key_of_the_secret() -> None:
    assert "env" not in pod()["spec"]["containers"][0]
    spec = pod(replace(SPEC, engine_key=("engines", "api-key")))["spec"]
    (volume,) = (v for v in spec["volumes"] if v["name"] == "engine-key")
    assert volume["secret"] == {
        "secretName": "engines",
        "items": [{"key": "api-key", "path": "key"}],
    }
    (container,) = spec["containers"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "engine-key")
    assert mount["readOnly"] is True
    (variable,) = container["env"]
    assert variable["name"] == ENGINE_KEY_FILE
    assert variable["value"] == f"{mount['mountPath']}/key"
