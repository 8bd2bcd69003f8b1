"""The complete record of a rollout: every decision with the numbers that it rested on.

The status is what the operator remembers, and keeps little. The record is what people read, long
afterwards if need be: each decision as one line of JSON under its number, in a ConfigMap that goes
with the rollout. It follows from persisted statuses alone, so that a write that was lost is made
again by the next pass, and the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime

from kvquant.api import names
from kvquant.api.fields import Model
from kvquant.api.v1alpha1 import (
    AnalysisReport,
    DecisionKind,
    DecisionRecord,
    KVQuantRollout,
    Pool,
    ShadowReport,
    SignalReport,
    Status,
    Verdict,
    Weights,
)

KEPT = 200
"""Decisions that a record holds; the oldest go first."""

LARGEST = 4_500
"""Bytes of one decision. Two hundred of these fit into a ConfigMap, which may have a MiB."""

DIGITS = 6


class Entry(Model):
    """One decision in the record, complete."""

    number: int
    """Number of the decision, counted from 1 over all attempts."""
    at: AwareDatetime
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
    """Split of the traffic after the decision, in per cent."""
    baseline: Pool | None = None
    """The pool that served when the attempt began."""
    canary: Pool | None = None
    """The pool with the quantized cache."""
    analysis: AnalysisReport | None = None
    """The look at the evidence that it rested on; null for one that rests on no measurement."""
    shadow: ShadowReport | None = None
    """The look at the answers to copied requests that it rested on; null for a decision that was
    not made by them."""
    signals_left_out: int = 0
    """Signals that passed and are left out, because the entry would be too long."""


def name_of(rollout: str) -> str:
    """Return the name of the ConfigMap that is a rollout's record."""
    return f"{rollout}{names.RECORD_SUFFIX}"


def fingerprint(uid: str, attempt: int) -> str:
    """Return what the answers of an attempt's canary bear in `system_fingerprint`.

    Args:
        uid: The rollout's.
        attempt: Number of the attempt.
    """
    # Clients see it, and learn nothing from it.
    return f"kvq-{hashlib.sha256(f'{uid}/{attempt}'.encode()).hexdigest()[:12]}"


def key_of(number: int) -> str:
    """Return under which key of the record's data a decision stands; keys sort as numbers do."""
    return f"{number:0{DIGITS}d}"


def missing(status: Status, recorded: int) -> tuple[DecisionRecord, ...]:
    """Return the decisions of a status that its record does not hold yet, oldest first.

    Args:
        status: The status.
        recorded: Number of the newest decision in the record; 0 for an empty one.
    """
    numbered = [d for d in status.decisions if d.number is not None]
    newest = max((d.number or 0 for d in numbered), default=0)
    if newest < recorded:
        # Somebody has cut the status, and numbers have begun anew.
        return tuple(numbered)
    return tuple(d for d in numbered if (d.number or 0) > recorded)


def additions(rollout: KVQuantRollout, recorded: int) -> Mapping[str, str | None]:
    """Return how the record's data has to change: lines to add, and None for lines to remove.

    Args:
        rollout: The rollout as it is persisted.
        recorded: Number of the newest decision in the record; 0 for an empty one.
    """
    changes: dict[str, str | None] = {}
    for decision in missing(rollout.status, recorded):
        assert decision.number is not None  # noqa: S101 - those without are not missing
        changes[key_of(decision.number)] = line(entry(rollout, decision))
        if decision.number > KEPT:
            changes[key_of(decision.number - KEPT)] = None
    return changes


def entry(rollout: KVQuantRollout, decision: DecisionRecord) -> Entry:
    """Return a decision with everything that is known of it.

    The latest look at the evidence belongs to it unless it came later, as when the record could
    not be written for a while; so do pools and steps unless another attempt has begun since.
    """
    status, uid = rollout.status, rollout.metadata.uid
    later = [d for d in status.decisions if (d.number or 0) > (decision.number or 0)]
    begun_since = sum(1 for d in later if d.kind is DecisionKind.START)
    attempt = max(0, status.attempt - begun_since)
    present = begun_since == 0
    analysis, shadow = status.analysis, status.shadow
    marked = rollout.spec.engine.fingerprint and attempt > 0
    return Entry(
        number=decision.number or 0,
        at=decision.at,
        kind=decision.kind,
        reason=decision.reason,
        message=decision.message,
        attempt=attempt,
        fingerprint=fingerprint(uid, attempt) if marked else None,
        step=decision.step,
        total_steps=status.total_steps if present else 0,
        weights=Weights(baseline=100 - decision.weight, canary=decision.weight),
        baseline=status.baseline if present else None,
        canary=status.canary if present else None,
        analysis=analysis if present and analysis and analysis.at <= decision.at else None,
        shadow=shadow if present and shadow and _rests_on(decision, shadow) else None,
    )


def _rests_on(decision: DecisionRecord, shadow: ShadowReport) -> bool:
    """Tell whether a decision was made while answers to copies decided: until the first step."""
    if shadow.at > decision.at:
        return False
    return decision.step == 0 or (decision.step == 1 and decision.kind is DecisionKind.ADVANCE)


def line(full: Entry) -> str:
    """Return an entry as one line of JSON that is not too long.

    What goes first is what can be told from the rest: the sentences of signals that passed, the
    sentence of the look at the evidence, which the decision's repeats; then signals that passed.
    What people wrote into the decision's own sentence goes last.
    """
    told = full
    for shorten in (_without_sentences, _without_signals):
        for look in _LOOKS:
            told = shorten(told, look)
    while told.message and _too_long(told):
        told = told.model_copy(update={"message": told.message[: len(told.message) // 2]})
    return _json(told)


_Look = Literal["analysis", "shadow"]
_LOOKS: tuple[_Look, ...] = ("analysis", "shadow")


def _without_sentences(told: Entry, look: _Look) -> Entry:
    """Return an entry that is too long without what can be told from a look's numbers."""
    report: AnalysisReport | ShadowReport | None = getattr(told, look)
    if report is None or not _too_long(told):
        return told
    brief = tuple(_brief(signal) for signal in report.signals)
    return told.model_copy(
        update={look: report.model_copy(update={"signals": brief, "message": ""})}
    )


def _without_signals(told: Entry, look: _Look) -> Entry:
    """Return an entry without the signals of a look that make it too long, passed ones first."""
    report: AnalysisReport | ShadowReport | None = getattr(told, look)
    while report is not None and report.signals and _too_long(told):
        passed = [s for s in report.signals if s.verdict is Verdict.PASS]
        least = (passed or report.signals)[-1]
        kept = tuple(s for s in report.signals if s is not least)
        report = report.model_copy(update={"signals": kept})
        left_out = told.signals_left_out + 1
        told = told.model_copy(update={look: report, "signals_left_out": left_out})
    return told


def read(data: Mapping[str, str]) -> list[Entry]:
    """Return the entries of a record, oldest first.

    Lines that this version cannot read, and whatever else somebody has put there, are left out.
    """
    found = []
    for key in sorted(data):
        try:
            found.append(Entry.model_validate(json.loads(data[key])))
        except (TypeError, ValueError):
            # pydantic's errors are ValueErrors, too.
            continue
    return found


def _too_long(told: Entry) -> bool:
    return len(_json(told).encode()) > LARGEST


def _brief(signal: SignalReport) -> SignalReport:
    if signal.verdict is not Verdict.PASS:
        return signal.model_copy(update={"message": signal.message[:300]})
    return signal.model_copy(update={"message": ""})


def _json(told: Entry) -> str:
    fields = told.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
