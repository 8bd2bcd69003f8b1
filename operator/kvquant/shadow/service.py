"""The service in its loop: receives, watches the pods and their load, and lets workers compare."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime

import aiohttp
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from kvquant.core.shadow_settings import CANARY_PAIR, ShadowSettings, bucket_of
from kvquant.shadow import pods as addresses
from kvquant.shadow import replaying, throttle
from kvquant.shadow.allowance import Allowance
from kvquant.shadow.discreet import described
from kvquant.shadow.loading import Loader
from kvquant.shadow.metrics import BASELINE_ARM, CANARY_ARM, Metrics
from kvquant.shadow.pairs import Arm, Comparer
from kvquant.shadow.pods import Pods, Resolve
from kvquant.shadow.ports import Log, Sanitizer
from kvquant.shadow.probing import PROMPTS, Prober, Round
from kvquant.shadow.queue import Job, WaitingJobs
from kvquant.shadow.receiving import Receiver
from kvquant.shadow.replaying import Replayer
from kvquant.shadow.share import Share

logger = logging.getLogger(__name__)

EXPIRE_SECONDS = 0.25
PROBE_SECONDS = 120.0
"""Time between two rounds of the saturation probe, in which pairs are compared."""
PROBE_AGAIN_SECONDS = 5.0
"""Time after which a round is tried again that could not begin."""
PROBE_ROUNDS = 10
"""Rounds, and tries in vain, that a process makes at most."""
CLOSE_WITHIN = 12.0
THREADS = 2
"""Threads that sanitize. More would only take the interpreter from each other."""


class Service:
    """Everything, wired. Make it inside a running loop; one `run`, then no more."""

    def __init__(
        self,
        settings: ShadowSettings,
        run: str,
        sanitizer: Sanitizer,
        log: Log,
        *,
        engine_key: str = "",
        resolve: Resolve = addresses.resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a service that does not listen yet.

        Args:
            settings: What the operator told.
            run: Name of this process's life, never used before.
            sanitizer: Replaces personal data.
            log: Keeps pairs.
            engine_key: API key of the engines; empty: they ask for none.
            resolve: Returns the addresses of a host.
            clock: Returns the present time in seconds.
        """
        self._settings, self._log, self._clock = settings, log, clock
        self._sanitizer, self._run, self._engine_key = sanitizer, run, engine_key
        self.metrics = Metrics(settings, run)
        self._queue = WaitingJobs(
            settings.queue_requests,
            settings.queue_bytes,
            clock,
            lambda: self.metrics.dropped("deadline"),
        )
        self._receiver = Receiver(settings, self._queue, self.metrics, clock)
        self._baseline = self._arm(BASELINE_ARM, Pods(settings.baseline, resolve))
        self._canary = self._arm(CANARY_ARM, Pods(settings.canary, resolve))
        self._share = Share(settings.percent)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._probing = settings.saturation_probe
        self._loads: list[throttle.Load | None] = []
        self._canary_loads: list[throttle.Load | None] = []
        self._held: str | None = "nothing measured yet"
        self._queue.gate(is_open=False)
        self.metrics.throttled(is_throttled=True)
        self.port = self.metrics_port = 0

    def _arm(self, name: str, pods: Pods) -> Arm:
        return Arm(name, pods, Allowance(self._settings.tokens_per_second, self._clock))

    async def run(
        self,
        host: str,
        port: int,
        metrics_port: int,
        ended: asyncio.Event,
        listens: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until told to end.

        Args:
            host: Address to listen at.
            port: Port for mirrored requests; 0: any that is free.
            metrics_port: Port for metrics and /healthz; 0: any that is free.
            ended: Set when it is to end.
            listens: Called when both ports are open.

        Raises:
            OSError: A port cannot be had.
        """
        threads = ThreadPoolExecutor(THREADS, "sanitizing")
        loop = asyncio.get_running_loop()
        mirrored, asked = self._receiver.server(), web.Server(self._told, access_log=None)
        async with replaying.client() as client:
            replayer = Replayer(client, self._clock, self._engine_key)
            treat = self._treatment(replayer, threads)
            listeners = [
                await loop.create_server(mirrored, host, port, backlog=512),
                await loop.create_server(asked, host, metrics_port),
            ]
            self.port, self.metrics_port = (
                listener.sockets[0].getsockname()[1] for listener in listeners
            )
            await self._log.start()
            tasks = [
                asyncio.create_task(self._again(addresses.REFRESH_SECONDS, self._look)),
                asyncio.create_task(
                    self._again(throttle.SCRAPE_SECONDS, lambda: self._measure(client))
                ),
                asyncio.create_task(self._again(EXPIRE_SECONDS, self._expire)),
                asyncio.create_task(self._probe(Prober(replayer, self._clock))),
                *(
                    asyncio.create_task(self._work(treat))
                    for _ in range(self._settings.concurrency)
                ),
            ]
            listens()
            try:
                await ended.wait()
            finally:
                for listener in listeners:
                    listener.close()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(mirrored.shutdown(1.0), asked.shutdown(1.0))
                threads.shutdown(wait=False, cancel_futures=True)
                await self._close_log()

    async def _close_log(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await self._log.close()
        except TimeoutError:
            logger.warning("the log was not closed within %g s", CLOSE_WITHIN)

    def _treatment(self, replayer: Replayer, threads: Executor) -> Callable[[Job], Awaitable[None]]:
        """Return what is done with a copy: it is compared, or gives the canary load."""
        if self._settings.load_only:
            return Loader(
                self._settings,
                self._canary,
                replayer=replayer,
                sanitizer=self._sanitizer,
                metrics=self.metrics,
                threads=threads,
                clock=self._clock,
            ).load
        return Comparer(
            self._settings,
            self._run,
            self._baseline,
            self._canary,
            replayer=replayer,
            sanitizer=self._sanitizer,
            log=self._log,
            metrics=self.metrics,
            share=self._share,
            threads=threads,
            clock=self._clock,
            now=lambda: datetime.now(UTC),
        ).compare

    async def _work(self, treat: Callable[[Job], Awaitable[None]]) -> None:
        while True:
            job = await self._queue.take()
            self._share.begin()
            self._decide()
            self._working(1)
            try:
                await treat(job)
            except Exception as error:
                self.metrics.dropped("error")
                logger.warning("a copy was given up: %s", described(error))
            finally:
                self._working(-1)

    async def _probe(self, prober: Prober) -> None:
        """Fill the canary now and then, as long as nobody else uses it."""
        if not self._settings.saturation_probe:
            return
        for number in range(PROBE_ROUNDS):
            await self._idle_canary()
            found, began = Round(why_not="it failed"), self._clock()
            try:
                found = await prober.round(self._canary.pods, self._seed(number))
            except Exception as error:
                logger.warning("the saturation probe failed: %s", described(error))
            finally:
                self._probing = False
                self._decide()
            for differences in found.pairs:
                self.metrics.judged(CANARY_PAIR, bucket_of(0), differences)
            logger.info(
                "saturation probe, round %d: %s",
                number + 1,
                found.why_not or f"{len(found.pairs)} of {PROMPTS} prompts say something",
            )
            # What held replays back for long must leave them room, whatever came of it.
            short = found.why_not and self._clock() - began < PROBE_AGAIN_SECONDS
            await asyncio.sleep(PROBE_AGAIN_SECONDS if short else PROBE_SECONDS)

    async def _idle_canary(self) -> None:
        """Hold replays back, and wait for a pod and for the replays that are under way."""
        while not self._canary.pods.urls:  # noqa: ASYNC110 - it is asked for, and tells nobody
            await asyncio.sleep(EXPIRE_SECONDS)
        self._probing = True
        self._decide()
        await self._idle.wait()

    def _seed(self, number: int) -> int:
        """Return a seed that is the same for the same attempt and round, and for no other."""
        return zlib.crc32(f"{self._settings.uid} {self._settings.attempt}".encode()) * 64 + number

    def _working(self, change: int) -> None:
        self._in_flight += change
        (self._idle.clear if self._in_flight else self._idle.set)()
        self.metrics.in_flight(self._in_flight)
        self.metrics.queued(len(self._queue))

    async def _again(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                logger.warning("something that repeats failed: %s", described(error))
            await asyncio.sleep(seconds)

    async def _look(self) -> None:
        for arm in (self._baseline, self._canary):
            await arm.pods.refresh()
            self.metrics.pods(arm.name, len(arm.pods.urls))
        self._decide()

    async def _measure(self, client: aiohttp.ClientSession) -> None:
        if not self._baseline.pods.urls:
            await self._look()
        urls = self._baseline.pods.urls
        self._loads = await asyncio.gather(*(throttle.scrape(client, url) for url in urls))
        loads = zip(urls, self._loads, strict=True)
        self._share.look({url: load.finished if load else None for url, load in loads})
        if self._settings.load_only:
            self._canary_loads = await asyncio.gather(
                *(throttle.scrape(client, url) for url in self._canary.pods.urls)
            )
        self._decide()

    async def _expire(self) -> None:
        self._queue.expire()
        self.metrics.queued(len(self._queue))

    def _decide(self) -> None:
        """Let jobs go on only while both arms have pods, and who is asked has something to spare.

        A canary that is given load is to be full: only its queue tells that it has enough.
        """
        if self._settings.load_only:
            held = throttle.busy(self._canary_loads, math.inf, self._settings.canary_waiting)
        else:
            held = throttle.busy(
                self._loads, self._settings.baseline_kv_usage, self._settings.baseline_waiting
            )
        if not self._canary.pods.urls:
            held = "no canary pod"
        if held is None and self._share.used_up:
            held = "share of the requests"
        if self._probing:
            held = "the saturation probe"
        if held != self._held:
            logger.info("replays wait: %s" if held else "replays go on%s", held or "")
        self._held = held
        self._queue.gate(is_open=held is None)
        self.metrics.throttled(is_throttled=held is not None)

    async def _told(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/healthz":
            return web.Response(text="ok\n")
        if request.path == "/metrics":
            return web.Response(
                body=self.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
            )
        return web.Response(status=404)
