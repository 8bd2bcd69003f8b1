"""Our own analysis, driven as anyone would who has a simulator: tick by tick."""

from __future__ import annotations

from bench.decisions.rules import Look, Move
from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Analysis, Settings


class Ours:
    """The analysis of this project with its defaults.

    Attributes:
        name: Name in the tables.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._analysis = Analysis(Settings())

    def look(self, look: Look) -> tuple[Move, str]:
        """Say what to do, and why."""
        if look.tick is None:
            return Move.STAY, "no samples"
        report = self._analysis.observe(look.tick)
        if report.verdict is Verdict.FAIL:
            return Move.ROLL_BACK, report.message
        if report.verdict is Verdict.PASS and look.step:
            return Move.ADVANCE, report.message
        return Move.STAY, report.message
