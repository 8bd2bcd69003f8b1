"""What the live path and the shadow plane consist of on loopback, each a process of its own.

The shadow service, the canary's engine and whoever floods share one core, and live requests have
the others: in a cluster they are limited, or on other nodes. What they cost the live path is then
what goes through the product: the router's copies, and the replays that the baseline answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp

from bench.router import ROUTER, router
from kvquant.core.envoy_upstreams import SHADOW_CLUSTER
from kvquant.core.shadow_settings import ArmSettings, LogSettings, ShadowSettings
from kvquant.router.xds import XdsServer
from kvquant.shadow.metrics import PODS
from tests.engine_sim import running
from tests.router.harness import Envoy, eventually, free_port

LIVE = {"blue": 100, "green": 0}
DTYPES = {"blue": "auto", "green": "fp8"}
BODY = {"model": "m", "prompt": "tell me about caches " * 100, "max_tokens": 16}
FLOOD = 400.0
"""Copies per second that the flood sends."""
ALL_CORES = frozenset(os.sched_getaffinity(0))
SHADOW_CORES = frozenset({max(ALL_CORES)})
LIVE_CORES = (ALL_CORES - SHADOW_CORES) or ALL_CORES


@dataclass(slots=True)
class Stage:
    """Router and both engines, which go on through all conditions."""

    folder: Path
    envoy: Envoy
    weights: XdsServer
    session: aiohttp.ClientSession
    engines: Mapping[str, int]
    shadow_port: int
    metrics_port: int

    async def copy(self, percent: int) -> None:
        """Let the router copy that share of requests, and wait until it does."""
        self.weights.set_weights(ROUTER, LIVE, percent)
        await eventually(self._follows, 10, "the router should follow")

    def _follows(self) -> bool:
        said = self.weights.acknowledged(ROUTER)
        return said.applied == said.connected == 1

    async def copies(self, stat: str) -> float:
        """Return one of the router's counts of copies, 0 when nothing was counted yet."""
        name = f'envoy_cluster_{stat}{{envoy_cluster_name="{SHADOW_CLUSTER}"}}'
        return (await self.envoy.metrics()).get(name, 0.0)

    async def told(self, name: str, label: str = "") -> float:
        """Return the sum of the shadow service's samples of a name that have a label."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        async with self.session.get(url) as answer:
            lines = (await answer.text()).splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"{name}{{") and label in line
        )

    async def rest(self) -> None:
        """End the copying, and wait until nothing of it is left anywhere."""
        await self.copy(0)
        await eventually(self._idle, 60, "router and engines should come to rest")

    async def _idle(self) -> bool:
        if await self.copies("upstream_rq_active"):
            return False
        for port in self.engines.values():
            async with self.session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                if running.sample(await answer.text(), "vllm:num_requests_running"):
                    return False
        return True

    @contextmanager
    def service(self, percent: int) -> Iterator[subprocess.Popen[bytes]]:
        """The shadow service's process, killed in the end whatever it does.

        Args:
            percent: Share of the clients' requests that the user has agreed to.
        """
        arms = {
            slot: ArmSettings(
                host="127.0.0.1", port=self.engines[slot], deployment=slot, dtype=dtype
            )
            for slot, dtype in DTYPES.items()
        }
        wanted = ShadowSettings(
            namespace=ROUTER.namespace,
            rollout=ROUTER.name,
            uid="bench",
            attempt=1,
            baseline=arms["blue"],
            canary=arms["green"],
            percent=percent,
            log=LogSettings(url=f"file://{self.folder}/log"),
        )
        settings = self.folder / "shadow.json"
        settings.write_text(wanted.model_dump_json())
        command = [
            *(sys.executable, "-m", "kvquant.shadow", "--settings", str(settings)),
            *("--host", "127.0.0.1", "--port", str(self.shadow_port)),
            *("--metrics-port", str(self.metrics_port)),
        ]
        with started(command, dict(os.environ), self.folder / "shadow.log", SHADOW_CORES) as popen:
            yield popen

    @contextmanager
    def flood(self) -> Iterator[None]:
        """Somebody who sends the service copies that the router knows nothing of."""
        url = f"http://127.0.0.1:{self.shadow_port}/v1/completions"
        command = [
            *(sys.executable, "-m", "bench.shadow_flood", "--url", url, "--rate", str(FLOOD))
        ]
        with started(command, dict(os.environ), self.folder / "flood.log", SHADOW_CORES):
            yield

    async def serves(self) -> None:
        """Wait until the shadow service listens and knows where to replay."""
        await eventually(lambda: self.told(PODS), 30, "the shadow service should know its pods")


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cores: Iterable[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on some cores, killed in the end."""
    with log.open("ab") as said:
        popen = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        os.sched_setaffinity(popen.pid, cores)
        yield popen
    finally:
        popen.kill()
        popen.wait(20)


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """Everything but the shadow service, ready to serve."""
    os.sched_setaffinity(0, LIVE_CORES)
    ports = {slot: free_port() for slot in LIVE}
    shadow_port, metrics_port = free_port(), free_port()
    async with AsyncExitStack() as stack:
        for slot, dtype in DTYPES.items():
            cores = LIVE_CORES if LIVE[slot] else SHADOW_CORES
            words = ("--host", "127.0.0.1", "--port", str(ports[slot]), "--kv-cache-dtype", dtype)
            command = running.command(*running.RECORDED, *words)
            log = folder / f"{slot}.log"
            stack.enter_context(started(command, running.environment(), log, cores))
        envoy, weights = stack.enter_context(router(folder, ports, LIVE, shadow_port))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        envoy.session = session
        await envoy.ready()
        made = Stage(folder, envoy, weights, session, ports, shadow_port, metrics_port)
        for url in (envoy.url, *(f"http://127.0.0.1:{port}" for port in ports.values())):
            await eventually(partial(_answers, session, url), 30, f"{url} should answer")
        await made.copy(0)
        yield made


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.post(f"{url}/v1/completions", json=BODY) as answer:
        return answer.status == 200
