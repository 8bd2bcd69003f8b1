"""Routers' tokens as a real API server issues and reviews them."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from kvquant.adapters.connection import Connection
from kvquant.adapters.tokens import TokenReviewer
from kvquant.core.router_manifests import TOKEN_AUDIENCE
from kvquant.ports import RouterKey
from kvquant.router.auth import Authenticator
from kvquant.router.pki import ServerIdentity
from kvquant.router.xds import RUNTIME_TYPE, XdsServer

pytestmark = pytest.mark.apiserver

ROUTER = "llama-router"


@pytest.fixture
def namespace(connection: Connection) -> str:
    name = f"router-{uuid4().hex[:8]}"
    core = "/api/v1/namespaces"
    connection.expect(
        "POST", core, subject="Namespace", body={"kind": "Namespace", "metadata": {"name": name}}
    )
    connection.expect(
        "POST",
        f"{core}/{name}/serviceaccounts",
        subject="ServiceAccount",
        body={"kind": "ServiceAccount", "metadata": {"name": ROUTER}},
    )
    return name


@pytest.fixture
def service(connection: Connection, identity: ServerIdentity) -> Iterator[XdsServer]:
    authenticate = Authenticator(TokenReviewer(connection).review)
    server = XdsServer(identity=identity, authenticate=authenticate, port=0, host="127.0.0.1")
    server.start()
    yield server
    server.stop()


def issue(connection: Connection, namespace: str, audience: str) -> str:
    """Return a token as the kubelet asks for it on behalf of a pod."""
    issued = connection.expect(
        "POST",
        f"/api/v1/namespaces/{namespace}/serviceaccounts/{ROUTER}/token",
        subject="token",
        body={
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": 3600},
        },
    )
    token: str = issued["status"]["token"]
    return token


def version_read(service: XdsServer, ca: bytes, token: str, namespace: str) -> str:
    """Ask for weights as a router of the namespace and return the first answer's version."""
    request = discovery_pb2.DiscoveryRequest(
        node=base_pb2.Node(id=f"{namespace}/{ROUTER}/pod-1"), type_url=RUNTIME_TYPE
    )
    credentials = grpc.ssl_channel_credentials(ca)
    with grpc.secure_channel(f"localhost:{service.port}", credentials) as channel:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        answers = stub.StreamAggregatedResources(
            iter([request]), metadata=[("authorization", f"Bearer {token}")], timeout=10
        )
        version: str = next(answers).version_info
        return version


def test_a_routers_projected_token_opens_its_weights(
    connection: Connection, service: XdsServer, identity: ServerIdentity, namespace: str
) -> None:
    service.set_weights(RouterKey(namespace, ROUTER), {"blue": 90, "green": 10})
    token = issue(connection, namespace, TOKEN_AUDIENCE)
    assert version_read(service, identity.ca, token, namespace) == "1"


def test_a_token_for_the_api_server_opens_nothing(
    connection: Connection, service: XdsServer, identity: ServerIdentity, namespace: str
) -> None:
    service.set_weights(RouterKey(namespace, ROUTER), {"blue": 90, "green": 10})
    token = issue(connection, namespace, "https://kubernetes.default.svc")
    with pytest.raises(grpc.RpcError) as error:
        version_read(service, identity.ca, token, namespace)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_forged_token_opens_nothing(
    connection: Connection, service: XdsServer, identity: ServerIdentity, namespace: str
) -> None:
    header, payload, signature = issue(connection, namespace, TOKEN_AUDIENCE).split(".")
    forged = f"{header}.{payload}.{signature[::-1]}"
    with pytest.raises(grpc.RpcError) as error:
        version_read(service, identity.ca, forged, namespace)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
