"""Brings sealed segments into a bucket, and removes those that are too old or too many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from kvquant.core.shadow_settings import LogSettings
from kvquant.shadow.log_counts import LogCounts
from kvquant.shadow.retention import sweep
from kvquant.shadow.sinks import Sink
from kvquant.shadow.spool import Spool
from kvquant.shadow.trouble import Trouble

GIVE_UP_SECONDS = 3600.0
"""A segment that could not be uploaded for so long is dropped."""
_SWEEP_SECONDS = 900.0


class Publisher:
    """Uploads and removes in a thread of its own, so that a slow bucket does not stop the disk."""

    def __init__(
        self,
        settings: LogSettings,
        spool: Spool,
        sink: Sink,
        counts: LogCounts,
        *,
        upload: bool,
        now: Callable[[], float],
    ) -> None:
        self.fits = True
        """Whether what is kept is within the rollout's share."""
        self._settings = settings
        self._spool = spool
        self._sink = sink
        self._counts = counts
        self._upload = upload
        self._now = now
        self._wake = asyncio.Event()
        self._finishing = asyncio.Event()
        self._trouble = Trouble(counts, f"keep the log of pairs at {settings.url}")
        self._thread = ThreadPoolExecutor(1, "pair-log-upload")

    def wake(self) -> None:
        """Say that a segment was sealed."""
        self._wake.set()

    def finish(self) -> None:
        """Let `run` end after one last try."""
        self._finishing.set()
        self._wake.set()

    async def run(self) -> None:
        """Upload and remove until the end. An error only makes it wait."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                finishing = self._finishing.is_set()
                self._wake.clear()
                try:
                    await loop.run_in_executor(self._thread, self._tidy)
                    self._trouble.over()
                # What a file system raises is its own affair, and none of it may end the service.
                except Exception as error:
                    self._trouble.happened(error)
                if finishing:
                    return
                awaited = self._finishing if self._trouble.pause else self._wake
                with suppress(TimeoutError):
                    await asyncio.wait_for(awaited.wait(), self._trouble.pause or _SWEEP_SECONDS)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _tidy(self) -> None:
        if self._upload:
            for path, name in list(self._spool.sealed()):
                self._bring(path, name)
        oldest = self._now() - self._settings.retention_hours * 3600
        # Room for the segment that is being written, so that the whole stays within the share.
        most = self._settings.max_bytes - self._spool.segment_bytes
        found = sweep(self._sink.stored(), oldest, most)
        for name in found.remove:
            self._sink.remove(name)
            self._counts.removed += 1
        self.fits = found.remaining <= most

    def _bring(self, path: Path, name: str) -> None:
        try:
            self._sink.publish(path, name)
        except Exception:
            if self._now() - path.stat().st_mtime > GIVE_UP_SECONDS:
                with path.open("rb") as file:
                    self._counts.lost += sum(1 for _ in file)
                path.unlink()
            raise
        path.unlink()
        self._counts.uploaded += 1
