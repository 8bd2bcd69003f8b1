"""An archive in memory that breaks as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kvquant.errors import ArchiveError


@dataclass(slots=True)
class FakeArchive:
    """Keeps what was written first, as the real one does.

    Attributes:
        objects: Texts by path.
        puts: Paths in the order in which they were written, repetitions included.
        broken: Tells which paths cannot be written now.
        gate: While it is not set, a write waits, as for a bucket that hangs.
    """

    objects: dict[str, str] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    broken: Callable[[str], bool] = lambda path: False
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def put(self, path: str, text: str) -> None:
        self.gate.wait(20)
        if self.broken(path):
            raise ArchiveError("the bucket is away")
        self.puts.append(path)
        self.objects.setdefault(path, text)
