"""Has an answer become less likely? Asks both arms, the one without users first.

A prompt's likelihoods are a rare thing to ask of an engine: some compile code for it then, or need
more memory than ever before, and vLLM without a compiler ends. So the canary is asked first, which
serves nobody, and a question that it has not answered is never put to the baseline. A canary that
breaks off at its very first such question is not asked another: drift is not evaluated then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kvquant.core.shadow_settings import CANARY_PAIR, DRIFT, NOISE_PAIR
from kvquant.shadow import scoring
from kvquant.shadow.answers import Answer
from kvquant.shadow.judging import Judged
from kvquant.shadow.replaying import RESET, Reply
from kvquant.shadow.scoring import UnscoredError

logger = logging.getLogger(__name__)

Question = Mapping[str, Any]
Ask = Callable[[Question, int], Awaitable[Reply]]
"""Puts a question of so many tokens to an arm."""
UNSAFE, UNPROVEN = "unsafe", "unproven"


class Drift:
    """Adds the drift to pairs of answers."""

    def __init__(self, unscored: Callable[[str, str], None]) -> None:
        """Make one that knows nothing of the engines yet.

        Args:
            unscored: Counts a pair, by its name, that was not scored, and why.
        """
        self._unscored = unscored
        self._proven, self._unsafe = False, False
        self._first = asyncio.Lock()

    async def add(
        self,
        question: Callable[[], Question],
        answer: Answer,
        pairs: Mapping[str, Judged],
        askings: Mapping[str, Ask],
        baseline: Ask,
    ) -> None:
        """Score the baseline's answer under the arms of the pairs.

        Args:
            question: Returns what is asked; it raises `UnscoredError` where nothing can be.
            answer: The baseline's answer.
            pairs: The pairs that want a score, by name.
            askings: For each of them, how to ask its second arm.
            baseline: How to ask the first.
        """
        try:
            asked = question()
            tokens = len(asked["prompt"]) + 1
            replies = await self._replies(asked, tokens, pairs, askings, baseline)
        except UnscoredError as error:
            for pair in pairs:
                self._unscored(pair, error.reason)
            return
        for pair, judged in pairs.items():
            try:
                first, second = (
                    _likelihood(reply, answer.answer_ids) for reply in (replies[""], replies[pair])
                )
            except UnscoredError as error:
                self._unscored(pair, error.reason)
            else:
                judged.signals[DRIFT] = scoring.drift(first, second)

    async def _replies(
        self,
        question: Question,
        tokens: int,
        pairs: Mapping[str, Judged],
        askings: Mapping[str, Ask],
        baseline: Ask,
    ) -> dict[str, Reply]:
        """Return what the arms said, by pair; the baseline's first answer has no name."""
        replies: dict[str, Reply] = {}
        if CANARY_PAIR in pairs:
            reply = await self._canary(lambda: askings[CANARY_PAIR](question, tokens))
            if reply.failure:
                raise UnscoredError("refused" if reply.refused else "unanswered")
            replies[CANARY_PAIR] = reply
        elif not self._proven:
            raise UnscoredError(UNPROVEN)
        rest: dict[str, Ask] = {"": baseline}
        if NOISE_PAIR in pairs:
            rest[NOISE_PAIR] = askings[NOISE_PAIR]
        said = await asyncio.gather(*(ask(question, tokens) for ask in rest.values()))
        return replies | dict(zip(rest, said, strict=True))

    async def _canary(self, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        if self._proven:
            return await ask()
        # One at a time until one has gone well, so that not every pod is tried at once.
        async with self._first:
            if self._unsafe:
                raise UnscoredError(UNSAFE)
            reply = await ask()
            if not reply.failure:
                self._proven = True
            elif reply.failure == RESET and not self._proven:
                self._unsafe = True
                logger.warning(
                    "a canary pod broke off when it was asked how likely an answer is: drift is "
                    "not evaluated, and the baseline is not asked"
                )
            return reply


def _likelihood(reply: Reply, ids: tuple[int, ...]) -> float:
    if reply.failure:
        raise UnscoredError("refused" if reply.refused else "unanswered")
    return scoring.negative_log_likelihood(reply.document, ids)
