"""Somebody who sends a shadow service far more copies than it can work through."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import click

from bench.shadow_stage import BODY

MOST_AT_ONCE = 64
LONGEST = 120.0
"""Seconds after which it ends by itself, whatever becomes of who started it."""


async def flood(url: str, rate: float) -> None:
    """Send copies at a rate, those that cannot be sent at once not at all."""
    under_way: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        begun, sent = time.monotonic(), 0
        while (now := time.monotonic() - begun) < LONGEST:
            due = int(now * rate)
            for _ in range(min(due - sent, MOST_AT_ONCE - len(under_way))):
                task = asyncio.create_task(_copy(session, url))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            sent = due
            await asyncio.sleep(0.01)


async def _copy(session: aiohttp.ClientSession, url: str) -> None:
    try:
        async with session.post(url, json=BODY) as answer:
            await answer.read()
    except (aiohttp.ClientError, TimeoutError):
        return  # what the service makes of it, its own metrics tell


@click.command(help=__doc__)
@click.option("--url", required=True)
@click.option("--rate", type=float, required=True)
def main(url: str, rate: float) -> None:
    """Flood until killed."""
    asyncio.run(flood(url, rate))


if __name__ == "__main__":
    main()
