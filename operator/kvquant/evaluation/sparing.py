"""Production first: nothing new is asked while the baseline has its hands full."""

from __future__ import annotations

import asyncio

from kvquant.evaluation.arms import Arm
from kvquant.shadow.replaying import Replayer
from kvquant.shadow.throttle import SCRAPE_SECONDS, busy

KV_USAGE = 0.8
"""Share of a baseline pod's KV cache in use above which nothing new is asked."""
WAITING = 0
"""Requests waiting in the baseline's pods above which nothing new is asked."""


class Spare:
    """Whether the baseline can spare what an example costs, by its own metrics.

    Where they cannot be read, as behind a gateway, nothing is held back.
    """

    def __init__(self, replayer: Replayer, baseline: Arm) -> None:
        """Begin without holding anything back."""
        self._replayer, self._baseline = replayer, baseline
        self._free = asyncio.Event()
        self._free.set()

    async def look(self) -> None:
        """Read the load of the baseline's pods once."""
        pods = self._baseline.choice.urls
        loads = await asyncio.gather(*(self._replayer.load(pod) for pod in pods))
        known = [load for load in loads if load is not None]
        if known and busy(known, KV_USAGE, WAITING):
            self._free.clear()
        else:
            self._free.set()

    async def watch(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(SCRAPE_SECONDS)
            await self.look()

    async def ready(self) -> None:
        """Wait until the baseline has something to spare."""
        await self._free.wait()
