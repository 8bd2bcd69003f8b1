"""Prompt log-probabilities: how likely each token of a prompt is under this engine.

The base value of a token depends on it and on all tokens before, and averages -0.3. A dtype
multiplies it by a factor around one that depends on the same things, so that two engines of one
dtype agree and the mean difference between dtypes is the table's drift.
"""

import asyncio
import itertools
import json
import math
from collections.abc import Iterator
from collections.abc import Sequence as Many

from . import tokens
from .quality import BATCH_NOISE, Quality

MEAN_NLL = 0.3
"""Mean negative log-likelihood per token of a 16-bit cache, in nats."""
_SPREAD = 4.0
"""Greatest deviation of a token's drift from the mean, in multiples of the mean."""
_HIGHEST_RANK = 100_000
_CHUNK = 2048


async def score(
    ids: Many[int], quality: Quality, dtype_seed: int, batch_seed: int, alternatives: int
) -> str:
    """Return what vLLM answers as ``prompt_logprobs``, as JSON.

    It is written piece by piece, since a long prompt makes megabytes of it and streams must not
    wait for them.

    Args:
        ids: the prompt.
        quality: of the dtype.
        dtype_seed: of what the dtype does, the same on each engine that has it.
        batch_seed: of what the batch does, different for each request.
        alternatives: how many of the likeliest tokens are told besides the prompt's own.
    """
    pieces = {token: json.dumps(tokens.piece_of(token)) for token in set(ids)}
    rows = ["null"]
    context = hash((ids[0],))
    for position in range(1, len(ids)):
        if position % _CHUNK == 0:
            await asyncio.sleep(0)
        token = ids[position]
        context = hash((context, token))
        nll = _nll(context, position, quality, dtype_seed, batch_seed)
        rank = int(min(math.exp(min(nll, 50.0)), _HIGHEST_RANK))
        row = _entry(token, -nll, rank, pieces[token])
        if alternatives:
            others = _alternatives(token, position, nll, rank, alternatives)
            row = ", ".join([row, *others])
        rows.append(f"{{{row}}}")
    return f"[{', '.join(rows)}]"


def _uniform(*key: int) -> float:
    # The hash of a tuple of integers is the same in every process, and much quicker than a digest.
    mixed = (hash(key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed ^= mixed >> 29
    mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed >> 11) * 2.0**-53


def _nll(context: int, position: int, quality: Quality, dtype_seed: int, batch_seed: int) -> float:
    nll = -MEAN_NLL * math.log(1.0 - _uniform(context))
    drift = quality.drift_at(position) / MEAN_NLL
    if drift:
        # Never so far that a probability would exceed one; the mean stays as it is.
        spread = min(_SPREAD, (1.0 + drift) / drift)
        deviation = 2.0 * _uniform(context, dtype_seed) - 1.0
        nll *= 1.0 + drift * (1.0 + spread * deviation)
    return nll * (1.0 + BATCH_NOISE * (2.0 * _uniform(position, batch_seed) - 1.0))


def _entry(token: int, logprob: float, rank: int, piece: str) -> str:
    return f'"{token}": {{"logprob": {logprob!r}, "rank": {rank}, "decoded_token": {piece}}}'


def _alternatives(token: int, position: int, nll: float, rank: int, count: int) -> Iterator[str]:
    """Yield the tokens of the ranks up to ``count``, as likely as their ranks allow."""
    left = max(1.0 - math.exp(-nll), 1e-9)
    first = position % len(tokens.WORDS)
    words = itertools.islice(itertools.cycle(tokens.WORDS), first, None)
    others = (word for word in words if tokens.id_of(word) != token)
    for other in range(1, count + 1):
        if other == rank:
            continue
        if other < rank:
            logprob = math.log(left / (rank - 1))
        elif rank == 1:
            logprob = math.log(left) - (other - 1) * math.log(2.0)
        else:
            logprob = -nll - (other - rank) * math.log(2.0)
        word = next(others)
        yield _entry(tokens.id_of(word), logprob, other, json.dumps(word))
