"""Copies that give the canary load: asked of it alone, and of no interest to anybody.

They are stripped and sanitized like those that are compared. Their answers are read to the end,
as a client would, and thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from kvquant.core.shadow_settings import ShadowSettings
from kvquant.shadow.allowance import BYTES_PER_TOKEN
from kvquant.shadow.metrics import Metrics
from kvquant.shadow.pairs import Arm
from kvquant.shadow.ports import Dropped, Sanitizer
from kvquant.shadow.prepared import prepare
from kvquant.shadow.queue import Job
from kvquant.shadow.replaying import Replayer


class Loader:
    """Takes jobs, and leaves counts."""

    def __init__(
        self,
        settings: ShadowSettings,
        canary: Arm,
        *,
        replayer: Replayer,
        sanitizer: Sanitizer,
        metrics: Metrics,
        threads: Executor,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._canary = settings, canary
        self._replayer, self._sanitizer, self._metrics = replayer, sanitizer, metrics
        self._threads, self._clock = threads, clock

    async def load(self, job: Job) -> None:
        """Ask the canary; never raises for what is in a job or becomes of it."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(0.0, job.dispatch_by - self._clock())):
                prepared = await loop.run_in_executor(
                    self._threads, lambda: prepare(job, self._settings, self._sanitizer)
                )
        except Dropped as dropped:
            self._metrics.dropped(dropped.reason)
            return
        except TimeoutError:
            self._metrics.dropped("deadline")
            return
        self._metrics.found(prepared.found)
        reply = await self._replayer.ask(
            self._canary.pods, prepared.path, prepared.sent, job.deadline
        )
        if reply.failure:
            # What it did with it before is load all the same.
            self._metrics.dropped(f"load-{reply.failure}")
        else:
            self._metrics.answered(
                self._canary.name, reply.seconds, len(prepared.sent) // BYTES_PER_TOKEN
            )
