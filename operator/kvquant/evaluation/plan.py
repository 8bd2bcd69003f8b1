"""What an evaluation is asked to do, and what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kvquant.evaluation.arms import Arm
from kvquant.evaluation.cells import Margins
from kvquant.evaluation.fetching import Dataset
from kvquant.evaluation.judging import Judged
from kvquant.evaluation.results import Result
from kvquant.evaluation.running import Pace

PATIENCE = 60.0
"""Seconds to wait for an arm that does not answer yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be evaluated, and how.

    Attributes:
        dataset: The set.
        baseline: The arm that is known to be good.
        canary: The arm in question.
        pace: How the examples are asked.
        margins: What is tolerated.
        patience: Seconds to wait for each arm to answer at all.
        engine_key: API key of the engines; empty: they ask for none.
        rollout: Namespace and name of the rollout; None: none.
    """

    dataset: Dataset
    baseline: Arm
    canary: Arm
    pace: Pace
    margins: Margins
    patience: float = PATIENCE
    engine_key: str = ""
    rollout: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """An evaluation that has been run.

    Attributes:
        plan: What was asked for.
        results: What became of each example.
        judged: The verdict.
        now: When it was over.
        seconds: How long it took.
    """

    plan: Plan
    results: Sequence[Result]
    judged: Judged
    now: datetime
    seconds: float
