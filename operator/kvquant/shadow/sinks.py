"""Where the log is kept: a folder, or a bucket. All of them are file systems of fsspec."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.spec import AbstractFileSystem

from kvquant.shadow.retention import Stored, is_ours

BUCKETS = ("s3", "gs")
"""Schemes whose objects obstore writes."""

# A name and nothing else: credentials in a URL would end up in logs.
_BUCKET = re.compile(r"[\w.-]+")
_LOOKS_AT_ONCE = 16


class Sink:
    """One rollout's folder in a file system. Every method raises whatever the file system does."""

    def __init__(self, filesystem: AbstractFileSystem, root: str) -> None:
        """Write below a path.

        Args:
            filesystem: Where.
            root: The rollout's folder, as that file system spells it.
        """
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        # Objects never change, so that one look at each will do. Bucket listings of fsspec do not
        # tell when an object was written.
        self._written: dict[str, float] = {}

    def publish(self, file: Path, name: str) -> None:
        """Copy a whole local file."""
        self._filesystem.put_file(str(file), f"{self._root}/{name}")

    def stored(self) -> list[Stored]:
        """Return all of our segments that are there."""
        begin = len(self._root) + 1
        found: Mapping[str, Mapping[str, Any]] = self._filesystem.find(self._root, detail=True)
        ours = {path[begin:]: info for path, info in found.items() if is_ours(path[begin:])}
        unknown = [name for name, info in ours.items() if "mtime" not in info]
        self._written = {name: at for name, at in self._written.items() if name in ours}
        self._look_at([name for name in unknown if name not in self._written])
        return [
            Stored(name, int(info["size"]), float(info.get("mtime", self._written.get(name, 0))))
            for name, info in ours.items()
            # What is gone since it was listed was not looked at.
            if "mtime" in info or name in self._written
        ]

    def remove(self, name: str) -> None:
        """Remove a segment; another process may have been faster."""
        try:
            self._filesystem.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return

    def _look_at(self, names: list[str]) -> None:
        def look(name: str) -> tuple[str, datetime | None]:
            try:
                return name, self._filesystem.modified(f"{self._root}/{name}")
            except FileNotFoundError:
                return name, None

        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            for name, at in pool.map(look, names):
                if at is not None:
                    self._written[name] = at.timestamp()


def filesystem_of(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL, and the path in it.

    Credentials, region and endpoint of a bucket come from the environment, by the names that its
    vendor's own tools read: AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ENDPOINT_URL,
    GOOGLE_APPLICATION_CREDENTIALS and so on.

    Raises:
        ValueError: It is no URL of a folder that we can write to.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return fsspec.filesystem("file"), parts.path.rstrip("/")
    if parts.scheme in BUCKETS and _BUCKET.fullmatch(parts.netloc) and not parts.query:
        # Imported here, because a log on a volume needs none of it.
        from obstore.fsspec import FsspecStore

        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        scheme: Any = parts.scheme
        # A cached one would keep the credentials of its first day. The types know no such option.
        unshared: dict[str, Any] = {"skip_instance_cache": True}
        filesystem = FsspecStore(
            scheme,
            client_options={"allow_http": plain, "timeout": "60s", "connect_timeout": "5s"},
            # The log tries again by itself, and later than a client would.
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=30)},
            **unshared,
        )
        return filesystem, f"{parts.netloc}{parts.path}".rstrip("/")
    raise ValueError(
        f"the log cannot be written to {url!r}: write file:///folder, s3://bucket/prefix or "
        "gs://bucket/prefix"
    )
