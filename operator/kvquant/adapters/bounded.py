"""Read an HTTP answer with a bound on its size and on the time that it takes as a whole.

A time-out of a socket starts anew with each byte; a server that sends one now and then would hold a
thread for ever, and one that sends without end would fill the memory.
"""

from __future__ import annotations

import time

import urllib3


class UnboundedAnswerError(OSError):
    """The answer is too long, or takes too long."""


def read(response: urllib3.BaseHTTPResponse, most: int, within: float) -> bytes:
    """Return the body.

    Args:
        response: An answer whose body was not read yet.
        most: Bytes that it may have, decompressed.
        within: Seconds that it may take.

    Raises:
        UnboundedAnswerError: It is too long, or takes too long. Its connection is closed.
        urllib3.exceptions.HTTPError: The connection broke.
    """
    deadline = time.monotonic() + within
    parts: list[bytes] = []
    size = 0
    while part := response.read1(2**18, decode_content=True):
        parts.append(part)
        size += len(part)
        late = time.monotonic() > deadline
        if size > most or late:
            response.close()
            problem = f"takes longer than {within:g} s" if late else f"has more than {most} bytes"
            raise UnboundedAnswerError(f"the answer {problem}")
    response.release_conn()
    return b"".join(parts)
