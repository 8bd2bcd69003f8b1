"""What an evaluation of an example set says at its end, so that the operator can act on it.

The Job of `spec.evaluation` writes it as JSON where Kubernetes keeps a container's last words
(`/dev/termination-log`, at most 4 KiB): nobody else needs to be asked, and no right to write is
needed. The whole report is in the Job's log or in the folder that it was given.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

TERMINATION_FILE = "/dev/termination-log"
MOST_BYTES = 4096
"""Of the last words of a container; Kubernetes cuts off what is beyond."""
VERSION = 1


class Outcome(StrEnum):
    """What an evaluation says."""

    PASS = "Pass"  # noqa: S105 - no password
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"
    """Too few examples, or too many that were not answered, to tell."""


class MeasureSummary(BaseModel):
    """One measure over the whole set, or over the bucket in which it is worst.

    The difference is of the harm: positive where the canary is worse, as a share of the pairs
    (drift: nats per token), with its confidence interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(max_length=32)]
    bucket: Annotated[str, Field(max_length=32)] = "all"
    pairs: int
    difference: float
    lower: float
    upper: float
    margin: float
    outcome: Outcome


class EvaluationSummary(BaseModel):
    """The whole verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    outcome: Outcome
    examples: int
    answered: int
    """Examples that both arms answered, or that the canary alone did not."""
    message: Annotated[str, Field(max_length=600)]
    """One sentence that a manager can read."""
    measures: tuple[MeasureSummary, ...] = ()
    """Those that decided or are worst come first; as many as fit."""
