"""The log of pairs as segments: lines wait in bounded memory, and threads write and upload them."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvquant.core.shadow_settings import KIB, LogSettings
from kvquant.shadow.log_counts import LogCounts
from kvquant.shadow.publishing import Publisher
from kvquant.shadow.sinks import Sink
from kvquant.shadow.spool import Spool
from kvquant.shadow.trouble import Trouble

_LOG = logging.getLogger(__name__)

MEMORY_BYTES = 64 * KIB * KIB
"""Lines that wait for the disk at most."""
DISK_MARGIN = 4 * MEMORY_BYTES
"""Free space below which nothing more is taken; what waits in memory still fits in."""
LOOK_SECONDS = 1.0
"""Time between two looks at the clock and at the room on disk, when nothing is written."""
_SPOOLED_SEGMENTS = 4
_CLOSE_SECONDS = 5.0
"""For the disk, and again for the upload: together less than what the service allows for both."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The world around the log; tests bring their own."""

    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class _Turn:
    """What the thread has done."""

    written: int
    sealed: bool
    room: bool
    error: Exception | None = None


class SegmentLog:
    """Writes segments, and has them uploaded and removed."""

    def __init__(
        self,
        settings: LogSettings,
        spool: Spool,
        sink: Sink,
        *,
        upload: bool,
        rotate_seconds: float,
        around: Surroundings,
    ) -> None:
        self.counts = LogCounts()
        self._around = around
        self._spool = spool
        self._rotate_seconds = rotate_seconds
        self._spool_bytes = _SPOOLED_SEGMENTS * spool.segment_bytes if upload else None
        self._publisher = Publisher(
            settings, spool, sink, self.counts, upload=upload, now=around.now
        )
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._room = True
        self._begun = 0.0
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._trouble = Trouble(self.counts, f"write the log of pairs in {spool.root}")
        self._disk = ThreadPoolExecutor(1, "pair-log-disk")
        self._writing: asyncio.Task[None] | None = None
        self._publishing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, with what an earlier process could not finish."""
        self._writing = asyncio.create_task(self._write_on())

    async def write(self, record: Mapping[str, object]) -> bool:
        """Take a record without waiting; False: it is dropped, because there is no room."""
        line = None
        if self._room and self._publisher.fits and not self._closing.is_set():
            line = _line(record)
        # A line of any length is taken when none waits, as nothing else would ever let it in.
        if line is None or (self._bytes and self._bytes + len(line) > MEMORY_BYTES):
            self.counts.refused += 1
            return False
        self._lines.append(line)
        self._bytes += len(line)
        self._wake.set()
        return True

    async def close(self) -> None:
        """Write and upload what there is, within seconds."""
        self._closing.set()
        self._wake.set()
        await _ended(self._writing)
        self._publisher.finish()
        await _ended(self._publishing)
        self.counts.lost += len(self._lines)
        self._lines.clear()
        self._disk.shutdown(wait=False, cancel_futures=True)

    async def _write_on(self) -> None:
        """Write what comes until the end. An error only makes it wait, with the lines in memory."""
        loop = asyncio.get_running_loop()
        recovered = await loop.run_in_executor(self._disk, self._recover)
        if recovered is not None:
            self._trouble.happened(recovered)
        self._publishing = asyncio.create_task(self._publisher.run())
        while True:
            closing = self._closing.is_set()
            self._wake.clear()
            turn = await loop.run_in_executor(self._disk, self._turn, list(self._lines), closing)
            for _ in range(turn.written):
                self._bytes -= len(self._lines.popleft())
            self.counts.written += turn.written
            self._room = turn.room
            if turn.sealed:
                self._publisher.wake()
            if turn.error is None:
                self._trouble.over()
            else:
                self._trouble.happened(turn.error)
            if closing:
                return
            # While the disk is in trouble, new lines are no reason to try it sooner.
            awaited = self._closing if self._trouble.pause else self._wake
            with suppress(TimeoutError):
                await asyncio.wait_for(awaited.wait(), max(LOOK_SECONDS, self._trouble.pause))

    def _recover(self) -> Exception | None:
        try:
            self._spool.recover()
        except Exception as error:
            return error
        return None

    def _turn(self, lines: Sequence[bytes], closing: bool) -> _Turn:
        """Write all lines that wait. Runs in the thread, and raises nothing."""
        written, sealed, room = 0, False, True
        try:
            for line in lines:
                if not self._spool.size:
                    self._begun = self._around.monotonic()
                sealed |= self._spool.append(line)
                written += 1
            is_old = self._around.monotonic() - self._begun >= self._rotate_seconds
            if self._spool.size and (closing or is_old):
                sealed |= self._spool.seal()
            room = self._has_room()
        # What a file system raises is its own affair, and none of it may end the service.
        except Exception as error:
            return _Turn(written, sealed, room, error)
        return _Turn(written, sealed, room)

    def _has_room(self) -> bool:
        if self._spool_bytes is not None and self._spool.total() >= self._spool_bytes:
            return False
        root = self._spool.root
        folder = next(folder for folder in (root, *root.parents) if folder.exists())
        return self._around.free(folder) >= DISK_MARGIN


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Wait for a task that is about to end, and no longer than a pod that ends has time."""
    if task is None:
        return
    await asyncio.wait([task], timeout=_CLOSE_SECONDS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _line(record: Mapping[str, object]) -> bytes | None:
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        try:
            return text.encode() + b"\n"
        except UnicodeEncodeError:
            # Half an emoji, as a cut answer ends with: JSON can say it, UTF-8 cannot.
            return json.dumps(record, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        # A mistake of ours. The error's text, like its traceback, may carry what was in the record.
        _LOG.error("A record of a pair cannot be written as JSON (%s)", type(error).__name__)
        return None
