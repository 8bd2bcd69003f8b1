"""From the bytes of a mirrored request to a JSON document, within bounds. Pure."""

from __future__ import annotations

import json
import zlib
from typing import Any

from kvquant.shadow.ports import Dropped

_PLAIN = frozenset({"", "identity"})
_GZIP = frozenset({"gzip", "x-gzip"})


def decoded(body: bytes, encoding: str, most: int) -> bytes:
    """Return what a body says, its Content-Encoding undone.

    Raises:
        Dropped: The encoding is unknown or broken, or there is more behind it than `most` bytes.
    """
    encoding = encoding.strip().lower()
    if encoding in _PLAIN:
        return body
    if encoding in _GZIP:
        return _inflated(body, zlib.MAX_WBITS | 16, most)
    if encoding == "deflate":
        # The name means zlib's format; some clients send the naked stream all the same.
        zlib_header = len(body) > 1 and body[0] & 0x0F == 8 and not (body[0] << 8 | body[1]) % 31
        return _inflated(body, zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS, most)
    raise Dropped("encoding")


def _inflated(body: bytes, window: int, most: int) -> bytes:
    machine = zlib.decompressobj(window)
    try:
        # One byte more than allowed tells a bomb from a body that just fits.
        text = machine.decompress(body, most + 1)
    except zlib.error:
        raise Dropped("encoding") from None
    if len(text) > most:
        raise Dropped("size")
    if not machine.eof:
        raise Dropped("encoding")
    return text


def parsed(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Raises:
        Dropped: It is none.
    """
    try:
        document = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        # The exception would quote the request: nothing of it is passed on.
        document = None
    if not isinstance(document, dict):
        raise Dropped("unreadable")
    return document


def _refuse(_constant: str) -> None:
    raise ValueError("not JSON")
