"""The spec of a KVQuantRollout: what people ask for.

Attribute docstrings become the texts of `kubectl explain`. Durations are strings such as `90s`,
`10m` or `1h30m`; shares are whole per cents, because Kubernetes APIs avoid floats.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from kvquant.api import custom_signals
from kvquant.api.custom_signals import CustomSignal
from kvquant.api.evaluation import DEADLINE_RULE, Evaluation
from kvquant.api.fields import Duration, Model, Name, Percent, PositiveDuration


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


class GatewayAPI(Model):
    """An HTTPRoute of yours, through whose Gateway the clients send their requests."""

    http_route: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """Name of the HTTPRoute in the rollout's own namespace. One of its rules must send to a Service
    of the target's pods, and to nothing else."""
    rule: Annotated[int, Field(ge=0, le=15)] | None = None
    """Which of its rules, counted from 0. Needed only when several send to the target."""
    drain_timeout: Duration = "5m"
    """Longest time that requests in flight on a pool get to finish before its pods are stopped."""
    metrics: Literal["EnvoyGateway"] = "EnvoyGateway"
    """Whose metrics tell latency and errors of each pool. `EnvoyGateway`: Prometheus scrapes the
    Envoy proxies of Envoy Gateway (`/stats/prometheus`, port 19001), with the labels namespace and
    pod."""


_ONE_WAY_RULE = {
    "rule": "has(self.router) != has(self.gatewayAPI)",
    "message": "name exactly one of router (the built-in Envoy) and gatewayAPI (an HTTPRoute of "
    "yours): `router: {}` takes every default",
}

_SAME_WAY_RULE = {
    "rule": "has(self.router) == has(oldSelf.router) && (!has(self.gatewayAPI) || "
    "!has(oldSelf.gatewayAPI) || self.gatewayAPI.httpRoute == oldSelf.gatewayAPI.httpRoute)",
    "message": "traffic cannot be led another way in mid-life (router, gatewayAPI, another "
    "httpRoute): make a new KVQuantRollout",
}


class Traffic(Model):
    """How traffic is split between the pools. Name exactly one way."""

    router: Router | None = None
    """Use the built-in router. `router: {}` takes every default."""
    gateway_api: Annotated[GatewayAPI | None, Field(alias="gatewayAPI")] = None
    """Use the Gateway that you run already: the weights are set on an HTTPRoute of yours."""

    @property
    def drain_timeout(self) -> str:
        """Longest time that requests in flight on a pool get to finish."""
        way = self.gateway_api or self.router or Router()
        return way.drain_timeout


class Step(Model):
    """One rung of the ladder."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """Share of requests that the canary gets in this step, in per cent."""
    soak: Duration = "15m"
    """Shortest time that the step lasts, counted from the moment its weight was committed."""
    on_inconclusive: Literal["hold", "proceed", "rollback"] = "hold"
    """What to do when the evidence has not decided within `decideWithin`: wait on, go to the next
    step all the same, or roll back."""
    decide_within: PositiveDuration = "2h"
    """Time after which `onInconclusive` applies, counted like the soak."""


class PageFaults(Model):
    """Preemptions per request: sequences thrown out of a full KV cache and computed again."""

    tolerance_percent: Percent = 5
    """Preemptions per 100 requests by which the canary may exceed twice the concurrent
    baseline's."""


class OOMRetries(Model):
    """Engine deaths of any exit code, and the 5xx, time-outs and resets that they cause."""

    tolerance_percent: Percent = 1
    """Failed requests per 100 (5xx, time-outs, resets at the router) by which the canary may
    exceed the concurrent baseline."""
    max_restarts: Annotated[int, Field(ge=0, le=100)] | None = None
    """Engine restarts in one step by which the canary may exceed the concurrent baseline before
    it is rolled back whatever the statistics say. Default: no such number; a rate of deaths that
    is beyond bad luck rolls back, and a single one does not."""


class P99(Model):
    """Latency at p50, p90 and p99, to the first token and between tokens."""

    tolerance_percent: Percent = 25
    """By how much the canary's p99 may be slower than the concurrent baseline's, in per cent. p90
    gets four fifths of it; p50 and the time between tokens, which move less by chance, three
    fifths (between tokens 5 at least); the time to the first token, which moves more, twice as
    much."""


class AnalysisSettings(Model):
    """What must be measured before a step may advance."""

    interval: PositiveDuration = "15s"
    """Time between two looks at the evidence."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Requests that each arm must have finished in this step before it may advance. A floor: the
    statistics ask for as many more as they need."""
    error_budget_percent: Annotated[int, Field(ge=1, le=20)] = 5
    """Chance in per cent, over the whole rollout, that a canary which is as good as the baseline
    is rolled back. A smaller budget needs more evidence before harm is believed."""
    holdback_percent: Annotated[int, Field(ge=1, le=20)] = 5
    """Share of the requests that the baseline keeps during the last step, so that there still is
    something to compare with. The canary gets all of them with the promotion."""
    page_faults: PageFaults = PageFaults()
    """Signal pageFaults: preemptions per request, the mark of a KV cache that is too small."""
    oom_retries: OOMRetries = OOMRetries()
    """Signal oomRetries: engines that die, and requests that fail because of it."""
    p99: P99 = P99()
    """Signal p99: the latency, as the clients see it at the router and as the engines measure it
    to the first token and between tokens."""
    custom: Annotated[
        tuple[CustomSignal, ...],
        Field(
            max_length=custom_signals.MOST,
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                "x-kubernetes-validations": [custom_signals.UNIQUE_RULE],
            },
        ),
    ] = ()
    """Signals of your own that join the tests, at most 8: shares of two counters, or histograms of
    seconds, which the engines' pods export to the same Prometheus. One that fails rolls back like
    any other; a step waits until each was measured. Each takes its part of the error budget, so
    that all of them need a little more evidence."""


class ShadowPattern(Model):
    """A kind of personal data that the built-in ones do not know."""

    name: Annotated[str, Field(max_length=32, pattern=r"^[A-Z][A-Z0-9_]{0,31}$")]
    """Name of the kind, in capitals; it is part of the placeholder, as in `<CUSTOMER_3f9a>`."""
    pattern: Annotated[str, Field(min_length=1, max_length=512)]
    """Regular expression in the syntax of RE2, which takes linear time whatever the text."""


class ShadowLog(Model):
    """Where the compared pairs are kept, sanitized, as JSON Lines."""

    url: Annotated[
        str | None,
        Field(max_length=512, pattern=r"^(s3|gs)://[^\s]+$"),
    ] = None
    """Bucket and prefix, such as `s3://evaluations/kvquant` or `gs://evaluations/kvquant`.
    Default: a volume of the shadow service's pod."""
    secret_name: Name | None = None
    """Secret in the rollout's namespace whose keys become environment variables of the shadow
    service: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and the like."""
    claim_name: Name | None = None
    """PersistentVolumeClaim in the rollout's namespace for the volume. Default: an emptyDir, which
    is gone with the pod."""
    max_size_mi: Annotated[int, Field(ge=64, le=1_048_576)] = 4096
    """Most that is kept of this rollout, in MiB; the oldest is removed first."""
    retention: PositiveDuration = "720h"
    """Time after which a file is removed."""


class SecretKey(Model):
    """One key of a Secret in the rollout's namespace."""

    name: Name
    """The Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """The key in it."""


class Shadow(Model):
    """Copies of real requests, answered by both pools before any user meets the canary."""

    percent: Annotated[int, Field(ge=0, le=50)] = 5
    """Share of the generation requests that are copied, in per cent, while the rollout is in phase
    Shadowing. 0 leaves the phase out. A copy is stripped of personal data and asked of the baseline
    and of the canary; nobody sees the answers but the comparison."""
    min_pairs: Annotated[int, Field(ge=30, le=100_000)] = 200
    """Pairs of answers that must have been compared before the first step. A floor: the statistics
    ask for as many more as they need."""
    soak: Duration = "10m"
    """Shortest time that the phase lasts."""
    on_inconclusive: Literal["hold", "proceed", "rollback"] = "hold"
    """What to do when the pairs have not decided within `decideWithin`: wait on, begin the steps
    all the same, or roll back."""
    decide_within: PositiveDuration = "2h"
    """Time after which `onInconclusive` applies, counted like the soak."""
    noise_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """Share of the pairs for which the baseline is asked twice (A/A), in per cent: how much two
    answers of the same pool differ."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    """Longest answer that is asked for."""
    drift_percent: Annotated[int, Field(ge=1, le=100)] = 5
    """By how much the canary may be more surprised by the baseline's answers (perplexity per token)
    than the baseline itself, in per cent."""
    answers_percent: Annotated[int, Field(ge=1, le=100)] = 2
    """Answers per 100 that the canary may spoil and the baseline does not: none at all, JSON that
    is broken, tool calls that differ, citations lost, refusals, endings cut off."""
    saturation_probe: bool = True
    """Whether the canary's cache is filled now and then while it has no users, to see whether it
    still gives the right JSON and finds what stands in a long text. The baseline is left alone."""
    match_load: bool = False
    """Whether the canary's pods are topped up with copies of requests, in each step in which they
    have less load than the baseline's, to the same load per pod: what their users then see of the
    canary's latency holds for more load, too. Costs the users of the canary what a fuller pool
    costs, and the baseline nothing. Independent of `percent`."""
    engine_key_secret: SecretKey | None = None
    """Where the API key is that the engines ask for (`--api-key` of vLLM). The keys of users are
    never used. Default: the engines ask for none."""
    patterns: Annotated[
        tuple[ShadowPattern, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Kinds of personal data that are stripped besides the built-in ones."""
    log: ShadowLog = ShadowLog()
    """Where the compared pairs are kept."""


class Promotion(Model):
    """What happens after the last step."""

    rollback_window: Duration = "1h"
    """Time during which the old pool keeps its capacity, so that an abort is instant."""
    old_pool: Literal["ScaleToZero", "Keep"] = "ScaleToZero"
    """What becomes of the old pool when the rollback window closes."""


class AlertPolicy(StrEnum):
    """What an alert does to a rollout while it fires."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    IGNORE = "ignore"


class AlertSelector(Model):
    """Which alerts, and what they do to this rollout while they fire."""

    match: Annotated[
        dict[str, Annotated[str, Field(max_length=256, description="Value that it must have.")]],
        Field(min_length=1, max_length=8),
    ]
    """Labels that an alert must have, each with exactly this value. `alertname` is a label, too.
    An alert of another namespace is matched only where `namespace` is named here."""
    policy: AlertPolicy = AlertPolicy.ROLLBACK
    """`rollback`: one that begins to fire while the canary has traffic sends everything back to
    the baseline at once; one that fired before keeps the rollout from moving instead. `pause`:
    nothing moves while it fires. `ignore`: it does not concern this rollout."""


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
    traffic: Annotated[
        Traffic,
        Field(json_schema_extra={"x-kubernetes-validations": [_ONE_WAY_RULE, _SAME_WAY_RULE]}),
    ]
    """How traffic is split between the pools."""
    engine: Engine = Engine()
    """How to find the inference engine in the target's pod template. The defaults fit vLLM."""
    evaluation: Annotated[
        Evaluation | None,
        Field(json_schema_extra={"x-kubernetes-validations": [DEADLINE_RULE]}),
    ] = None
    """An example set of yours that both pools answer before any request of a user's is copied or
    sent to the canary: `kubectl kvquant dataset` makes one. Default: none."""
    shadow: Shadow = Shadow()
    """Copies of real requests that both pools answer before the first step. Needs no change of the
    clients. `percent: 0` leaves it out."""
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
    alerts: Annotated[
        tuple[AlertSelector, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Which alerts roll back or pause this rollout. The first entry that matches an alert decides.
    An alert that none matches concerns the rollout when its label `namespace` is the rollout's and
    its label `service` or `deployment` names the target, the router, the canary's pool or one of
    their Services (or `kvquant_rollout` names the rollout). Such an alert pauses if its `severity`
    is `warning`, is ignored if that is `info` or `none`, and rolls back otherwise. A change takes
    effect at once and starts nothing over."""
    promotion: Promotion = Promotion()
    """What happens after the last step."""
    progress_deadline: PositiveDuration = "30m"
    """Longest time that canary pods may take to become ready and verified before the rollout
    gives up and rolls back."""
