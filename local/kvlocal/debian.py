"""What the local cluster needs of Debian: installed when we may, else named in one message."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kvlocal.cache import locked, progress
from kvlocal.commands import run
from kvlocal.problems import LocalError

CNI_FOLDER = Path("/usr/lib/cni")

# Debian package -> a file that it brings.
_NODE = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": str(CNI_FOLDER / "bridge"),
    "iproute2": "ip",
    "nftables": "nft",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "util-linux": "unshare",
    "procps": "sysctl",
}
_IMAGES = {"buildah": "buildah", "debootstrap": "debootstrap", "gcc": "gcc"}


def ensure_node_tools() -> None:
    """Make sure that what a node runs on is installed.

    Raises:
        LocalError: Something is missing and cannot be installed.
    """
    _ensure(_NODE)


def ensure_image_tools() -> None:
    """Make sure that what images are built with is installed.

    Raises:
        LocalError: Something is missing and cannot be installed.
    """
    _ensure(_IMAGES)


def _ensure(wanted: dict[str, str]) -> None:
    missing = _missing(wanted)
    if not missing:
        return
    command = f"apt-get install -y --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LocalError(f"missing here: {', '.join(missing)}. As root: {command}")
    with locked("apt"), progress(f"installing {', '.join(missing)} from Debian"):
        run("apt-get", "update", "-qq")
        # Another apt may hold the lock for a while; services must not start by themselves.
        run(
            *command.replace("apt-get", "apt-get -qq -o DPkg::Lock::Timeout=300", 1).split(),
            environment={"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"},
        )
    still = _missing(wanted)
    if still:
        raise LocalError(f"{command} was run and {', '.join(still)} is still missing")


def _missing(wanted: dict[str, str]) -> list[str]:
    return [package for package, file in wanted.items() if not _present(file)]


def _present(file: str) -> bool:
    if file.startswith("/"):
        return Path(file).exists()
    # sbin is where Debian keeps half of them, and not every user's PATH has it.
    return shutil.which(file, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None
