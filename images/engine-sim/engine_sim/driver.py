"""Runs the engine in real time on one asyncio loop.

Virtual time is wall time times the scale. The loop is woken at the end of a step, but at most every
few milliseconds; the steps that ended meanwhile are completed together at their exact virtual
times, so figures do not depend on the wake-ups.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from .engine import Engine, StepResult
from .faults import Faults
from .sequence import Sequence
from .stats import Stats

WAKE_SECONDS = 0.005
"""Least wall time between two wake-ups."""


class EngineDeadError(Exception):
    """The engine core died; every request fails from now on."""


@dataclass(eq=False)
class Ticket:
    """A client's view of its request: tokens that arrived and a way to wait for more."""

    sequence: Sequence
    every_token: bool
    tokens: int = 0
    finished: bool = False
    dead: bool = False
    _notified: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self) -> tuple[int, bool]:
        """Wait for news; return the new tokens and whether the request is finished.

        Raises:
            EngineDeadError: the engine died before the request finished.
        """
        await self._changed.wait()
        self._changed.clear()
        if self.dead and not self.finished:
            raise EngineDeadError
        tokens, self.tokens = self.tokens, 0
        return tokens, self.finished

    def add(self, tokens: int, *, finished: bool) -> None:
        """Add tokens without waking the client yet."""
        self.tokens += tokens
        self.finished = finished

    def wake(self, now: float, gap: float) -> bool:
        """Wake the client if it is due: at the end, or for a stream every ``gap`` seconds."""
        due = self.finished or self.dead
        if self.every_token and self.tokens and now - self._notified >= gap:
            due = True
        if due:
            self._notified = now
            self._changed.set()
        return due


class Driver:
    """Feeds requests to the engine and its tokens back to the clients."""

    def __init__(
        self,
        engine: Engine,
        stats: Stats,
        faults: Faults,
        time_scale: float,
        on_death: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._stats = stats
        self._faults = faults
        self._scale = time_scale
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._tickets: dict[Sequence, Ticket] = {}
        self._unsent: set[Ticket] = set()
        self._timer: asyncio.TimerHandle | None = None
        # At a high scale a stream gets several tokens a chunk, as a slow reader of vLLM does.
        self._gap = max(WAKE_SECONDS, 0.002 * time_scale) if time_scale > 1 else 0.0
        self._accepted = 0
        self._doomed = False
        self.cause_of_death: str | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that wait for an answer."""
        return len(self._tickets)

    @property
    def accepted(self) -> int:
        """Requests accepted so far."""
        return self._accepted

    def submit(self, sequence: Sequence, *, every_token: bool) -> Ticket:
        """Hand a request to the engine.

        Raises:
            EngineDeadError: the engine has died.
            ValueError: it can never fit into the KV cache.
        """
        if self.cause_of_death:
            raise EngineDeadError
        self._pump()
        self._engine.add(sequence, self._virtual_now())
        ticket = Ticket(sequence, every_token)
        self._tickets[sequence] = ticket
        self.idle.clear()
        self._accepted += 1
        limit = self._faults.exit_after
        longest = self._faults.exit_at_prompt_tokens
        self._doomed |= limit is not None and self._accepted >= max(1, limit)
        self._doomed |= longest is not None and sequence.prompt_tokens >= longest
        self._rearm()
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """Drop a request whose client left; one that finished is left alone."""
        if ticket.sequence in self._tickets:
            self._forget(ticket.sequence)
            self._engine.abort(ticket.sequence)
        self._unsent.discard(ticket)

    def die(self, cause: str) -> None:
        """Kill the engine core: every request fails, now and later."""
        if self.cause_of_death:
            return
        self.cause_of_death = cause
        for ticket in self._tickets.values():
            ticket.dead = True
            ticket.wake(0.0, 0.0)
        self._tickets.clear()
        self.idle.set()
        self._on_death(cause)

    def _forget(self, sequence: Sequence) -> None:
        del self._tickets[sequence]
        if not self._tickets:
            self.idle.set()

    @property
    def _hanging(self) -> bool:
        limit = self._faults.hang_after
        return limit is not None and self._accepted > limit

    def _virtual_now(self) -> float:
        return (self._loop.time() - self._started) * self._scale

    def _pump(self) -> None:
        """Complete what ended by now and wake the clients that are due."""
        if self.cause_of_death or self._hanging:
            return
        self._engine.advance(self._virtual_now(), self._on_step)
        now = self._loop.time()
        woken = [ticket for ticket in self._unsent if ticket.wake(now, self._gap)]
        self._unsent.difference_update(woken)

    def _on_step(self, step: StepResult) -> None:
        if self.cause_of_death:
            return
        for progress in step.progress:
            ticket = self._tickets.get(progress.sequence)
            if ticket is None:
                continue
            ticket.add(progress.tokens, finished=progress.finished)
            self._unsent.add(ticket)
            if progress.finished:
                self._forget(progress.sequence)
        self._stats.record(step)
        usage = self._faults.exit_at_kv_usage
        if self._doomed:
            self.die("EngineCore encountered a fatal error: CUDA error: illegal memory access")
        elif usage is not None and self._engine.scheduler.pool.usage >= usage:
            self.die("EngineCore encountered a fatal error: torch.OutOfMemoryError")

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()
        self._rearm()

    def _rearm(self) -> None:
        ends = self._engine.step_ends
        if self._timer is not None or self.cause_of_death or self._hanging:
            return
        soonest = self._loop.time() + WAKE_SECONDS
        if ends is not None:
            at = max(self._started + ends / self._scale, soonest)
        elif self._unsent:
            at = soonest
        else:
            return
        self._timer = self._loop.call_at(at, self._on_timer)
