"""What the router adds to a request: the same requests straight to a server and through one Envoy.

No node is needed: client, Envoy and server are three processes on loopback. Straight and routed
rounds take turns, so that whatever else this machine does falls on both.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import click
from aiohttp import web

from kvdemo.load import percentile
from kvquant.core.envoy_bootstrap import Bootstrap
from kvquant.core.envoy_upstreams import Upstream, WeightsService, token_secret
from kvquant.ports import RouterKey
from kvquant.router.pki import make_identity
from kvquant.router.xds import XdsServer
from tests.router.harness import Envoy, TokenFolder, eventually, free_port

ROUTER = RouterKey("bench", "router")
EVENTS, GAP = 5, 0.004
"""Events of a stream, and seconds between them."""
PUNCTUAL = 5.0
"""Milliseconds: when more than one request in a hundred is sent later than that, this machine had
other things to do, and the figures are about those."""
HALVES = {"blue": 50, "green": 50}
BODY = {"model": "llama-3-8b", "prompt": "tell me about caches " * 60, "max_tokens": 16}
ANSWER = {"object": "text_completion", "choices": [{"index": 0, "text": "a cache holds " * 30}]}


@dataclass(slots=True)
class Times:
    """Seconds of every request of one kind, and how many went wrong.

    Attributes:
        first: Until the first byte of the body.
        last: Until the last one.
        late: How late the requests were sent: the client itself was too slow.
        failed: Requests without a whole answer.
    """

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failed: int = 0


async def _unary(request: web.Request) -> web.Response:
    await request.read()
    return web.json_response(ANSWER)


async def _stream(request: web.Request) -> web.StreamResponse:
    await request.read()
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(EVENTS):
        await response.write(b'data: {"choices": [{"index": 0, "text": " cache"}]}\n\n')
        await asyncio.sleep(GAP)
    await response.write(b"data: [DONE]\n\n")
    return response


async def _healthy(_: web.Request) -> web.Response:
    return web.Response()


def serve(port: int) -> None:
    """Be the server."""
    app = web.Application()
    app.router.add_get("/health", _healthy)
    app.router.add_post("/v1/completions", _unary)
    app.router.add_post("/v1/stream", _stream)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


async def drive(
    session: aiohttp.ClientSession,
    url: str,
    rate: float,
    seconds: float,
    *,
    body: Mapping[str, object] = BODY,
    seed: int = 1,
) -> Times:
    """Send requests at random times (a Poisson process), whether or not answers come back."""
    times, chance = Times(), random.Random(seed)
    tasks: set[asyncio.Task[None]] = set()
    begun = due = time.perf_counter()
    while (due := due + chance.expovariate(rate)) < begun + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        times.late.append(time.perf_counter() - due)
        task = asyncio.create_task(_send(session, url, body, times))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return times


async def _send(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, object], times: Times
) -> None:
    sent = time.perf_counter()
    try:
        async with session.post(url, json=body) as response:
            await response.content.readany()
            first = time.perf_counter() - sent
            await response.read()
            good = response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        good = False
    if good:
        times.first.append(first)
        times.last.append(time.perf_counter() - sent)
    else:
        times.failed += 1


@contextmanager
def _server(port: int) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-m", "bench.router", "--serve", str(port)]) as server:
        try:
            yield
        finally:
            server.terminate()


@contextmanager
def router(
    folder: Path, slots: Mapping[str, int], weights: Mapping[str, int], shadow: int = 9
) -> Iterator[tuple[Envoy, XdsServer]]:
    """One Envoy with the product's own bootstrap, and its weights service.

    Args:
        folder: Where it may write.
        slots: Port of each slot's server on loopback.
        weights: Per cents by slot.
        shadow: Port to which copies go, as long as the weights service asks for any.
    """
    token = TokenFolder(folder / "secrets")
    token.write("token")
    secret = folder / "token-secret.json"
    secret.write_text(json.dumps(token_secret(str(token.file))))
    identity = make_identity(["localhost"])
    service = XdsServer(
        identity=identity, authenticate=lambda _: ROUTER, port=free_port(), host="127.0.0.1"
    )
    service.start()
    service.set_weights(ROUTER, weights)
    envoy = Envoy(
        Bootstrap(
            shadow=Upstream("127.0.0.1", shadow),
            slots={slot: Upstream("127.0.0.1", port) for slot, port in slots.items()},
            weights=weights,
            port=free_port(),
            admin_port=free_port(),
            stats_port=free_port(),
            request_timeout=timedelta(seconds=60),
            xds=WeightsService("localhost", service.port, identity.ca.decode(), str(secret)),
        ),
        folder,
        f"{ROUTER.namespace}/{ROUTER.name}/pod-1",
    )
    envoy.start()
    try:
        yield envoy, service
    finally:
        envoy.stop()
        service.stop()


async def _measure(rates: tuple[float, ...], seconds: float, rounds: int) -> list[str]:
    lines = []
    upstream = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        _server(upstream),
        router(Path(folder), dict.fromkeys(HALVES, upstream), HALVES) as (envoy, _),
    ):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            envoy.session = session
            await envoy.ready()
            straight, routed = f"http://127.0.0.1:{upstream}", envoy.url
            await eventually(lambda: _answers(session, straight), 20, "the server should answer")
            await eventually(lambda: _answers(session, routed), 20, "the router should answer")
            click.echo(
                "requests/s  kind          straight p50    p99  routed p50    p99"
                "  added p50    p99   (ms)  requests  failed  sent late p99"
            )
            for rate in rates:
                for kind, path in (("unary", "/v1/completions"), ("stream", "/v1/stream")):
                    without, through = Times(), Times()
                    for _ in range(rounds):
                        for url, pool in ((straight, without), (routed, through)):
                            part = await drive(session, url + path, rate, seconds / rounds)
                            pool.first += part.first
                            pool.last += part.last
                            pool.late += part.late
                            pool.failed += part.failed
                    lines += _rows(rate, kind, without, through)
    return lines


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.post(f"{url}/v1/completions", json=BODY) as response:
        return response.status == 200


def _rows(rate: float, kind: str, without: Times, through: Times) -> list[str]:
    """Print the rows of one rate and kind; return them in short."""
    shown = []
    parts = {"unary": ("last",), "stream": ("first", "last")}[kind]
    for part in parts:
        a, b = getattr(without, part), getattr(through, part)
        p50 = [1000 * (percentile(x, 0.5) or 0.0) for x in (a, b)]
        p99 = [1000 * (percentile(x, 0.99) or 0.0) for x in (a, b)]
        late = 1000 * (percentile(without.late + through.late, 0.99) or 0.0)
        label = kind if kind == "unary" else f"{kind}, {part} byte"
        click.echo(
            f"{rate:10g}  {label:17s}  {p50[0]:9.2f}{p99[0]:7.2f}  {p50[1]:10.2f}{p99[1]:7.2f}"
            f"  {p50[1] - p50[0]:9.2f}{p99[1] - p99[0]:7.2f}"
            f"  {len(a) + len(b):14d}  {without.failed + through.failed:6d}  {late:13.2f}"
        )
        busy = " (machine busy)" if late > PUNCTUAL else ""
        shown.append(f"{label} at {rate:g}/s {p50[1] - p50[0]:.2f}/{p99[1] - p99[0]:.2f}{busy}")
    return shown


@click.command(help=__doc__)
@click.option("--rate", "rates", type=float, multiple=True, default=(200.0, 500.0))
@click.option("--seconds", default=30.0, show_default=True, help="For each rate, kind and way.")
@click.option("--rounds", default=6, show_default=True, help="Into which the seconds are divided.")
@click.option("--serve", "port", type=int, hidden=True)
def main(rates: tuple[float, ...], seconds: float, rounds: int, port: int | None) -> None:
    """Measure, or be the server that is measured."""
    if port is not None:
        serve(port)
        return
    short = asyncio.run(_measure(rates, seconds, rounds))
    click.echo(f"added by the router, p50/p99 in ms: {'; '.join(short)}")


if __name__ == "__main__":
    main()
