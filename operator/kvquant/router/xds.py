"""The weights service: Envoy's aggregated discovery (ADS) with one runtime resource per router.

Envoy reads; nothing that a client sends changes a weight. Who a client is comes from its token, so
that a router can read its own weights only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.runtime.v3 import rtds_pb2
from google.protobuf import any_pb2
from google.protobuf.struct_pb2 import Struct

from kvquant.core.envoy_bootstrap import LAYER, runtime_layer
from kvquant.errors import KVQuantError
from kvquant.ports import Acknowledgement, RouterKey
from kvquant.router.board import Board, Follower, Posting
from kvquant.router.pki import ServerIdentity

logger = logging.getLogger(__name__)

RUNTIME_TYPE = "type.googleapis.com/envoy.service.runtime.v3.Runtime"

Authenticate = Callable[[str], RouterKey | None]
"""Token -> router. May block; may raise KVQuantError when it cannot tell."""

_OPTIONS = (
    # A pod that vanished without a word must not count as connected for long.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Routers ping too, every 10 s; gRPC would take that for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A router asks with a few hundred bytes. Whoever sends more is no router.
    ("grpc.max_receive_message_length", 65_536),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_metadata_size", 16_384),
    # Whoever connects and then says nothing is let go.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.so_reuseport", 0),
)
MOST_STREAMS = 4096
"""Streams at a time, one for each router pod; further ones are told to come back."""

FIRST_REQUEST = 10.0
"""Seconds within which a router must say what it wants, once its token is found good."""

REVIEWS = 8
"""Tokens that are checked at a time: a flood of bad ones waits here, not in the API server."""

START_TIMEOUT, STOP_TIMEOUT, GRACE = 10.0, 5.0, 0.5


class XdsServer:
    """The data plane's weights (port `Traffic`), served from a thread with its own event loop.

    Every method may be called from any thread.
    """

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        authenticate: Authenticate,
        port: int,
        host: str = "[::]",
    ) -> None:
        """Make a server that does not listen yet.

        Args:
            identity: Certificate and key.
            authenticate: Tells which router a token stands for.
            port: Port to listen on; 0 takes a free one.
            host: Address to listen on.
        """
        self._identity = identity
        self._authenticate = authenticate
        self._address = f"{host}:{port}"
        self._board = Board()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._bound = threading.Event()
        self._failure: BaseException | None = None
        self.port = port
        """Port that is listened on, once started."""

    def start(self) -> None:
        """Listen.

        Raises:
            KVQuantError: The port cannot be listened on.
        """
        self._thread = threading.Thread(target=self._run, name="weights-service", daemon=True)
        self._thread.start()
        started = self._bound.wait(START_TIMEOUT)
        if self._failure is not None or not started:
            raise KVQuantError(
                f"the weights service cannot listen on {self._address}: "
                f"{self._failure or 'no answer of its thread'}; is the port taken?"
            ) from self._failure

    def stop(self) -> None:
        """Close every stream and stop listening. Routers keep their last weights."""
        loop, stopping, thread = self._loop, self._stopping, self._thread
        if loop is None or stopping is None or thread is None:
            return
        loop.call_soon_threadsafe(stopping.set)
        thread.join(STOP_TIMEOUT)
        self._loop = None

    def show(self, identity: ServerIdentity) -> None:
        """Show another certificate to whoever connects from now on; open streams go on."""
        self._identity = identity

    def set_weights(self, router: RouterKey, weights: Mapping[str, int], mirror: int = 0) -> None:
        """Send the split to every pod of the router; the same again sends nothing.

        Raises:
            ValueError: The weights are not per cents of both slots that sum to 100, or the mirror
                is none.
        """
        self._board.post(router, weights, mirror)

    def acknowledged(self, router: RouterKey) -> Acknowledgement:
        """Return how many pods are connected and how many apply the weights set last."""
        return self._board.acknowledged(router)

    def everybody(self) -> dict[RouterKey, Acknowledgement]:
        """Return every router that is driven, and how far its pods are."""
        return self._board.everybody()

    def forget(self, router: RouterKey) -> None:
        """Stop driving the router; its pods keep their last weights."""
        self._board.remove(router)

    def _certificate(self) -> grpc.ServerCertificateConfiguration:
        identity = self._identity
        return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)])

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            if self._bound.is_set():
                logger.exception("The weights service ended")
            self._bound.set()

    async def _serve(self) -> None:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MOST_STREAMS)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(
            _Discovery(self._board, self._authenticate), server
        )
        # Asked at each handshake, so that a certificate can be replaced while streams are open.
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificate(), self._certificate, require_client_authentication=False
        )
        self.port = server.add_secure_port(self._address, credentials)
        await server.start()
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._bound.set()
        logger.info("The weights service listens on port %d", self.port)
        await self._stopping.wait()
        await server.stop(GRACE)


class _Discovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """The state-of-the-world variant of ADS; the delta variant answers UNIMPLEMENTED."""

    def __init__(self, board: Board, authenticate: Authenticate) -> None:
        self._board = board
        self._authenticate = authenticate
        self._reviews = asyncio.Semaphore(REVIEWS)

    async def StreamAggregatedResources(  # noqa: N802 - the protocol's own name
        self,
        requests: AsyncIterator[discovery_pb2.DiscoveryRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        """Serve one router pod until either side ends the stream."""
        router = await self._identify(context)
        try:
            first = await asyncio.wait_for(_next(requests), FIRST_REQUEST)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing was asked for")
        if router is None or first is None:
            return
        if not _claims(first.node.id, router):
            logger.warning(
                "Refused a stream of %s: router %s/%s claims to be node %r",
                context.peer(),
                router.namespace,
                router.name,
                first.node.id,
            )
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, "the node's id names another router"
            )
        stream = _Stream(self._board, router, first.node.id)
        self._board.join(stream.follower)
        reading = asyncio.create_task(stream.read(first, requests))
        try:
            async for posting in stream.news():
                yield _response(posting)
        finally:
            self._board.leave(stream.follower)
            reading.cancel()

    async def _identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> RouterKey | None:
        """Return the caller's router, or end the call with the reason why there is none."""
        metadata = dict(context.invocation_metadata() or ())
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        router = None
        if scheme.lower() == "bearer" and token.strip():
            try:
                async with self._reviews:
                    router = await asyncio.to_thread(self._authenticate, token.strip())
            except KVQuantError as error:
                logger.warning("Cannot check the token of %s: %s", context.peer(), error)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the token cannot be checked now")
        if router is None:
            logger.warning("Refused a stream of %s: no token, or not a good one", context.peer())
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a router's token is needed")
        return router


class _Stream:
    """One router pod: what it was sent and what it said to that."""

    def __init__(self, board: Board, router: RouterKey, node: str) -> None:
        loop = asyncio.get_running_loop()
        self._board = board
        self._news = asyncio.Event()
        self._subscribed = False
        self._ended = False
        self._sent = 0
        self.follower = Follower(
            router,
            node,
            wake=lambda: _from_any_thread(loop, self._news.set),
            end=lambda: _from_any_thread(loop, self._end),
        )

    async def news(self) -> AsyncIterator[Posting]:
        """Yield what the pod must be sent, the latest only."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._ended:
                return
            posting = self._board.read(self.follower.router)
            if self._subscribed and posting is not None and posting.version > self._sent:
                self._sent = posting.version
                yield posting

    async def read(
        self,
        first: discovery_pb2.DiscoveryRequest,
        requests: AsyncIterator[discovery_pb2.DiscoveryRequest],
    ) -> None:
        """Take subscriptions, acknowledgements and refusals until the pod ends the stream."""
        request: discovery_pb2.DiscoveryRequest | None = first
        while request is not None:
            self._take(request)
            request = await _next(requests)
        self._end()

    def _take(self, request: discovery_pb2.DiscoveryRequest) -> None:
        if request.type_url != RUNTIME_TYPE:
            logger.debug("A router asks for %s, which is not served", request.type_url)
            return
        self._subscribed = True
        self._news.set()
        # An answer to something older than what was sent last says nothing about the present.
        if request.response_nonce != str(self._sent) or not self._sent:
            return
        if request.HasField("error_detail"):
            logger.error(
                "Router %s/%s refuses weights of version %d: %s",
                self.follower.router.namespace,
                self.follower.router.name,
                self._sent,
                request.error_detail.message,
            )
        else:
            self._board.acknowledge(self.follower, self._sent)

    def _end(self) -> None:
        self._ended = True
        self._news.set()


async def _next(
    requests: AsyncIterator[discovery_pb2.DiscoveryRequest],
) -> discovery_pb2.DiscoveryRequest | None:
    return await anext(requests, None)


def _claims(node: str, router: RouterKey) -> bool:
    """Tell whether a node's id (`<namespace>/<router>/<pod>`) names the router."""
    return node.split("/")[:2] == [router.namespace, router.name] and node.count("/") == 2


def _from_any_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        # The loop has ended, and with it the stream that the call was for.
        logger.debug("The weights service has stopped")


def _response(posting: Posting) -> discovery_pb2.DiscoveryResponse:
    layer = Struct()
    layer.update(runtime_layer(posting.weights, posting.mirror))
    resource = any_pb2.Any()
    resource.Pack(rtds_pb2.Runtime(name=LAYER, layer=layer))
    version = str(posting.version)
    return discovery_pb2.DiscoveryResponse(
        version_info=version, nonce=version, type_url=RUNTIME_TYPE, resources=[resource]
    )
