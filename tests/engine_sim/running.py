"""Engines to test: one in the test's own loop, reached over HTTP, and one as a process."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from engine_sim import args, settings
from engine_sim.server import Server
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
IMAGE = REPOSITORY / "images" / "engine-sim"
RECORDINGS = REPOSITORY / "tests" / "data" / "recordings" / "h200"
POOL = ("--kv-cache-memory-bytes", "6442450944", "--max-model-len", "32768")
RECORDED = (*POOL, "--max-num-seqs", "64", "--no-enable-prefix-caching")
"""The flags of the recorded servers, but for the dtype."""


def resolved(
    *words: str, faults: str = "", scale: float = 1.0, extra: Mapping[str, str] | None = None
) -> settings.Settings:
    """Settings of an engine with the given flags; KV cache as recorded unless told otherwise."""
    given = words if "--num-gpu-blocks-override" in words else (*RECORDED, *words)
    environment = {"KVSIM_FAULTS": faults, "KVSIM_TIME_SCALE": str(scale), **(extra or {})}
    return settings.resolve(args.parse(["serve", "m", *given]), environment)


def tiny(blocks: int) -> tuple[str, ...]:
    """Flags of an engine with so few blocks of 16 tokens that tests can fill them."""
    longest = str(min(blocks * 16, 32768))
    return ("--num-gpu-blocks-override", str(blocks), "--max-model-len", longest)


@dataclass
class Running:
    """An engine that listens, and a client of it."""

    server: Server
    client: aiohttp.ClientSession
    port: int

    async def complete(self, **body: Any) -> dict[str, Any]:
        """Ask for a completion and insist on an answer."""
        return await self.ask("/v1/completions", body)

    async def chat(self, text: str, **body: Any) -> dict[str, Any]:
        """Say something to the assistant and insist on an answer; return its first choice."""
        asked = {"messages": [{"role": "user", "content": text}], **body}
        answered = await self.ask("/v1/chat/completions", asked)
        choice: dict[str, Any] = answered["choices"][0]
        return choice

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request and insist on an answer."""
        async with self.client.post(path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            answered: dict[str, Any] = await answer.json()
            return answered

    async def metrics(self) -> str:
        """The exposition text."""
        async with self.client.get("/metrics") as answer:
            return await answer.text()

    async def value(self, name: str, **labels: str) -> float:
        """One sample of the metrics."""
        return sample(await self.metrics(), name, **labels)

    async def reaches(self, name: str, wanted: Callable[[float], bool]) -> float:
        """Wait until a sample is as wanted, and return it."""
        deadline = time.monotonic() + 10
        while not wanted(value := await self.value(name)):
            assert time.monotonic() < deadline, f"{name} stays {value}"
            await asyncio.sleep(0.01)
        return value


def sample(text: str, name: str, **labels: str) -> float:
    """Return the only sample of this name that has these labels."""
    (value,) = (
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if re.match(rf"{re.escape(name)}[{{ ]", line)
        and all(f'{key}="{wanted}"' in line for key, wanted in labels.items())
    )
    return value


@asynccontextmanager
async def running(
    *words: str, faults: str = "", scale: float = 1.0, extra: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """An engine in this loop, served as the process serves it."""
    server = Server(resolved(*words, faults=faults, scale=scale, extra=extra))
    runner = server.runner()
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as client:
            yield Running(server, client, port)
    finally:
        await server.close()
        await runner.cleanup()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of an engine's process."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(IMAGE), **(extra or {})}


def command(*words: str) -> list[str]:
    """The command line that starts an engine from the sources."""
    return [sys.executable, "-m", "engine_sim", "serve", "m", *words]


def run_to_end(
    *words: str, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an engine that is not expected to live long; returns what it said and its code."""
    return subprocess.run(
        command(*words), env=environment(extra), capture_output=True, text=True, timeout=30
    )


@dataclass
class Process:
    """An engine's process."""

    popen: subprocess.Popen[str]
    url: str

    def code(self) -> int:
        """Wait for its end and return the exit code."""
        return self.popen.wait(timeout=20)


@contextmanager
def process(*words: str, extra: Mapping[str, str] | None = None) -> Iterator[Process]:
    """An engine as a process that listens; killed in the end if it still lives."""
    port = free_port()
    popen = subprocess.Popen(
        command(*RECORDED, "--host", "127.0.0.1", "--port", str(port), *words),
        env=environment(extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with popen:
        try:
            wait_until(lambda: answers(port), 20, "the engine should listen")
            yield Process(popen, f"http://127.0.0.1:{port}")
        finally:
            popen.kill()


def answers(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
