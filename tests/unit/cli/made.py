"""Rollouts in several phases, as an API server returns them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from kvquant.api.v1alpha1 import KVQuantRollout
from kvquant.cli.rollouts import Seen, read
from kvquant.core import record
from kvquant.core.plan import PlannedShadow
from kvquant.core.quality import JUDGED, judge
from kvquant.core.shadow_reading import ShadowEvidence, Sums
from kvquant.core.shadow_settings import CANARY_PAIR, CITATIONS, EXACT, NOISE_PAIR
from tests.fakes.cluster import FakeCluster

NOW = datetime(2026, 11, 24, 14, 0, 0, tzinfo=UTC)

PROOF_PASSED = {
    "pod": "llama-fp8-pool-6d9f7c8b5d-x7k2p",
    "containerId": "containerd://aa",
    "verdict": "Pass",
    "dtype": "fp8",
    "capacityTokens": 98304,
    "factor": "2.00",
    "expectedFactor": "2.00",
    "message": "Capacity per byte is 2.00 times the baseline's (auto), expected 2.00 for fp8.",
}


def before(**span: float) -> str:
    """Return the instant that lies so long before NOW, as Kubernetes writes it."""
    return (NOW - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%SZ")


def decision(kind: str, reason: str, step: int, weight: int, message: str, **ago: float) -> Any:
    return {
        "at": before(**ago),
        "kind": kind,
        "reason": reason,
        "step": step,
        "weight": weight,
        "message": message,
    }


def condition(type_: str, status: str, reason: str, message: str = "", **ago: float) -> Any:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": before(**ago),
    }


def signal(name: str, verdict: str, baseline: str, canary: str, tolerance: str) -> Any:
    return {
        "name": name,
        "verdict": verdict,
        "baseline": baseline,
        "canary": canary,
        "tolerance": tolerance,
        "message": f"{name}: canary {canary}, baseline {baseline}; {tolerance} is tolerated.",
    }


def fresh(name: str = "llama-fp8", namespace: str = "inference") -> dict[str, Any]:
    """A rollout that was just applied: no operator has seen it."""
    return {
        "apiVersion": "kvquant.dev/v1alpha1",
        "kind": "KVQuantRollout",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "generation": 1,
            "creationTimestamp": before(minutes=12),
        },
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama"},
            "kvCache": {"dtype": "fp8", "headDim": 128},
            "traffic": {"router": {"name": "llama-router"}},
            "steps": [
                {"weight": 10, "soak": "5m"},
                {"weight": 25, "soak": "5m"},
                {"weight": 50, "soak": "5m"},
                {"weight": 100, "soak": "5m"},
            ],
            "analysis": {"interval": "15s", "minRequests": 300},
        },
    }


def evaluating(verdict: str | None = None) -> dict[str, Any]:
    """Evaluating an example set: the first run is on its way, or has come to a verdict."""
    raw = progressing()
    status = raw["status"]
    status.pop("analysis")
    status.update(phase="Evaluating", step=0, stepLabel="0/4", verdict="Job asks.")
    status["weights"] = {"baseline": 100, "canary": 0}
    report = {"run": 1, "job": "llama-fp8-eval-1", "startedAt": before(minutes=3), "message": ""}
    if verdict is not None:
        report |= {
            "verdict": verdict,
            "endedAt": before(minutes=1),
            "message": "The canary loses citations.",
            "examples": 1200,
            "answered": 1190,
            "measures": [
                {
                    "name": "citations",
                    "bucket": "16-64KiB",
                    "pairs": 400,
                    "verdict": verdict,
                    "difference": "0.041",
                    "lower": "0.02",
                    "upper": "0.05",
                    "margin": "0.02",
                }
            ],
        }
    status["evaluation"] = report
    return raw


def progressing(name: str = "llama-fp8", namespace: str = "inference") -> dict[str, Any]:
    """At step 2 of 4, every signal within its tolerance, soaking."""
    raw = fresh(name, namespace)
    raw["status"] = {
        "observedGeneration": 1,
        "phase": "Progressing",
        "phaseStartedAt": before(minutes=3),
        "attempt": 1,
        "specHash": "0123456789abcdef",
        "engine": "vllm",
        "resolvedDtype": "fp8",
        "router": "llama-router",
        "baseline": {"deployment": "llama", "slot": "blue", "dtype": "auto", "replicas": 2},
        "canary": {
            "deployment": "llama-fp8-pool",
            "slot": "green",
            "dtype": "fp8",
            "replicas": 1,
        },
        "step": 2,
        "totalSteps": 4,
        "stepLabel": "2/4",
        "stepStartedAt": before(minutes=3),
        "previousStepStartedAt": before(minutes=9),
        "weights": {"baseline": 75, "canary": 25},
        "verdict": "Every signal is within its tolerance after 402 canary and 1,204 baseline "
        "requests. Soak: 121 s left.",
        "analysis": {
            "at": before(seconds=6),
            "verdict": "Pass",
            "message": "Every signal is within its tolerance after 402 canary and 1,204 baseline "
            "requests.",
            "baselineRequests": 1204,
            "canaryRequests": 402,
            "baselineP99Ms": 1830,
            "canaryP99Ms": 1764,
            "loadRatio": "0.67",
            "signals": [
                signal(
                    "pageFaults",
                    "Pass",
                    "3.41 per 100 of 1,203 requests",
                    "0.25 per 100 of 401 requests",
                    "+5 per 100 requests",
                ),
                signal(
                    "oomRetries",
                    "Pass",
                    "0.08 % of 1,204 requests",
                    "0 % of 402 requests",
                    "+1 points",
                ),
                signal(
                    "p99", "Pass", "1 % of 1,204 requests", "0.75 % of 402 requests", "+4 points"
                ),
            ],
        },
        "regimeProof": [copy.deepcopy(PROOF_PASSED)],
        "conditions": [
            condition("Ready", "False", "Progressing", minutes=12),
            condition("Reconciling", "True", "Progressing", minutes=12),
            condition("Stalled", "False", "Progressing", minutes=12),
            condition(
                "Held",
                "True",
                "Soaking",
                "Every signal is within its tolerance after 402 canary and 1,204 baseline "
                "requests. Soak: 121 s left.",
                minutes=1,
            ),
            condition("Paused", "False", "NotRequested", minutes=12),
            condition("Killed", "False", "NotRequested", minutes=12),
            condition("RegimeVerified", "True", "Proven", "1 of 1 pods", minutes=10),
        ],
        "decisions": [
            decision(
                "Start",
                "Started",
                0,
                0,
                "Attempt 1: llama (auto, 2 pods) against llama-fp8-pool (fp8), through router "
                "llama-router.",
                minutes=11,
            ),
            decision(
                "Verify",
                "Verifying",
                0,
                0,
                "1 canary pods are ready; proving that their KV cache is fp8 before any traffic.",
                minutes=10,
            ),
            decision(
                "Advance",
                "StepStarted",
                1,
                10,
                "Step 1/4: canary 10 %. Every canary pod has passed the regime proof.",
                minutes=9,
            ),
            decision(
                "Advance",
                "StepStarted",
                2,
                25,
                "Step 2/4: canary 25 %. Every signal is within its tolerance after 310 canary and "
                "2,790 baseline requests.",
                minutes=3,
            ),
            decision(
                "Hold",
                "Soaking",
                2,
                25,
                "Every signal is within its tolerance after 301 canary and 905 baseline requests.",
                minutes=1,
            ),
        ],
    }
    return raw


def numbered(raw: dict[str, Any]) -> dict[str, Any]:
    """Give the decisions numbers, as an operator does that keeps a record."""
    for number, one in enumerate(raw["status"]["decisions"], 1):
        one["number"] = number
    return raw


def judged(name: str, verdict: str, **fields: Any) -> Any:
    """A signal as the sequential analysis tells it."""
    told = {
        "name": name,
        "family": "p99",
        "verdict": verdict,
        "baseline": "1 %",
        "canary": "38.46 %",
        "tolerance": "25 % slower",
        "effect": "+36.21 points",
        "lower": "+20.10 points",
        "upper": "+49.00 points",
        "requests": 52,
        "budgetSpentPercent": 100,
        "message": f"{name}: far too slow.",
    }
    return told | fields


def alert(policy: str = "rollback", **fields: Any) -> Any:
    """An alert that fires."""
    told = {
        "name": "KVCacheSlow",
        "fingerprint": "0123",
        "labels": {"alertname": "KVCacheSlow"},
        "since": before(minutes=7),
        "heardAt": before(minutes=1),
        "learned": "webhook",
        "policy": policy,
    }
    return told | fields


def condemned() -> dict[str, Any]:
    """Rolled back, with numbers as the sequential analysis tells them."""
    raw = numbered(rolled_back())
    raw["metadata"]["uid"] = "u-1"
    raw["status"]["analysis"].update(
        at=before(minutes=2, seconds=3),
        budgetSpentPercent=100,
        provisional=True,
        signals=[
            judged("latencyP99", "Fail"),
            judged(
                "failures",
                "Inconclusive",
                family="oomRetries",
                canary="0 %",
                baseline="0 %",
                tolerance="0.5 % more",
                effect="-0.50 points",
                lower="-9.00 points",
                upper="+1.25 points",
                budgetSpentPercent=0,
            ),
        ],
    )
    return raw


def recorded(raw: dict[str, Any], **status: Any) -> dict[str, Any]:
    """The record that the operator has written of a rollout's decisions."""
    rollout = KVQuantRollout.parse({**raw, "status": {**raw["status"], **status}})
    metadata = rollout.metadata
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": record.name_of(metadata.name),
            "namespace": metadata.namespace,
            "labels": {"kvquant.dev/record": "true"},
            "ownerReferences": [{"uid": metadata.uid}],
        },
        "data": dict(record.additions(rollout, 0)),
    }


def set_condition(raw: dict[str, Any], type_: str, status: str, reason: str, text: str) -> None:
    """Replace a condition that the rollout has."""
    conditions = raw["status"]["conditions"]
    index = next(i for i, c in enumerate(conditions) if c["type"] == type_)
    conditions[index] = condition(type_, status, reason, text, seconds=30)


def paused() -> dict[str, Any]:
    raw = progressing()
    who = "2026-11-24T13:59:30Z by alice: freeze"
    raw["metadata"]["annotations"] = {"kvquant.dev/paused": who}
    set_condition(raw, "Paused", "True", "Requested", who)
    set_condition(raw, "Held", "True", "Paused", f"Paused: {who}")
    return raw


def killed() -> dict[str, Any]:
    raw = progressing()
    who = "2026-11-24T13:59:30Z by alice: garbled"
    raw["metadata"]["annotations"] = {"kvquant.dev/killed": who}
    raw["status"].update(
        phase="Verifying",
        killed=True,
        step=0,
        stepLabel="0/4",
        weights={"baseline": 100, "canary": 0},
    )
    raw["status"].pop("analysis")
    raw["status"]["decisions"].append(
        decision("Kill", "Killed", 0, 0, f"Kill switch: {who}. Baseline serves 100 %.", seconds=30)
    )
    set_condition(raw, "Killed", "True", "Requested", who)
    set_condition(raw, "Held", "True", "Killed", "The kill switch holds.")
    return raw


CAUSE = (
    "p99: canary 38.46 %, baseline 0.84 % of requests took longer than 2.5 s; 4 more are "
    "tolerated. The excess is clear of noise after 52 requests."
)


def rolled_back(name: str = "llama-int8") -> dict[str, Any]:
    raw = progressing(name)
    raw["spec"]["kvCache"]["dtype"] = "int8"
    status = raw["status"]
    status.update(
        phase="RolledBack",
        settled=True,
        rejectedSpecHash="0123456789abcdef",
        resolvedDtype="int8_per_token_head",
        step=1,
        stepLabel="1/4",
        weights={"baseline": 100, "canary": 0},
        canary={
            "deployment": "llama-int8-pool",
            "slot": "green",
            "dtype": "int8_per_token_head",
            "replicas": 0,
        },
        verdict=f"Rolled back: {CAUSE}",
        regimeProof=[],
    )
    status["analysis"].update(verdict="Fail", message=CAUSE, canaryRequests=52, canaryP99Ms=14210)
    status["analysis"]["signals"][2] = signal(
        "p99", "Fail", "0.84 % of 1,204 requests", "38.46 % of 52 requests", "+4 points"
    )
    status["decisions"] = [
        *status["decisions"][:3],
        decision("RollBack", "AnalysisFailed", 1, 0, CAUSE, minutes=2),
        decision("Settle", "RolledBack", 1, 0, f"Rolled back: {CAUSE}", minutes=1),
    ]
    set_condition(raw, "Held", "False", "Moving", "")
    set_condition(raw, "Stalled", "True", "RolledBack", status["verdict"])
    return raw


def promoted(*, settled: bool = False) -> dict[str, Any]:
    raw = progressing()
    status = raw["status"]
    status.update(
        phase="Promoted",
        step=4,
        stepLabel="4/4",
        settled=settled,
        promotedAt=before(minutes=2),
        weights={"baseline": 0, "canary": 100},
        verdict="Promoted; the rollback window closes in 3480 s.",
    )
    status["decisions"].append(
        decision("Promote", "Promoted", 4, 100, "llama-fp8-pool is the serving pool.", minutes=2)
    )
    set_condition(raw, "Held", "False", "Moving", "")
    set_condition(raw, "Ready", "True", "Promoted", "")
    return raw


def adopting(stage: str = "HandingOver", *, killed: bool = False) -> dict[str, Any]:
    """A promotion whose target asks for the promoted dtype by itself, and gets the traffic."""
    raw = promoted(settled=True)
    status = raw["status"]
    status["adoption"] = {"stage": stage, "since": before(minutes=1), "regimeProof": []}
    if stage == "HandingOver":
        status["weights"] = {"baseline": 100, "canary": 0}
    reason = "Killed" if killed else "Draining"
    status["conditions"].append(condition("Adopted", "False", reason, "...", seconds=30))
    if killed:
        raw["metadata"]["annotations"] = {"kvquant.dev/killed": "2026-11-24T13:59:30Z by alice"}
    return raw


def answers(short: int, long: int = 0, *, lost: int = 0) -> Any:
    """A look at the answers to copies: pairs up to 4 KiB, and longer ones that lose citations.

    Args:
        short: Pairs of short requests, in which nothing differs.
        long: Pairs of 16 to 64 KiB.
        lost: How many of the long ones lost citations.
    """
    evidence = ShadowEvidence(
        received={"0-4KiB": short + 6.0, "16-64KiB": float(long), "1MiB+": 2.0},
        dropped={"queue": 5.0, "size": 2.0},
        replaced=37.0,
        live={"0-4KiB": 20.0 * short, "16-64KiB": 20.0 * long, "1MiB+": 31.0},
    )
    for signal in (*JUDGED, EXACT):
        harm = lost if signal == CITATIONS else 0.0
        evidence.sums[CANARY_PAIR, signal, "0-4KiB"] = Sums(short)
        evidence.sums[CANARY_PAIR, signal, "16-64KiB"] = Sums(long, harm, 0.0, harm)
        evidence.sums[NOISE_PAIR, signal, "0-4KiB"] = Sums(short // 5)
    plan = PlannedShadow(percent=5, min_pairs=200)
    report = judge(evidence, plan, 0.01, NOW - timedelta(seconds=4), 600.0)
    return report.model_dump(mode="json", by_alias=True)


def shadowing(report: Any = None) -> dict[str, Any]:
    """Requests are copied, and no user has met the canary."""
    raw = numbered(provisioning())
    raw["metadata"]["uid"] = "u-1"
    verdict = "Nothing was compared yet." if report is None else report["message"]
    raw["status"].update(
        phase="Shadowing",
        phaseStartedAt=before(minutes=10),
        weights={"baseline": 100, "canary": 0, "mirror": 5},
        verdict=verdict[:256],
        decisions=[
            *raw["status"]["decisions"][:2],
            decision("Shadow", "Shadowing", 0, 0, "5 % of the requests are copied.", minutes=10),
        ],
    )
    if report is not None:
        raw["status"]["shadow"] = report
    set_condition(raw, "Held", "True", "InsufficientEvidence", verdict)
    return numbered(raw)


def condemned_by_answers() -> dict[str, Any]:
    """Rolled back because long requests lost citations, before a user met the canary."""
    report = answers(300, 80, lost=40)
    raw = shadowing(report)
    why = f"Before any user met the canary: {report['message']}"
    raw["status"].update(
        phase="RolledBack",
        settled=True,
        weights={"baseline": 100, "canary": 0},
        verdict=f"Rolled back: {why}"[:256],
    )
    raw["status"]["decisions"] += [decision("RollBack", "QualityFailed", 0, 0, why, seconds=2)]
    set_condition(raw, "Held", "False", "Moving", "")
    return numbered(raw)


def provisioning() -> dict[str, Any]:
    raw = progressing()
    why = (
        "0 of 1 canary pods are ready: llama-fp8-pool-x: 0/1 nodes are available: "
        "1 Insufficient nvidia.com/gpu."
    )
    raw["status"].update(
        phase="Provisioning",
        step=0,
        stepLabel="0/4",
        weights={"baseline": 100, "canary": 0},
        verdict=why,
        regimeProof=[],
    )
    raw["status"].pop("analysis")
    raw["status"].pop("stepStartedAt")
    set_condition(raw, "Held", "True", "CanaryNotReady", why)
    return raw


def seen(raw: dict[str, Any]) -> Seen:
    """Read a rollout as the CLI would, from an API server in memory."""
    return read(FakeCluster().put(raw))
