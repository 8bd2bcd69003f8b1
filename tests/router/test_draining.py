"""A router pod that is to go: the hook of its image lets every request end first."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.router.conftest import Stage
from tests.router.harness import Envoy, eventually

pytestmark = pytest.mark.usefixtures("driven")

HOOK = Path(__file__).parents[2] / "images" / "router" / "kvquant-drain"


async def drain(envoy: Envoy) -> asyncio.subprocess.Process:
    """Start the hook as the kubelet would, beside the router."""
    return await asyncio.create_subprocess_exec(
        str(HOOK),
        env={
            **os.environ,
            "KVQUANT_ADMIN_PORT": str(envoy.bootstrap.admin_port),
            "KVQUANT_DRAIN_AT_LEAST": "1",
            "KVQUANT_DRAIN_IDLE": "1",
        },
    )


async def says_no(envoy: Envoy) -> bool:
    async with envoy.session.get(f"{envoy.stats_url}/ready") as answer:
        return answer.status == 503


async def test_the_hook_waits_for_the_last_stream(stage: Stage) -> None:
    envoy = await stage.start()
    stream = await envoy.session.post(envoy.url + "/stream")
    await stream.content.readline()
    hook = await drain(envoy)
    try:
        await eventually(lambda: says_no(envoy), 5, "the router should say that it is not ready")
        async with envoy.session.post(envoy.url + "/v1/completions") as answer:
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(hook.wait()), 3.5)
        stage.engines["blue-0"].release.set()
        assert b"[DONE]" in await stream.read()
        assert await asyncio.wait_for(hook.wait(), 10) == 0
    finally:
        if hook.returncode is None:
            hook.kill()
            await hook.wait()


async def test_rolling_a_router_loses_no_request(stage: Stage) -> None:
    old = await stage.start()
    new = await stage.start()
    # What a Service does: new connections go to whoever is ready.
    target = old
    answers: list[int] = []
    running = True

    async def client() -> None:
        while running:
            async with old.session.post(target.url + "/v1/completions", data=b"x") as answer:
                await answer.read()
                answers.append(answer.status)

    clients = [asyncio.create_task(client()) for _ in range(8)]
    await eventually(lambda: len(answers) > 50, 5, "clients should be served")
    hook = await drain(old)
    await eventually(lambda: says_no(old), 5, "the old router should say that it is not ready")
    target = new
    assert await asyncio.wait_for(hook.wait(), 15) == 0
    old.stop()
    served = len(answers)
    await eventually(lambda: len(answers) > served + 50, 5, "the new router should serve")
    running = False
    await asyncio.gather(*clients)
    assert set(answers) == {200}


async def test_the_hook_of_a_router_that_is_gone_ends_at_once(stage: Stage) -> None:
    envoy = await stage.start()
    envoy.stop()
    hook = await drain(envoy)
    assert await asyncio.wait_for(hook.wait(), 5) == 0
