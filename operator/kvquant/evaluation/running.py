"""Asking both arms every example, at the same time, so that they answer under the same load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from kvquant.core.shadow_settings import CANARY_PAIR, NOISE_PAIR
from kvquant.evaluation import questions
from kvquant.evaluation.arms import REFRESH_SECONDS, TRIES, Arm, ask
from kvquant.evaluation.examples import Example
from kvquant.evaluation.kinds import texts
from kvquant.evaluation.measures import ANSWERED, DRIFT, Harm, harms
from kvquant.evaluation.questions import Question
from kvquant.evaluation.results import (
    AGAIN,
    BASELINE,
    CANARY,
    LONGEST_TEXT,
    UNASKED,
    Result,
    Said,
)
from kvquant.evaluation.sparing import Spare
from kvquant.shadow import scoring
from kvquant.shadow.answers import Answer
from kvquant.shadow.comparing import compare
from kvquant.shadow.drifting import Ask, Drift
from kvquant.shadow.judging import told
from kvquant.shadow.record import Told
from kvquant.shadow.replaying import Replayer, Reply
from kvquant.shadow.scoring import UnscoredError


@dataclass(frozen=True, slots=True)
class Pace:
    """How the examples are asked.

    Attributes:
        concurrency: Examples under way at a time; each is two or three requests.
        example_seconds: Longest wait for the answers to one.
        deadline_seconds: Longest time for all of them.
        noise_percent: Share of the examples that the baseline is asked twice.
        answer_tokens: Longest answer that is asked for where an example does not say.
        score_tokens: Longest prompt whose answer is scored for drift; 0: none is.
        seed: Of the order in which they are asked.
        ignore_load: Examples are asked also while the baseline has its hands full.
    """

    concurrency: int = 4
    example_seconds: float = 300.0
    deadline_seconds: float = 3600.0
    noise_percent: int = 20
    answer_tokens: int = 1024
    score_tokens: int = 32768
    seed: int = 1
    ignore_load: bool = False


class Runner:
    """Asks a set of two arms."""

    def __init__(self, replayer: Replayer, baseline: Arm, canary: Arm, pace: Pace) -> None:
        """Make one for arms that have been reached."""
        self._replayer, self._pace = replayer, pace
        self._baseline, self._canary = baseline, canary
        self._spare = Spare(replayer, baseline)
        self._drift = Drift()

    async def run(self, examples: list[Example], heard: Callable[[Result], None]) -> list[Result]:
        """Return what became of each example; never raises for what an engine does.

        Args:
            examples: The set.
            heard: Is told each result as soon as it is there.
        """
        waiting = iter(questions.ordered(examples, self._pace.seed))
        results: list[Result] = []

        async def work() -> None:
            for example in waiting:
                await self._spare.ready()
                result = await self._example(example)
                results.append(result)
                heard(result)

        beside = [asyncio.create_task(self._refresh())]
        if not self._pace.ignore_load:
            await self._spare.look()
            beside.append(asyncio.create_task(self._spare.watch()))
        workers = [asyncio.create_task(work()) for _ in range(self._pace.concurrency)]
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.deadline_seconds):
                    await asyncio.gather(*workers)
        finally:
            for task in (*beside, *workers):
                task.cancel()
            await asyncio.gather(*beside, *workers, return_exceptions=True)
        return [*results, *self._unasked(examples, {result.id for result in results})]

    def _unasked(self, examples: list[Example], done: set[str]) -> Iterator[Result]:
        nothing = {arm: Said(failure=UNASKED) for arm in (BASELINE, CANARY)}
        for example in examples:
            if example.id not in done:
                question = self._question(example)
                yield Result(
                    question.id, question.path, question.bucket, question.kind, said=nothing
                )

    def _question(self, example: Example) -> Question:
        return questions.ask(example, self._pace.answer_tokens, self._pace.noise_percent)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._baseline.refresh()
            await self._canary.refresh()

    async def _example(self, example: Example) -> Result:
        question = self._question(example)
        deadline = asyncio.get_running_loop().time() + self._pace.example_seconds
        said = await self._asked(question, deadline)
        first, second, again = said[BASELINE], said[CANARY], said.get(AGAIN)
        found: dict[str, Harm] = {}
        if first.answer is not None or second.answer is not None:
            found[ANSWERED.name] = Harm(float(first.answer is None), float(second.answer is None))
        result = Result(
            question.id,
            question.path,
            question.bucket,
            question.kind,
            harms=found,
            said={name: _said(one) for name, one in said.items()},
            refused=first.reply.refused and second.reply.refused,
            unscored="unanswered",
            prompt="\n".join(texts(example.body))[-LONGEST_TEXT:],
        )
        if first.answer is None or second.answer is None:
            return result
        twice = None if again is None else again.answer
        comparison = compare(question.asked, first.answer, second.answer)
        found |= harms(question, first.answer, second.answer, comparison, twice)
        noise: dict[str, Harm] = {}
        if twice is not None:
            alone = compare(question.asked, first.answer, twice)
            noise |= harms(question, first.answer, twice, alone, first.answer)
        unscored = ""
        try:
            await self._score(question, said, first.answer, deadline, found, noise)
        except UnscoredError as error:
            unscored = error.reason
        return replace(
            result,
            harms=found,
            noise=noise,
            unscored=unscored,
            first_token=comparison.first_token,
            first_character=comparison.first_character,
            length_ratio=comparison.length_ratio,
        )

    async def _asked(self, question: Question, deadline: float) -> dict[str, Told]:
        first = self._baseline.choice.pick() or ""
        asked = {
            BASELINE: self._ask(self._baseline, question, deadline, pod=first),
            CANARY: self._ask(self._canary, question, deadline),
        }
        if question.twice:
            asked[AGAIN] = self._ask(self._baseline, question, deadline, avoid=first)
        replies = await asyncio.gather(*asked.values())
        return dict(zip(asked, replies, strict=True))

    async def _ask(
        self, arm: Arm, question: Question, deadline: float, *, avoid: str = "", pod: str = ""
    ) -> Told:
        sent = question.sent(arm.model_of(question.body.get("model")))
        reply = await ask(self._replayer, arm, question.path, sent, deadline, avoid=avoid, pod=pod)
        return told(question.path, reply)

    async def _score(
        self,
        question: Question,
        said: Mapping[str, Told],
        answer: Answer,
        deadline: float,
        found: dict[str, Harm],
        noise: dict[str, Harm],
    ) -> None:
        """Add the drift, where it can be had.

        Raises:
            UnscoredError: It cannot.
        """
        scored = scoring.question(question.body.get("model"), answer, self._pace.score_tokens)
        pairs = {CANARY_PAIR: self._scoring(self._canary, said[CANARY], deadline, tries=1)}
        if noise:
            pairs[NOISE_PAIR] = self._scoring(self._baseline, said[AGAIN], deadline)
        baseline = self._scoring(self._baseline, said[BASELINE], deadline)
        scores = await self._drift.scores(scored, answer, pairs, baseline)
        for pair, harms_of in ((CANARY_PAIR, found), (NOISE_PAIR, noise)):
            if isinstance(score := scores.get(pair), UnscoredError):
                raise score
            if score is not None:
                harms_of[DRIFT.name] = Harm(0.0, score)

    def _scoring(self, arm: Arm, before: Told, deadline: float, tries: int = TRIES) -> Ask:
        """Return what asks the pod that has answered before how likely an answer is.

        The canary is asked once only: a pod may end of the question, and another one after it.
        """

        async def put(question: Mapping[str, Any]) -> Reply:
            model = arm.model_of(question.get("model"))
            body = dict(question) if model is None else {**question, "model": model}
            sent = json.dumps(body).encode()
            return await ask(
                self._replayer,
                arm,
                scoring.PATH,
                sent,
                deadline,
                pod=before.reply.pod,
                tries=tries,
            )

        return put


def _said(one: Told) -> Said:
    if one.answer is None:
        return Said(failure=one.reply.failure, seconds=one.reply.seconds)
    calls = "".join(f"\n{call.name}({call.arguments})" for call in one.answer.calls)
    return Said(
        text=(one.answer.text + calls).strip()[:LONGEST_TEXT],
        seconds=one.reply.seconds,
        tokens=one.answer.answer_tokens,
        fingerprint=one.answer.fingerprint,
    )
