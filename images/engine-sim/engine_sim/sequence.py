"""One request as the scheduler sees it."""

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class Sequence:
    """A request: how long it is and how far it has come. Times are virtual seconds.

    Attributes:
        request_id: unique while the request lives.
        prompt_tokens: tokens of the prompt, at least 1.
        output_tokens: tokens it will generate, at least 1.
        arrival: when it was added.
        max_tokens: what the client allowed, for the metrics.
        stops: whether it ends by itself rather than at the client's limit.
        generated: tokens generated so far; they survive a preemption.
        computed: tokens whose KV is in the pool.
        blocks: KV blocks it holds.
        preemptions: how often it lost its blocks.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int
    arrival: float = 0.0
    max_tokens: int = 0
    stops: bool = False
    state: State = State.WAITING
    generated: int = 0
    computed: int = 0
    blocks: int = 0
    preemptions: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    @property
    def total(self) -> int:
        """Tokens it consists of now: prompt and generated."""
        return self.prompt_tokens + self.generated

    @property
    def pending(self) -> int:
        """Tokens whose KV is still to be computed."""
        return self.prompt_tokens + self.generated - self.computed
