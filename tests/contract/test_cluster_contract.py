"""What the `Cluster` port promises, checked on the fake and on a real API server alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kvquant.adapters.cluster import RESOURCES
from kvquant.api import names
from kvquant.errors import Conflict, Refused
from kvquant.ports import Object
from tests.contract.conftest import Target
from tests.fakes.cluster import KINDS

FINALIZER = "kvquant.dev/test"


def rollout(target: Target, name: str = "llama-fp8", **spec: Any) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": target.namespace},
        "spec": {
            "targetRef": {"name": "llama"},
            "kvCache": {"dtype": "fp8"},
            "traffic": {"router": {}},
            **spec,
        },
    }


def configmap(
    target: Target, name: str = "router", data: dict[str, str] | None = None, **metadata: Any
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": target.namespace, **metadata},
        "data": data or {"weights": "90/10"},
    }


def deployment(target: Target, *args: str) -> Object:
    labels = {"app": "llama"}
    container = {"name": "engine", "image": "example.invalid/engine:1", "args": list(args)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "llama", "namespace": target.namespace, "labels": labels},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def existing(target: Target, kind: str, name: str) -> Object:
    found = target.cluster.get(kind, target.namespace, name)
    assert found is not None, f"{kind} {name} is missing"
    return found


def version(obj: Object) -> str:
    resource_version: str = obj["metadata"]["resourceVersion"]
    return resource_version


# Reading.


def test_the_fake_and_the_adapter_know_the_same_kinds() -> None:
    assert RESOURCES.keys() == KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_served(target: Target, kind: str) -> None:
    namespace = "" if kind == "GatewayClass" else target.namespace
    assert target.cluster.get(kind, namespace, "missing") is None
    target.cluster.list(kind, namespace, {})


def test_a_kind_without_a_path_is_a_mistake_of_the_caller(target: Target) -> None:
    with pytest.raises(ValueError, match="Ingress"):
        target.cluster.get("Ingress", target.namespace, "x")


def test_list_finds_what_carries_all_the_labels(target: Target) -> None:
    target.cluster.apply(configmap(target, "both", labels={"a": "1", "b": "2"}))
    target.cluster.apply(configmap(target, "one", labels={"a": "1"}))
    target.cluster.apply(configmap(target, "other", labels={"a": "2", "b": "2"}))

    found = target.cluster.list("ConfigMap", target.namespace, {"a": "1", "b": "2"})

    assert [obj["metadata"]["name"] for obj in found] == ["both"]
    assert (found[0]["apiVersion"], found[0]["kind"]) == ("v1", "ConfigMap")


def test_an_empty_namespace_lists_all_of_them(target: Target) -> None:
    target.cluster.apply(configmap(target, labels={"of": target.namespace}))
    found = target.cluster.list("ConfigMap", "", {"of": target.namespace})
    assert [obj["metadata"]["namespace"] for obj in found] == [target.namespace]


def test_what_is_returned_can_be_changed_without_changing_the_cluster(target: Target) -> None:
    target.cluster.apply(configmap(target))["data"]["weights"] = "mine"
    existing(target, "ConfigMap", "router")["data"]["weights"] = "mine"
    assert existing(target, "ConfigMap", "router")["data"] == {"weights": "90/10"}


# Server-side apply.


def test_apply_creates_and_tells_what_was_stored(target: Target) -> None:
    created = target.cluster.apply(configmap(target))

    assert created["metadata"]["uid"]
    assert created["metadata"]["creationTimestamp"].endswith("Z")
    assert existing(target, "ConfigMap", "router") == created


def test_applying_the_same_again_writes_nothing(target: Target) -> None:
    first = target.cluster.apply(configmap(target))
    assert version(target.cluster.apply(configmap(target))) == version(first)


def test_apply_removes_what_we_no_longer_name(target: Target) -> None:
    target.cluster.apply(configmap(target, data={"weights": "90/10", "old": "x"}))
    target.cluster.apply(configmap(target, data={"weights": "75/25"}))
    assert existing(target, "ConfigMap", "router")["data"] == {"weights": "75/25"}


def test_apply_leaves_what_others_have_added(target: Target) -> None:
    target.cluster.apply(configmap(target, annotations={"ours": "1"}))
    target.edit_as_other(
        "ConfigMap",
        "router",
        {"metadata": {"annotations": {"theirs": "1"}}, "data": {"theirs": "1"}},
    )
    target.cluster.apply(configmap(target, annotations={"ours": "2"}))

    found = existing(target, "ConfigMap", "router")
    assert found["metadata"]["annotations"] == {"ours": "2", "theirs": "1"}
    assert found["data"] == {"weights": "90/10", "theirs": "1"}


def test_apply_takes_back_fields_of_ours_that_drifted(target: Target) -> None:
    target.cluster.apply(configmap(target))
    target.edit_as_other("ConfigMap", "router", {"data": {"weights": "0/100"}})
    target.cluster.apply(configmap(target))
    assert existing(target, "ConfigMap", "router")["data"] == {"weights": "90/10"}


def test_apply_leaves_what_somebody_else_has_taken_over_since(target: Target) -> None:
    target.cluster.apply(configmap(target, data={"weights": "90/10", "shared": "ours"}))
    target.edit_as_other("ConfigMap", "router", {"data": {"shared": "theirs"}})
    target.cluster.apply(configmap(target, data={"weights": "90/10"}))
    found = existing(target, "ConfigMap", "router")
    assert found["data"] == {"weights": "90/10", "shared": "theirs"}


def test_apply_may_take_a_value_back_that_our_own_patch_has_changed(target: Target) -> None:
    target.cluster.apply(deployment(target, "a"))
    target.cluster.patch("Deployment", target.namespace, "llama", {"spec": {"paused": True}})
    again = deployment(target, "a")
    again["spec"]["paused"] = False
    target.cluster.apply(again)
    assert not existing(target, "Deployment", "llama")["spec"].get("paused")


def test_a_deployments_selector_cannot_be_changed(target: Target) -> None:
    target.cluster.apply(deployment(target, "a"))
    changed = deployment(target, "a")
    changed["spec"]["selector"] = {"matchLabels": {"app": "other"}}
    changed["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    with pytest.raises(Refused, match="selector"):
        target.cluster.apply(changed)


def test_apply_replaces_arguments_and_merges_containers_by_name(target: Target) -> None:
    target.cluster.apply(deployment(target, "--kv-cache-dtype", "auto"))
    target.edit_as_other(
        "Deployment",
        "llama",
        {"spec": {"template": {"metadata": {"annotations": {"restarted": "now"}}}}},
    )
    target.cluster.apply(deployment(target, "--kv-cache-dtype", "fp8", "--port", "8000"))

    template = existing(target, "Deployment", "llama")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["args"] == ["--kv-cache-dtype", "fp8", "--port", "8000"]
    assert template["metadata"]["annotations"] == {"restarted": "now"}


def test_apply_keeps_a_finalizer_of_somebody_else(target: Target) -> None:
    target.cluster.apply(rollout(target))
    target.edit_as_other(names.KIND, "llama-fp8", {"metadata": {"finalizers": [FINALIZER]}})
    target.cluster.apply(rollout(target, progressDeadline="5m"))

    found = existing(target, names.KIND, "llama-fp8")
    assert found["metadata"]["finalizers"] == [FINALIZER]
    assert found["spec"]["progressDeadline"] == "5m"


def test_apply_with_a_stale_version_conflicts(target: Target) -> None:
    stale = version(target.cluster.apply(configmap(target)))
    target.edit_as_other("ConfigMap", "router", {"data": {"theirs": "1"}})
    with pytest.raises(Conflict):
        target.cluster.apply(configmap(target, resourceVersion=stale))


# Merge patches.


def test_patch_changes_what_it_names_and_null_removes(target: Target) -> None:
    target.cluster.apply(configmap(target, data={"a": "1", "b": "2", "c": "3"}))
    patched = target.cluster.patch(
        "ConfigMap", target.namespace, "router", {"data": {"a": "9", "b": None}}
    )
    assert patched["data"] == {"a": "9", "c": "3"}
    assert existing(target, "ConfigMap", "router") == patched


def test_patch_with_the_current_version_is_taken_and_a_stale_one_conflicts(target: Target) -> None:
    first = version(target.cluster.apply(configmap(target)))
    patch = {"metadata": {"resourceVersion": first}, "data": {"weights": "75/25"}}

    second = target.cluster.patch("ConfigMap", target.namespace, "router", patch)

    assert version(second) != first
    patch["data"] = {"weights": "0/100"}
    with pytest.raises(Conflict):
        target.cluster.patch("ConfigMap", target.namespace, "router", patch)
    assert existing(target, "ConfigMap", "router")["data"] == {"weights": "75/25"}


def test_patching_what_is_gone_conflicts(target: Target) -> None:
    with pytest.raises(Conflict, match="gone"):
        target.cluster.patch("ConfigMap", target.namespace, "never", {"data": {"a": "1"}})


def test_a_patch_that_changes_nothing_writes_nothing(target: Target) -> None:
    first = target.cluster.apply(configmap(target))
    again = target.cluster.patch(
        "ConfigMap", target.namespace, "router", {"data": {"weights": "90/10"}}
    )
    assert version(again) == version(first)


# Status.


def test_the_template_of_a_job_cannot_be_changed(target: Target) -> None:
    container = {"name": "evaluation", "image": "example.invalid/evaluation:1"}
    job: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x", "namespace": target.namespace},
        "spec": {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}},
    }
    first = target.cluster.apply(job)
    again = target.cluster.apply(job)
    assert again["metadata"]["uid"] == first["metadata"]["uid"], "the same again is no error"
    changed = copy.deepcopy(job)
    changed["spec"]["template"]["spec"]["containers"][0]["image"] += ".1"
    with pytest.raises(Refused, match=r"spec\.template"):
        target.cluster.apply(changed)
    assert existing(target, "Job", "x")["spec"] == again["spec"]


def test_status_is_written_whole_and_alone(target: Target) -> None:
    created = target.cluster.apply(rollout(target))
    written = target.cluster.replace_status(
        {**created, "status": {"phase": "Progressing", "step": 1}}
    )
    changed = {**written, "spec": {**written["spec"], "progressDeadline": "9m"}}
    changed["metadata"] = {**written["metadata"], "annotations": {"not": "taken"}}
    target.cluster.replace_status({**changed, "status": {"phase": "Promoted"}})

    found = existing(target, names.KIND, "llama-fp8")
    assert found["status"] == {"phase": "Promoted"}
    assert found["spec"]["progressDeadline"] == "30m"
    assert "annotations" not in found["metadata"]
    assert found["metadata"]["generation"] == created["metadata"]["generation"]


def test_a_stale_status_conflicts_and_changes_nothing(target: Target) -> None:
    created = target.cluster.apply(rollout(target))
    target.cluster.replace_status({**created, "status": {"phase": "Verifying"}})
    with pytest.raises(Conflict):
        target.cluster.replace_status({**created, "status": {"phase": "Progressing"}})
    assert existing(target, names.KIND, "llama-fp8")["status"] == {"phase": "Verifying"}


def test_the_version_fences_a_status_off_from_a_spec_that_changed(target: Target) -> None:
    created = target.cluster.apply(rollout(target))
    target.edit_as_other(names.KIND, "llama-fp8", {"spec": {"progressDeadline": "5m"}})
    with pytest.raises(Conflict):
        target.cluster.replace_status({**created, "status": {"phase": "Progressing"}})


def test_a_status_without_a_version_is_refused(target: Target) -> None:
    target.cluster.apply(rollout(target))
    with pytest.raises(Refused, match="resourceVersion"):
        target.cluster.replace_status({**rollout(target), "status": {"phase": "Pending"}})


def test_the_status_of_what_is_gone_conflicts(target: Target) -> None:
    created = target.cluster.apply(rollout(target))
    target.cluster.delete(names.KIND, target.namespace, "llama-fp8")
    with pytest.raises(Conflict):
        target.cluster.replace_status({**created, "status": {"phase": "Pending"}})


def test_an_unchanged_status_writes_nothing(target: Target) -> None:
    created = target.cluster.apply(rollout(target))
    first = target.cluster.replace_status({**created, "status": {"phase": "Pending"}})
    again = target.cluster.replace_status(first)
    assert version(again) == version(first)


def test_status_cannot_be_written_through_the_object(target: Target) -> None:
    target.cluster.apply({**rollout(target), "status": {"phase": "Promoted"}})
    target.cluster.patch(
        names.KIND, target.namespace, "llama-fp8", {"status": {"phase": "Promoted"}}
    )
    assert "status" not in existing(target, names.KIND, "llama-fp8")


def test_unknown_fields_of_a_status_are_pruned(target: Target) -> None:
    created = target.cluster.apply(rollout(target))
    target.cluster.replace_status({**created, "status": {"phase": "Pending", "future": 1}})
    assert existing(target, names.KIND, "llama-fp8")["status"] == {"phase": "Pending"}


def test_a_status_that_breaks_the_schema_is_refused(target: Target) -> None:
    created = target.cluster.apply(rollout(target))
    with pytest.raises(Refused, match=r"status\.phase"):
        target.cluster.replace_status({**created, "status": {"phase": "Wandering"}})


# Generations.


def test_the_generation_counts_changes_of_the_spec_alone(target: Target) -> None:
    assert target.cluster.apply(rollout(target))["metadata"]["generation"] == 1

    target.edit_as_other(names.KIND, "llama-fp8", {"metadata": {"annotations": {"a": "1"}}})
    assert existing(target, names.KIND, "llama-fp8")["metadata"]["generation"] == 1

    target.edit_as_other(names.KIND, "llama-fp8", {"spec": {"progressDeadline": "5m"}})
    assert existing(target, names.KIND, "llama-fp8")["metadata"]["generation"] == 2


def test_a_deployments_generation_follows_its_spec(target: Target) -> None:
    target.cluster.apply(deployment(target, "a"))
    target.cluster.apply(deployment(target, "b"))
    assert existing(target, "Deployment", "llama")["metadata"]["generation"] == 2


# Deletion.


def test_delete_removes_and_may_be_repeated(target: Target) -> None:
    target.cluster.apply(configmap(target))
    target.cluster.delete("ConfigMap", target.namespace, "router")
    target.cluster.delete("ConfigMap", target.namespace, "router")
    assert target.cluster.get("ConfigMap", target.namespace, "router") is None


def test_a_finalizer_keeps_a_deleted_object_until_it_is_removed(target: Target) -> None:
    target.cluster.apply(rollout(target))
    target.edit_as_other(names.KIND, "llama-fp8", {"metadata": {"finalizers": [FINALIZER]}})

    target.cluster.delete(names.KIND, target.namespace, "llama-fp8")

    doomed = existing(target, names.KIND, "llama-fp8")
    assert doomed["metadata"]["deletionTimestamp"].endswith("Z")
    assert doomed["metadata"]["generation"] == 2
    target.cluster.replace_status({**doomed, "status": {"phase": "RollingBack"}})

    target.cluster.patch(
        names.KIND, target.namespace, "llama-fp8", {"metadata": {"finalizers": None}}
    )
    assert target.cluster.get(names.KIND, target.namespace, "llama-fp8") is None


# The schema of our resource.


def test_defaults_fill_in_down_to_the_nested_ones(target: Target) -> None:
    spec = target.cluster.apply(rollout(target))["spec"]

    assert spec["targetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama"}
    assert [step["weight"] for step in spec["steps"]] == [10, 25, 50, 100]
    assert spec["analysis"]["minRequests"] == 100
    assert spec["analysis"]["oomRetries"] == {"tolerancePercent": 1}
    assert spec["promotion"] == {"rollbackWindow": "1h", "oldPool": "ScaleToZero"}
    assert spec["traffic"]["router"]["requestTimeout"] == "15m"


def test_unknown_fields_of_a_spec_are_pruned_when_written_by_a_patch(target: Target) -> None:
    target.cluster.apply(rollout(target))
    target.edit_as_other(names.KIND, "llama-fp8", {"spec": {"analysis": {"future": 1}}})
    assert "future" not in existing(target, names.KIND, "llama-fp8")["spec"]["analysis"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kvCache": {"dtype": "int7"}}, r"spec\.kvCache\.dtype: Unsupported value: \"int7\""),
        ({"kvCache": {}}, r"spec\.kvCache\.dtype: Required value"),
        ({"steps": []}, r"spec\.steps: Invalid value"),
        ({"progressDeadline": "soon"}, r"spec\.progressDeadline: Invalid value"),
        ({"analysis": {"p99": {"tolerancePercent": 101}}}, r"spec\.analysis\.p99\.tolerancePer"),
    ],
)
def test_a_spec_that_breaks_the_schema_is_refused(
    target: Target, spec: Object, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        target.cluster.apply(rollout(target, **spec))
    assert target.cluster.get(names.KIND, target.namespace, "llama-fp8") is None
