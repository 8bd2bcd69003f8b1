"""The saturation probe: does the canary still answer right while its cache is full?

A cache that is corrupt under pressure has been seen in the field without a single preemption, and
copies at a few per cent of the traffic never fill one. While the rollout is in Shadowing the canary
has no users, so that it may be filled: each prompt is asked calmly, then once more while requests
wait, and only a prompt that was answered right once and wrong the other time counts as a change.
The baseline is never asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp

from kvquant.core.shadow_settings import SATURATED, SATURATED_ANSWERED
from kvquant.shadow import probe_prompts, throttle
from kvquant.shadow.judging import told
from kvquant.shadow.pods import Pods
from kvquant.shadow.preparing import CHAT, COMPLETIONS
from kvquant.shadow.probe_prompts import Probe
from kvquant.shadow.record import Told
from kvquant.shadow.replaying import TIMEOUT, Replayer

PROMPTS = 40
AT_A_TIME = 4
"""Prompts that are under way while calm: too few to fill anything."""
PATH_SECONDS = 5.0
CALM_SECONDS = 15.0
FILL_SECONDS = 10.0
FULL_SECONDS = 30.0
"""Longest times of a round's parts; together they bound how long replays wait for it."""
FIRST_FILLERS, MOST_FILLERS = 16, 512
FULL_USAGE = 0.9
LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Round:
    """What a round has shown.

    Attributes:
        pairs: Differences of each prompt by signal; none: the round says nothing.
        why_not: Why it says nothing; empty: it does.
    """

    pairs: tuple[dict[str, float], ...] = ()
    why_not: str = ""


class Prober:
    """Fills one pod of the canary and asks it what has a known answer."""

    def __init__(self, replayer: Replayer, clock: Callable[[], float]) -> None:
        """Make one.

        Args:
            replayer: Asks the pod.
            clock: Returns the present time in seconds.
        """
        self._replayer, self._clock = replayer, clock

    async def round(self, canary: Pods, seed: int) -> Round:
        """Ask calm, fill, ask full; takes at most the sum of the parts' times.

        Args:
            canary: The canary's pods, of which one is probed.
            seed: Of the prompts; another one for each round.
        """
        url = canary.pick()
        if url is None:
            return Round(why_not="there is no canary pod")
        pod = canary.only(url)
        model = await self._model(url)
        if model is None:
            return Round(why_not="the canary does not tell its model")
        load = await self._replayer.load(url)
        if load is None or load.running != 0:
            return Round(why_not="the canary has requests of others")
        name, longest = model
        asked = probe_prompts.prompts(seed, PROMPTS, longest)
        path = await self._path(pod, name, asked[0])
        calm = await self._calm(pod, name, path, asked)
        answered = {probe: one for probe, one in calm.items() if one.answer is not None}
        if not answered:
            return Round(why_not="the canary answers none of the prompts while calm")
        fillers: set[asyncio.Task[Any]] = set()
        try:
            if not await self._filled(pod, url, name, longest, seed, fillers):
                return Round(why_not=f"{len(fillers)} requests at once do not fill the canary")
            full = await self._all(pod, name, path, answered, FULL_SECONDS, len(answered))
        finally:
            for task in fillers:
                task.cancel()
            await asyncio.gather(*fillers, return_exceptions=True)
        return Round(tuple(_pairs(answered, full)))

    async def _path(self, pod: Pods, model: str, probe: Probe) -> str:
        """Return where to ask: chat, unless the model has no template for it."""
        found = await self._ask(pod, model, CHAT, probe, self._clock() + PATH_SECONDS)
        return COMPLETIONS if found.reply.refused else CHAT

    async def _calm(
        self, pod: Pods, model: str, path: str, asked: Iterable[Probe]
    ) -> dict[Probe, Told]:
        return await self._all(pod, model, path, asked, CALM_SECONDS, AT_A_TIME)

    async def _all(
        self,
        pod: Pods,
        model: str,
        path: str,
        asked: Iterable[Probe],
        seconds: float,
        at_a_time: int,
    ) -> dict[Probe, Told]:
        deadline, room = self._clock() + seconds, asyncio.Semaphore(at_a_time)

        async def one(probe: Probe) -> Told:
            async with room:
                return await self._ask(pod, model, path, probe, deadline)

        probes = list(asked)
        return dict(zip(probes, await asyncio.gather(*map(one, probes)), strict=True))

    async def _ask(self, pod: Pods, model: str, path: str, probe: Probe, deadline: float) -> Told:
        request = probe.request(model, path)
        return told(path, await self._replayer.ask(pod, path, request, deadline))

    async def _filled(
        self,
        pod: Pods,
        url: str,
        model: str,
        longest: int,
        seed: int,
        fillers: set[asyncio.Task[Any]],
    ) -> bool:
        """Let more and more requests run until some wait, or the cache is full.

        A pod that tells nothing any more counts as full: it is busy beyond answering, or dead, and
        the prompts will show which.
        """
        deadline = self._clock() + FILL_SECONDS
        until = deadline + FULL_SECONDS
        path = probe_prompts.filler_path()

        async def fill(number: int) -> None:
            body = probe_prompts.filler(seed * MOST_FILLERS + number, longest)
            while self._clock() < until:
                reply = await self._replayer.ask(pod, path, body.request(model, path), until)
                if reply.failure:
                    return

        wanted = FIRST_FILLERS
        while self._clock() < deadline:
            for number in range(len(fillers), wanted):
                fillers.add(asyncio.create_task(fill(number)))
            await asyncio.sleep(LOOK_SECONDS)
            load = await self._replayer.load(url)
            if load is None or load.waiting > 0 or load.kv_usage > FULL_USAGE:
                return True
            if all(task.done() for task in fillers) and wanted == MOST_FILLERS:
                return False
            wanted = min(MOST_FILLERS, wanted * 2)
        return False

    async def _model(self, url: str) -> tuple[str, int] | None:
        """Return a pod's model and the tokens it takes; None: it does not tell."""
        try:
            async with asyncio.timeout(throttle.SCRAPE_WITHIN):
                first = (await self._replayer.get(url, "/v1/models")).document["data"][0]
            return str(first["id"]), int(first.get("max_model_len") or 0)
        except (OSError, aiohttp.ClientError, ValueError, KeyError, IndexError, TypeError):
            return None


def _pairs(calm: dict[Probe, Told], full: dict[Probe, Told]) -> list[dict[str, float]]:
    """Return the differences of each prompt that was answered while calm.

    What was shed (429, 503) or only late says nothing, for the queue is of our making; but a pod
    that was late with everything is one that no longer answers.
    """
    gone = all(one.answer is None for one in full.values())
    found: list[dict[str, float]] = []
    for probe, before in calm.items():
        after = full[probe]
        if before.answer is None:
            continue
        if after.answer is None:
            shed = after.reply.status in (429, 503) or after.reply.refused
            if not shed and (gone or after.reply.failure != TIMEOUT):
                found.append({SATURATED_ANSWERED: 1.0})
            continue
        differences = {SATURATED_ANSWERED: 0.0}
        right = probe.right(before.answer), probe.right(after.answer)
        if any(right):
            differences[SATURATED] = float(right[0]) - right[1]
        found.append(differences)
    return found
