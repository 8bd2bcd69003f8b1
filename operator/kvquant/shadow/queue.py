"""The mirrored requests that wait: bounded by number and bytes, oldest first, never for long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Job:
    """A mirrored request as it arrived.

    Attributes:
        path: Its endpoint.
        body: Its bytes; shown nowhere, not even in a traceback.
        encoding: Its Content-Encoding.
        bucket: Bucket of the length of its body as it travelled.
        arrived: When, on the clock of the service.
        deadline: Until when both arms must have answered.
        dispatch_by: Until when it must have been sent.
    """

    path: str
    body: bytes = field(repr=False)
    encoding: str
    bucket: str
    arrived: float
    deadline: float
    dispatch_by: float


class WaitingJobs:
    """Jobs in the order of their arrival. For one event loop."""

    def __init__(
        self,
        most_jobs: int,
        most_bytes: int,
        clock: Callable[[], float],
        expired: Callable[[], None],
    ) -> None:
        """Make an empty queue whose gate is open.

        Args:
            most_jobs: How many may wait.
            most_bytes: How many bytes may wait.
            clock: Returns the present time.
            expired: Called for each job that has waited too long.
        """
        self._most_jobs, self._most_bytes = most_jobs, most_bytes
        self._clock, self._expired = clock, expired
        self._jobs: deque[Job] = deque()
        self._open = True
        self._ready = asyncio.Event()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def has_room(self, size: int) -> bool:
        """Return whether a job of so many bytes could wait."""
        return len(self._jobs) < self._most_jobs and self.bytes + size <= self._most_bytes

    def offer(self, job: Job) -> bool:
        """Let a job wait; False: there is no room, and it does not."""
        self.expire()
        if not self.has_room(len(job.body)):
            return False
        self._jobs.append(job)
        self.bytes += len(job.body)
        self._see()
        return True

    def gate(self, *, is_open: bool) -> None:
        """Let jobs go on, or keep them."""
        self._open = is_open
        self._see()

    def expire(self) -> None:
        """Drop the jobs that have waited too long."""
        now = self._clock()
        while self._jobs and self._jobs[0].dispatch_by <= now:
            self._pop()
            self._expired()
        self._see()

    async def take(self) -> Job:
        """Wait for a job that may go on, and return it."""
        while True:
            await self._ready.wait()
            self.expire()
            if self._open and self._jobs:
                job = self._pop()
                self._see()
                return job

    def _pop(self) -> Job:
        job = self._jobs.popleft()
        self.bytes -= len(job.body)
        return job

    def _see(self) -> None:
        if self._open and self._jobs:
            self._ready.set()
        else:
            self._ready.clear()
