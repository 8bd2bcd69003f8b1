"""The Job of an evaluation: restricted, owned by the rollout, its own for each run."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kvquant.api import names
from kvquant.core.evaluation_manifests import (
    DATASET_FOLDER,
    EvaluationJob,
    Source,
    job_name,
    job_object,
    jobs_selector,
)
from kvquant.core.evaluation_summary import TERMINATION_FILE

NAME = job_name("llama-fp8", "u1", 1, 1)
JOB = EvaluationJob(
    name=NAME,
    namespace="inference",
    rollout="llama-fp8",
    owner={"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "llama-fp8", "uid": "u1"},
    image="registry.example/kvquant/evaluation:1",
    image_pull_policy="IfNotPresent",
    source=Source(config_map="rag", path="set.jsonl"),
    baseline="llama-router-blue:8000",
    canary="llama-router-green:8000",
    margin_percent=2,
    drift_percent=5,
    noise_percent=20,
    concurrency=4,
    deadline=timedelta(hours=1),
)


def pod(source: Source = JOB.source) -> dict[str, Any]:
    spec: dict[str, Any] = job_object(replace(JOB, source=source))["spec"]["template"]["spec"]
    return spec


def container(source: Source = JOB.source) -> dict[str, Any]:
    (found,) = pod(source)["containers"]
    assert isinstance(found, dict)
    return found


def arguments(job: dict[str, Any]) -> dict[str, str]:
    """Return the program's arguments as Kubernetes hands them over."""
    (found,) = job["spec"]["template"]["spec"]["containers"]
    assert "$(" not in "".join(found["args"]).replace("$$", ""), "nothing is put in"
    return dict(word.replace("$$", "$").split("=", 1) for word in found["args"])


def test_a_name_is_a_runs_own_and_short_enough_for_pods() -> None:
    known = {
        job_name(rollout, f"{rollout}'s {life} uid", attempt, run)
        for rollout in ("llama-fp8", "l" * 52, "l" * 51 + "m", "l" * 39 + "-x")
        for life in ("first", "second")
        for attempt in (1, 11)
        for run in (1, 2, 11)
    }
    assert len(known) == 48
    assert max(map(len, known)) <= 57, "a pod's name adds six"
    assert not [name for name in known if "--" in name]


def test_it_is_owned_by_the_rollout_and_goes_with_it() -> None:
    job = job_object(JOB)
    assert job["metadata"]["ownerReferences"] == [JOB.owner]
    labels = job["metadata"]["labels"]
    assert jobs_selector("llama-fp8").items() <= labels.items()
    assert job["spec"]["template"]["metadata"]["labels"] == labels, "pods wake the rollout, too"
    assert labels[names.LABEL_EVALUATION] == NAME
    assert job["spec"]["ttlSecondsAfterFinished"] == 24 * 3600
    assert names.LABEL_POOL not in labels
    assert names.LABEL_SERVING not in labels


def test_kubernetes_tries_it_once_and_ends_it_some_time_after_its_own_deadline() -> None:
    spec = job_object(JOB)["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert 3600 + 600 < spec["activeDeadlineSeconds"] <= 3600 + 900


def test_the_pod_is_restricted_and_may_ask_the_api_server_nothing() -> None:
    spec = pod()
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container()["resources"]["limits"]


def test_the_last_words_are_the_summary_and_never_the_log() -> None:
    found = container()
    assert found["terminationMessagePath"] == TERMINATION_FILE
    assert found["terminationMessagePolicy"] == "File"


def test_the_program_is_told_everything() -> None:
    told = arguments(job_object(JOB))
    assert container()["command"] == ["python", "-m", "kvquant.evaluation"]
    assert told == {
        "--dataset": f"{DATASET_FOLDER}/set.jsonl",
        "--baseline": "llama-router-blue:8000",
        "--canary": "llama-router-green:8000",
        "--concurrency": "4",
        "--margin-percent": "2",
        "--drift-percent": "5",
        "--noise-percent": "20",
        "--seed": "1",
        "--out": "/var/lib/kvquant/evaluation",
        "--summary": TERMINATION_FILE,
        "--deadline": "3600",
    }
    writable = {m["mountPath"] for m in container()["volumeMounts"] if not m.get("readOnly")}
    assert told["--out"] in writable


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        (
            Source(config_map="rag", path="a.jsonl"),
            {"configMap": {"name": "rag", "items": [{"key": "a.jsonl", "path": "a.jsonl"}]}},
        ),
        (
            Source(claim="sets", path="2026/a.jsonl"),
            {"persistentVolumeClaim": {"claimName": "sets", "readOnly": True}},
        ),
        (Source(url="s3://sets/a.jsonl", secret="sets"), None),
    ],
)
def test_the_set_is_mounted_read_only_or_fetched(
    source: Source, volume: dict[str, Any] | None
) -> None:
    volumes = {v.pop("name"): v for v in pod(source)["volumes"]}
    mounts = {m["name"]: m for m in container(source)["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert volumes.get("dataset") == volume
    dataset = arguments(job_object(replace(JOB, source=source)))["--dataset"]
    if volume is None:
        assert dataset == "s3://sets/a.jsonl"
        assert container(source)["envFrom"] == [{"secretRef": {"name": "sets"}}]
    else:
        assert mounts["dataset"]["readOnly"] is True
        assert dataset == f"{mounts['dataset']['mountPath']}/{source.path}"
        assert "envFrom" not in container(source)


@pytest.mark.parametrize("words", ["$(AWS_SECRET_ACCESS_KEY)", "$$(X)", "a$b", "--ignore-load"])
def test_nothing_that_a_user_writes_is_taken_for_a_variable_or_a_flag(words: str) -> None:
    source = Source(url=f"s3://sets/{words}", secret="sets")
    told = arguments(job_object(replace(JOB, source=source, model=words)))
    assert (told["--baseline-model"], told["--canary-model"]) == (words, words)
    assert told["--dataset"] == f"s3://sets/{words}"


def test_it_is_the_same_each_time() -> None:
    assert json.dumps(job_object(JOB)) == json.dumps(job_object(replace(JOB)))
