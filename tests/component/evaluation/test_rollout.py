"""`kubectl kvquant eval NAME`: the pods of a rollout's pools, behind the API server's proxy."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvquant.errors import Unavailable
from tests.component.evaluation.sets import mixed, write
from tests.component.evaluation.test_program import SCALE, url
from tests.engine_sim.running import running
from tests.unit.cli import made
from tests.unit.cli.stage import Stage

NAME = "llama-fp8"


def deployment(name: str, labels: Mapping[str, str], *words: str) -> dict[str, Any]:
    container = {"name": "engine", "image": "vllm/vllm-openai:v0.25.0", "args": ["m", *words]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "inference"},
        "spec": {
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": {"containers": [container]}},
        },
    }


def pod(name: str, labels: Mapping[str, str], ready: bool = True, **meta: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "inference", "labels": dict(labels), **meta},
        "status": {"conditions": [condition]},
    }


def staged() -> Stage:
    stage = Stage()
    raw = made.progressing()
    status = raw["status"]
    canary = {"kvquant.dev/pool": status["canary"]["deployment"]}
    baseline = {"app": "llama"}
    stage.put(
        raw,
        deployment(status["baseline"]["deployment"], baseline),
        deployment(status["canary"]["deployment"], canary, "--port", "8001"),
        pod("old-a", baseline),
        pod("old-b", baseline, ready=False),
        pod("new-a", canary),
        pod("new-b", canary, deletionTimestamp="2026-11-24T14:00:00Z", finalizers=["x"]),
    )
    return stage


class ApiServer:
    """Proxies as an API server does: to the engines that stand for the pods."""

    def __init__(self, **pods: str) -> None:
        self.pods = pods
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []

    def __call__(self, *request: Any) -> tuple[int, str]:
        method, path, body, headers, patience = request
        self.asked.append((method, path, headers))
        prefix, _, rest = path.partition("/proxy")
        engine = self.pods.get(prefix.removeprefix("/api/v1/namespaces/inference/pods/"))
        if engine is None:
            return 404, json.dumps(
                {"kind": "Status", "apiVersion": "v1", "message": f"{prefix} not found"}
            )
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            engine + rest, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(asked, timeout=patience) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


async def run(stage: Stage, folder: Path, *words: str) -> Any:
    path = str(write(folder / "set.jsonl", mixed(10)))
    return await asyncio.to_thread(stage.run, "eval", NAME, "--dataset", path, *words)


async def test_the_ready_pods_of_both_pools_are_asked_through_the_proxy(tmp_path: Path) -> None:
    stage = staged()
    async with (
        running(scale=SCALE) as baseline,
        running("--kv-cache-dtype", "fp8", scale=SCALE, faults="fp8:refuse=1") as canary,
    ):
        server = ApiServer(**{"old-a:8000": url(baseline), "new-a:8001": url(canary)})
        stage.proxied = server
        result = await run(stage, tmp_path, "-o", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["rollout"] == f"inference/{NAME}"
    assert (told["outcome"], told["answered"]) == ("Fail", 60)
    assert "refusals" in told["message"]
    pods = {path.split("/")[6] for _, path, _ in server.asked}
    assert pods == {"old-a:8000", "new-a:8001"}
    assert all(headers["x-kvquant-shadow"] == "1" for *_, headers in server.asked)


async def test_what_keeps_from_asking_is_said_with_its_remedy(tmp_path: Path) -> None:
    stage = staged()
    forbidden = {"kind": "Status", "apiVersion": "v1", "message": "pods is forbidden", "code": 403}
    stage.proxied = lambda *_: (403, json.dumps(forbidden))
    result = await run(stage, tmp_path)
    assert result.exit_code == 1
    assert "pods is forbidden. Ask for the right to get and create pods/proxy" in result.stderr
    stage.proxied = ApiServer()
    result = await run(stage, tmp_path)
    assert result.exit_code == 1
    assert "the baseline at llama in inference does not answer" in result.stderr

    def away(*_: object) -> tuple[int, str]:
        raise Unavailable("no answer from the API server")

    stage.proxied = away
    result = await run(stage, tmp_path)
    assert result.exit_code == 1
    assert "no answer from the API server" in result.stderr


@pytest.mark.parametrize("missing", ["Pod", "Deployment"])
async def test_a_pool_without_pods_is_said(tmp_path: Path, missing: str) -> None:
    stage = staged()
    names = {"Pod": "new-a", "Deployment": made.progressing()["status"]["canary"]["deployment"]}
    stage.cluster.vanish(missing, "inference", names[missing])
    result = await run(stage, tmp_path)
    assert result.exit_code == 1
    assert "the canary" in result.stderr
    assert ("has no ready pod now" in result.stderr) == (missing == "Pod")


async def test_a_rollout_that_has_no_two_pools_and_one_that_is_not_there(tmp_path: Path) -> None:
    stage = Stage()
    stage.put(made.fresh(NAME))
    result = await run(stage, tmp_path)
    assert result.exit_code == 1
    assert "name the arms by --baseline and --canary" in result.stderr
    result = await run(Stage(), tmp_path)
    assert result.exit_code == 1
    assert f"there is no rollout '{NAME}'" in result.stderr


def test_neither_a_rollout_nor_two_arms_is_wrong_usage() -> None:
    for words in ((), ("--baseline", "http://a"), (NAME, "--canary", "http://b")):
        result = Stage().run("eval", "--dataset", "x", *words)
        assert result.exit_code == 2
        assert "name a rollout, or both --baseline and --canary" in result.stderr
