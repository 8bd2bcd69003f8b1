"""An example set from where it lies: a path, a file:// URL, or a bucket."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kvquant.evaluation.examples import DatasetError, Example, read
from kvquant.shadow.trouble import said

REMOTE = ("s3", "gs")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A set, and which one it is.

    Attributes:
        name: What the user calls it.
        digest: SHA-256 of the file, in hexadecimal.
        examples: What it holds.
    """

    name: str
    digest: str
    examples: list[Example]


def fetch(name: str) -> Dataset:
    """Return the set at a path, a file:// URL, or in a bucket (s3://, gs://).

    Credentials of a bucket come from the environment variables that its vendor's own tools read.

    Raises:
        DatasetError: It cannot be read, or is no such set; the message names the line.
    """
    scheme = urlsplit(name).scheme if "://" in name else ""
    if not scheme:
        return _read(Path(name), name)
    if scheme == "file":
        return _read(Path(unquote(urlsplit(name).path)), name)
    if scheme not in REMOTE:
        raise DatasetError(
            f"{name}: write a path, file:///path, s3://bucket/key or gs://bucket/key"
        )
    with tempfile.TemporaryDirectory(prefix="kvquant-") as folder:
        local = Path(folder) / "set.jsonl"
        _download(name, local)
        return _read(local, name)


def _download(name: str, local: Path) -> None:
    # Imported here, because a file needs none of it.
    from kvquant.shadow.sinks import filesystem_of

    try:
        filesystem, path = filesystem_of(name)
    except ValueError:
        raise DatasetError(
            f"{name}: write s3://bucket/key or gs://bucket/key, without credentials in it"
        ) from None
    try:
        filesystem.get_file(path, str(local))
    except FileNotFoundError:
        raise DatasetError(f"{name}: there is no such object") from None
    # What a bucket's client raises is its own affair.
    except Exception as error:
        raise DatasetError(f"cannot read {name}: {said(error)}") from None


def _read(path: Path, name: str) -> Dataset:
    examples = read(path, name)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"cannot read {name}: {error.strerror or error}") from error
    return Dataset(name, digest, examples)
