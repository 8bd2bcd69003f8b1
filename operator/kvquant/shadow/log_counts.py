"""What the log of pairs counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LogCounts:
    """What became of the records, since the start.

    Attributes:
        written: On disk.
        refused: Not taken, for lack of memory or disk.
        lost: Taken, and dropped after all, because they could not be written or uploaded.
        errors: Failed calls of the disk or of the bucket.
        uploaded: Segments that were copied into a bucket.
        removed: Segments that had become too old or too many.
    """

    written: int = 0
    refused: int = 0
    lost: int = 0
    errors: int = 0
    uploaded: int = 0
    removed: int = 0
