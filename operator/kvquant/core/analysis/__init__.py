"""From the arms' measurements to a verdict. Pure: no Kubernetes, no Prometheus, no clock.

`Analysis` is the one entry. Read `engine` for the rules, `signals` for what each signal measures,
`comparing` and `sequential` for the formulas, `batches` and `counting` for how counts become
evidence.
"""

from __future__ import annotations

from kvquant.core.analysis.engine import Analysis
from kvquant.core.analysis.report import Evidence, Load, Report
from kvquant.core.analysis.settings import CustomSignal, Settings

__all__ = [
    "Analysis",
    "CustomSignal",
    "Evidence",
    "Load",
    "Report",
    "Settings",
]
