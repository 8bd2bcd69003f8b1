"""Conditions of a rollout: set one honestly, and tell kstatus how the rollout stands.

Pure functions: a tuple of conditions in, a tuple of conditions out.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Literal

from kvquant.api.v1alpha1 import CONDITION_MESSAGE_LENGTH, Condition

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"

ConditionStatus = Literal["True", "False", "Unknown"]


class Standing(Enum):
    """How a rollout stands, in the three ways that kstatus knows."""

    IN_PROGRESS = "in progress"
    DONE = "done"
    FAILED = "failed"


_TRIPLES: dict[Standing, dict[str, ConditionStatus]] = {
    Standing.IN_PROGRESS: {READY: "False", RECONCILING: "True", STALLED: "False"},
    Standing.DONE: {READY: "True", RECONCILING: "False", STALLED: "False"},
    Standing.FAILED: {READY: "False", RECONCILING: "False", STALLED: "True"},
}
"""Ready is the positive condition; the other two are "abnormal is true", at most one of them.

Source: https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md.
"""


def set_condition(
    conditions: tuple[Condition, ...],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    now: datetime,
    generation: int,
) -> tuple[Condition, ...]:
    """Return the conditions with one of them set; the others and the order stay as they are.

    Args:
        conditions: The conditions so far.
        type_: Type of the condition to set; it is appended when it is new.
        status: True, False or Unknown.
        reason: CamelCase cause.
        message: The cause in a sentence; cut to what the CRD admits, because a status that the API
            server refuses would lose the decision that it carries.
        now: The present instant. It becomes lastTransitionTime only when the status flips.
        generation: Generation of the spec that the condition speaks of.
    """
    before = next((condition for condition in conditions if condition.type == type_), None)
    flipped = before is None or before.status != status
    after = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message[:CONDITION_MESSAGE_LENGTH],
        observed_generation=generation,
        last_transition_time=now if before is None or flipped else before.last_transition_time,
    )
    if before is None:
        return (*conditions, after)
    return tuple(after if condition.type == type_ else condition for condition in conditions)


def set_standing(
    conditions: tuple[Condition, ...],
    standing: Standing,
    reason: str,
    message: str,
    now: datetime,
    generation: int,
) -> tuple[Condition, ...]:
    """Return the conditions with Ready, Reconciling and Stalled set for one standing.

    `kubectl wait --for=condition=Ready` and tools that speak kstatus read these three.
    """
    for type_, status in _TRIPLES[standing].items():
        conditions = set_condition(conditions, type_, status, reason, message, now, generation)
    return conditions
