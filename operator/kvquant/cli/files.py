"""Files that are there whole or not at all."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from kvquant.cli.errors import Failure


def write_whole(path: Path, text: str) -> None:
    """Write a file at once or not at all.

    Raises:
        Failure: It cannot be written there.
    """
    written: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            written = Path(file.name)
            file.write(text)
        written.chmod(0o644)
        written.replace(path)
    except OSError as error:
        if written is not None:
            with suppress(OSError):
                written.unlink()
        raise Failure(f"cannot write {path}: {error.strerror or error}") from error
