"""kvquant on the command line: `kvquant`, or `kubectl kvquant` where kubectl finds the plugin."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run the program with the arguments of the process, and exit."""
    from kvquant.cli.program import kvquant

    called = Path(sys.argv[0]).name
    program = "kubectl kvquant" if called.startswith("kubectl-kvquant") else "kvquant"
    kvquant.main(prog_name=program)
