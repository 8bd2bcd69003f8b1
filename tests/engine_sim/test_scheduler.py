"""The scheduler never owes a block, loses a token or forgets a request, whatever arrives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_sim.blocks import BlockPool
from engine_sim.cost import cost_of
from engine_sim.engine import Engine, StepResult
from engine_sim.recording import Arrival
from engine_sim.replay import run
from engine_sim.scheduler import Limits, Scheduler
from engine_sim.sequence import Sequence, State

COST = cost_of("auto")
lengths = st.tuples(st.integers(1, 120), st.integers(1, 60))
limits = st.builds(
    Limits,
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(1, 200),
    reserve_full_isl=st.booleans(),
    watermark=st.sampled_from([0.0, 0.2]),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), lengths),
        st.tuples(st.just("add"), lengths),
        st.tuples(st.just("step"), st.integers(1, 5)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
    ),
    min_size=5,
    max_size=40,
)


class Checked:
    """An engine whose books are compared with its sequences after each step."""

    def __init__(self, blocks: int, block_size: int, limits: Limits, coalesce: float) -> None:
        self.pool = BlockPool(blocks, block_size)
        self.scheduler = Scheduler(self.pool, limits)
        self.engine = Engine(self.scheduler, COST, coalesce)
        self.sequences: list[Sequence] = []
        self.tokens: dict[Sequence, int] = {}
        self.preempted = 0

    def add(self, prompt: int, output: int) -> None:
        sequence = Sequence(str(len(self.sequences)), prompt, output)
        try:
            self.engine.add(sequence, self.engine.now)
        except ValueError:
            return  # It can never fit; nothing may have changed, which the next check sees.
        self.sequences.append(sequence)
        self.check()

    def abort(self, number: int) -> None:
        living = [*self.scheduler.running, *self.scheduler.waiting]
        if living:
            self.engine.abort(living[number % len(living)])
            self.check()

    def steps(self, count: float) -> None:
        while count and self.engine.step_ends is not None:
            self.engine.advance(self.engine.step_ends, self.note)
            count -= 1
            self.check()

    def note(self, step: StepResult) -> None:
        assert step.ended > step.began
        assert sum(tokens for _, tokens in step.batch.entries) <= (
            self.scheduler.limits.max_num_batched_tokens
        )
        self.preempted += len(step.batch.preempted)
        for progress in step.progress:
            self.tokens[progress.sequence] = self.tokens.get(progress.sequence, 0) + progress.tokens

    def check(self) -> None:
        held = [sequence.blocks for sequence in self.sequences]
        assert min(held, default=0) >= 0
        assert self.pool.free + sum(held) == self.pool.total
        assert len(self.scheduler.running) <= self.scheduler.limits.max_num_seqs
        running, waiting = set(self.scheduler.running), set(self.scheduler.waiting)
        for sequence in self.sequences:
            assert (sequence in running) == (sequence.state is State.RUNNING)
            assert (sequence in waiting) == (sequence.state is State.WAITING)
            assert sequence.blocks * self.pool.block_size >= sequence.computed or (
                sequence.state in (State.FINISHED, State.ABORTED)
            )
            if sequence.state is not State.RUNNING:
                assert sequence.blocks == 0


@settings(max_examples=300)
@given(
    blocks=st.integers(2, 40),
    block_size=st.sampled_from([5, 16]),
    limits=limits,
    coalesce=st.sampled_from([0.0, 0.05]),
    events=events,
)
def test_blocks_are_never_owed_and_all_are_free_in_the_end(
    blocks: int,
    block_size: int,
    limits: Limits,
    coalesce: float,
    events: list[tuple[str, tuple[int, int] | int]],
) -> None:
    checked = Checked(blocks, block_size, limits, coalesce)
    for kind, what in events:
        if isinstance(what, tuple):
            checked.add(*what)
        elif kind == "step":
            checked.steps(what)
        else:
            checked.abort(what)
    checked.steps(math.inf)
    assert not checked.scheduler.busy
    assert checked.pool.free == checked.pool.total
    assert checked.pool.usage == 0
    for sequence in checked.sequences:
        made = checked.tokens.get(sequence, 0)
        if sequence.state is State.FINISHED:
            assert made == sequence.generated == sequence.output_tokens
        else:
            assert sequence.state is State.ABORTED
            assert made <= sequence.output_tokens
    assert checked.preempted == sum(s.preemptions for s in checked.sequences)
    assert checked.preempted == checked.scheduler.preemptions


def serve(arrivals: list[Arrival], blocks: int, coalesce: float = 0.0) -> list[Sequence]:
    return run(arrivals, COST, blocks, limits=Limits(max_num_seqs=8), coalesce=coalesce)


def test_a_small_cache_preempts_the_latest_and_computes_it_again() -> None:
    # Two prompts of 4 blocks each; each grows to 8, and there are only 12.
    first, second = serve([Arrival(0.0, 64, 64), Arrival(0.0, 64, 64)], blocks=12)
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert (first.generated, second.generated) == (64, 64)
    roomy_first, roomy_second = serve([Arrival(0.0, 64, 64), Arrival(0.0, 64, 64)], blocks=16)
    assert (roomy_first.preemptions, roomy_second.preemptions) == (0, 0)
    assert roomy_second.last_token_at is not None
    assert second.last_token_at is not None
    assert second.last_token_at > 1.3 * roomy_second.last_token_at


def test_a_preempted_request_goes_before_those_that_wait() -> None:
    first, second, late = serve(
        [Arrival(0.0, 64, 64), Arrival(0.0, 64, 64), Arrival(0.1, 48, 4)], blocks=12
    )
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert first.last_token_at is not None
    assert late.scheduled_at is not None
    # It would have fitted into what the victim gave back.
    assert late.scheduled_at >= first.last_token_at


def test_no_request_is_admitted_in_the_step_that_preempts_one() -> None:
    # Without the reservation of whole prompts, a piece of the victim would fit at once.
    limits = Limits(max_num_batched_tokens=16, reserve_full_isl=False)
    checked = Checked(12, 16, limits, coalesce=0.0)
    checked.add(64, 64)
    checked.add(64, 64)
    prefilled: list[int] = []

    def note(step: StepResult) -> None:
        if step.batch.preempted:
            prefilled.append(step.batch.prefill_tokens)

    checked.engine.advance(math.inf, note)
    assert prefilled
    assert set(prefilled) == {0}


def test_a_preempted_request_keeps_the_tokens_it_has_shown() -> None:
    checked = Checked(12, 16, Limits(), coalesce=0.0)
    checked.add(64, 64)
    checked.add(64, 64)
    second = checked.sequences[1]
    while not second.preemptions:
        checked.steps(1)
    shown = checked.tokens[second]
    assert (second.generated, second.computed) == (shown, 0)
    assert shown > 0
    checked.steps(math.inf)
    assert checked.tokens[second] == 64


def test_requests_are_admitted_in_order_even_if_a_later_one_would_fit() -> None:
    big, bigger, small = serve(
        [Arrival(0.0, 100, 30), Arrival(0.0, 150, 5), Arrival(0.0, 16, 5)], blocks=12
    )
    assert big.last_token_at is not None
    assert bigger.scheduled_at is not None
    assert small.scheduled_at is not None
    assert bigger.scheduled_at >= big.last_token_at
    assert small.scheduled_at >= bigger.scheduled_at


def test_a_long_prompt_is_computed_in_chunks_and_delays_the_decoding_of_others() -> None:
    alone = serve([Arrival(0.0, 100, 100)], blocks=3000)[0]
    beside, _ = serve([Arrival(0.0, 100, 100), Arrival(0.1, 30_000, 1)], blocks=3000)
    checked = Checked(3000, 16, Limits(max_num_batched_tokens=8192), coalesce=0.0)
    checked.add(30_000, 1)
    steps: list[int] = []
    checked.engine.advance(
        math.inf, lambda step: steps.append(sum(tokens for _, tokens in step.batch.entries))
    )
    assert steps == [8192, 8192, 8192, 30_000 - 3 * 8192]
    assert alone.last_token_at is not None
    assert beside.last_token_at is not None
    assert beside.last_token_at > alone.last_token_at + 0.5


def test_a_batch_is_slower_a_step_but_quicker_a_token() -> None:
    (one,) = serve([Arrival(0.0, 100, 200)], blocks=3000)
    batch = serve([Arrival(0.0, 100, 200)] * 8, blocks=3000)
    ends = [sequence.last_token_at or math.nan for sequence in batch]
    assert one.last_token_at is not None
    assert one.last_token_at < max(ends) < 8 * one.last_token_at / 4


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 400), st.integers(1, 80)), max_size=12))
def test_doing_many_steps_at_once_changes_no_token_and_little_time(
    rows: list[tuple[float, int, int]],
) -> None:
    arrivals = [Arrival(*row) for row in sorted(rows)]
    exact = serve(arrivals, blocks=40)
    coalesced = serve(arrivals, blocks=40, coalesce=0.02)
    assert [s.generated for s in exact] == [s.generated for s in coalesced]
    assert all(s.state is State.FINISHED for s in coalesced)
    if exact:
        ends = [max(s.last_token_at or 0.0 for s in served) for served in (exact, coalesced)]
        # A newcomer waits for the end of what is under way, at most 20 ms each.
        assert abs(ends[0] - ends[1]) <= 0.02 * len(rows) + 0.1 * ends[0]


@pytest.mark.parametrize(("prompt", "output"), [(0, 1), (1, 0), (100, 93)])
def test_a_request_that_is_empty_or_too_long_is_refused(prompt: int, output: int) -> None:
    scheduler = Scheduler(BlockPool(12, 16), Limits())
    with pytest.raises(ValueError, match=r"at least one prompt token|need 13 KV blocks"):
        scheduler.add(Sequence("r", prompt, output))
    assert not scheduler.busy


def test_the_pool_refuses_to_lie() -> None:
    pool = BlockPool(4, 16)
    pool.take(3)
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match="blocks asked, 1 free"):
            pool.take(wrong)
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="blocks returned, 3 taken"):
            pool.give_back(wrong)
    with pytest.raises(ValueError, match="a KV pool needs blocks"):
        BlockPool(0, 16)
    assert (pool.free, pool.tokens, pool.usage) == (1, 64, 0.75)
