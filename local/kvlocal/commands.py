"""Run a command that must succeed: the one way in which this package starts one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kvlocal.problems import LocalError

TOLD = 2000
"""Characters of a failed command's output that its error repeats, from the end."""


def run(
    *command: str,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a command and return its standard output.

    Args:
        command: The program and its arguments.
        folder: Where to run it.
        environment: Variables besides this process's own.
        stdin: What it reads; nothing by default.

    Raises:
        LocalError: It failed; the message is the command and what it said last.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = f"{done.stdout}\n{done.stderr}".strip()
        raise LocalError(f"{' '.join(command)} failed:\n{said[-TOLD:]}")
    return done.stdout
