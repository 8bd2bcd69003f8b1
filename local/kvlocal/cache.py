"""Where slow downloads and builds are kept: outside the tree, keyed by version."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache() -> Path:
    """Return the cache's folder: KVQUANT_CACHE, else ~/.cache/kvquant."""
    named = os.environ.get("KVQUANT_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "kvquant"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time build a thing of that name; the others wait for it."""
    folder = cache() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(parts: Iterable[Path | str]) -> str:
    """Return 12 hex digits over texts, files and whole folders (names, modes and contents)."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
            continue
        files = [part] if part.is_file() else sorted(p for p in part.rglob("*") if p.is_file())
        for file in files:
            if "__pycache__" in file.parts:
                continue
            name = file.name if part.is_file() else file.relative_to(part).as_posix()
            total.update(f"{name} {file.stat().st_mode & 0o111}\0".encode())
            total.update(file.read_bytes())
    return total.hexdigest()[:12]


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"  {what} ...", flush=True)
    begun = time.monotonic()
    yield
    print(f"  {what}: done in {time.monotonic() - begun:.0f} s", flush=True)
