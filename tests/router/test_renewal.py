"""The certificate of the weights service is replaced while routers follow it: no gap anywhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from kvquant.core.envoy_upstreams import WeightsService
from kvquant.ports import Acknowledgement
from kvquant.router.pki import AUTHORITY_VALIDITY, ServerIdentity, make_identity, renew
from kvquant.router.xds import XdsServer
from kvquant.weights_identity import Renewer, Terms, load_or_make
from tests.fakes.cluster import FakeCluster
from tests.router.conftest import KEY, Stage, Tokens
from tests.router.harness import Envoy, eventually

HOST = "localhost"
SHORT = Terms(
    validity=timedelta(seconds=4),
    renewed_before=timedelta(seconds=2),
    looked_after=timedelta(seconds=0.2),
)
"""A certificate of these ends within the test, and its successor, too."""


def follows(service: XdsServer, pods: int) -> bool:
    return service.acknowledged(KEY) == Acknowledgement(connected=pods, applied=pods)


@asynccontextmanager
async def clients(envoy: Envoy) -> AsyncIterator[Counter[int | str]]:
    """Send requests all the while; yield the count of answers by status."""
    seen: Counter[int | str] = Counter()
    enough = asyncio.Event()

    async def send() -> None:
        while not enough.is_set():
            try:
                async with envoy.session.get(f"{envoy.url}/x") as answer:
                    seen[answer.status] += 1
            except OSError as error:
                seen[repr(error)] += 1
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(send())
    try:
        yield seen
    finally:
        enough.set()
        await sending


def ended(identity: ServerIdentity) -> bool:
    return x509.load_pem_x509_certificate(identity.certificate).not_valid_after_utc < datetime.now(
        UTC
    )


class TestWhileItRuns:
    """A running operator renews by itself."""

    @pytest.fixture
    def kept(self) -> FakeCluster:
        return FakeCluster()

    @pytest.fixture
    def identity(self, kept: FakeCluster) -> ServerIdentity:
        return load_or_make(kept, "kvquant-system", HOST, SHORT)

    @pytest.fixture
    def shown(
        self, kept: FakeCluster, identity: ServerIdentity, driven: XdsServer
    ) -> Iterator[list[ServerIdentity]]:
        shown = [identity]

        def use(new: ServerIdentity) -> None:
            driven.show(new)
            shown.append(new)

        def load() -> ServerIdentity:
            return load_or_make(kept, "kvquant-system", HOST, SHORT)

        renewer = Renewer(identity, load, use, HOST, SHORT)
        renewer.start()
        yield shown
        renewer.stop()

    async def test_streams_go_on_and_new_ones_find_a_certificate_that_is_valid(
        self, driven: XdsServer, stage: Stage, tokens: Tokens, shown: list[ServerIdentity]
    ) -> None:
        envoy = await stage.start()
        await eventually(lambda: follows(driven, 1), 5, "the router should acknowledge")
        async with clients(envoy) as answers:
            await eventually(lambda: ended(shown[0]), 10, "the first certificate should end")
            driven.set_weights(KEY, {"blue": 40, "green": 60})
            await eventually(lambda: follows(driven, 1), 2, "weights should arrive all the same")
            assert tokens.seen == ["good-token"], "over the stream that was opened first"
            stage.node = "inference/llama-router/pod-2"
            await stage.start()
            await eventually(lambda: follows(driven, 2), 5, "another router should find it valid")
            await eventually(lambda: ended(shown[1]), 10, "the second certificate should end")
            driven.set_weights(KEY, {"blue": 0, "green": 100})
            await eventually(lambda: follows(driven, 2), 2, "weights should arrive at both")
        assert set(answers) == {200}
        assert len({identity.ca for identity in shown}) == 1, "routers were told nothing"


class TestNewAuthority:
    """An authority that comes to its end vouches for the next one."""

    @pytest.fixture
    def identity(self) -> ServerIdentity:
        """The one that routers know: it has half a year left."""
        long_ago = datetime.now(UTC) - AUTHORITY_VALIDITY + timedelta(days=180)
        return make_identity([HOST], long_ago, validity=AUTHORITY_VALIDITY)

    async def test_routers_that_know_either_of_the_two_follow(
        self, driven: XdsServer, stage: Stage, tokens: Tokens, identity: ServerIdentity
    ) -> None:
        first = await stage.start()
        await eventually(lambda: follows(driven, 1), 5, "the router should acknowledge")
        async with clients(first) as answers:
            new = renew(identity, [HOST])
            assert new.ca != identity.ca
            driven.show(new)
            known = stage.bootstrap.xds
            knows_new = WeightsService(known.host, known.port, new.ca.decode(), known.secret_file)
            for pod, xds in ((2, known), (3, knows_new)):
                stage.node = f"inference/llama-router/pod-{pod}"
                await stage.start(xds=xds)
                await eventually(
                    lambda pod=pod: follows(driven, pod),  # type: ignore[misc]
                    5,
                    f"router {pod} should follow",
                )
            assert len(tokens.seen) == 3, "nobody had to connect again"
            driven.set_weights(KEY, {"blue": 0, "green": 100})
            await eventually(lambda: follows(driven, 3), 2, "weights should arrive at all three")
        assert set(answers) == {200}

    async def test_one_that_nobody_vouches_for_opens_nothing_and_old_weights_serve(
        self, driven: XdsServer, stage: Stage, identity: ServerIdentity
    ) -> None:
        driven.show(make_identity([HOST]))
        envoy = await stage.start()
        driven.set_weights(KEY, {"blue": 0, "green": 100})
        async with clients(envoy) as answers:
            await eventually(lambda: answers[200] > 50, 10, "it should serve")
            assert set(await envoy.split(20)) == {"blue-0"}
            assert driven.acknowledged(KEY).connected == 0
            # As when somebody puts back what was replaced by mistake.
            driven.show(replace(identity))
            await eventually(lambda: follows(driven, 1), 15, "it should come back by itself")
        assert set(answers) == {200}
