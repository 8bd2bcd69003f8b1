"""The shadow log, read: every record below a folder or a prefix of a bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvquant.shadow.retention import OPEN, SUFFIX
from kvquant.shadow.sinks import filesystem_of


class ShadowLog:
    """The segments below a URL."""

    def __init__(self, url: str) -> None:
        """Find them.

        Args:
            url: A folder, file:///folder, s3://bucket/prefix or gs://bucket/prefix.

        Raises:
            ValueError: It is none of these.
            OSError: It cannot be listed, or there is no segment.
        """
        if "://" not in url:
            url = Path(url).absolute().as_uri()
        self._filesystem, root = filesystem_of(url)
        try:
            found = self._filesystem.find(root)
        # What a bucket's client raises is its own affair.
        except Exception as error:
            raise OSError(f"cannot list {url}: {error}") from error
        # A segment that is still written to holds whole lines, too, but for its last one.
        self.segments = sorted(path for path in found if path.endswith((SUFFIX, SUFFIX + OPEN)))
        if not self.segments:
            raise OSError(f"there is no segment of a log ({SUFFIX}) below {url}")

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield each record. What is no JSON object comes as an empty one.

        Raises:
            OSError: A segment cannot be read.
        """
        for path in self.segments:
            try:
                text = self._filesystem.cat_file(path)
            except Exception as error:
                raise OSError(f"cannot read {path}: {error}") from error
            *lines, _ = text.split(b"\n")
            for line in lines:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                yield record if isinstance(record, dict) else {}
