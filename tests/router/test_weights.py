"""From the operator's decision to the data plane: real Envoy, real gRPC, real TLS."""

from __future__ import annotations

import time

from kvquant.ports import Acknowledgement
from kvquant.router.pki import ServerIdentity
from kvquant.router.xds import XdsServer
from tests.router.conftest import KEY, Stage, Tokens
from tests.router.harness import Envoy, eventually


def follows(service: XdsServer, pods: int = 1) -> bool:
    return service.acknowledged(KEY) == Acknowledgement(connected=pods, applied=pods)


def shares(blue: int) -> dict[str, int]:
    return {"blue": blue, "green": 100 - blue}


async def answered_by(envoy: Envoy, name: str) -> bool:
    return set(await envoy.split(20)) == {name}


async def updates(envoy: Envoy) -> float:
    return (await envoy.metrics())["envoy_runtime_load_success{}"]


async def test_the_split_follows_the_weights(service: XdsServer, stage: Stage) -> None:
    service.set_weights(KEY, shares(100))
    envoy = await stage.start()
    for blue in (90, 75, 50, 0, 100):
        service.set_weights(KEY, shares(blue))
        await eventually(lambda: follows(service), 5, "the router should acknowledge")
        answers = await envoy.split(1000)
        assert set(answers) <= {"blue-0", "green-0"}
        # Five standard deviations of a binomial with n = 1000, at most 79: four leave too many
        # chances to a suite that runs often.
        assert abs(answers["blue-0"] - 10 * blue) <= (0 if blue in (0, 100) else 79)


async def test_every_pod_of_a_router_follows(driven: XdsServer, stage: Stage) -> None:
    await stage.start()
    stage.node = "inference/llama-router/pod-2"
    second = await stage.start()
    await eventually(lambda: follows(driven, pods=2), 5, "both pods should acknowledge")
    second.stop()
    await eventually(lambda: follows(driven, pods=1), 5, "one pod should be left")


async def test_a_change_takes_effect_at_once(driven: XdsServer, stage: Stage) -> None:
    envoy = await stage.start()
    began = time.monotonic()
    driven.set_weights(KEY, shares(0))
    await eventually(lambda: answered_by(envoy, "green-0"), 5, "green should answer alone")
    assert time.monotonic() - began < 1


async def test_the_same_weights_again_send_nothing(driven: XdsServer, stage: Stage) -> None:
    envoy = await stage.start()
    await eventually(lambda: follows(driven), 5, "the router should acknowledge")
    before = await updates(envoy)
    for _ in range(10):
        driven.set_weights(KEY, shares(100))
    driven.set_weights(KEY, shares(60))
    await eventually(lambda: follows(driven), 5, "the router should acknowledge the change")
    assert await updates(envoy) == before + 1


async def test_a_router_without_weights_set_keeps_the_committed_ones(
    service: XdsServer, stage: Stage
) -> None:
    envoy = await stage.start(weights=shares(0))
    await eventually(
        lambda: service.acknowledged(KEY) == Acknowledgement(connected=1, applied=0),
        5,
        "the router should be connected",
    )
    assert await answered_by(envoy, "green-0")


async def test_a_router_that_starts_alone_serves_the_committed_weights(stage: Stage) -> None:
    envoy = await stage.start(weights=shares(30))
    answers = await envoy.split(1000)
    assert answers["blue-0"] + answers["green-0"] == 1000
    assert abs(answers["blue-0"] - 300) <= 58


async def test_the_last_weights_outlive_the_operator_and_its_return_is_noticed(
    identity: ServerIdentity, tokens: Tokens, driven: XdsServer, stage: Stage
) -> None:
    envoy = await stage.start()
    driven.set_weights(KEY, shares(0))
    await eventually(lambda: follows(driven), 5, "the router should acknowledge")
    driven.stop()
    connected = "envoy_control_plane_connected_state{}"

    async def lost() -> bool:
        return (await envoy.metrics())[connected] == 0

    await eventually(lost, 10, "the router should notice that the operator is gone")
    assert await answered_by(envoy, "green-0")
    returned = XdsServer(identity=identity, authenticate=tokens, port=driven.port, host="127.0.0.1")
    returned.start()
    try:
        returned.set_weights(KEY, shares(100))
        await eventually(lambda: follows(returned), 15, "the router should come back")
        assert await answered_by(envoy, "blue-0")
    finally:
        returned.stop()


async def test_a_forgotten_router_keeps_its_weights(driven: XdsServer, stage: Stage) -> None:
    envoy = await stage.start()
    driven.set_weights(KEY, shares(0))
    await eventually(lambda: follows(driven), 5, "the router should acknowledge")
    driven.forget(KEY)
    assert driven.acknowledged(KEY) == Acknowledgement(connected=1, applied=0)
    assert await answered_by(envoy, "green-0")
