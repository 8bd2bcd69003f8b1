"""Teacher-forced drift: one answer, as likely under the second arm as under the first? Pure.

The baseline's answer is put behind its prompt as one long prompt, and both arms tell how likely
they find its tokens. The paired difference of the mean negative log-likelihood, in nats per token,
sees a cache that is a little off long before texts differ, and is not fooled by the noise of
batches: it does not matter which token would have come next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kvquant.shadow.answers import Answer
from kvquant.shadow.preparing import SEED

CLIP = 2.0
"""Bound of a pair's difference, in nats per token. A canary that is so far off is broken, and one
pair more or less must not decide."""
PATH = "/v1/completions"
"""Endpoint that scores, whatever the prompt's own endpoint was: the ids are past the template."""


class UnscoredError(Exception):
    """An answer that cannot be scored.

    Attributes:
        reason: Value of the label `reason`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def question(model: object, answer: Answer, most_prompt_tokens: int) -> dict[str, Any]:
    """Return the request that scores an answer, the same for each arm.

    Args:
        model: Name of the model, as in the prompt's request.
        answer: The baseline's answer.
        most_prompt_tokens: Longest prompt that is scored; 0: none is.

    Raises:
        UnscoredError: It cannot be asked.
    """
    if not most_prompt_tokens:
        raise UnscoredError("off")
    if not answer.prompt_ids or not answer.answer_ids:
        raise UnscoredError("ids")
    if len(answer.prompt_ids) > most_prompt_tokens:
        raise UnscoredError("length")
    asked = {
        "prompt": [*answer.prompt_ids, *answer.answer_ids],
        "max_tokens": 1,
        "prompt_logprobs": 0,
        "temperature": 0,
        "seed": SEED,
        "stream": False,
    }
    return asked if model is None else {"model": model, **asked}


def negative_log_likelihood(document: object, ids: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of an answer's tokens, in nats.

    Args:
        document: What the engine answered: at each position of the prompt the log-probability of
            the token that stands there, by its id as a string.
        ids: The answer's tokens, the last ones of the prompt.

    Raises:
        UnscoredError: The document does not tell it.
    """
    try:
        positions = document["choices"][0]["prompt_logprobs"]  # type: ignore[index]
        tail = positions[-len(ids) :]
        if len(tail) != len(ids):
            raise UnscoredError("logprobs")
        total = math.fsum(_logprob(at, token) for at, token in zip(tail, ids, strict=True))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise UnscoredError("logprobs") from None
    if not math.isfinite(total):
        raise UnscoredError("logprobs")
    return -total / len(ids)


def _logprob(at: Mapping[str, Any], token: int) -> float:
    entry = at[str(token)]
    return float(entry["logprob"] if isinstance(entry, Mapping) else entry)


def drift(first: float, second: float) -> float:
    """Return by how much less likely an answer is under the second arm, in nats per token."""
    return max(-CLIP, min(CLIP, second - first))
