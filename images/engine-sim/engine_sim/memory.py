"""The memory blow-up fault: takes real memory until the kernel kills the process."""

import asyncio
import logging
import os
from pathlib import Path

LOG = logging.getLogger("vllm")
STEP_BYTES = 32 << 20
STEP_SECONDS = 0.05
LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container sees its own memory limit, by cgroup version."""
_UNLIMITED = 1 << 60


class NoLimitError(Exception):
    """The process has no memory limit, so a blow-up would take the whole machine."""


def limit_bytes(chosen: int | None) -> int:
    """Return how many bytes may be taken.

    That is what ``KVSIM_OOM_BYTES`` chose, else what the container's limit kills at, and a margin.

    Raises:
        NoLimitError: neither is set.
    """
    if chosen is not None:
        return chosen
    for name in LIMIT_FILES:
        path = Path(name)
        if not path.exists():
            continue
        text = path.read_text().strip()
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text) + (1 << 30)
    msg = "oom_after needs KVSIM_OOM_BYTES or a memory limit on the container (limits.memory)"
    raise NoLimitError(msg)


async def blow_up(limit: int) -> None:
    """Take memory step by step, touching every page, up to the limit; then hold it."""
    held: list[bytes] = []
    while len(held) * STEP_BYTES < limit:
        held.append(os.urandom(4096) * (STEP_BYTES // 4096))
        await asyncio.sleep(STEP_SECONDS)
    LOG.warning("holding %d bytes", len(held) * STEP_BYTES)
    await asyncio.Event().wait()
