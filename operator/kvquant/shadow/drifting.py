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

from kvquant.core.shadow_settings import CANARY_PAIR
from kvquant.shadow import scoring
from kvquant.shadow.answers import Answer
from kvquant.shadow.replaying import RESET, Reply
from kvquant.shadow.scoring import UnscoredError

logger = logging.getLogger(__name__)

Question = Mapping[str, Any]
Ask = Callable[[Question], Awaitable[Reply]]
"""Puts a question to a pod."""
UNSAFE, UNPROVEN = "unsafe", "unproven"


class Drift:
    """Scores the baseline's answers under both arms, and remembers whether that can be asked."""

    def __init__(self) -> None:
        """Begin without knowing anything of the engines."""
        self._proven, self._unsafe = False, False
        self._first = asyncio.Lock()

    async def scores(
        self, question: Question, answer: Answer, pairs: Mapping[str, Ask], baseline: Ask
    ) -> dict[str, float | UnscoredError]:
        """Return the drift of each pair, or why it is not known.

        Args:
            question: What `scoring.question` makes of the answer.
            answer: The baseline's answer.
            pairs: How to ask the second arm of each pair, by the pair's name.
            baseline: How to ask the first, which is the same for all.
        """
        try:
            replies = await self._replies(question, pairs, baseline)
            first = _likelihood(replies[""], answer.answer_ids)
        except UnscoredError as error:
            return dict.fromkeys(pairs, error)
        found: dict[str, float | UnscoredError] = {}
        for pair in pairs:
            try:
                found[pair] = scoring.drift(first, _likelihood(replies[pair], answer.answer_ids))
            except UnscoredError as error:
                found[pair] = error
        return found

    async def _replies(
        self, question: Question, pairs: Mapping[str, Ask], baseline: Ask
    ) -> dict[str, Reply]:
        """Return what the arms said, by pair; the baseline's first answer has no name."""
        rest = {"": baseline, **pairs}
        replies: dict[str, Reply] = {}
        if (canary := rest.pop(CANARY_PAIR, None)) is not None:
            replies[CANARY_PAIR] = await self._canary(lambda: canary(question))
            _sound(replies[CANARY_PAIR])
        elif not self._proven:
            raise UnscoredError(UNPROVEN)
        said = await asyncio.gather(*(ask(question) for ask in rest.values()))
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


def _sound(reply: Reply) -> None:
    if reply.failure:
        raise UnscoredError("refused" if reply.refused else "unanswered")


def _likelihood(reply: Reply, ids: tuple[int, ...]) -> float:
    _sound(reply)
    return scoring.negative_log_likelihood(reply.document, ids)
