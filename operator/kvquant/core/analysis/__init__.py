"""From the arms' measurements to a verdict. Pure: no Kubernetes, no Prometheus, no clock.

`Analysis` is the one entry. Read `engine` for the rules, `signals` for what each signal measures,
`sequential` for the formulas, `batches` and `counting` for how counts become evidence.
"""

from __future__ import annotations

from kvquant.api.v1alpha1 import AnalysisReport
from kvquant.core.analysis.engine import Analysis
from kvquant.core.analysis.judge import Replicas, judge, traffic_arrived
from kvquant.core.analysis.report import Evidence, Load, Report
from kvquant.core.analysis.settings import CustomSignal, Settings
from kvquant.core.analysis.signals_v1 import Restarts

__all__ = [
    "Analysis",
    "AnalysisReport",
    "CustomSignal",
    "Evidence",
    "Load",
    "Replicas",
    "Report",
    "Restarts",
    "Settings",
    "judge",
    "traffic_arrived",
]
