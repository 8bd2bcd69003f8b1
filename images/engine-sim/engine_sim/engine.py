"""The engine's loop: steps of the scheduler placed on a virtual clock."""

from collections.abc import Callable
from dataclasses import dataclass

from .cost import StepCost
from .scheduler import Batch, Progress, Scheduler
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that ended: when, what it held and what came out. Times are virtual seconds."""

    began: float
    ended: float
    batch: Batch
    progress: tuple[Progress, ...]


class Engine:
    """Runs the scheduler's steps one after the other on virtual time.

    Nothing here waits: ``advance`` completes every step that ended by the given time. A test or a
    replay advances to infinity, a server to the time of the wall clock.
    """

    def __init__(self, scheduler: Scheduler, cost: StepCost, coalesce: float = 0.0) -> None:
        """Make an idle engine.

        Args:
            scheduler: owns the requests.
            cost: how long a step takes.
            coalesce: virtual seconds of plain decoding that may be done as one event, 0 for none;
                a request that arrives meanwhile waits for its end.
        """
        self.scheduler = scheduler
        self.cost = cost
        self.now = 0.0
        self._coalesce = coalesce
        self._batch: Batch | None = None
        self._began = 0.0
        self._ends = 0.0

    @property
    def step_ends(self) -> float | None:
        """When the step in flight ends, None when idle."""
        return self._ends if self._batch else None

    @property
    def backlog(self) -> bool:
        """Whether the last step left requests waiting; those that came since are no backlog."""
        waiting = self.scheduler.waiting
        return bool(waiting) and waiting[0].arrival < self._began

    def add(self, sequence: Sequence, at: float) -> None:
        """Add a request at a time not before the last ``advance``; starts a step when idle."""
        sequence.arrival = at
        self.scheduler.add(sequence)
        if self._batch is None:
            self._begin(at)

    def abort(self, sequence: Sequence) -> None:
        """Drop a request."""
        self.scheduler.abort(sequence)

    def advance(self, until: float, on_step: Callable[[StepResult], None]) -> None:
        """Complete the steps that end by ``until``, telling ``on_step`` of each in order."""
        while self._batch is not None and self._ends <= until:
            batch, began, ended = self._batch, self._began, self._ends
            self.now = ended
            progress = tuple(self.scheduler.complete(batch, ended))
            self._batch = None
            self._begin(ended)
            on_step(StepResult(began, ended, batch, progress))
        self.now = max(self.now, until) if self._batch is None else self.now

    def _begin(self, at: float) -> None:
        batch = self.scheduler.schedule(at)
        self._batch = batch
        if batch is None:
            return
        once = self.cost.seconds(batch)
        if self._coalesce > once:
            repeats = self.scheduler.repeats_within(batch, int(self._coalesce / once))
            if repeats > 1:
                self.scheduler.repeat(batch, repeats)
        self._began, self._ends = at, at + self.cost.seconds(batch)
