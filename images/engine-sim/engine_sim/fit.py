"""Fits the step costs to the recordings.

The three dtypes ran on one GPU with one model, so they share what does not touch the KV cache: the
base of a step and the linear part of prefilling. The rest is fitted per dtype.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path

from .cost import StepCost
from .kvdtype import DTYPES, blocks_in, bytes_per_token
from .recording import Recording, load, quantile
from .replay import run
from .sequence import Sequence, State
from .shapes import LLAMA_8B

RECORDED_POOL_BYTES = 6 << 30
BLOCK_SIZE = 16
_SHARED = 3
_OWN = 3


def recorded_blocks(dtype: str) -> int:
    """Return the KV blocks that the recorded servers had for a dtype."""
    token_bytes = bytes_per_token(DTYPES[dtype], LLAMA_8B)
    return blocks_in(RECORDED_POOL_BYTES, token_bytes, BLOCK_SIZE)


def serve(recording: Recording, cost: StepCost) -> list[Sequence]:
    """Replay a recording; where requests were cut off at its end, so are the simulated ones."""
    cut = recording.outcome.finished < len(recording.arrivals)
    duration = recording.duration if cut else math.inf
    return run(recording.arrivals, cost, recorded_blocks(recording.dtype), duration=duration)


def distance(recording: Recording, cost: StepCost) -> float:
    """Return how far a replay is from its recording: mean squared log ratios, 0 when equal."""
    done = [s for s in serve(recording, cost) if s.state is State.FINISHED]
    if len(done) < 2:
        return 100.0
    latencies = [(s.last_token_at or 0.0) - s.arrival for s in done]
    seen = recording.latencies
    shares = [step / 40 for step in range(1, 40)]
    spread = [
        math.log(quantile(latencies, share) / quantile(list(seen), share)) ** 2
        for share in (*shares, 0.99)
    ]
    tokens = math.log(sum(s.output_tokens for s in done) / recording.tokens)
    each = 0.0
    if len(done) == len(seen) == len(recording.firsts):
        firsts = [(s.first_token_at or 0.0) - s.arrival for s in done]
        pairs = zip((*latencies, *firsts), (*seen, *recording.firsts), strict=True)
        each = sum(math.log(ours / theirs) ** 2 for ours, theirs in pairs) / (2 * len(done))
    return sum(spread) / len(spread) + tokens**2 + each / 2


def fit(folder: Path, starts: dict[str, StepCost], rounds: int = 60) -> dict[str, StepCost]:
    """Improve the costs by seeded random search in the logarithms of the parameters."""
    recordings = [load(folder, dtype) for dtype in starts]
    first = next(iter(starts.values()))
    vector = [first.base, first.prefill_step, first.per_prefill]
    for cost in starts.values():
        vector += [cost.per_attended, cost.per_decode, cost.per_context]

    def priced(parameters: list[float]) -> list[StepCost]:
        base, prefill_step, per_prefill = parameters[:_SHARED]
        costs = []
        for start in range(_SHARED, len(parameters), _OWN):
            attended, decode, context = parameters[start : start + _OWN]
            costs.append(StepCost(base, prefill_step, per_prefill, attended, decode, context))
        return costs

    def loss(parameters: list[float]) -> float:
        return sum(map(distance, recordings, priced(parameters)))

    best = _search(vector, loss, rounds)
    return dict(zip(starts, priced(best), strict=True))


def _search(start: list[float], loss: Callable[[list[float]], float], rounds: int) -> list[float]:
    rng = random.Random(7)
    best, least, width = start, loss(start), 0.3
    for _ in range(rounds):
        improved = False
        for _ in range(len(start)):
            chosen = rng.sample(range(len(start)), 2)
            trial = [
                value * math.exp(rng.gauss(0.0, width)) if index in chosen else value
                for index, value in enumerate(best)
            ]
            reached = loss(trial)
            if reached < least:
                best, least, improved = trial, reached, True
        width = width * 1.1 if improved else max(0.01, width * 0.85)
    return best
