"""The log of compared pairs: JSON Lines, in segments, on a volume or in a bucket.

Nothing here ever makes the service wait, and no error of what is underneath ends it. When memory or
disk is short, `write` refuses, and the service compares no more until there is room.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from kvquant.core.shadow_settings import LogSettings
from kvquant.shadow.log_counts import LogCounts
from kvquant.shadow.retention import RUN
from kvquant.shadow.segment_log import SegmentLog, Surroundings
from kvquant.shadow.sinks import Sink, filesystem_of
from kvquant.shadow.spool import Spool

_SEGMENTS_OF_ALL = 4
"""The rollout's share holds at least so many segments, so that removing one does not empty it."""


class PairLog(Protocol):
    """Takes a record of each compared pair."""

    counts: LogCounts

    async def start(self) -> None:
        """Begin, with what an earlier process could not finish."""

    async def write(self, record: Mapping[str, object]) -> bool:
        """Take a record without waiting; False: it is dropped, because there is no room."""

    async def close(self) -> None:
        """Write and upload what there is, within seconds."""


class NoLog:
    """The log of who wants none."""

    def __init__(self) -> None:
        self.counts = LogCounts()

    async def start(self) -> None:
        """Do nothing."""

    async def write(self, record: Mapping[str, object]) -> bool:  # noqa: ARG002 - it is not kept
        """Take the record, and forget it."""
        return True

    async def close(self) -> None:
        """Do nothing."""


def open_log(
    settings: LogSettings | None,
    *,
    namespace: str,
    rollout: str,
    attempt: int,
    run: str,
    spool: Path | None = None,
    rotate_seconds: float = 300.0,
    around: Surroundings | None = None,
) -> PairLog:
    """Return the log of a rollout: `<url>/<namespace>/<rollout>/attempt-<n>/<run>-<seq>.jsonl`.

    Args:
        settings: Where and how much; None: nothing is kept.
        namespace: The rollout's.
        rollout: Its name.
        attempt: Its attempt.
        run: What tells this process from all others, such as a UUID.
        spool: Folder for what is not uploaded yet; only needed for a bucket.
        rotate_seconds: A segment is ended after so long, however small it is.
        around: Tests bring their own.

    Raises:
        ValueError: The URL or the run cannot be used.
    """
    if settings is None:
        return NoLog()
    if not RUN.fullmatch(run):
        raise ValueError(f"the run {run!r} cannot be part of a file's name")
    filesystem, folder = filesystem_of(settings.url)
    below = f"{namespace}/{rollout}"
    local = settings.url.startswith("file:")
    root = Path(folder, below) if local else (spool or _default_spool()) / below
    return SegmentLog(
        settings,
        Spool(
            root, attempt, run, min(settings.rotate_bytes, settings.max_bytes // _SEGMENTS_OF_ALL)
        ),
        Sink(filesystem, f"{folder}/{below}"),
        upload=not local,
        rotate_seconds=rotate_seconds,
        around=around or Surroundings(),
    )


def _default_spool() -> Path:
    return Path(tempfile.gettempdir(), "kvquant-spool")
