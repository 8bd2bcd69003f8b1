"""Await a condition instead of sleeping: the one way in which tests wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T], timeout: float, message: str, interval: float = 0.05
) -> T:
    """Return the predicate's first truthy answer; fail with the message after `timeout` seconds.

    An exception of the predicate counts as "not yet" and is shown when time runs out, because
    the thing that is waited for often does not exist at first.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            answer = predicate()
            if answer:
                return answer
            last = answer
        except Exception as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"{message}: not within {timeout:g} s; last seen: {last!r}")
        time.sleep(interval)
