"""The KVQuantRollout resource, version v1alpha1: the one source of the CRD and of its docs.

Attribute docstrings become the texts of `kubectl explain`. Durations are strings such as `90s`,
`10m` or `1h30m`; shares are whole per cents, because Kubernetes APIs avoid floats.
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DURATION_PATTERN = r"^([0-9]{1,6}(s|m|h))+$"
_DURATION_PARTS = re.compile(r"([0-9]+)([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}

CONDITION_MESSAGE_LENGTH = 2048

_DURATION_RULE = {
    "rule": f"self.matches('{DURATION_PATTERN}')",
    "message": "write a duration in whole hours, minutes and seconds, such as 90s, 10m or 1h30m",
}
# The API server explains by the rule; editors, which know only plain schemas, by the pattern.
Duration = Annotated[
    str,
    Field(
        pattern=DURATION_PATTERN,
        max_length=16,
        json_schema_extra={"x-kubernetes-validations": [_DURATION_RULE]},
    ),
]
PositiveDuration = Annotated[
    str,
    Field(
        pattern=DURATION_PATTERN,
        max_length=16,
        json_schema_extra={
            "x-kubernetes-validations": [
                _DURATION_RULE,
                {
                    "rule": f"!self.matches('{DURATION_PATTERN}') || "
                    "duration(self) >= duration('1s')",
                    "message": "must last at least 1s",
                },
            ]
        },
    ),
]
Name = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
Percent = Annotated[int, Field(ge=0, le=100)]


def parse_duration(text: str) -> timedelta:
    """Return the length of a duration string such as `1h30m`.

    Raises:
        ValueError: The text does not match `DURATION_PATTERN`.
    """
    if not re.match(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration: write it like 90s, 10m or 1h30m")
    return timedelta(
        seconds=sum(int(number) * _SECONDS[unit] for number, unit in _DURATION_PARTS.findall(text))
    )


class Model(BaseModel):
    """Common settings: camelCase on the wire, immutable in memory, tolerant of newer fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )


class Dtype(StrEnum):
    """KV-cache dtypes that may be asked for: short names, and what engines call them."""

    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"
    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    FP8_PER_TOKEN_HEAD = "fp8_per_token_head"  # noqa: S105 - not a password
    INT8_PER_TOKEN_HEAD = "int8_per_token_head"  # noqa: S105 - not a password
    INT4_PER_TOKEN_HEAD = "int4_per_token_head"  # noqa: S105 - not a password
    NVFP4 = "nvfp4"


class TargetRef(Model):
    """The pool that serves today."""

    api_version: Literal["apps/v1"] = "apps/v1"
    """API version of the target."""
    kind: Literal["Deployment"] = "Deployment"
    """Kind of the target. Only Deployments are supported."""
    name: Name
    """Name of the Deployment in the rollout's own namespace whose pods serve the model now."""


class KVCache(Model):
    """The KV cache that the canary pool gets."""

    dtype: Dtype
    """Element type of the canary's KV cache. `int8`, `int4` and `fp8` are resolved to what the
    engine calls them (vLLM: int8_per_token_head, int4_per_token_head, fp8); the resolved name is
    in status.resolvedDtype."""
    head_dim: Annotated[int, Field(ge=16, le=1024)] = 128
    """Size of one attention head of the model. The regime proof predicts from it how many more
    tokens the quantized cache must hold; look for head_dim in the model's config.json (or
    hidden_size / num_attention_heads)."""


class Engine(Model):
    """How to find the inference engine in the target's pod template."""

    type: Literal["auto", "vllm"] = "auto"
    """Engine family. `auto` recognises it from image, command and arguments."""
    container: Annotated[str, Field(max_length=63)] | None = None
    """Name of the engine's container, needed only when several look like an engine."""
    fingerprint: bool = True
    """Mark every answer of the canary with an opaque provenance value in `system_fingerprint`
    (vLLM 0.25 or newer). Turn it off for engines that lack `--fingerprint-mode`."""


class Router(Model):
    """The built-in Envoy router, through whose Service the clients send their requests."""

    name: Annotated[str, Field(max_length=52, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")] | None = (
        None
    )
    """Name of the router's Deployment and Service. Default: the router that serves the target
    already, else `<target>-router`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the router's Service."""
    replicas: Annotated[int, Field(ge=1, le=32)] = 2
    """Number of router pods."""
    request_timeout: PositiveDuration = "15m"
    """Longest time that one request may take, streaming included."""
    drain_timeout: Duration = "5m"
    """Longest time that requests in flight on a pool get to finish before its pods are stopped."""
    hash_header: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """Request header whose value keeps a conversation on one pod of an arm (prefix cache).
    Default: the pod with the fewest requests in flight."""


class Traffic(Model):
    """How traffic is split between the pools. Name exactly one way."""

    router: Router
    """Use the built-in router. `router: {}` takes every default."""


class Step(Model):
    """One rung of the ladder."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Share of requests that the canary gets in this step, in per cent."""
    soak: Duration = "15m"
    """Shortest time that the step lasts, counted from the moment its weight was committed."""


class SignalSettings(Model):
    """Evidence that one signal needs and the harm that it tolerates."""

    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests that each arm must have finished in this step before the signal may pass.
    Default: analysis.minRequests."""


class PageFaults(SignalSettings):
    """Preemptions per request: sequences thrown out of a full KV cache and computed again."""

    tolerance_percent: Percent = 5
    """Preemptions per 100 requests by which the canary may exceed the concurrent baseline."""


class OOMRetries(SignalSettings):
    """Engine deaths of any exit code, and the 5xx, time-outs and resets that they cause."""

    tolerance_percent: Percent = 1
    """Failed requests per 100 (5xx, time-outs, resets at the router) by which the canary may
    exceed the concurrent baseline."""
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 0
    """Engine restarts in one step by which the canary may exceed the concurrent baseline."""


class P99(SignalSettings):
    """Latency tail: share of requests slower than the concurrent baseline's own p99."""

    tolerance_percent: Percent = 4
    """Points by which the canary's share of requests beyond the baseline's p99 may exceed the
    baseline's own share (which is about 1 %)."""


class AnalysisSettings(Model):
    """What must be measured before a step may advance."""

    interval: PositiveDuration = "15s"
    """Time between two looks at the evidence."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    """Requests that each arm must have finished in this step before it may advance."""
    page_faults: PageFaults = PageFaults()
    """Signal pageFaults: preemptions per request, the mark of a KV cache that is too small."""
    oom_retries: OOMRetries = OOMRetries()
    """Signal oomRetries: engines that die, and requests that fail because of it."""
    p99: P99 = P99()
    """Signal p99: the latency tail, as the clients see it at the router."""


class Promotion(Model):
    """What happens after the last step."""

    rollback_window: Duration = "1h"
    """Time during which the old pool keeps its capacity, so that an abort is instant."""
    old_pool: Literal["ScaleToZero", "Keep"] = "ScaleToZero"
    """What becomes of the old pool when the rollback window closes."""


DEFAULT_STEPS = (
    Step(weight=10, soak="15m"),
    Step(weight=25, soak="15m"),
    Step(weight=50, soak="30m"),
    Step(weight=100, soak="30m"),
)

_TARGET_RULE = {
    "rule": "self == oldSelf",
    "message": "targetRef cannot be changed: make a new KVQuantRollout for the other Deployment",
}

_STEPS_RULES = [
    {
        "rule": "self.map(step, step.weight).isSorted() && "
        "self.all(step, self.exists_one(other, other.weight == step.weight))",
        "message": "weights must rise strictly from step to step, such as 10, 25, 50, 100: "
        "reorder the steps or remove the repeated weight",
    },
    {
        "rule": "size(self) == 0 || self[size(self) - 1].weight == 100",
        "message": "the last step must have weight 100: append `- weight: 100`",
    },
]


class Spec(Model):
    """What to roll out, where, and how carefully."""

    target_ref: Annotated[
        TargetRef,
        Field(json_schema_extra={"x-kubernetes-validations": [_TARGET_RULE]}),
    ]
    """The pool that serves today. It cannot be changed: make a new rollout instead."""
    kv_cache: KVCache
    """The KV cache that the canary pool gets."""
    traffic: Traffic
    """How traffic is split between the pools."""
    engine: Engine = Engine()
    """How to find the inference engine in the target's pod template. The defaults fit vLLM."""
    steps: Annotated[
        tuple[Step, ...],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                "x-kubernetes-validations": _STEPS_RULES,
            },
        ),
    ] = DEFAULT_STEPS
    """The ladder of weights, 1 to 16 steps. Weights must rise strictly, and the last must be 100.
    Default: 10 and 25 (15m each), 50 and 100 (30m each)."""
    analysis: AnalysisSettings = AnalysisSettings()
    """What must be measured before a step may advance. Too little evidence never advances a step
    and never rolls back: the step waits and says why."""
    promotion: Promotion = Promotion()
    """What happens after the last step."""
    progress_deadline: PositiveDuration = "30m"
    """Longest time that canary pods may take to become ready and verified before the rollout
    gives up and rolls back."""


class Phase(StrEnum):
    """Where a rollout stands. For people: programs should read the conditions."""

    PENDING = "Pending"
    PROVISIONING = "Provisioning"
    VERIFYING = "Verifying"
    SHADOWING = "Shadowing"  # Reserved: this version goes from Verifying straight to Progressing.
    PROGRESSING = "Progressing"
    PROMOTED = "Promoted"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"


class Verdict(StrEnum):
    """Outcome of an analysis. Only PASS lets a step advance; only FAIL rolls back."""

    PASS = "Pass"  # noqa: S105 - not a password
    FAIL = "Fail"
    INCONCLUSIVE = "Inconclusive"
    ERROR = "Error"


class Condition(Model):
    """A standard Kubernetes condition."""

    type: Annotated[str, Field(max_length=64)]
    """Type of the condition: Ready, Reconciling, Stalled, RegimeVerified, Held, Paused, Killed."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: Annotated[str, Field(max_length=128)]
    """Machine-readable cause in CamelCase."""
    message: Annotated[str, Field(max_length=CONDITION_MESSAGE_LENGTH)] = ""
    """The cause in a sentence."""
    observed_generation: int | None = None
    """Generation of the spec that the condition speaks of."""
    last_transition_time: AwareDatetime
    """When the status last flipped."""


class Pool(Model):
    """One of the two pools of a rollout."""

    deployment: str
    """Name of the pool's Deployment."""
    slot: str
    """Router slot that the pool fills: blue or green."""
    dtype: str
    """KV-cache dtype as the engine calls it."""
    replicas: int
    """Pods that the pool has or is asked to have."""


class SignalReport(Model):
    """The numbers of one signal behind a verdict."""

    name: str
    """pageFaults, oomRetries or p99."""
    verdict: Verdict
    """Verdict of this signal alone."""
    baseline: str | None = None
    """The baseline's measurement, as text with its unit."""
    canary: str | None = None
    """The canary's measurement, as text with its unit."""
    tolerance: str | None = None
    """What the canary was allowed, as text with its unit."""
    message: str = ""
    """The verdict in a sentence."""


class AnalysisReport(Model):
    """The latest look at the evidence of the step."""

    at: AwareDatetime
    """When the evidence was read."""
    verdict: Verdict
    """Worst of the signals' verdicts."""
    message: str
    """The verdict in a sentence."""
    baseline_requests: int | None = None
    """Requests that the baseline finished in this step."""
    canary_requests: int | None = None
    """Requests that the canary finished in this step."""
    baseline_p99_ms: int | None = None
    """The baseline's 99th percentile of latency at the router in this step, in milliseconds."""
    canary_p99_ms: int | None = None
    """The canary's 99th percentile of latency at the router in this step, in milliseconds."""
    load_ratio: str | None = None
    """Requests per canary pod divided by requests per baseline pod, e.g. `0.67`."""
    signals: Annotated[tuple[SignalReport, ...], Field(max_length=32)] = ()
    """The signals' numbers."""


class PodProof(Model):
    """Regime proof of one canary pod."""

    pod: str
    """Name of the pod."""
    container_id: str
    """Container that was seen. A restarted container needs a new proof."""
    verdict: Verdict
    """Pass: the quantization is on. Fail: it is not. Inconclusive: not measured yet."""
    dtype: str | None = None
    """KV-cache dtype that the engine reports."""
    capacity_tokens: int | None = None
    """Tokens that the pod's KV cache holds, as the engine reports."""
    factor: str | None = None
    """Tokens per byte of KV memory, divided by the baseline's."""
    expected_factor: str | None = None
    """The factor that the dtype must have."""
    message: str = ""
    """The outcome in a sentence."""


class DecisionKind(StrEnum):
    """What a decision did."""

    START = "Start"
    PROVISION = "Provision"
    VERIFY = "Verify"
    ADVANCE = "Advance"
    HOLD = "Hold"
    PROMOTE = "Promote"
    ROLL_BACK = "RollBack"
    REFUSE = "Refuse"
    KILL = "Kill"
    UNKILL = "Unkill"
    SETTLE = "Settle"


class DecisionRecord(Model):
    """One decision of the operator with what led to it."""

    at: AwareDatetime
    """When it was decided."""
    kind: DecisionKind
    """What was decided."""
    reason: str
    """Machine-readable cause in CamelCase; also the reason of the Event."""
    step: int
    """Step in effect when it was decided (0: none yet)."""
    weight: int
    """The canary's weight after the decision, in per cent."""
    message: Annotated[str, Field(max_length=2048)]
    """The decision in a sentence."""


class Weights(Model):
    """Committed split of the traffic, in per cent."""

    baseline: Percent = 100
    """Share of the pool that served when the rollout began."""
    canary: Percent = 0
    """Share of the pool with the quantized cache."""


class HandledRequests(Model):
    """Tokens of the one-shot requests that have been handled."""

    promote: str | None = None
    """Last handled value of the annotation kvquant.dev/promote."""
    abort: str | None = None
    """Last handled value of the annotation kvquant.dev/abort."""
    retry: str | None = None
    """Last handled value of the annotation kvquant.dev/retry."""


class Status(Model):
    """The operator's only memory of a rollout. Written by the operator alone."""

    observed_generation: int | None = None
    """Generation of the spec that this status speaks of."""
    phase: Phase = Phase.PENDING
    """Where the rollout stands."""
    phase_started_at: AwareDatetime | None = None
    """When the phase began."""
    attempt: int = 0
    """Number of the attempt; a new spec or a retry begins a new one."""
    spec_hash: str | None = None
    """Hash of the spec that this attempt runs."""
    rejected_spec_hash: str | None = None
    """Hash of a spec that was rolled back: it is not tried again until someone says retry."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """Ready, Reconciling and Stalled as kstatus defines them; RegimeVerified, Held, Paused and
    Killed are ours."""
    engine: str | None = None
    """Engine that was recognised in the target."""
    resolved_dtype: str | None = None
    """KV-cache dtype as the engine calls it."""
    router: str | None = None
    """Name of the router: clients send to the Service of this name."""
    baseline: Pool | None = None
    """The pool that served when the rollout began."""
    canary: Pool | None = None
    """The pool with the quantized KV cache."""
    step: int = 0
    """Step in effect, counted from 1; 0 before the first."""
    next_step: int | None = None
    """Step whose pods are being made ready, if one is."""
    total_steps: int = 0
    """Number of steps of the plan."""
    step_label: str | None = None
    """The step for people, such as 2/4."""
    step_started_at: AwareDatetime | None = None
    """When the weight of the step in effect was committed: soak and samples count from here."""
    previous_step_started_at: AwareDatetime | None = None
    """When the step before began: the last step, which leaves the baseline without traffic, is
    compared with what the baseline did then."""
    weights: Weights = Weights()
    """Committed split of the traffic. Routers follow this, never the other way round."""
    verdict: str | None = None
    """The latest verdict or the reason to wait, in a few words."""
    analysis: AnalysisReport | None = None
    """The latest look at the evidence."""
    regime_proof: Annotated[tuple[PodProof, ...], Field(max_length=64)] = ()
    """Regime proof by canary pod."""
    proven_capacity_tokens: int | None = None
    """Tokens that the first proven canary pod's KV cache holds: the yardstick for pods that start
    when the old pool is gone."""
    decisions: Annotated[tuple[DecisionRecord, ...], Field(max_length=50)] = ()
    """The last 50 decisions, newest last."""
    handled: HandledRequests = HandledRequests()
    """One-shot requests that have been handled."""
    killed: bool = False
    """Whether the kill switch holds: every request goes to the baseline."""
    promoted_at: AwareDatetime | None = None
    """When the canary pool became the serving pool."""
    settled: bool = False
    """Whether nothing is left to do: the rollback window is closed, or the rollback complete."""

    def condition(self, type_: str) -> Condition | None:
        """Return the condition of that type, if it was ever set."""
        return next((c for c in self.conditions if c.type == type_), None)


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
