"""The verb `explain`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime

import click

from kvquant.api.v1alpha1 import DecisionKind
from kvquant.cli import copies, rollouts
from kvquant.cli.completing import rollout_names
from kvquant.cli.errors import Failure
from kvquant.cli.explanation import DecisionDocument, ExplanationDocument, PoolDocument, explanation
from kvquant.cli.paint import Paint, tame
from kvquant.cli.reading_verbs import OUTPUT, dump
from kvquant.cli.session import Session, Verb, with_session
from kvquant.cli.signals import STYLES, standing, table
from kvquant.cli.times import ago

WIDEST = 110
LABEL = 13

_KIND_STYLES = {
    DecisionKind.ADVANCE: "accent",
    DecisionKind.PROMOTE: "good",
    DecisionKind.ADOPT: "good",
    DecisionKind.ROLL_BACK: "bad",
    DecisionKind.KILL: "bad",
    DecisionKind.HOLD: "dim",
}


@click.command(
    cls=Verb,
    epilog="""
    {program} explain llama-fp8                 # every decision in words
    {program} explain llama-fp8 --decision 7    # one of them with its table of signals
    {program} explain llama-fp8 -o json | jq '.decisions[] | select(.kind == "RollBack")'
    """,
)
@click.argument("name", shell_complete=rollout_names)
@click.option(
    "--decision",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show one decision with the evidence that it rested on, by its number.",
)
@OUTPUT
@with_session
def explain(session: Session, name: str, decision: int | None, output: str) -> None:
    """Say why a rollout went as it did, decision by decision.

    Reads the rollout's record, which keeps the newest 200 decisions with both arms' values, effect,
    bounds, tolerance and error budget of each signal, and with the fingerprint that the canary's
    answers bear. In the table of signals, effect is the harm beyond what is allowed: a signal fails
    when the lower bound rises above zero, and passes when the upper one falls below it.
    """
    seen = rollouts.find(session.cluster, session.namespace, name)
    told = explanation(session.cluster, seen)
    for problem in told.problems:
        click.echo(f"warning: {tame(problem)}", err=True)
    one = None if decision is None else _find(told, decision)
    if output == "json":
        click.echo(dump(told if one is None else one))
        return
    paint = session.around.paint()
    width = shutil.get_terminal_size().columns if paint.interactive else WIDEST
    width = max(60, min(width, WIDEST))
    if one is not None:
        lines = _one(told, one, session.around.now(), paint, width)
    else:
        lines = _all(told, session.command("explain", name), paint, width)
    for line in lines:
        click.echo(paint.shown(line).rstrip())


def _find(told: ExplanationDocument, number: int) -> DecisionDocument:
    found = next((one for one in told.decisions if one.number == number), None)
    if found is not None:
        return found
    numbers = [one.number for one in told.decisions if one.number is not None]
    known = f"those of {numbers[0]} to {numbers[-1]} are known" if numbers else "none is known"
    raise Failure(f"--decision {number}: there is no such decision of {told.name}; {known}")


def _all(told: ExplanationDocument, again: str, paint: Paint, width: int) -> Iterator[str]:
    head = paint(f"{told.namespace}/{told.name}", "bold")
    count = len(told.decisions)
    yield f"{head}   {count} decision{'' if count == 1 else 's'}"
    attempt: int | None = None
    for one in told.decisions:
        if one.attempt != attempt:
            attempt = one.attempt
            yield ""
            yield paint(_attempt(one), "bold")
        number = "-" if one.number is None else str(one.number)
        what = paint(one.kind.value, _KIND_STYLES.get(one.kind, ""))
        yield (
            f"{number:>4}  {_instant(one.at)}  {what}  step {one.step}, "
            f"{one.weights.canary} % to the canary"
            f"{_verdict(one, paint)}"
        )
        yield from textwrap.wrap(
            tame(one.message), width, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    if told.decisions:
        yield ""
        yield paint(f"One of them with its evidence: {again} --decision N", "dim")


def _attempt(one: DecisionDocument) -> str:
    if one.attempt == 0:
        return "Before the first attempt"
    marked = f", whose canary's answers bear {one.fingerprint}" if one.fingerprint else ""
    return f"Attempt {one.attempt}{marked}"


def _verdict(one: DecisionDocument, paint: Paint) -> str:
    look = one.analysis or one.shadow
    if look is None:
        return ""
    glyph, style = STYLES[look.verdict]
    return "  " + paint(f"{glyph} {look.verdict.value}", style)


def _one(
    told: ExplanationDocument, one: DecisionDocument, now: datetime, paint: Paint, width: int
) -> Iterator[str]:
    style = _KIND_STYLES.get(one.kind, "")
    name = paint(f"{told.namespace}/{told.name}", "bold")
    yield f"{name}   decision {one.number}: {paint(one.kind.value, 'bold', style)} ({one.reason})"
    yield ""
    rows = [("when", f"{_instant(one.at)} UTC, {ago(one.at, now)}"), ("attempt", _marked(one))]
    step = f"{one.step}/{one.total_steps}" if one.total_steps else str(one.step)
    weights = f"baseline {one.weights.baseline} %, canary {one.weights.canary} %"
    rows.append(("step", f"{step}; weights after it: {weights}"))
    if one.baseline is not None and one.canary is not None:
        rows.append(
            (
                "pools",
                f"{_pool(one.baseline)} against {_pool(one.canary)}",
            )
        )
    rows.append(("why", one.message))
    analysis, shadow = one.analysis, one.shadow
    if analysis is None and shadow is None:
        rows.append(("evidence", "none: this decision rests on no measurement"))
    if analysis is not None:
        counts = (
            f"read at {analysis.at.astimezone(UTC):%H:%M:%S}: {_count(analysis.baseline_requests)} "
            f"baseline and {_count(analysis.canary_requests)} canary requests"
        )
        rows.append(("evidence", "; ".join([counts, *standing(analysis)])))
    if shadow is not None:
        read = f"read at {shadow.at.astimezone(UTC):%H:%M:%S}"
        told_of = [read, *copies.standing(shadow), copies.losses(shadow), copies.gaps(shadow)]
        rows.append(("copies", "; ".join(text for text in told_of if text)))
    for label, text in rows:
        yield from _row(label, text, width)
    if analysis is not None and analysis.signals:
        yield ""
        yield from (f"  {line}" for line in table(analysis, paint))
    if shadow is not None and shadow.signals:
        yield ""
        yield from (f"  {line}" for line in copies.table(shadow, paint, width - 2))
        yield from _row("", copies.LEGEND, width)
    if one.signals_left_out:
        yield f"  and {one.signals_left_out} signals more, which passed"
    if one.changes:
        yield ""
        yield "  What would have changed the verdict:"
        for change in one.changes:
            yield from textwrap.wrap(
                tame(change), width, initial_indent="  - ", subsequent_indent="    "
            )


def _row(label: str, text: str, width: int) -> Iterator[str]:
    first, *others = textwrap.wrap(tame(text), width - LABEL) or [""]
    yield f"  {label:<{LABEL - 2}}{first}"
    yield from (f"{' ' * LABEL}{line}" for line in others)


def _marked(one: DecisionDocument) -> str:
    if one.attempt == 0:
        return "none yet"
    mark = one.fingerprint
    return f"{one.attempt}; the canary's answers bear {mark}" if mark else f"{one.attempt}"


def _instant(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _pool(pool: PoolDocument) -> str:
    return f"{pool.pool} ({pool.dtype}, {pool.replicas} pod{'' if pool.replicas == 1 else 's'})"


def _count(value: int | None) -> str:
    return "an unknown number of" if value is None else f"{value:,}"
