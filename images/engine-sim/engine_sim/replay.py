"""Replays recorded arrivals through the scheduler on a virtual clock."""

from collections.abc import Sequence as Many

from .blocks import BlockPool
from .cost import StepCost
from .engine import Engine, StepResult
from .recording import Arrival, Outcome, quantile
from .scheduler import Limits, Scheduler
from .sequence import Sequence, State

RECORDED_LIMITS = Limits(max_num_seqs=64, max_num_batched_tokens=8192)
"""How the recorded servers were started."""


def run(
    arrivals: Many[Arrival],
    cost: StepCost,
    blocks: int,
    *,
    block_size: int = 16,
    limits: Limits = RECORDED_LIMITS,
    duration: float = float("inf"),
    coalesce: float = 0.0,
) -> list[Sequence]:
    """Serve the arrivals and return their sequences as they stand at the end of the duration."""
    scheduler = Scheduler(BlockPool(blocks, block_size), limits)
    engine = Engine(scheduler, cost, coalesce)

    def note(step: StepResult) -> None:
        for progress in step.progress:
            progress.sequence.last_token_at = step.ended

    sequences = []
    for number, arrival in enumerate(arrivals):
        engine.advance(arrival.at, note)
        sequence = Sequence(str(number), arrival.prompt_tokens, arrival.output_tokens)
        engine.add(sequence, arrival.at)
        sequences.append(sequence)
    engine.advance(duration, note)
    return sequences


def outcome(sequences: list[Sequence], capacity: int, duration: float) -> Outcome:
    """Sum up served sequences; ``duration`` may be infinite when all finished."""
    done = [sequence for sequence in sequences if sequence.state is State.FINISHED]
    ends = [s.last_token_at for s in done if s.last_token_at is not None]
    latencies = [end - s.arrival for s, end in zip(done, ends, strict=True)]
    firsts = [s.first_token_at - s.arrival for s in sequences if s.first_token_at is not None]
    seconds = min(duration, max(ends))
    return Outcome(
        finished=len(done),
        p50=quantile(latencies, 0.5),
        p99=quantile(latencies, 0.99),
        first_token=sum(firsts) / len(firsts),
        tokens_per_second=sum(s.output_tokens for s in done) / seconds,
        preemptions=sum(s.preemptions for s in sequences),
        capacity=capacity,
    )
