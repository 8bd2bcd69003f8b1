"""A process that says what went wrong, and not with which text.

Exceptions quote what they choke on, and tracebacks and warnings quote exceptions. Everything that
the process writes goes through here: messages of our own modules as they are, of all others only
who said something, and of exceptions only their kinds and where they come from.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

OURS = "kvquant."


class DiscreetFormatter(logging.Formatter):
    """Formats records without a word of what exceptions and other people's messages say."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        said = record.getMessage() if _is_ours(record) else "something was said, not repeated here"
        if record.exc_info and record.exc_info[0] is not None:
            said += f" ({described(record.exc_info[1])})"
        plain = logging.makeLogRecord(
            {**record.__dict__, "msg": said, "args": None, "exc_info": None, "exc_text": None}
        )
        plain.stack_info = None
        return super().format(plain)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith(OURS) and record.name != "kvquant.shadow.pii"


def described(error: BaseException | None) -> str:
    """Return the kinds of an exception and of its causes, and where in our code it came from."""
    kinds, seen = [], set[int]()
    place = "nowhere"
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds.append(type(error).__name__)
        for frame in traceback.extract_tb(error.__traceback__):
            if "kvquant" in frame.filename:
                place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
        error = error.__cause__ or error.__context__
    return f"{' from '.join(kinds)} at {place}"


def configure(level: str) -> None:
    """Let everything that this process writes go through here."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(DiscreetFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda said: _uncaught(said.exc_type, said.exc_value, said.exc_traceback)
    sys.unraisablehook = lambda said: _uncaught(said.exc_type, said.exc_value, said.exc_traceback)


def _uncaught(
    kind: type[BaseException] | None,
    error: BaseException | None,
    _traceback: TracebackType | None,
) -> None:
    if kind is not None and issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("nobody caught an exception: %s", described(error))


def loop_said(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop complains of: an exception handler for it."""
    logger.error("in the event loop: %s", described(context.get("exception")))
