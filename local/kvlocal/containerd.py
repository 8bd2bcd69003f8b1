"""Debian's containerd and its ctr."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from kvlocal.commands import run
from kvlocal.problems import LocalError


def command(folder: Path) -> list[str]:
    """Return containerd's command line for the node in a folder."""
    return ["/usr/bin/containerd", "--config", str(folder / "containerd.toml")]


def ctr(folder: Path, *arguments: str) -> str:
    """Run ctr against a node's containerd and return what it printed.

    Raises:
        LocalError: It failed; the message is ctr's own.
    """
    return run(
        "/usr/bin/ctr", f"--address={folder / 'containerd.sock'}", "--namespace=k8s.io", *arguments
    )


def forget_stale_containers(folder: Path) -> None:
    """Let containerd forget the containers of an earlier run, but not its images.

    It remembers them on disk, and the kubelet of a fresh cluster would adopt their names. This
    takes a containerd of its own, because one that serves the kubelet has read them already.
    """
    if not (folder.parent / "containerd").exists():
        return
    with subprocess.Popen(
        command(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            for container in _listed(folder, patience=20).split():
                ctr(folder, "containers", "delete", container)
        finally:
            process.terminate()


def _listed(folder: Path, patience: float) -> str:
    deadline = time.monotonic() + patience
    while True:
        try:
            return ctr(folder, "containers", "list", "--quiet")
        except LocalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
