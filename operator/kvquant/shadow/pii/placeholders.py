"""What stands in the place of personal data: `<EMAIL_3f9a07bc>`.

The tag is an HMAC over kind and value, so that equal values stay equal within a rollout and cannot
be guessed without its key. It is about as long as the value was, between 8 and 32 characters, so
that a prompt keeps its length. Every fourth character of it is a letter: no tag looks like a
number, so that a placeholder is never taken for personal data itself.
"""

from __future__ import annotations

import hashlib
import hmac

import re2

SHORTEST_TAG, LONGEST_TAG = 8, 32
_GROUP = 4

PLACEHOLDER = re2.compile(rb"<[A-Z][A-Z0-9_]{0,31}_(?:[0-9a-f]{3}[a-f]){2,8}>")
"""What `Placeholders` makes, as bytes."""


class Placeholders:
    """Placeholders of one rollout."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, kind: str, value: str) -> str:
        """Return the placeholder for a value in its normalised form."""
        message = f"{kind}\0{value}".encode(errors="surrogatepass")
        digest = hmac.new(self._key, message, hashlib.sha256).digest()
        room = len(value) - len(kind) - len("<_>")
        length = min(max(room, SHORTEST_TAG), LONGEST_TAG)
        groups = (length + _GROUP // 2) // _GROUP
        tag = "".join(
            f"{digest[i]:02x}{digest[i + 1] >> 4:x}{'abcdef'[digest[i + 1] % 16 % 6]}"
            for i in range(0, 2 * groups, 2)
        )
        return f"<{kind}_{tag}>"
