"""Which segments of the log have to go. What does not bear a name that we give is left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SUFFIX = ".jsonl"
OPEN = ".open"
"""Added to the name of a segment that is still written to."""

RUN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""What a run may be called: it becomes part of file names and of object keys."""

_OURS = re.compile(rf"attempt-\d+/{RUN.pattern}-\d{{6}}{re.escape(SUFFIX)}(?:{re.escape(OPEN)})?")


@dataclass(frozen=True, slots=True)
class Stored:
    """A segment of the log where it is kept.

    Attributes:
        name: Path below the rollout's folder: attempt-3/7c9e6679-000004.jsonl.
        size: Bytes.
        modified: When it was written last, in seconds since the epoch.
    """

    name: str
    size: int
    modified: float


def segment_name(attempt: int, run: str, number: int) -> str:
    """Return the name of a segment below the rollout's folder."""
    return f"attempt-{attempt}/{run}-{number:06d}{SUFFIX}"


def is_ours(name: str) -> bool:
    """Return whether a name below the rollout's folder is one that the log gives."""
    return _OURS.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What has to go, and what remains.

    Attributes:
        remove: Names of the segments to remove, the oldest first.
        remaining: Bytes of all the others, those that are still written to included.
    """

    remove: tuple[str, ...]
    remaining: int


def sweep(stored: Iterable[Stored], oldest: float, most: int) -> Sweep:
    """Choose the segments that are too old, and then the oldest until the others fit.

    Args:
        stored: What is there. Names that are not ours are neither counted nor chosen; segments that
            are still written to are counted and not chosen.
        oldest: Instant before which nothing is kept, in seconds since the epoch.
        most: Bytes that may remain.
    """
    ours = sorted((s for s in stored if is_ours(s.name)), key=lambda s: (s.modified, s.name))
    remaining = sum(segment.size for segment in ours)
    remove = []
    for segment in ours:
        if segment.name.endswith(OPEN):
            continue
        if segment.modified >= oldest and remaining <= most:
            break
        remove.append(segment.name)
        remaining -= segment.size
    return Sweep(tuple(remove), remaining)
