"""From the spec to the plan: numbers and lengths of time that decisions are made of."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import timedelta

from kvquant.api.v1alpha1 import AnalysisSettings, Spec, parse_duration


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One rung of the ladder.

    Attributes:
        weight: The canary's weight in per cent.
        soak: Shortest stay.
        on_inconclusive: What to do when the evidence does not decide: hold, proceed or rollback.
        decide_within: Stay after which that is done.
    """

    weight: int
    soak: timedelta
    on_inconclusive: str = "hold"
    decide_within: timedelta = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class PlannedShadow:
    """How requests are shadowed before the first step.

    Attributes:
        percent: Share of the generation requests that are copied; 0 leaves the phase out.
        min_pairs: Pairs of answers that must have been compared.
        soak: Shortest length of the phase.
        on_inconclusive: What to do when the pairs do not decide: hold, proceed or rollback.
        decide_within: Length of the phase after which that is done.
        drift: Excess of the perplexity per token that is tolerated, as a fraction.
        answers: Share of the answers that the canary may spoil, as a fraction.
        match_load: Whether the canary's pods are topped up to the baseline's load in each step.
    """

    percent: int = 0
    min_pairs: int = 200
    soak: timedelta = timedelta(minutes=10)
    on_inconclusive: str = "hold"
    decide_within: timedelta = timedelta(hours=2)
    drift: float = 0.05
    answers: float = 0.02
    match_load: bool = False

    @classmethod
    def of(cls, spec: Spec) -> PlannedShadow:
        """Return what a spec asks for."""
        shadow = spec.shadow
        return cls(
            percent=shadow.percent,
            min_pairs=shadow.min_pairs,
            soak=parse_duration(shadow.soak),
            on_inconclusive=shadow.on_inconclusive,
            decide_within=parse_duration(shadow.decide_within),
            drift=shadow.drift_percent / 100,
            answers=shadow.answers_percent / 100,
            match_load=shadow.match_load,
        )


@dataclass(frozen=True, slots=True)
class PlannedEvaluation:
    """How an example set is evaluated before anything else is asked of the canary.

    Attributes:
        deadline: Longest time that the set may take.
        on_inconclusive: What to do when the answers do not decide: hold, proceed or rollback.
        on_error: What to do when the evaluation itself keeps failing: hold or rollback.
    """

    deadline: timedelta
    on_inconclusive: str = "hold"
    on_error: str = "hold"

    @classmethod
    def of(cls, spec: Spec) -> PlannedEvaluation | None:
        """Return what a spec asks for; None: no evaluation."""
        asked = spec.evaluation
        if asked is None:
            return None
        return cls(parse_duration(asked.deadline), asked.on_inconclusive, asked.on_error)


QUALITY_SHARE = 0.2
"""Part of the error budget that the answers of shadowed requests may use up; live traffic has the
rest, because most of what can go wrong shows there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the spec asks for, with every default filled in and every duration parsed."""

    steps: tuple[PlannedStep, ...]
    analysis: AnalysisSettings
    interval: timedelta
    progress_deadline: timedelta
    drain_timeout: timedelta
    rollback_window: timedelta
    keep_old_pool: bool
    head_dim: int
    shadow: PlannedShadow = PlannedShadow()
    evaluation: PlannedEvaluation | None = None

    @property
    def quality_budget(self) -> float:
        """Part of the error budget that is for the answers of shadowed requests."""
        share = QUALITY_SHARE if self.shadow.percent else 0.0
        return share * self.analysis.error_budget_percent / 100

    @property
    def live_budget(self) -> float:
        """Part of the error budget that is for live traffic."""
        return self.analysis.error_budget_percent / 100 - self.quality_budget

    @classmethod
    def of(cls, spec: Spec) -> Plan:
        """Return the plan of a spec."""
        return cls(
            steps=_steps(spec),
            analysis=spec.analysis,
            interval=parse_duration(spec.analysis.interval),
            progress_deadline=parse_duration(spec.progress_deadline),
            drain_timeout=parse_duration(spec.traffic.drain_timeout),
            rollback_window=parse_duration(spec.promotion.rollback_window),
            keep_old_pool=spec.promotion.old_pool == "Keep",
            head_dim=spec.kv_cache.head_dim,
            shadow=PlannedShadow.of(spec),
            evaluation=PlannedEvaluation.of(spec),
        )

    def next_replicas(self, step: int, baseline_replicas: int, canary_replicas: int) -> int:
        """Return how many canary pods the step after will have; none are taken away on the way."""
        return max(canary_replicas, replicas_for(self.weight(step + 1), baseline_replicas))

    def top_up(self, step: int, baseline_replicas: int) -> int:
        """Return of how many requests a step copies to the canary alone, in per cent of all.

        So many that a canary pod has as much to do as a baseline pod. A function of the plan, and
        not of pods that are about to come: those that there are would get the others' load.
        """
        if not self.shadow.match_load or step <= 0:
            return 0
        weight = self.weight(step)
        pods = max(1, baseline_replicas)
        return max(0, (100 - weight) * replicas_for(weight, pods) // pods - weight)

    def most_topped_up(self, baseline_replicas: int) -> float:
        """Return the most copies of all steps, per request that the baseline answers."""
        steps = range(1, len(self.steps) + 1)
        return max(
            self.top_up(step, baseline_replicas) / max(1, 100 - self.weight(step)) for step in steps
        )

    def weight(self, step: int) -> int:
        """Return the canary's weight in a step, counted from 1; 0 before the first."""
        return self.steps[step - 1].weight if step > 0 else 0


def _steps(spec: Spec) -> tuple[PlannedStep, ...]:
    """Return the ladder; its last rung leaves the baseline a share to be compared with."""
    *rungs, last = spec.steps
    most = 100 - spec.analysis.holdback_percent
    lowest = rungs[-1].weight + 1 if rungs else 1
    weights = [*(step.weight for step in rungs), max(most, min(lowest, last.weight))]
    return tuple(
        PlannedStep(
            weight,
            parse_duration(step.soak),
            step.on_inconclusive,
            parse_duration(step.decide_within),
        )
        for weight, step in zip(weights, spec.steps, strict=True)
    )


def spec_hash(spec: Spec) -> str:
    """Return a hash that changes exactly when the user asks for something else.

    Fields that hold their default are left out, so that a newer operator with more fields sees
    the same hash and does not begin a new attempt. Which alerts stop a rollout is no part of what
    is rolled out, and may be changed while it is on its way.
    """
    document = spec.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude={"alerts"}
    )
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def replicas_for(weight: int, baseline_replicas: int) -> int:
    """Return how many canary pods a weight needs beside a baseline that keeps all of its pods.

    Two rules: no canary pod gets more load than a baseline pod had before the rollout (so never
    fewer than weight x pods), and, among the numbers that allow it, the one whose load per pod
    comes nearest, as a ratio, to that of the baseline pods in the same step. Never more pods than
    the baseline has.
    """
    pods = max(1, baseline_replicas)
    fewest = max(1, math.ceil(weight * pods / 100))
    if weight >= 100:
        return pods

    def imbalance(replicas: int) -> float:
        return abs(math.log(weight * pods / (replicas * (100 - weight))))

    return min(range(fewest, pods + 1), key=imbalance)
