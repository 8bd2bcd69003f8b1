"""The KVQuantRollout resource, version v1alpha1: the one source of the CRD and of its docs.

Import from here: the parts stand in `spec`, `status` and `fields` only to keep files short.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import AwareDatetime, Field, model_validator

from kvquant.api import names
from kvquant.api.custom_signals import CustomSignal
from kvquant.api.evaluation import Evaluation, ExampleSet
from kvquant.api.fields import DURATION_PATTERN, Model, parse_duration
from kvquant.api.spec import (
    DEFAULT_STEPS,
    P99,
    AlertPolicy,
    AlertSelector,
    AnalysisSettings,
    Dtype,
    Engine,
    GatewayAPI,
    KVCache,
    OOMRetries,
    PageFaults,
    Promotion,
    Router,
    SecretKey,
    Shadow,
    ShadowLog,
    ShadowPattern,
    Spec,
    Step,
    TargetRef,
    Traffic,
)
from kvquant.api.status import (
    CONDITION_MESSAGE_LENGTH,
    Adoption,
    AdoptionStage,
    AlertReport,
    AlertSource,
    AnalysisReport,
    Condition,
    DecisionKind,
    DecisionRecord,
    EvaluationMeasure,
    EvaluationReport,
    GatewayRule,
    HandledRequests,
    Phase,
    PodProof,
    Pool,
    ShadowBucket,
    ShadowLoss,
    ShadowReport,
    SignalReport,
    Status,
    TrafficSpan,
    Verdict,
    Weights,
)

__all__ = [
    "CONDITION_MESSAGE_LENGTH",
    "DEFAULT_STEPS",
    "DURATION_PATTERN",
    "P99",
    "Adoption",
    "AdoptionStage",
    "AlertPolicy",
    "AlertReport",
    "AlertSelector",
    "AlertSource",
    "AnalysisReport",
    "AnalysisSettings",
    "Condition",
    "CustomSignal",
    "DecisionKind",
    "DecisionRecord",
    "Dtype",
    "Engine",
    "Evaluation",
    "EvaluationMeasure",
    "EvaluationReport",
    "ExampleSet",
    "GatewayAPI",
    "GatewayRule",
    "HandledRequests",
    "KVCache",
    "KVQuantRollout",
    "Model",
    "OOMRetries",
    "ObjectMeta",
    "PageFaults",
    "Phase",
    "PodProof",
    "Pool",
    "Promotion",
    "Router",
    "SecretKey",
    "Shadow",
    "ShadowBucket",
    "ShadowLog",
    "ShadowLoss",
    "ShadowPattern",
    "ShadowReport",
    "SignalReport",
    "Spec",
    "Status",
    "Step",
    "TargetRef",
    "Traffic",
    "TrafficSpan",
    "Verdict",
    "Weights",
    "parse_duration",
]


class ObjectMeta(Model):
    """The parts of metadata that the operator reads."""

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    deletion_timestamp: AwareDatetime | None = None


class KVQuantRollout(Model):
    """A measured rollout of a quantized KV cache."""

    metadata: ObjectMeta
    spec: Spec
    status: Status = Status()

    @property
    def owner_reference(self) -> dict[str, str]:
        """What bears this is removed with the rollout."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
        }

    @model_validator(mode="after")
    def _knows_its_attempt(self) -> Self:
        """Refuse a status that somebody has edited: no attempt goes on, or back, without these."""
        status = self.status
        if status.phase is Phase.PENDING:
            return self
        needed = ("baseline", "canary", "router", "resolved_dtype", "phase_started_at")
        missing = [f"status.{name}" for name in needed if getattr(status, name) is None]
        if missing:
            raise ValueError(f"phase {status.phase.value} needs {', '.join(missing)}, too")
        if status.weights.baseline + status.weights.canary != 100:
            raise ValueError("status.weights must sum to 100")
        slots = sorted(pool.slot for pool in (status.baseline, status.canary) if pool)
        if slots != sorted(names.SLOTS):
            raise ValueError("status.baseline.slot and status.canary.slot must be blue and green")
        if status.step < 0 or status.next_step not in (None, status.step + 1):
            raise ValueError("status.nextStep must follow status.step")
        return self

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> KVQuantRollout:
        """Read an object as the API server returns it.

        Raises:
            pydantic.ValidationError: The spec does not fit this version of the API.
        """
        return cls.model_validate(raw)

    def status_document(self) -> dict[str, Any]:
        """Return the status as the API server stores it: camelCase, absent instead of null."""
        return self.status.model_dump(mode="json", by_alias=True, exclude_none=True)
