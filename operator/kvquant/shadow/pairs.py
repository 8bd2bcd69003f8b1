"""One mirrored request from beginning to end: prepare, ask, judge, count, keep."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from kvquant.core.shadow_settings import CANARY_PAIR, DRIFT, NOISE_PAIR, ShadowSettings
from kvquant.shadow import record, scoring
from kvquant.shadow.allowance import BYTES_PER_TOKEN, Allowance
from kvquant.shadow.drifting import Ask, Drift, Question
from kvquant.shadow.judging import Judged, judge, merged, told
from kvquant.shadow.metrics import BASELINE_ARM, CANARY_ARM, Metrics
from kvquant.shadow.pods import Pods
from kvquant.shadow.ports import Dropped, Log, Sanitizer
from kvquant.shadow.prepared import Prepared, prepare, sanitized
from kvquant.shadow.queue import Job
from kvquant.shadow.record import Told
from kvquant.shadow.replaying import Replayer, Reply
from kvquant.shadow.scoring import UnscoredError
from kvquant.shadow.share import Share

logger = logging.getLogger(__name__)

T = TypeVar("T")
AGAIN = "baselineAgain"
"""The baseline, asked a second time."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm to be asked.

    Attributes:
        name: `baseline` or `canary`.
        pods: Its pods.
        allowance: What it may be asked.
    """

    name: str
    pods: Pods
    allowance: Allowance


class Comparer:
    """Takes jobs, and leaves counts and records."""

    def __init__(
        self,
        settings: ShadowSettings,
        run: str,
        baseline: Arm,
        canary: Arm,
        *,
        replayer: Replayer,
        sanitizer: Sanitizer,
        log: Log,
        metrics: Metrics,
        share: Share,
        threads: Executor,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._settings, self._run = settings, run
        self._baseline, self._canary = baseline, canary
        self._replayer, self._sanitizer, self._log = replayer, sanitizer, log
        self._metrics, self._share, self._threads = metrics, share, threads
        self._clock, self._now = clock, now
        self._drift = Drift()

    async def compare(self, job: Job) -> None:
        """Do everything with a job; never raises for what is in it."""
        try:
            # Before dispatch, for sanitizing must not eat the time of the answers.
            async with asyncio.timeout(max(0.0, job.dispatch_by - self._clock())):
                prepared = await self._in_thread(
                    lambda: prepare(job, self._settings, self._sanitizer)
                )
                self._metrics.found(prepared.found)
                guess = len(prepared.sent) // BYTES_PER_TOKEN + self._settings.max_answer_tokens
                await self._baseline.allowance.ready()
                await self._canary.allowance.ready()
            await self._judged(job, prepared, guess)
        except Dropped as dropped:
            self._metrics.dropped(dropped.reason)
        except TimeoutError:
            self._metrics.dropped("deadline")

    async def _judged(self, job: Job, prepared: Prepared, guess: int) -> None:
        waited = self._clock() - job.arrived
        arms = await self._asked(job, prepared, guess)
        pairs = {CANARY_PAIR: judge(prepared.asked, arms[BASELINE_ARM], arms[CANARY_ARM])}
        if AGAIN in arms and arms[BASELINE_ARM].answer is not None:
            pairs[NOISE_PAIR] = judge(prepared.asked, arms[BASELINE_ARM], arms[AGAIN])
        await self._scored(job, prepared, arms, pairs)
        for pair, judged in pairs.items():
            self._metrics.judged(pair, job.bucket, judged.signals)
        await self._kept(job, prepared, arms, pairs, waited)

    async def _asked(self, job: Job, prepared: Prepared, guess: int) -> dict[str, Told]:
        """Ask both arms at the same time, so that they answer under the same conditions."""
        first = self._baseline.pods.pick() or ""
        askings = {
            BASELINE_ARM: self._ask(self._baseline, job, prepared, guess, pod=first),
            CANARY_ARM: self._ask(self._canary, job, prepared, guess),
        }
        if prepared.twice:
            askings[AGAIN] = self._ask(self._baseline, job, prepared, guess, avoid=first)
        replies = await asyncio.gather(*askings.values())
        return dict(zip(askings, replies, strict=True))

    async def _ask(
        self, arm: Arm, job: Job, prepared: Prepared, guess: int, *, avoid: str = "", pod: str = ""
    ) -> Told:
        arm.allowance.spend(guess)
        reply = await self._replayer.ask(
            arm.pods, prepared.path, prepared.sent, job.deadline, avoid=avoid, pod=pod
        )
        what = told(prepared.path, reply)
        if what.answer is not None:
            tokens = what.answer.prompt_tokens + what.answer.answer_tokens
            arm.allowance.spend(tokens - guess)
            self._metrics.answered(arm.name, reply.seconds, tokens)
            self._share.own += arm is self._baseline
        return what

    async def _scored(
        self,
        job: Job,
        prepared: Prepared,
        arms: Mapping[str, Told],
        pairs: Mapping[str, Judged],
    ) -> None:
        """Add the drift to the pairs, where it can be had."""
        baseline = arms[BASELINE_ARM]
        wanted = {pair: judged for pair, judged in pairs.items() if judged.comparison is not None}
        if baseline.answer is None or not wanted:
            return
        second = {CANARY_PAIR: (self._canary, CANARY_ARM), NOISE_PAIR: (self._baseline, AGAIN)}
        askings = {
            pair: self._asking(arm, job, arms[name])
            for pair, (arm, name) in second.items()
            if pair in wanted
        }
        scores: Mapping[str, float | UnscoredError]
        try:
            question = scoring.question(
                prepared.body.get("model"), baseline.answer, self._settings.score_prompt_tokens
            )
        except UnscoredError as error:
            scores = dict.fromkeys(wanted, error)
        else:
            first = self._asking(self._baseline, job, baseline)
            scores = await self._drift.scores(question, baseline.answer, askings, first)
        for pair, score in scores.items():
            if isinstance(score, UnscoredError):
                self._metrics.unscored(pair, score.reason)
            else:
                wanted[pair].signals[DRIFT] = score

    def _asking(self, arm: Arm, job: Job, before: Told) -> Ask:
        """Return what asks the pod that has answered before how likely an answer is."""

        async def ask(question: Question) -> Reply:
            tokens = len(question["prompt"]) + 1
            arm.allowance.spend(tokens)
            reply = await self._replayer.ask(
                arm.pods, scoring.PATH, question, job.deadline, pod=before.reply.pod
            )
            if not reply.failure:
                self._metrics.spent(arm.name, tokens)
                self._share.own += arm is self._baseline
            return reply

        return ask

    async def _kept(
        self,
        job: Job,
        prepared: Prepared,
        arms: Mapping[str, Told],
        pairs: Mapping[str, Judged],
        waited: float,
    ) -> None:
        """Write the pair to the log, its answers sanitized as the request was."""
        said = {name: record.texts(arm) for name, arm in arms.items()}
        try:
            clean, found = await self._in_thread(lambda: sanitized(self._sanitizer, said))
        except Dropped:
            self._metrics.unlogged("withheld")
            return
        self._metrics.found(found)
        line = record.build(
            self._settings,
            run=self._run,
            at=self._now(),
            endpoint=prepared.path,
            bucket=job.bucket,
            request=prepared.body,
            found=merged(prepared.found, found),
            arms={
                name: record.arm(
                    self._settings.canary if name == CANARY_ARM else self._settings.baseline,
                    arm,
                    clean[name],
                )
                for name, arm in arms.items()
            },
            pairs={
                pair: record.scores(judged.comparison, judged.signals)
                for pair, judged in pairs.items()
            },
            markers=len(prepared.asked.markers),
            waited=waited,
        )
        if not await self._log.write(line):
            self._metrics.unlogged("full")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
