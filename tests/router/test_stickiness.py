"""A header that keeps a conversation on one arm and one pod."""

from __future__ import annotations

import asyncio

from kvquant.router.xds import XdsServer
from tests.router.conftest import KEY, Stage
from tests.router.harness import Envoy, eventually

HEADER = "x-conversation"
CONVERSATIONS = 300


async def places(envoy: Envoy) -> dict[int, str]:
    """Return which pod answers each conversation."""

    async def ask(number: int) -> tuple[int, str]:
        status, name = await envoy.ask(headers={HEADER: f"conversation-{number}"})
        assert status == 200
        return number, name

    answers: dict[int, str] = {}
    for start in range(0, CONVERSATIONS, 20):
        answers.update(await asyncio.gather(*(ask(n) for n in range(start, start + 20))))
    return answers


async def sticky_router(service: XdsServer, stage: Stage) -> Envoy:
    for slot in ("blue", "green"):
        await stage.add_engine(slot, 1)
    service.set_weights(KEY, {"blue": 50, "green": 50})
    envoy = await stage.start(hash_header=HEADER)
    await eventually(lambda: _serve(envoy, 4), 5, "all pods should serve")
    return envoy


async def _serve(envoy: Envoy, pods: int) -> bool:
    return len(await envoy.split(60)) == pods


async def test_a_conversation_stays_on_its_arm_and_pod(service: XdsServer, stage: Stage) -> None:
    envoy = await sticky_router(service, stage)
    first = await places(envoy)
    assert first == await places(envoy)
    assert set(first.values()) == {"blue-0", "blue-1", "green-0", "green-1"}


async def test_conversations_are_split_by_weight_and_few_move_when_it_changes(
    service: XdsServer, stage: Stage
) -> None:
    envoy = await sticky_router(service, stage)
    before: dict[int, str] = {}
    for green in (10, 25, 50, 100):
        service.set_weights(KEY, {"blue": 100 - green, "green": green})
        await eventually(lambda: service.acknowledged(KEY).applied == 1, 5, "follow")
        now = await places(envoy)
        on_green = {n for n, name in now.items() if name.startswith("green")}
        # Four standard deviations of a binomial with n = 300 are at most 12 %.
        assert abs(len(on_green) / CONVERSATIONS - green / 100) <= 0.12
        # A rising weight only adds conversations to the arm; nobody who was there leaves it.
        assert {n for n, name in before.items() if name.startswith("green")} <= on_green
        before = now


async def test_without_the_header_requests_follow_the_weights(
    service: XdsServer, stage: Stage
) -> None:
    envoy = await sticky_router(service, stage)
    answers = await envoy.split(400)
    blue = answers["blue-0"] + answers["blue-1"]
    assert abs(blue - 200) <= 40
    assert sum(answers.values()) == 400
