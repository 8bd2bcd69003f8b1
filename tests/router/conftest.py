"""One router with two slots, its weights service and its engines, all on loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from kvquant.core.envoy_bootstrap import Bootstrap
from kvquant.core.envoy_upstreams import Upstream, WeightsService, token_secret
from kvquant.ports import RouterKey
from kvquant.router.pki import ServerIdentity, make_identity
from kvquant.router.xds import XdsServer
from tests.router.harness import Dns, Engine, Envoy, TokenFolder, free_port

KEY = RouterKey("inference", "llama-router")
NODE = "inference/llama-router/pod-1"


@pytest.fixture(scope="session")
def identity() -> ServerIdentity:
    return make_identity(["localhost"])


@dataclass
class Tokens:
    """What the API server would say of each token."""

    good: dict[str, RouterKey] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def __call__(self, token: str) -> RouterKey | None:
        self.seen.append(token)
        return self.good.get(token)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens({"good-token": KEY})


@pytest.fixture
def weights_port() -> int:
    return free_port()


@pytest.fixture
def service(identity: ServerIdentity, tokens: Tokens, weights_port: int) -> Iterator[XdsServer]:
    server = XdsServer(identity=identity, authenticate=tokens, port=weights_port, host="127.0.0.1")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def driven(service: XdsServer) -> XdsServer:
    """A weights service that says what the routers' own configuration says."""
    service.set_weights(KEY, {"blue": 100, "green": 0})
    return service


@dataclass
class Stage:
    """A router that is not started yet, and what surrounds it."""

    folder: Path
    dns: Dns
    engines: dict[str, Engine]
    token: TokenFolder
    bootstrap: Bootstrap
    node: str = NODE
    envoys: list[Envoy] = field(default_factory=list)

    async def add_engine(self, slot: str, index: int) -> Engine:
        """Start one more pod of a slot and put it into the slot's name."""
        port = self.bootstrap.slots[slot].port
        engine = Engine(f"{slot}-{index}", f"127.0.0.{index + 1}", port)
        await engine.start()
        self.engines[engine.name] = engine
        self.dns.records.setdefault(f"{slot}.test", []).append(engine.host)
        return engine

    def launch(self, **changes: Any) -> Envoy:
        """Start a router without waiting for it."""
        folder = self.folder / f"envoy{len(self.envoys)}"
        folder.mkdir()
        bootstrap = replace(
            self.bootstrap,
            port=free_port(),
            admin_port=free_port(),
            stats_port=free_port(),
            **changes,
        )
        envoy = Envoy(bootstrap, folder, self.node)
        envoy.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        envoy.start()
        self.envoys.append(envoy)
        return envoy

    async def start(self, **changes: Any) -> Envoy:
        """Start a router and wait until it serves."""
        envoy = self.launch(**changes)
        await envoy.ready()
        return envoy


@pytest_asyncio.fixture
async def stage(
    tmp_path: Path, identity: ServerIdentity, weights_port: int
) -> AsyncIterator[Stage]:
    dns = Dns()
    await dns.start()
    token = TokenFolder(tmp_path / "secrets")
    token.write("good-token")
    secret_file = tmp_path / "token-secret.json"
    secret_file.write_text(json.dumps(token_secret(str(token.file))))
    stage = Stage(
        folder=tmp_path,
        dns=dns,
        engines={},
        token=token,
        bootstrap=Bootstrap(
            slots={slot: Upstream(f"{slot}.test", free_port()) for slot in ("blue", "green")},
            shadow=Upstream("shadow.test", free_port()),
            weights={"blue": 100, "green": 0},
            port=0,
            request_timeout=timedelta(seconds=20),
            xds=WeightsService("localhost", weights_port, identity.ca.decode(), str(secret_file)),
            dns_resolver=("127.0.0.1", dns.port),
        ),
    )
    for slot in ("blue", "green"):
        await stage.add_engine(slot, 0)
    yield stage
    for envoy in stage.envoys:
        await envoy.session.close()
        envoy.stop()
    for engine in stage.engines.values():
        engine.release.set()
        await engine.stop()
    dns.stop()
