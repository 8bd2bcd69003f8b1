"""From the arms' measurements to a verdict. Pure; `judge` is the one entry.

Read `judge` for the rules, `signals` for what each signal measures, `intervals` for the formulas.
"""

from __future__ import annotations

from kvquant.api.v1alpha1 import AnalysisReport
from kvquant.core.analysis.judge import Replicas, judge, traffic_arrived
from kvquant.core.analysis.signals import Restarts

__all__ = ["AnalysisReport", "Replicas", "Restarts", "judge", "traffic_arrived"]
