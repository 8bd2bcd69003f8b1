"""`status NAME` on one screen: lines of text from a document, an instant and a paint."""

from __future__ import annotations

import re
import textwrap
from datetime import datetime, timedelta

from kvquant.api.v1alpha1 import AlertPolicy, DecisionKind, DecisionRecord, Phase, PodProof, Verdict
from kvquant.cli import copies
from kvquant.cli.documents import (
    AlertDocument,
    ArmDocument,
    RolloutDocument,
    StepDocument,
    StepState,
)
from kvquant.cli.paint import Paint, fit, squeeze, tame, visible
from kvquant.cli.signals import STYLES, allowed, foremost, judged, measured, standing, title
from kvquant.cli.times import ago, coarse, length

WIDEST = 110
"""Columns beyond which lines get hard to read."""

LABEL = 15
PODS_SHOWN = 4
DECISIONS_SHOWN = 5
SIGNALS_SHOWN = 6

PHASE_STYLES = {
    Phase.PROMOTED: "good",
    Phase.ROLLING_BACK: "bad",
    Phase.ROLLED_BACK: "bad",
    Phase.PENDING: "warn",
}

_GLYPHS = {
    StepState.DONE: ("✓", "good"),
    StepState.CURRENT: ("●", "accent"),
    StepState.NEXT: ("◐", "accent"),
    StepState.TODO: ("○", "dim"),
    StepState.FAILED: ("✗", "bad"),
}

_LONG = re.compile(r"(?<![\d.])(\d{3,7}) s\b")
_SOAK = re.compile(r" ?Soak: \d+ s left\.")


def screen(
    document: RolloutDocument,
    now: datetime,
    paint: Paint,
    width: int = 80,
    height: int | None = None,
) -> list[str]:
    """Return the lines that show a rollout.

    Args:
        document: What is known of it.
        now: The present instant.
        paint: What the stream can show.
        width: Columns of the terminal.
        height: Rows of the terminal, when the lines are to fit them: old decisions are left out.
    """
    width = max(60, min(width, WIDEST))
    above = [
        *_header(document, now, paint, width),
        "",
        *_ladder(document, now, paint, width),
        _bar(document, paint, width),
        "",
        *_arms(document, paint, width),
        *_now(document, now, paint, width),
    ]
    proofs, below = _proofs(document, paint, width), _can(document, paint)
    proofs += _examples(document, paint, width)
    # At least one decision is shown.
    left = None if height is None else height - len(above) - len(proofs) - len(below) - 2
    above += [*copies.section(document, paint, width, left), *proofs]
    room = DECISIONS_SHOWN
    if height is not None:
        room = max(1, min(room, height - len(above) - len(below) - 1))
    lines = [*above, *_decisions(document, now, paint, width, room), *below]
    return [paint.shown(line).rstrip() for line in lines]


def _header(document: RolloutDocument, now: datetime, paint: Paint, width: int) -> list[str]:
    name = f"{document.namespace}/{document.name}"
    asked, resolved = document.dtype, document.resolved_dtype
    dtype = resolved if resolved and resolved.startswith(asked) else resolved or asked
    begun = document.baseline.dtype if document.baseline else None
    what = f"{document.target}  {f'{begun} → ' if begun else '→ '}{dtype}"
    age = f"age {coarse(now - document.created_at)}" if document.created_at else ""
    attempt = f"attempt {document.attempt}" if document.attempt else ""
    right = "  ".join(part for part in (document.phase.value, attempt, age) if part)
    style = PHASE_STYLES.get(document.phase, "accent")
    told = paint(document.phase.value, "bold", style) + paint(
        right[len(document.phase.value) :], "dim"
    )
    gap = width - len(name) - len(what) - len(right) - 3
    if gap >= 1:
        lines = [f"{paint(name, 'bold')}   {what}{' ' * gap}{told}"]
    else:
        name = squeeze(name, max(20, width - len(right) - 2))
        gap = max(2, width - len(name) - len(right))
        lines = [f"{paint(name, 'bold')}{' ' * gap}{told}", f"  {fit(what, width - 2)}"]
    if document.killed:
        text = f"■ KILLED: every request goes to the baseline. {tame(document.killed)}"
        lines += _wrapped(text, width, paint, "bold", "bad")
    if document.paused:
        lines += _wrapped(f"■ PAUSED. {tame(document.paused)}", width, paint, "bold", "warn")
    for warning in document.warnings:
        lines += _wrapped(f"■ {warning}", width, paint, "warn")
    for alert in document.alerts:
        lines += _wrapped(_alert(alert, now), width, paint, "warn")
    return lines


def _alert(alert: AlertDocument, now: datetime) -> str:
    does = {"rollback": "rolls back", "pause": "holds the step", "ignore": "is ignored"}
    effect = does[alert.policy.value]
    if alert.before_traffic and alert.policy is not AlertPolicy.IGNORE:
        effect = "fired before the canary had traffic: nothing moves until it is over"
    return f"■ ALERT {tame(alert.name)} fires since {coarse(now - alert.since)}; it {effect}."


def _ladder(document: RolloutDocument, now: datetime, paint: Paint, width: int) -> list[str]:
    def rung(step: StepDocument) -> str:
        glyph, style = _GLYPHS[step.state]
        return paint(f"{step.weight} {glyph}", style, "bold" if style == "accent" else "")

    rows = [""]
    for number, step in enumerate(document.steps):
        joint = paint(" ── ", "dim") if number else ""
        if visible(rows[-1] + joint) + len(f"{step.weight} x") > width - LABEL:
            rows.append("")
        rows[-1] += joint + rung(step)
    soak = _soak(document, now)
    if visible(rows[-1]) + 3 + len(soak) > width - LABEL:
        rows.append(paint(soak, "dim"))
    elif soak:
        rows[-1] += f"   {paint(soak, 'dim')}"
    heads = ["steps", *[""] * (len(rows) - 1)]
    return [f"  {head:<{LABEL - 2}}{row}" for head, row in zip(heads, rows, strict=True)]


def _soak(document: RolloutDocument, now: datetime) -> str:
    """Say how long the step has lasted, and how long it must."""
    if document.phase is not Phase.PROGRESSING or document.step_started_at is None:
        return ""
    where = f"step {document.step}/{document.total_steps}"
    if not 1 <= document.step <= len(document.steps):
        return where
    needed = timedelta(seconds=document.steps[document.step - 1].soak_seconds)
    lasted = now - document.step_started_at
    if lasted >= needed:
        return f"{where}, soaked {length(needed)}"
    return f"{where}, soak {length(lasted)} of {length(needed)}"


def _bar(document: RolloutDocument, paint: Paint, width: int) -> str:
    weights = document.weights
    label = f"  {'weights':<{LABEL - 2}}"
    left, right = f"baseline {weights.baseline} % ", f" {weights.canary} % canary"
    cells = max(10, width - len(label) - len(left) - len(right))
    canary = round(cells * weights.canary / 100)
    # One cell at least, so that a small share is seen.
    canary = max(canary, 1) if weights.canary else 0
    canary = min(canary, cells - 1) if weights.baseline else canary
    return (
        f"{label}{paint(left, 'baseline')}{paint('█' * (cells - canary), 'baseline')}"
        f"{paint('▒' * canary, 'canary')}{paint(right, 'canary')}"
    )


def _arms(document: RolloutDocument, paint: Paint, width: int) -> list[str]:
    if document.baseline is None or document.canary is None:
        return []
    column = (width - LABEL - 20) // 2
    roomy = column >= 22

    def row(label: str, baseline: str, canary: str, rest: str = "", after: str = "") -> str:
        cells = f"  {label:<{LABEL - 2}}{fit(baseline, column - 2):<{column}}"
        return f"{cells}{fit(canary, column - 2):<{column}}{rest:<9}{after}"

    head = row("", "baseline", "canary", "allowed" if document.analysis else "")
    lines = [
        paint(head, "bold"),
        row(
            "pool",
            squeeze(document.baseline.pool, column - 2),
            squeeze(document.canary.pool, column - 2),
        ),
        row("KV cache", _cache(document.baseline), _cache(document.canary)),
    ]
    analysis = document.analysis
    if analysis is None:
        return [*lines, ""]
    lines += [
        row(
            "requests",
            _number(document.baseline.requests),
            _number(document.canary.requests)
            + (
                f", x{analysis.load_ratio}{' per pod' if roomy else ''}"
                if analysis.load_ratio
                else ""
            ),
        ),
        row("p99", _milliseconds(document.baseline.p99_ms), _milliseconds(document.canary.p99_ms)),
    ]
    shown, more = foremost(analysis.signals, SIGNALS_SHOWN)
    lines += [
        row(
            title(signal.name),
            measured(signal, signal.baseline, roomy=roomy),
            measured(signal, signal.canary, roomy=roomy),
            fit(allowed(signal.tolerance), 8),
            judged(signal, paint),
        )
        for signal in shown
    ]
    if more:
        lines.append(paint(f"  {'':<{LABEL - 2}}and {more} signals more: explain", "dim"))
    return [*lines, ""]


def _cache(arm: ArmDocument) -> str:
    return f"{arm.dtype}, {arm.replicas} pod{'' if arm.replicas == 1 else 's'}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _milliseconds(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,} ms" if value < 10_000 else f"{value / 1000:,.1f} s"


def _now(document: RolloutDocument, now: datetime, paint: Paint, width: int) -> list[str]:
    """Say why it stands where it stands: what it waits for, why it went back, or what it does."""
    if document.cause is not None:
        label, text, style = "cause", document.cause, "bad"
    elif document.waiting is not None:
        since = document.waiting.since
        label, style = "waits", "warn"
        text = document.waiting.message or document.waiting.reason
        if since is not None and now - since >= timedelta(seconds=1):
            label = f"waits {coarse(now - since)}"
        held_by_people = document.waiting.reason in ("Paused", "Killed")
        if document.waiting.soak_left_seconds and not held_by_people:
            left = length(timedelta(seconds=document.waiting.soak_left_seconds))
            text = f"{_SOAK.sub('', text)} Soak left: {left}."
    elif document.verdict:
        label, text, style = "now", document.verdict, "accent"
    else:
        return []
    return [
        *_labelled(label, text, paint, style, width),
        *_evidence(document, paint, width),
        "",
    ]


def _evidence(document: RolloutDocument, paint: Paint, width: int) -> list[str]:
    """Say how far the evidence is, while that matters."""
    analysis = document.analysis
    if analysis is None or document.phase is not Phase.PROGRESSING:
        return []
    return _labelled("evidence", "; ".join(standing(analysis)), paint, "", width)


def _labelled(label: str, text: str, paint: Paint, style: str, width: int) -> list[str]:
    readable = _LONG.sub(lambda match: length(timedelta(seconds=int(match[1]))), tame(text))
    wrapped = textwrap.wrap(readable, width - LABEL, max_lines=4, placeholder=" …") or [""]
    first, *others = wrapped
    return [
        f"  {paint(f'{label:<{LABEL - 2}}', 'bold', style)}{first}",
        *(f"{' ' * LABEL}{line}" for line in others),
    ]


def _proofs(document: RolloutDocument, paint: Paint, width: int) -> list[str]:
    if not document.regime_proof:
        return []
    # What is wrong must not be among what is left out.
    order = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)
    proofs = sorted(document.regime_proof, key=lambda proof: order.index(proof.verdict))
    shown = [_proof(proof, paint, width - LABEL) for proof in proofs[:PODS_SHOWN]]
    if len(proofs) > PODS_SHOWN:
        shown.append(paint(f"and {len(proofs) - PODS_SHOWN} more", "dim"))
    heads = ["regime proof", *[""] * (len(shown) - 1)]
    pairs = zip(heads, shown, strict=True)
    return [*(f"  {head:<{LABEL - 2}}{line}" for head, line in pairs), ""]


def _examples(document: RolloutDocument, paint: Paint, width: int) -> list[str]:
    """Say in one line what the example set has come to."""
    report = document.evaluation
    if report is None:
        return []
    if report.verdict is None:
        told = f"run {report.run} on its way" if report.job else "not asked yet"
        return [f"  {'example set':<{LABEL - 2}}{paint(told, 'dim')}", ""]
    glyph, style = STYLES[report.verdict]
    count = "" if report.answered is None else f"{report.answered:,} of {report.examples:,}  "
    rest = f"{count}{tame(report.message)}"
    return [
        f"  {'example set':<{LABEL - 2}}{paint(glyph, style)} {fit(rest, width - LABEL - 2)}",
        "",
    ]


def _proof(proof: PodProof, paint: Paint, width: int) -> str:
    glyph, style = STYLES[proof.verdict]
    if proof.verdict is Verdict.PASS:
        tokens = f"{proof.capacity_tokens:,} tokens" if proof.capacity_tokens else ""
        factor = f"x{proof.factor}, due x{proof.expected_factor}" if proof.factor else ""
        rest = "  ".join(part for part in (proof.dtype, tokens, factor) if part)
    else:
        rest = tame(proof.message)
    pod = squeeze(proof.pod, max(20, width - len(rest) - 4))
    return f"{paint(glyph, style)} {pod}  {fit(rest, max(10, width - len(pod) - 4))}"


def _decisions(
    document: RolloutDocument, now: datetime, paint: Paint, width: int, room: int
) -> list[str]:
    newest = list(reversed(document.decisions))[:room]
    heads = ["decisions", *[""] * max(0, len(newest) - 1)]
    return [
        f"  {head:<{LABEL - 2}}{_decision(decision, now, paint, width - LABEL)}"
        for head, decision in zip(heads, newest, strict=False)
    ]


def _decision(decision: DecisionRecord, now: datetime, paint: Paint, width: int) -> str:
    when = f"{ago(decision.at, now):>8}"
    weight = f"{decision.weight:>3} %"
    said = f"Hold: {decision.message}" if decision.kind is DecisionKind.HOLD else decision.message
    message = fit(tame(said), width - len(when) - len(weight) - 4)
    style = {"RollBack": "bad", "Kill": "bad", "Promote": "good", "Adopt": "good", "Hold": "dim"}
    told = paint(message, style.get(decision.kind.value, ""))
    return f"{paint(when, 'dim')}  {weight}  {told}"


def _can(document: RolloutDocument, paint: Paint) -> list[str]:
    if not document.verbs:
        return []
    label = "you can".ljust(LABEL - 2)
    return [f"  {paint(label + ', '.join(document.verbs), 'dim')}"]


def _wrapped(text: str, width: int, paint: Paint, *styles: str) -> list[str]:
    lines = textwrap.wrap(text, width, max_lines=3, placeholder=" …", subsequent_indent="  ")
    return [paint(line, *styles) for line in lines]


def table(
    documents: list[RolloutDocument], now: datetime, paint: Paint, width: int = 80
) -> list[str]:
    """Return one line for each rollout, with a heading.

    Args:
        documents: What is known of the rollouts.
        now: The present instant.
        paint: What the stream can show.
        width: Columns of the terminal; the last column is cut to it.
    """
    heads = ("NAMESPACE", "NAME", "TARGET", "DTYPE", "PHASE", "STEP", "CANARY", "AGE", "WHY")
    rows = [
        (
            one.namespace,
            one.name,
            one.target,
            one.resolved_dtype or one.dtype,
            one.phase.value,
            f"{one.step}/{one.total_steps}",
            f"{one.weights.canary} %",
            coarse(now - one.created_at) if one.created_at else "",
            _why(one),
        )
        for one in documents
    ]
    widths = [max(len(r[i]) for r in [heads, *rows]) for i in range(len(heads) - 1)]
    lines = []
    for index, cells in enumerate([heads, *rows]):
        padded = [f"{cell:<{widths[i]}}" for i, cell in enumerate(cells[:-1])]
        left = "  ".join(padded)
        why = fit(cells[-1], max(20, width - visible(left) - 2))
        if index == 0:
            lines.append(paint(f"{left}  {why}".rstrip(), "bold"))
            continue
        document = documents[index - 1]
        padded[4] = paint(padded[4], PHASE_STYLES.get(document.phase, "accent"))
        lines.append(f"{'  '.join(padded)}  {why}".rstrip())
    return [paint.shown(line) for line in lines]


def _why(document: RolloutDocument) -> str:
    if document.killed:
        return f"killed: {tame(document.killed)}"
    if document.paused:
        return f"paused: {tame(document.paused)}"
    if document.waiting is not None:
        return tame(document.waiting.message or document.waiting.reason)
    return tame(document.cause or document.verdict or "")
