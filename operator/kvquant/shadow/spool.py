"""Segments of the log on the local disk: written line by line, sealed by a change of name.

A segment has `.open` at the end of its name while it is written to, and is locked for as long, so
that what a killed process has left behind can be told from what another one is writing. A sealed
segment holds whole lines only.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvquant.shadow.retention import OPEN, SUFFIX, is_ours, segment_name

_BLOCK = 1 << 20
_MINUTE = 60.0


class Spool:
    """The segments of one run. One thread writes; another may look at those that are sealed."""

    def __init__(self, root: Path, attempt: int, run: str, segment_bytes: int) -> None:
        """Write below a folder.

        Args:
            root: The rollout's folder.
            attempt: The rollout's attempt.
            run: What tells this process from all others.
            segment_bytes: Size from which on a segment is sealed.
        """
        self.root = root
        self._attempt = attempt
        self._run = run
        self.segment_bytes = segment_bytes
        self._number = 0
        self._file: int | None = None
        self._path = root
        self.size = 0
        """Bytes in the segment that is written to."""

    def append(self, line: bytes) -> bool:
        """Write a whole line or nothing, and return whether the segment is sealed now.

        Raises:
            OSError: It cannot be written.
        """
        file = self._open()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            # A full disk may have taken the head of the line; the next one must not follow on it.
            with suppress(OSError):
                os.ftruncate(file, self.size)
            raise
        self.size += len(line)
        return self.size >= self.segment_bytes and self.seal()

    def seal(self) -> bool:
        """End the segment that is written to, and return whether there was one.

        Raises:
            OSError: It cannot be renamed; it stays open.
        """
        if self._file is None:
            return False
        self._path.rename(_sealed(self._path))
        os.close(self._file)
        self._file = None
        self.size = 0
        return True

    def recover(self) -> int:
        """Seal what earlier processes left open, less a last line that is not whole.

        Returns:
            How many segments were found so.

        Raises:
            OSError: A segment cannot be read or renamed.
        """
        found = 0
        for path in self._files(OPEN):
            with path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                # Its writer may have sealed it between our look at the folder and the lock.
                if not path.exists():
                    continue
                whole = _whole(file.fileno())
                if whole:
                    file.truncate(whole)
                    path.rename(_sealed(path))
                    found += 1
                # Its writer may be about to lock what it has just created.
                elif time.time() - path.stat().st_mtime > _MINUTE:
                    path.unlink()
        return found

    def sealed(self) -> Iterator[tuple[Path, str]]:
        """Yield path and name of each sealed segment, the oldest first."""
        for path in sorted(self._files(SUFFIX), key=lambda path: (path.stat().st_mtime, path)):
            yield path, path.relative_to(self.root).as_posix()

    def total(self) -> int:
        """Return the bytes of all segments, open and sealed."""
        return sum(path.stat().st_size for end in (OPEN, SUFFIX) for path in self._files(end))

    def close(self) -> None:
        """Let go of the open segment without sealing it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is not None:
            return self._file
        while True:
            self._number += 1
            name = segment_name(self._attempt, self._run, self._number)
            path = self.root / f"{name}{OPEN}"
            if (self.root / name).exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o640)
            except FileExistsError:
                continue
            # Not every network file system has locks; without one, nothing is recovered by others.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            self._file, self._path, self.size = file, path, 0
            return file

    def _files(self, end: str) -> Iterator[Path]:
        for path in self.root.glob(f"attempt-*/*{end}"):
            if is_ours(path.relative_to(self.root).as_posix()):
                yield path


def _sealed(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(OPEN))


def _whole(file: int) -> int:
    """Return how many bytes a file has up to the end of its last whole line."""
    end = os.fstat(file).st_size
    while end > 0:
        begin = max(0, end - _BLOCK)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
