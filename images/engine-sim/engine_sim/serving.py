"""The life of the process: start, signals, death."""

import asyncio
import contextlib
import logging
import signal

from aiohttp import web

from .server import Server
from .settings import Settings

LOG = logging.getLogger("vllm")


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or the death of the engine; all of them are a normal end."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    LOG.info("loading weights, %.1f s", settings.startup_seconds)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asked.wait(), settings.startup_seconds)
        return
    server = Server(settings)
    runner = server.runner()
    await runner.setup()
    options = settings.options
    await web.TCPSite(runner, options.host, options.port, backlog=2048).start()
    LOG.info("Starting vLLM API server 0 on http://%s:%d", options.host, options.port)
    server.start_reports()
    waits = [asyncio.ensure_future(event.wait()) for event in (asked, server.stopped)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if asked.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.drained(), options.shutdown_timeout)
    for wait in waits:
        wait.cancel()
    await server.close()
    await runner.cleanup()
