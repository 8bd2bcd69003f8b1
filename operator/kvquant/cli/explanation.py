"""What `explain -o json` prints: decisions with the evidence that they rested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from kvquant.api import names
from kvquant.api.fields import Model
from kvquant.api.v1alpha1 import DecisionKind, Pool, Verdict, Weights
from kvquant.cli.looks import AnalysisDocument, ShadowDocument, copied, looked
from kvquant.cli.rollouts import Seen
from kvquant.cli.times import length
from kvquant.core import record
from kvquant.core.ownership import owners_of
from kvquant.core.record import Entry
from kvquant.core.shadow_settings import DRIFT
from kvquant.errors import ClusterError
from kvquant.ports import Cluster

MOST_CHANGES = 6

TOLERANCES: Mapping[str, str] = {
    "latencyP50": "spec.analysis.p99.tolerancePercent",
    "latencyP90": "spec.analysis.p99.tolerancePercent",
    "latencyP99": "spec.analysis.p99.tolerancePercent",
    "failures": "spec.analysis.oomRetries.tolerancePercent",
    "pageFaults": "spec.analysis.pageFaults.tolerancePercent",
}
"""Fields of the spec by which users choose what is tolerated, by signal."""


class PoolDocument(Model):
    """A pool as a decision found it."""

    pool: str
    """Name of the pool's Deployment."""
    dtype: str
    """KV-cache dtype as the engine calls it."""
    replicas: int
    """Pods that the pool had or was asked to have."""


class DecisionDocument(Model):
    """One decision, complete."""

    number: int | None = None
    """Number of the decision, counted from 1 over all attempts; null for one of an operator that
    kept no record."""
    at: datetime
    """When it was decided."""
    kind: DecisionKind
    """What was decided."""
    reason: str
    """Machine-readable cause in CamelCase; also the reason of the Event."""
    message: str
    """The decision in a sentence."""
    attempt: int
    """Attempt that it belongs to."""
    fingerprint: str | None = None
    """What every answer of the attempt's canary bears in `system_fingerprint`; null when answers
    are not marked."""
    step: int
    """Step in effect when it was decided (0: none yet)."""
    total_steps: int
    """Number of steps of the plan."""
    weights: Weights
    """Split of the traffic after the decision."""
    baseline: PoolDocument | None = None
    """The pool that served when the attempt began; null before it begins."""
    canary: PoolDocument | None = None
    """The pool with the quantized cache."""
    analysis: AnalysisDocument | None = None
    """The look at the evidence that it rested on; null for one that rests on no measurement."""
    shadow: ShadowDocument | None = None
    """The look at the answers to copied requests that it rested on; null for a decision that was
    not made by them."""
    signals_left_out: int = 0
    """Signals that passed and were left out, because there were too many to keep."""
    changes: tuple[str, ...] = ()
    """What would have made the verdict another one, in sentences."""


class ExplanationDocument(Model):
    """The decisions of a rollout."""

    name: str
    """Name of the rollout."""
    namespace: str
    """Namespace of the rollout."""
    decisions: tuple[DecisionDocument, ...]
    """Every decision that is still known, oldest first."""
    problems: tuple[str, ...] = ()
    """What is missing and why, in sentences; empty when nothing is."""


def explanation(cluster: Cluster, seen: Seen) -> ExplanationDocument:
    """Return every decision that the record or the status still knows.

    The status fills in what the record lacks: it may be written a moment later, or be forbidden.
    """
    entries, problems = _recorded(cluster, seen)
    known = {entry.number for entry in entries}
    of_status = [record.entry(seen.rollout, d) for d in seen.status.decisions]
    unnumbered = [entry for entry in of_status if not entry.number]
    newer = [entry for entry in of_status if entry.number and entry.number not in known]
    oldest_first = sorted([*entries, *newer], key=lambda entry: entry.number)
    return ExplanationDocument(
        name=seen.name,
        namespace=seen.namespace,
        decisions=tuple(_told(entry) for entry in [*unnumbered, *oldest_first]),
        problems=problems,
    )


def _recorded(cluster: Cluster, seen: Seen) -> tuple[list[Entry], tuple[str, ...]]:
    name = record.name_of(seen.name)
    lacks = "so that only what the status still knows is told"
    try:
        found = cluster.get("ConfigMap", seen.namespace, name)
    except ClusterError as error:
        return [], (
            f"The record cannot be read ({error}), {lacks}: ask for the right to get ConfigMaps in "
            f"namespace {seen.namespace}, which the cluster's role `view` holds.",
        )
    if found is None or names.LABEL_RECORD not in (found["metadata"].get("labels") or {}):
        if any(d.number is not None for d in seen.status.decisions):
            return [], (f"There is no record {name} yet, {lacks}: see the operator's log.",)
        return [], ()
    if seen.rollout.metadata.uid not in owners_of(found):
        return [], (f"The record {name} is of an earlier rollout of that name, {lacks}.",)
    data = found.get("data") or {}
    entries = record.read(data)
    if len(entries) < len(data):
        lost = len(data) - len(entries)
        return entries, (f"{lost} entries of the record cannot be read by this version.",)
    return entries, ()


def _told(entry: Entry) -> DecisionDocument:
    return DecisionDocument(
        number=entry.number or None,
        **entry.model_dump(
            include={"at", "kind", "reason", "message", "attempt", "fingerprint", "step"}
            | {"total_steps", "signals_left_out"}
        ),
        weights=entry.weights,
        baseline=_pool(entry.baseline),
        canary=_pool(entry.canary),
        analysis=None if entry.analysis is None else looked(entry.analysis),
        shadow=None if entry.shadow is None else copied(entry.shadow),
        changes=_changes(entry),
    )


def _changes(entry: Entry) -> tuple[str, ...]:
    if entry.analysis is not None:
        return changes(looked(entry.analysis))
    return () if entry.shadow is None else changes_of_answers(copied(entry.shadow))


def _pool(pool: Pool | None) -> PoolDocument | None:
    if pool is None:
        return None
    return PoolDocument(pool=pool.deployment, dtype=pool.dtype, replicas=pool.replicas)


def changes(analysis: AnalysisDocument) -> tuple[str, ...]:
    """Return what would have made the verdict another one, the weightiest first."""
    if analysis.verdict is Verdict.ERROR:
        return ("Data: a look without any decides nothing, and the next one is made by itself.",)
    if analysis.verdict is Verdict.FAIL:
        return tuple(_mended(analysis))[:MOST_CHANGES]
    if analysis.verdict is Verdict.PASS:
        return tuple(_spoilt(analysis))
    return tuple(_awaited(analysis))[:MOST_CHANGES]


def changes_of_answers(shadow: ShadowDocument) -> tuple[str, ...]:
    """Return what would have made the verdict on copied requests another one."""
    told = []
    for signal in shadow.signals:
        if signal.verdict is not Verdict.FAIL:
            continue
        field = "driftPercent" if signal.name == DRIFT else "answersPercent"
        if signal.lower is None or signal.lower.startswith("-"):
            # Over all requests it is within bounds: one length of them is what failed.
            harm = "less harm to the requests of the length that its sentence names"
        else:
            harm = f"less harm: at least {signal.lower} beyond what is allowed"
        told.append(f"{signal.name}: {harm}, or a larger spec.shadow.{field}.")
    if shadow.verdict is Verdict.INCONCLUSIVE:
        if shadow.eta_seconds is not None:
            rest = length(timedelta(seconds=shadow.eta_seconds))
            told.append(f"More pairs: about {rest} of them at the rate of then.")
        told += [
            f"{signal.name}: it passes when its upper bound, {signal.upper}, falls below zero."
            for signal in shadow.signals
            if signal.verdict is Verdict.INCONCLUSIVE and _number(signal.upper) > 0
        ]
    return tuple(told)[:MOST_CHANGES]


def _mended(analysis: AnalysisDocument) -> Sequence[str]:
    told = []
    for signal in analysis.signals:
        if signal.verdict is not Verdict.FAIL:
            continue
        field = TOLERANCES.get(signal.name)
        larger = f", or be tolerated by a larger {field}" if field else ""
        if signal.lower is None:
            told.append(f"{signal.name}: fewer of them{larger}.")
        elif signal.lower.startswith("-"):
            told.append(
                f"{signal.name}: less harm than {signal.effect} beyond the tolerance{larger}. "
                "It was likely, not certain, and had been for long."
            )
        else:
            told.append(
                f"{signal.name}: harm beyond the tolerance, which is at least {signal.lower}, "
                f"would have to go{larger}."
            )
    return told


def _spoilt(analysis: AnalysisDocument) -> Sequence[str]:
    known = [s for s in analysis.signals if s.effect is not None and s.lower is not None]
    if not known:
        return ()
    nearest = max(known, key=lambda s: (s.budget_spent_percent or 0, _number(s.effect)))
    return (
        f"A lower bound above zero would have failed it. {nearest.name} came nearest: "
        f"{nearest.lower}, with {nearest.budget_spent_percent or 0} % of its error budget spent.",
    )


def _awaited(analysis: AnalysisDocument) -> Sequence[str]:
    told = []
    if analysis.eta_seconds is not None:
        rest = length(timedelta(seconds=analysis.eta_seconds))
        told.append(f"More requests: about {rest} of them at the rate of then.")
    if analysis.replicas_needed is not None:
        told.append(
            f"More canary pods: the next step needs {analysis.replicas_needed}, or each would get "
            "more load than any has carried."
        )
    for signal in analysis.signals:
        doubted = signal.verdict is Verdict.INCONCLUSIVE and signal.upper is not None
        if doubted and _number(signal.upper) > 0:
            told.append(
                f"{signal.name}: it passes when its upper bound, {signal.upper}, falls below zero, "
                f"and fails when its lower one, {signal.lower or 'unknown'}, rises above it."
            )
    return told


def _number(text: str | None) -> float:
    """Return the number in front of a unit."""
    try:
        return float((text or "").split()[0])
    except (IndexError, ValueError):
        return 0.0
