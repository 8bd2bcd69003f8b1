"""Only a router may read weights, and only its own; nobody can set them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.runtime.v3 import rtds_pb2
from google.protobuf.json_format import MessageToDict

from kvquant.errors import KVQuantError, Unavailable
from kvquant.ports import Acknowledgement, RouterKey
from kvquant.router.pki import ServerIdentity, make_identity
from kvquant.router.xds import RUNTIME_TYPE, XdsServer
from tests.router.conftest import KEY, NODE, Stage, Tokens
from tests.router.harness import eventually
from tests.waiting import wait_until

OTHER = RouterKey("inference", "other-router")


@pytest.fixture
def channel(service: XdsServer, identity: ServerIdentity) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(identity.ca)
    with grpc.secure_channel(f"localhost:{service.port}", credentials) as channel:
        yield channel


def read_weights(
    channel: grpc.Channel, authorization: str | None, node: str = NODE
) -> dict[str, object]:
    """Ask as a router does and return the first answer's runtime layer."""
    request = discovery_pb2.DiscoveryRequest(
        node=base_pb2.Node(id=node), type_url=RUNTIME_TYPE, resource_names=["kvquant"]
    )
    metadata = [("authorization", authorization)] if authorization is not None else []
    answers = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources(
        iter([request]), metadata=metadata, timeout=5
    )
    runtime = rtds_pb2.Runtime()
    next(answers).resources[0].Unpack(runtime)
    answers.cancel()
    layer: dict[str, object] = MessageToDict(runtime.layer)
    return layer


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    status: grpc.StatusCode = error.value.code()
    return status


def test_a_router_reads_its_own_weights(driven: XdsServer, channel: grpc.Channel) -> None:
    driven.set_weights(OTHER, {"blue": 1, "green": 99})
    assert read_weights(channel, "Bearer good-token") == {
        "kvquant": {"weight": {"blue": 100, "green": 0}, "mirror": 0}
    }


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer ", "Bearer wrong", "good-token", "Basic good-token"]
)
def test_without_a_good_token_nothing_is_told(
    driven: XdsServer, channel: grpc.Channel, authorization: str | None
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        read_weights(channel, authorization)
    assert code(error) is grpc.StatusCode.UNAUTHENTICATED
    assert driven.acknowledged(KEY) == Acknowledgement(connected=0, applied=0)


@pytest.mark.parametrize(
    "node",
    [
        "inference/llama-router/pod-1",
        "elsewhere/other-router/pod-1",
        "inference/other-router",
        "inference/other-router/pod/1",
        "",
    ],
)
def test_a_router_that_claims_to_be_another_is_refused(
    driven: XdsServer,
    channel: grpc.Channel,
    tokens: Tokens,
    node: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens.good["others-token"] = OTHER
    driven.set_weights(OTHER, {"blue": 1, "green": 99})
    with caplog.at_level(logging.WARNING), pytest.raises(grpc.RpcError) as error:
        read_weights(channel, "Bearer others-token", node)
    assert code(error) is grpc.StatusCode.PERMISSION_DENIED
    assert "inference/other-router claims to be node" in caplog.text
    assert driven.acknowledged(KEY).connected == 0


def test_while_tokens_cannot_be_checked_routers_are_told_to_come_back(
    identity: ServerIdentity,
) -> None:
    def unavailable(token: str) -> RouterKey | None:
        raise Unavailable("the API server does not answer")

    server = XdsServer(identity=identity, authenticate=unavailable, port=0, host="127.0.0.1")
    server.start()
    credentials = grpc.ssl_channel_credentials(identity.ca)
    try:
        with (
            grpc.secure_channel(f"localhost:{server.port}", credentials) as channel,
            pytest.raises(grpc.RpcError) as error,
        ):
            read_weights(channel, "Bearer good-token")
    finally:
        server.stop()
    assert code(error) is grpc.StatusCode.UNAVAILABLE


def test_no_token_is_ever_logged(
    driven: XdsServer, channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        read_weights(channel, "Bearer good-token")
        for authorization, node in (("Bearer a-secret", NODE), ("Bearer good-token", "x/y/z")):
            with pytest.raises(grpc.RpcError):
                read_weights(channel, authorization, node)
    assert "Refused" in caplog.text
    assert "a-secret" not in caplog.text
    assert "good-token" not in caplog.text


def test_plain_text_is_not_spoken(driven: XdsServer) -> None:
    with (
        grpc.insecure_channel(f"localhost:{driven.port}") as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        read_weights(channel, "Bearer good-token")
    assert code(error) is grpc.StatusCode.UNAVAILABLE


def test_a_newer_stream_of_a_pod_replaces_its_older_one(
    driven: XdsServer, channel: grpc.Channel
) -> None:
    stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    request = discovery_pb2.DiscoveryRequest(node=base_pb2.Node(id=NODE), type_url=RUNTIME_TYPE)
    metadata = [("authorization", "Bearer good-token")]

    def connect() -> Any:
        """Open a stream and return it once it is served."""
        stream = stub.StreamAggregatedResources(_open(request), metadata=metadata, timeout=10)
        next(stream)
        return stream

    older = connect()
    newer = connect()
    with pytest.raises(StopIteration):
        next(older)
    assert driven.acknowledged(KEY).connected == 1
    newer.cancel()
    wait_until(lambda: driven.acknowledged(KEY).connected == 0, 5, "nobody should be connected")


def _open(
    request: discovery_pb2.DiscoveryRequest,
) -> Iterator[discovery_pb2.DiscoveryRequest]:
    """Send one request and keep the stream open, as Envoy does."""
    yield request
    threading.Event().wait(10)


def test_a_taken_port_is_a_clear_error(driven: XdsServer, identity: ServerIdentity) -> None:
    second = XdsServer(identity=identity, authenticate=Tokens(), port=driven.port, host="127.0.0.1")
    with pytest.raises(KVQuantError, match=f"cannot listen on 127.0.0.1:{driven.port}"):
        second.start()


async def test_envoy_with_a_bad_token_serves_the_committed_weights(
    driven: XdsServer, stage: Stage, tokens: Tokens
) -> None:
    driven.set_weights(KEY, {"blue": 0, "green": 100})
    stage.token.write("stolen-token")
    envoy = await stage.start()
    assert set(await envoy.split(40)) == {"blue-0"}
    assert driven.acknowledged(KEY).connected == 0
    assert set(tokens.seen) == {"stolen-token"}


async def test_envoy_without_a_token_serves_the_committed_weights(
    driven: XdsServer, stage: Stage, tokens: Tokens
) -> None:
    driven.set_weights(KEY, {"blue": 0, "green": 100})
    (stage.token.folder / "token").unlink()
    envoy = await stage.start()
    assert set(await envoy.split(40)) == {"blue-0"}
    assert driven.acknowledged(KEY).connected == 0
    assert tokens.seen == []


async def test_envoy_does_not_speak_to_an_impostor(
    driven: XdsServer, stage: Stage, tokens: Tokens
) -> None:
    elsewhere = make_identity(["localhost"]).ca.decode()
    envoy = await stage.start(xds=replace(stage.bootstrap.xds, ca=elsewhere))
    assert set(await envoy.split(20)) == {"blue-0"}
    assert tokens.seen == []


async def test_a_renewed_token_is_used_without_a_restart(
    driven: XdsServer, stage: Stage, tokens: Tokens, identity: ServerIdentity
) -> None:
    await stage.start()
    await eventually(lambda: driven.acknowledged(KEY).applied == 1, 5, "the router should follow")
    tokens.good = {"renewed-token": KEY}
    stage.token.write("renewed-token")
    driven.stop()
    again = XdsServer(identity=identity, authenticate=tokens, port=driven.port, host="127.0.0.1")
    again.start()
    try:
        again.set_weights(KEY, {"blue": 50, "green": 50})
        await eventually(
            lambda: again.acknowledged(KEY).applied == 1, 15, "the router should come back"
        )
    finally:
        again.stop()
    assert tokens.seen[-1] == "renewed-token"


def test_a_stream_outlives_the_token_that_opened_it(
    driven: XdsServer, channel: grpc.Channel, tokens: Tokens
) -> None:
    ended = threading.Event()

    def lasting() -> Iterator[discovery_pb2.DiscoveryRequest]:
        yield discovery_pb2.DiscoveryRequest(node=base_pb2.Node(id=NODE), type_url=RUNTIME_TYPE)
        ended.wait(10)

    answers = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources(
        lasting(), metadata=[("authorization", "Bearer good-token")], timeout=10
    )
    assert next(answers).version_info == "1"
    tokens.good.clear()
    driven.set_weights(KEY, {"blue": 50, "green": 50})
    assert next(answers).version_info == "2", "an hourly renewal leaves no gap"
    ended.set()
    answers.cancel()
