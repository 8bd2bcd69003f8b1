"""What somebody who reaches the weights service can take up of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from kvquant.ports import RouterKey
from kvquant.router import xds
from kvquant.router.pki import ServerIdentity
from kvquant.router.xds import RUNTIME_TYPE, XdsServer
from tests.router.conftest import KEY, NODE
from tests.waiting import wait_until


@pytest.fixture
def channel(driven: XdsServer, identity: ServerIdentity) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(identity.ca)
    with grpc.secure_channel(f"localhost:{driven.port}", credentials) as channel:
        yield channel


def request(**fields: object) -> discovery_pb2.DiscoveryRequest:
    return discovery_pb2.DiscoveryRequest(
        node=base_pb2.Node(id=NODE), type_url=RUNTIME_TYPE, **fields
    )


def opened(
    channel: grpc.Channel,
    requests: Iterator[discovery_pb2.DiscoveryRequest],
    token: str = "good-token",
) -> grpc.Call:
    stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    metadata = [("authorization", f"Bearer {token}")]
    return stub.StreamAggregatedResources(requests, metadata=metadata, timeout=10)


def code_of(call: grpc.Call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError):
        next(call)
    found: grpc.StatusCode = call.code()
    return found


def test_a_request_larger_than_any_routers_is_refused(
    driven: XdsServer, channel: grpc.Channel
) -> None:
    large = request(resource_names=["x" * 70_000])
    assert code_of(opened(channel, iter([large]))) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert driven.acknowledged(KEY).connected == 0


def test_a_token_larger_than_any_is_refused_unseen(
    driven: XdsServer, channel: grpc.Channel
) -> None:
    # Beyond the soft limit of 16 KiB gRPC refuses some, beyond a quarter more all of them.
    call = opened(channel, iter([request()]), token="x" * 40_000)
    assert code_of(call) is not grpc.StatusCode.OK


def test_a_router_that_asks_for_nothing_is_let_go(
    driven: XdsServer, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "FIRST_REQUEST", 0.2)
    silent = threading.Event()

    def nothing() -> Iterator[discovery_pb2.DiscoveryRequest]:
        silent.wait(5)
        yield from ()

    try:
        assert code_of(opened(channel, nothing())) is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        silent.set()


def test_beyond_the_most_streams_routers_are_told_to_come_back(
    identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "MOST_STREAMS", 1)
    server = XdsServer(identity=identity, authenticate=lambda _: KEY, port=0, host="127.0.0.1")
    server.start()
    server.set_weights(KEY, {"blue": 100, "green": 0})
    held = threading.Event()

    def lasting() -> Iterator[discovery_pb2.DiscoveryRequest]:
        yield request()
        held.wait(5)

    credentials = grpc.ssl_channel_credentials(identity.ca)
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        first = opened(channel, lasting())
        assert next(first).version_info == "1"
        assert code_of(opened(channel, iter([request()]))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        held.set()
        first.cancel()
    server.stop()


def test_a_flood_of_tokens_is_checked_a_few_at_a_time(
    identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xds, "REVIEWS", 2)
    at_a_time, most = 0, 0
    lock, release = threading.Lock(), threading.Event()

    def review(token: str) -> RouterKey | None:
        nonlocal at_a_time, most
        with lock:
            at_a_time += 1
            most = max(most, at_a_time)
        release.wait(5)
        with lock:
            at_a_time -= 1
        return None

    server = XdsServer(identity=identity, authenticate=review, port=0, host="127.0.0.1")
    server.start()
    credentials = grpc.ssl_channel_credentials(identity.ca)
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        calls = [opened(channel, iter([request()]), token=f"bad-{n}") for n in range(8)]
        wait_until(lambda: at_a_time == 2, 5, "two are checked")
        time.sleep(0.2)
        release.set()
        codes = {code_of(call) for call in calls}
    server.stop()
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    assert most == 2


def test_who_connects_and_says_nothing_is_let_go(
    identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = dict(xds._OPTIONS)
    monkeypatch.setattr(
        xds, "_OPTIONS", [*{**patient, "grpc.server_handshake_timeout_ms": 300}.items()]
    )
    server = XdsServer(identity=identity, authenticate=lambda _: None, port=0, host="127.0.0.1")
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as silent:
        assert silent.recv(1) == b"", "the server hangs up"
    server.stop()
