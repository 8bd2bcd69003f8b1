"""From the operator's decision to the data plane: real Envoy, real gRPC, real TLS."""

from __future__ import annotations

from kvquant.ports import Acknowledgement
from kvquant.router.xds import XdsServer
from tests.router.conftest import KEY, Stage
from tests.router.harness import eventually


def follows(service: XdsServer, pods: int = 1) -> bool:
    return service.acknowledged(KEY) == Acknowledgement(connected=pods, applied=pods)


def shares(blue: int) -> dict[str, int]:
    return {"blue": blue, "green": 100 - blue}


async def test_the_split_follows_the_weights(service: XdsServer, stage: Stage) -> None:
    service.set_weights(KEY, shares(100))
    envoy = await stage.start()
    for blue in (90, 75, 50, 0, 100):
        service.set_weights(KEY, shares(blue))
        await eventually(lambda: follows(service), 5, "the router should acknowledge")
        answers = await envoy.split(1000)
        assert set(answers) <= {"blue-0", "green-0"}
        # Four standard deviations of a binomial with n = 1000, at most 63.
        assert abs(answers["blue-0"] - 10 * blue) <= (0 if blue in (0, 100) else 63)
