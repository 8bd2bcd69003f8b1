"""A control group of the node's own, in every hierarchy that this machine mounts."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SYSTEM = "system"
"""Child group of the node's own processes, beside the pods'."""


def create(name: str) -> None:
    """Make the group with its child for the node's processes."""
    if _unified():
        _delegate(ROOT)
        (ROOT / name).mkdir(exist_ok=True)
        _delegate(ROOT / name)
    for hierarchy in _hierarchies():
        for folder in (hierarchy / name, hierarchy / name / SYSTEM):
            folder.mkdir(exist_ok=True)
            # A cpuset group without processors and memory nodes takes no process.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if not _unified() and (folder / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())
        with contextlib.suppress(OSError):
            hierarchical = hierarchy / name / "memory.use_hierarchy"
            if hierarchical.exists():
                hierarchical.write_text("1")


def join(name: str) -> None:
    """Move this process into the group of the node's processes."""
    for hierarchy in _hierarchies():
        (hierarchy / name / SYSTEM / "cgroup.procs").write_text(str(os.getpid()))


def remove(name: str, patience: float = 8.0) -> bool:
    """Remove the group and everything under it; tell whether nothing is left.

    The kernel lets a group go only some moments after its last process has ended.
    """
    deadline = time.monotonic() + patience
    while True:
        for hierarchy in _hierarchies():
            for folder, _, _ in os.walk(hierarchy / name, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        left = [h for h in _hierarchies() if (h / name).exists()]
        if not left or time.monotonic() > deadline:
            return not left
        time.sleep(0.1)


def version() -> int:
    """Return 2 where this machine has the unified hierarchy alone, else 1."""
    return 2 if _unified() else 1


def _unified() -> bool:
    return (ROOT / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    if _unified():
        return [ROOT]
    # Links such as cpu -> cpu,cpuacct name a hierarchy a second time.
    return [p for p in sorted(ROOT.iterdir()) if p.is_dir() and not p.is_symlink()]


def _delegate(folder: Path) -> None:
    for controller in (folder / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
