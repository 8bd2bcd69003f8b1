"""Copies of requests: as many as asked for, whole, without credentials, and never felt."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import socket
import time

import pytest

from kvquant.core.envoy_bootstrap import BODY_BOUNDS
from kvquant.core.envoy_upstreams import COPY_TIMEOUT
from kvquant.core.shadow_settings import GENERATION_PATHS, MARK_HEADER
from kvquant.router.xds import XdsServer
from tests.router.conftest import KEY, Stage
from tests.router.harness import Engine, Envoy, eventually

CHAT = "/v1/chat/completions"
MIB = 1024 * 1024


async def shadow_of(stage: Stage) -> Engine:
    """Start what takes the copies."""
    upstream = stage.bootstrap.shadow
    shadow = Engine("shadow", "127.0.0.1", upstream.port)
    await shadow.start()
    stage.engines["shadow"] = shadow
    stage.dns.records[upstream.host] = [shadow.host]
    return shadow


async def post(
    envoy: Envoy, path: str, body: bytes = b"{}", headers: dict[str, str] | None = None
) -> str:
    async with envoy.session.post(
        f"{envoy.url}{path}", data=io.BytesIO(body), headers=headers
    ) as answer:
        assert answer.status == 200
        return await answer.text()


async def mirroring(driven: XdsServer, envoy: Envoy, percent: int) -> None:
    """Wait until the router copies that share."""
    driven.set_weights(KEY, {"blue": 100, "green": 0}, percent)
    await eventually(
        lambda: driven.acknowledged(KEY).applied == driven.acknowledged(KEY).connected == 1,
        10,
        "the router follows",
    )


async def test_every_generation_endpoint_is_copied_and_nothing_else(
    stage: Stage, driven: XdsServer
) -> None:
    shadow = await shadow_of(stage)
    envoy = await stage.start()
    await mirroring(driven, envoy, 50)
    for path in (*GENERATION_PATHS, "/v1/embeddings", "/v1/models"):
        for _ in range(40):
            assert (await post(envoy, path)).startswith("blue")
    await eventually(
        lambda: all(5 <= shadow.served[path] <= 35 for path in GENERATION_PATHS), 5, "half of them"
    )
    assert set(shadow.served) == set(GENERATION_PATHS)


async def test_without_a_share_nothing_is_copied(stage: Stage, driven: XdsServer) -> None:
    shadow = await shadow_of(stage)
    envoy = await stage.start()
    await mirroring(driven, envoy, 50)
    await mirroring(driven, envoy, 0)
    for _ in range(50):
        await post(envoy, CHAT)
    assert not shadow.served


async def test_a_copy_has_no_credentials_and_a_client_cannot_mark_its_own_requests(
    stage: Stage, driven: XdsServer
) -> None:
    shadow = await shadow_of(stage)
    envoy = await stage.start()
    await mirroring(driven, envoy, 50)
    secrets = {"authorization": "Bearer s3cret", "cookie": "s3cret=1", "x-api-key": "s3cret"}
    for _ in range(30):
        await post(envoy, CHAT, headers={**secrets, MARK_HEADER: "1"})
    await eventually(lambda: len(shadow.headers) > 0, 5, "a copy")
    assert "s3cret" not in str(shadow.headers)
    live = stage.engines["blue-0"].headers
    assert all("authorization" in {name.lower() for name in one} for one in live)
    assert all(MARK_HEADER not in {name.lower() for name in one} for one in live)


async def test_long_bodies_arrive_whole(stage: Stage, driven: XdsServer) -> None:
    shadow = await shadow_of(stage)
    envoy = await stage.start()
    await mirroring(driven, envoy, 50)
    sizes = [17 * MIB, 24 * MIB]
    for size in sizes:
        before = len(shadow.bodies)
        while len(shadow.bodies) == before:
            await post(envoy, CHAT, b"x" * size)
            await asyncio.sleep(0)
    assert set(shadow.bodies) <= set(sizes)


@pytest.mark.parametrize("kind", ["absent", "refusing", "hung"])
async def test_nothing_of_the_shadow_is_felt(stage: Stage, driven: XdsServer, kind: str) -> None:
    upstream = stage.bootstrap.shadow
    with contextlib.ExitStack() as stack:
        if kind != "absent":
            stage.dns.records[upstream.host] = ["127.0.0.1"]
        if kind == "hung":
            # The kernel takes connections and some bytes; nobody ever reads them.
            stack.enter_context(socket.create_server(("127.0.0.1", upstream.port)))
        envoy = await stage.start()
        await mirroring(driven, envoy, 50)
        slowest = 0.0
        for number in range(40):
            size = 8 * MIB if number % 4 == 0 else 1000
            began = time.monotonic()
            assert (await post(envoy, CHAT, b"x" * size)).startswith("blue")
            slowest = max(slowest, time.monotonic() - began)
    # A hung shadow that held up its originals would do so until its copies time out.
    assert slowest < COPY_TIMEOUT.total_seconds() / 3


async def test_bodies_are_counted_by_length(stage: Stage, driven: XdsServer) -> None:
    envoy = await stage.start()
    for size in (100, 5000, 2 * MIB):
        await post(envoy, CHAT, b"x" * size)

    async def counted() -> bool:
        bins = {
            float(name.split('le="')[1].split('"')[0]): value
            for name, value in (await envoy.metrics()).items()
            if name.startswith("envoy_cluster_upstream_rq_body_size_bucket") and '"blue"' in name
        }
        assert bins.keys() == {*BODY_BOUNDS, math.inf}
        return [*bins.values()] == [1, 2, 2, 2, 2, 3]

    await eventually(counted, 10, "three bodies in three buckets")
