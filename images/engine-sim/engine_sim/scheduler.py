"""Continuous batching over a paged KV cache, one step at a time, without a clock.

The order of decisions is that of vLLM's V1 scheduler: running requests first, first come first
served; when a running request needs a block and none is free, the latest running one is preempted
and recomputed later; waiting requests are admitted in order while their whole sequence fits into
the free blocks.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .blocks import BlockPool
from .sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Limits:
    """The scheduler's own limits, named as vLLM's flags."""

    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    reserve_full_isl: bool = True
    watermark: float = 0.0


@dataclass(slots=True)
class Batch:
    """What one step computes.

    Attributes:
        entries: sequences and how many of their tokens are computed.
        prefill_tokens: tokens of prompts, or of sequences that are recomputed.
        attended: sum over those tokens of the context each attends to.
        decodes: sequences that compute exactly one next token.
        decode_context: sum of those sequences' contexts, in tokens.
        preempted: sequences that lost their blocks to make room.
        repeats: how often the step is done in a row; more than 1 only for plain decoding.
    """

    entries: list[tuple[Sequence, int]] = field(default_factory=list)
    prefill_tokens: int = 0
    attended: float = 0.0
    decodes: int = 0
    decode_context: int = 0
    preempted: list[Sequence] = field(default_factory=list)
    repeats: int = 1

    def add(self, sequence: Sequence, tokens: int) -> None:
        """Put tokens of a sequence into the step."""
        self.entries.append((sequence, tokens))
        if tokens == 1 and sequence.generated:
            self.decodes += 1
            self.decode_context += sequence.total
        else:
            self.prefill_tokens += tokens
            self.attended += tokens * (sequence.computed + (tokens + 1) / 2)


@dataclass(frozen=True, slots=True)
class Progress:
    """New tokens of one sequence."""

    sequence: Sequence
    tokens: int
    first: bool
    finished: bool


class Scheduler:
    """Decides what each step computes and accounts for its blocks."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._reserve = int(limits.watermark * pool.total)

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a request.

        Raises:
            ValueError: it is empty, or could never fit into the pool.
        """
        if sequence.prompt_tokens < 1 or sequence.output_tokens < 1:
            msg = "a request needs at least one prompt token and one output token"
            raise ValueError(msg)
        longest = self.pool.blocks_for(sequence.prompt_tokens + sequence.output_tokens)
        if longest > self.pool.total - self._reserve:
            msg = (
                f"{sequence.prompt_tokens} prompt and {sequence.output_tokens} output tokens need "
                f"{longest} KV blocks, but the pool has {self.pool.total}; raise the KV cache size"
            )
            raise ValueError(msg)
        sequence.state = State.WAITING
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drop a request and free its blocks at once; a finished one is left alone."""
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
        elif sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        else:
            return
        self._free(sequence)
        sequence.state = State.ABORTED

    def schedule(self, now: float) -> Batch | None:
        """Plan the next step; None when nothing can be computed."""
        batch = Batch()
        budget = self._schedule_running(batch, self.limits.max_num_batched_tokens)
        if not batch.preempted:
            self._admit(batch, budget, now)
        return batch if batch.entries else None

    def _schedule_running(self, batch: Batch, budget: int) -> int:
        position = 0
        while position < len(self.running) and budget:
            sequence = self.running[position]
            tokens = min(sequence.pending, budget)
            if not self._make_room(sequence, tokens, batch):
                break
            batch.add(sequence, tokens)
            budget -= tokens
            position += 1
        return budget

    def _make_room(self, sequence: Sequence, tokens: int, batch: Batch) -> bool:
        """Give a running sequence its blocks, preempting from the back; False if it fell itself."""
        needed = self.pool.blocks_for(sequence.computed + tokens) - sequence.blocks
        while needed > self.pool.free:
            victim = self.running.pop()
            self._free(victim)
            victim.computed = 0
            victim.state = State.WAITING
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            self.preemptions += 1
            batch.preempted.append(victim)
            if victim is sequence:
                return False
        self.pool.take(needed)
        sequence.blocks += needed
        return True

    def _admit(self, batch: Batch, budget: int, now: float) -> None:
        while self.waiting and budget and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[0]
            tokens = min(sequence.pending, budget)
            must_fit = sequence.total if self.limits.reserve_full_isl else tokens
            if self.pool.blocks_for(must_fit) + self._reserve > self.pool.free:
                break
            self.waiting.popleft()
            sequence.blocks = self.pool.blocks_for(tokens)
            self.pool.take(sequence.blocks)
            sequence.state = State.RUNNING
            if sequence.scheduled_at is None:
                sequence.scheduled_at = now
            self.running.append(sequence)
            batch.add(sequence, tokens)
            budget -= tokens

    def repeats_within(self, batch: Batch, most: int) -> int:
        """Return how often a plain decode step may be repeated with nothing else to decide.

        No sequence may finish before the last repeat and all new blocks must be free; then no
        waiting request could have been admitted in between either.
        """
        if batch.prefill_tokens or batch.preempted or most < 2 or len(batch.entries) < 1:
            return 1
        left = min(entry.output_tokens - entry.generated for entry, _ in batch.entries)
        repeats = min(most, left)
        while repeats > 1 and self._growth(batch, repeats) > self.pool.free:
            repeats //= 2
        return max(1, repeats)

    def _growth(self, batch: Batch, repeats: int) -> int:
        blocks_for = self.pool.blocks_for
        return sum(
            blocks_for(entry.total + repeats - 1) - entry.blocks for entry, _ in batch.entries
        )

    def repeat(self, batch: Batch, repeats: int) -> None:
        """Turn a planned decode step into several in a row and take their blocks."""
        batch.repeats = repeats
        for entry, _ in batch.entries:
            needed = self.pool.blocks_for(entry.total + repeats - 1) - entry.blocks
            self.pool.take(needed)
            entry.blocks += needed

    def complete(self, batch: Batch, now: float) -> Iterator[Progress]:
        """Account for a step that ended and yield the new tokens."""
        for sequence, tokens in batch.entries:
            if sequence.state is not State.RUNNING:
                continue  # It was aborted while the step ran.
            sequence.computed += tokens
            if sequence.pending:
                continue
            sequence.generated += batch.repeats
            sequence.computed += batch.repeats - 1
            first = sequence.first_token_at is None
            if first:
                sequence.first_token_at = now
            finished = sequence.generated >= sequence.output_tokens
            if finished:
                self.running.remove(sequence)
                self._free(sequence)
                sequence.state = State.FINISHED
            yield Progress(sequence, batch.repeats, first, finished)

    def _free(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = 0
