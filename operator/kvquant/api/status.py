"""The status of a KVQuantRollout: the operator's only memory, and what people see of it.

Attribute docstrings become the texts of `kubectl explain`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from kvquant.api.fields import Model, Percent
from kvquant.api.spec import AlertPolicy

CONDITION_MESSAGE_LENGTH = 2048


class Phase(StrEnum):
    """Where a rollout stands. For people: programs should read the conditions."""

    PENDING = "Pending"
    PROVISIONING = "Provisioning"
    VERIFYING = "Verifying"
    EVALUATING = "Evaluating"
    SHADOWING = "Shadowing"
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
    """Type of the condition: Ready, Reconciling, Stalled, RegimeVerified, Held, Paused, Killed,
    Adopted."""
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
    template_hash: str | None = None
    """Hash of the pod template that the attempt began with, for the baseline only: when its owner
    changes the template, the attempt starts over."""


class GatewayRule(Model):
    """The rule of the HTTPRoute that the attempt drives."""

    index: int
    """Which rule, counted from 0."""
    backend: str
    """The backendRef of the baseline, as JSON."""
    before: str
    """All backendRefs of the rule when the attempt began, as JSON: a rollback puts them back."""


class SignalReport(Model):
    """The numbers of one signal behind a verdict."""

    name: str
    """Name of the signal, such as latencyP99, failures or pageFaults."""
    family: str | None = None
    """What it belongs to: pageFaults, oomRetries, p99 or custom."""
    verdict: Verdict
    """Verdict of this signal alone."""
    baseline: str | None = None
    """The baseline's measurement, as text with its unit."""
    canary: str | None = None
    """The canary's measurement, as text with its unit."""
    tolerance: str | None = None
    """What the canary was allowed, as text with its unit."""
    effect: str | None = None
    """Harm beyond the tolerance: below zero the canary is within it."""
    lower: str | None = None
    """Lower bound of the effect that holds at every look; above zero it fails."""
    upper: str | None = None
    """Upper bound of the effect at the tolerance that a pass allows; below zero it passes."""
    requests: int | None = None
    """Canary requests behind it."""
    budget_spent_percent: Percent | None = None
    """Part of this signal's error budget that the evidence against the canary has used up."""
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
    """Requests that the baseline finished in this step and that count as evidence."""
    canary_requests: int | None = None
    """Requests that the canary finished in this step and that count as evidence."""
    baseline_p99_ms: int | None = None
    """The baseline's 99th percentile of latency at the router in this step, in milliseconds."""
    canary_p99_ms: int | None = None
    """The canary's 99th percentile of latency at the router in this step, in milliseconds."""
    load_ratio: str | None = None
    """Requests per canary pod divided by requests per baseline pod, e.g. `0.67`."""
    provisional: bool = False
    """Whether the canary's pods have less than 0.8 times the load of the baseline's, so that a
    pass says less than it seems to."""
    replicas_needed: int | None = None
    """Canary pods that the next step needs, when those planned would get more load than any pod
    has carried."""
    eta_seconds: int | None = None
    """Seconds until the evidence should suffice at the present rate of requests; absent when more
    of the same will not decide."""
    budget_spent_percent: Percent | None = None
    """Part of the error budget used up by the signal that has used up most."""
    signals: Annotated[tuple[SignalReport, ...], Field(max_length=32)] = ()
    """The signals' numbers."""


class ShadowBucket(Model):
    """What was seen of the requests of one length."""

    bucket: str
    """Length of the body, such as `64-256KiB`; English prose has about four bytes to a token."""
    live: int | None = None
    """Requests of that length that clients sent since the phase began."""
    copied: int | None = None
    """Copies of them that arrived at the shadow service."""
    pairs: int = 0
    """Pairs of answers that were compared."""
    covered: bool = False
    """Whether enough of them were compared to speak of this length at all."""


class ShadowLoss(Model):
    """Copies that were not compared, for one reason."""

    reason: Annotated[str, Field(max_length=64)]
    """Why, in a word or two, such as `queue`, `deadline` or `size`."""
    count: int
    """How many copies."""


class ShadowReport(Model):
    """The latest look at the answers of both pools to copies of requests."""

    at: AwareDatetime
    """When it was looked at."""
    verdict: Verdict
    """Worst of the signals' verdicts."""
    message: str
    """The verdict in a sentence."""
    pairs: int = 0
    """Pairs of answers, canary against baseline, that were compared."""
    min_pairs: int | None = None
    """Pairs that the spec asks for at least; the statistics may ask for more."""
    noise_pairs: int = 0
    """Pairs of answers of the baseline alone (A/A)."""
    exact_percent: Percent | None = None
    """Pairs whose texts are the same, in per cent. Told, and no evidence: batching alone changes
    greedy text."""
    noise_exact_percent: Percent | None = None
    """The same of the baseline's own pairs."""
    eta_seconds: int | None = None
    """Seconds until the pairs should suffice at the present rate; absent when that is unknown."""
    replaced: int | None = None
    """Values of personal data for which placeholders stand in the copies and their answers."""
    dropped: Annotated[tuple[ShadowLoss, ...], Field(max_length=12)] = ()
    """Copies that were not compared, by reason, the most frequent first."""
    signals: Annotated[tuple[SignalReport, ...], Field(max_length=16)] = ()
    """The signals' numbers."""
    buckets: Annotated[tuple[ShadowBucket, ...], Field(max_length=16)] = ()
    """What was seen by length of the request. A length that is not covered was not evaluated."""


class EvaluationMeasure(Model):
    """One measure of an evaluation, over the whole set or over the part in which it is worst."""

    name: Annotated[str, Field(max_length=64)]
    """Name of the measure, such as citations or drift."""
    bucket: Annotated[str, Field(max_length=64)] = "all"
    """Which examples: `all`, or those of a length or of a kind."""
    pairs: int
    """Examples behind it."""
    difference: str
    """By how much the canary is worse, as a share of the examples (drift: nats per token)."""
    lower: str
    """Lower bound of the difference."""
    upper: str
    """Upper bound of the difference."""
    margin: str
    """What the canary was allowed."""
    verdict: Verdict
    """Verdict of this measure alone."""


class EvaluationReport(Model):
    """What the evaluation of the example set has come to in this attempt."""

    run: int = 0
    """Number of the run in this attempt; 0 before the first."""
    job: str | None = None
    """Name of the run's Job; absent while none is on its way or has ended."""
    started_at: AwareDatetime | None = None
    """When the Job was asked for."""
    ended_at: AwareDatetime | None = None
    """When its outcome was seen."""
    verdict: Verdict | None = None
    """Absent until there is one. Error: the evaluation itself failed, which says nothing of the
    canary."""
    reason: Annotated[str | None, Field(max_length=64)] = None
    """Machine-readable cause of an Error."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """The verdict in a sentence."""
    examples: int | None = None
    """Examples in the set."""
    answered: int | None = None
    """Examples that count: both pools answered, or the canary alone did not."""
    failures: int = 0
    """Runs in a row that failed themselves."""
    measures: Annotated[tuple[EvaluationMeasure, ...], Field(max_length=16)] = ()
    """Those that decided or are worst come first."""


class TrafficSpan(Model):
    """A split of the traffic and when it was committed."""

    since: AwareDatetime
    """When it was committed."""
    step: int
    """Step in effect (0: none)."""
    weight: Percent
    """The canary's weight in per cent."""


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


class AdoptionStage(StrEnum):
    """How far a target is that has adopted the promoted dtype."""

    PROVING = "Proving"
    HANDING_OVER = "HandingOver"
    ADOPTED = "Adopted"


class Adoption(Model):
    """The way of the traffic from a promoted pool back to the target that adopted its dtype."""

    stage: AdoptionStage
    """Proving: the promoted pool serves until every pod of the target is proven. HandingOver: the
    target serves, and the promoted pool is kept until it is drained. Adopted: the target serves,
    and the promoted pool is gone."""
    since: AwareDatetime
    """When the stage began."""
    regime_proof: Annotated[tuple[PodProof, ...], Field(max_length=512)] = ()
    """Regime proof by pod of the target, held against the promoted pool; empty once adopted, when
    status.regimeProof has it."""


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
    SHADOW = "Shadow"
    EVALUATE = "Evaluate"
    ADOPT = "Adopt"


class DecisionRecord(Model):
    """One decision of the operator with what led to it."""

    number: int | None = None
    """Number of the decision, counted from 1 over all attempts, by which `kubectl kvquant explain`
    finds it; absent from those of an operator that kept no record."""
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
    """Committed split of the traffic, in per cent, and the share that is copied."""

    baseline: Percent = 100
    """Share of the pool that served when the rollout began."""
    canary: Percent = 0
    """Share of the pool with the quantized cache."""
    mirror: Percent = 0
    """Share of the generation requests of which the shadow service gets a copy."""


class HandledRequests(Model):
    """Tokens of the one-shot requests that have been handled."""

    promote: str | None = None
    """Last handled value of the annotation kvquant.dev/promote."""
    abort: str | None = None
    """Last handled value of the annotation kvquant.dev/abort."""
    retry: str | None = None
    """Last handled value of the annotation kvquant.dev/retry."""


class AlertSource(StrEnum):
    """How an alert became known."""

    WEBHOOK = "webhook"
    POLLING = "polling"


class AlertReport(Model):
    """An alert that fires and concerns the rollout."""

    name: Annotated[str, Field(max_length=128)]
    """Name of the alert: its label `alertname`."""
    fingerprint: Annotated[str, Field(max_length=64)]
    """Hash of all of its labels."""
    labels: Annotated[
        dict[str, Annotated[str, Field(max_length=128, description="Value of the label.")]],
        Field(max_length=12),
    ] = {}
    """Its labels, cut to the most telling ones."""
    since: AwareDatetime
    """When it began to fire; for one that was polled, when its condition began to hold."""
    heard_at: AwareDatetime
    """When it was told, to the hour. Without a word for 12 hours it is taken to be over."""
    learned: AlertSource
    """How it became known: by `webhook` from Alertmanager, or by `polling` Prometheus."""
    policy: AlertPolicy
    """What it does to the rollout."""
    before_traffic: bool = False
    """Whether it fired before the canary had traffic, so that it is not held against the canary:
    nothing moves until it is over."""


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
    """Hash of the spec that was rolled back last; none when it is tried again by itself."""
    rejected_spec_hashes: Annotated[
        tuple[Annotated[str, Field(description="Hash of a spec.")], ...], Field(max_length=32)
    ] = ()
    """Hashes of the last 32 specs that were rolled back, newest last: none of them is tried again
    until someone says retry."""
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
    """Ready, Reconciling and Stalled as kstatus defines them; RegimeVerified, Held, Paused, Killed
    and Adopted are ours."""
    engine: str | None = None
    """Engine that was recognised in the target."""
    resolved_dtype: str | None = None
    """KV-cache dtype as the engine calls it."""
    router: str | None = None
    """Name of the router: clients send to the Service of this name. With gatewayAPI, what belongs
    to the HTTPRoute is named like this."""
    gateway: GatewayRule | None = None
    """The rule of the HTTPRoute that splits the traffic; none with the built-in router."""
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
    traffic: Annotated[tuple[TrafficSpan, ...], Field(max_length=64)] = ()
    """Splits of the traffic in this attempt, oldest first: from them and Prometheus, an operator
    that was restarted finds the evidence again."""
    canary_since: AwareDatetime | None = None
    """When the canary got its first requests, or got them back: alerts that began before are not
    held against it."""
    alerts: Annotated[tuple[AlertReport, ...], Field(max_length=16)] = ()
    """Alerts that fire and concern this rollout."""
    weights: Weights = Weights()
    """Committed split of the traffic. Routers follow this, never the other way round."""
    verdict: str | None = None
    """The latest verdict or the reason to wait, in a few words."""
    analysis: AnalysisReport | None = None
    """The latest look at the evidence."""
    evaluation: EvaluationReport | None = None
    """The evaluation of the example set in this attempt."""
    shadow: ShadowReport | None = None
    """The latest look at the shadowed requests of this attempt."""
    regime_proof: Annotated[tuple[PodProof, ...], Field(max_length=512)] = ()
    """Regime proof by canary pod; once the target has adopted the dtype, by pod of the target."""
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
    retired_replicas: int | None = None
    """Pods that the old pool had when its rollback window closed: as many it gets back when it
    adopts the promoted dtype."""
    adoption: Adoption | None = None
    """How far the target is that has adopted the promoted dtype; absent while it has not."""

    @property
    def adopting(self) -> bool:
        """Whether the traffic is on its way from the promoted pool back to the target."""
        return self.adoption is not None and self.adoption.stage is not AdoptionStage.ADOPTED

    @property
    def handed_back(self) -> bool:
        """Whether the target has the traffic of the promoted pool."""
        return self.adoption is not None and self.adoption.stage is not AdoptionStage.PROVING

    @property
    def adopted(self) -> bool:
        """Whether the target serves for good and the promoted pool is to go."""
        return self.handed_back and not self.adopting

    def condition(self, type_: str) -> Condition | None:
        """Return the condition of that type, if it was ever set."""
        return next((c for c in self.conditions if c.type == type_), None)
