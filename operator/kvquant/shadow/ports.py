"""What the service needs of its neighbours: one that finds personal data, one that keeps pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Dropped(Exception):  # noqa: N818 - what became of the request, not what went wrong
    """A mirrored request that will not be compared.

    Attributes:
        reason: Value of the label `reason`: a word of ours, never of the request.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Cleaned(Protocol):
    """A document without personal data."""

    @property
    def body(self) -> Any:
        """The document, with placeholders."""

    @property
    def found(self) -> Mapping[str, int]:
        """How much was replaced, by kind."""


class Sanitizer(Protocol):
    """Replaces personal data in every string of a JSON document.

    It raises an exception with a `reason` when it cannot promise to have found it all.
    """

    def body(self, body: Any, /) -> Cleaned:
        """Return the document without personal data."""


class Log(Protocol):
    """Keeps compared pairs."""

    async def start(self) -> None:
        """Begin."""

    async def write(self, record: Mapping[str, object], /) -> bool:
        """Keep a record; False: there is no room, and it was dropped."""

    async def close(self) -> None:
        """Write what is left, and end."""
