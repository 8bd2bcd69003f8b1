"""The `Archive` port: a bucket or a folder, through obstore."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kvquant.errors import ArchiveError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

BUCKETS = ("s3", "gs")
"""Schemes of object storage."""

# A name and nothing else: credentials in a URL would end up in logs.
_BUCKET = re.compile(r"[\w.-]+")
_LONGEST_TEXT = 200
_CLIENT: dict[str, Any] = {"timeout": "20s", "connect_timeout": "5s"}
# Whoever writes tries again by himself, and later than a client would.
_RETRIES: dict[str, Any] = {"max_retries": 1, "retry_timeout": timedelta(seconds=20)}


class ObjectArchive:
    """Objects below a prefix. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        """Prepare; nothing is asked of the bucket yet.

        Credentials, region and endpoint come from the environment, by the names that the vendor's
        own tools read: AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ENDPOINT_URL,
        GOOGLE_APPLICATION_CREDENTIALS and so on.

        Args:
            url: s3://bucket/prefix, gs://bucket/prefix or file:///folder.

        Raises:
            ValueError: It is no URL of something that we can write to.
        """
        self._store = _store(url)

    def put(self, path: str, text: str) -> None:
        """Write an object unless it is there already: what was written first stays.

        Raises:
            ArchiveError: It could not be written.
        """
        # Imported here, because most operators keep no archive and need none of it.
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        body = text.encode()
        try:
            try:
                obstore.put(self._store, path, body, mode="create", use_multipart=False)
            except NotSupportedError:
                # Not every store knows how to write only once.
                obstore.put(self._store, path, body, use_multipart=False)
        except AlreadyExistsError:
            return
        except Exception as error:
            # The library raises what the bucket's vendor makes of it, and errors of the system.
            raise ArchiveError(_said(error)) from error


def _store(url: str) -> ObjectStore:
    from obstore.store import LocalStore, from_url

    parts = urlsplit(url)
    clean = not parts.query and not parts.fragment
    if parts.scheme == "file" and clean and not parts.netloc and parts.path.startswith("/"):
        return LocalStore(parts.path, mkdir=True)
    if parts.scheme in BUCKETS and clean and _BUCKET.fullmatch(parts.netloc):
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        options: Any = {**_CLIENT, "allow_http": plain}
        retries: Any = _RETRIES
        return from_url(url.rstrip("/"), client_options=options, retry_config=retries)
    raise ValueError(
        "expected s3://bucket/prefix, gs://bucket/prefix or file:///folder, without credentials"
    )


def _said(error: Exception) -> str:
    """Return what an error says on one line, less the answer of a server that it may quote."""
    text = " ".join(str(error).split("<", 1)[0].split())
    return f"{type(error).__name__}: {text[:_LONGEST_TEXT]}"
