"""Copied requests on the screen: how far the pairs are, what each signal says, what they miss."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from datetime import timedelta

from kvquant.api.v1alpha1 import Phase, Verdict
from kvquant.cli.documents import RolloutDocument
from kvquant.cli.looks import ShadowDocument, SignalDocument
from kvquant.cli.paint import Paint, tame, visible
from kvquant.cli.signals import STYLES, foremost, title
from kvquant.cli.times import length
from kvquant.core.quality import FEWEST

LABEL = 15
YIELDING = ("noise", "lower", "pairs")
"""Columns of the table that are left out where it would be too wide, the first one first."""

FEWEST_ROWS = 3
"""Signals that are shown on the lowest terminal."""

TOO_FEW = "Too few"
"""Said of a signal that too few requests are of for it to keep anything from moving."""

_PER_100 = re.compile(r" per 100$")

LEGEND = (
    "lower, upper: bounds of the harm beyond what is allowed; a signal fails when the lower one "
    "rises above zero, and passes when the upper one falls below it"
)


def section(
    document: RolloutDocument, paint: Paint, width: int, room: int | None = None
) -> list[str]:
    """Return the lines of a rollout's screen about copied requests; none when nothing is copied.

    While the copies decide, and when they have ended the rollout, every signal is shown; later two
    lines have to do.

    Args:
        document: The rollout.
        paint: What the stream can show.
        width: Columns of the screen.
        room: Lines that there are, at least; None for as many as it takes. Signals that passed are
            left out first.
    """
    if document.phase is Phase.PROGRESSING and document.weights.mirror:
        told = (
            f"of {document.weights.mirror} % of the generation requests give the canary as much "
            "load per pod as the baseline has"
        )
        return [*_labelled([told], paint, width), ""]
    shadow = document.shadow
    if shadow is None:
        if document.phase is not Phase.SHADOWING:
            return []
        percent = document.weights.mirror
        first = f"{percent} % of the generation requests are copied; no pair is compared yet"
        return [*_labelled([first], paint, width), ""]
    glyph, style = STYLES[shadow.verdict]
    word = "Waiting" if shadow.verdict is Verdict.INCONCLUSIVE else shadow.verdict.value
    first = f"{glyph} {word}"
    parts = [*pairs(shadow), *kept(shadow)]
    lines = _labelled([f"{first}  {'; '.join(parts)}", *same(shadow)], paint, width)
    lines[0] = lines[0].replace(first, paint(first, style), 1)
    lines += [f"{' ' * LABEL}{line}" for line in _misses(shadow, paint, width - LABEL)]
    if _decides(document):
        rows = len(shadow.signals) if room is None else max(FEWEST_ROWS, room - len(lines) - 3)
        shown, more = foremost(shadow.signals, rows)
        brief = shadow.model_copy(update={"signals": tuple(shown)})
        lines += [f"  {line}" for line in table(brief, paint, width - 2)]
        if more:
            lines.append(paint(f"  and {more} more: status -o json", "dim"))
    return [*lines, ""]


def _decides(document: RolloutDocument) -> bool:
    """Tell whether the copies decide, or have ended the rollout."""
    back = document.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
    return document.phase is Phase.SHADOWING or (back and document.step == 0)


def standing(shadow: ShadowDocument) -> list[str]:
    """Return how far the pairs are, of which share of the requests they are, and how equal."""
    return [*pairs(shadow), *kept(shadow), *same(shadow)]


def pairs(shadow: ShadowDocument) -> list[str]:
    """Return how many pairs of how many there are, and how long the others will take."""
    least = shadow.min_pairs
    counted = f"{shadow.pairs:,} pairs"
    if least is not None and shadow.pairs < least:
        counted = f"{shadow.pairs:,} of {least:,} pairs"
    elif least is not None:
        counted += f" ({least:,} asked for)"
    told = [f"{counted}, {shadow.noise_pairs:,} more of the baseline alone"]
    if shadow.eta_seconds is not None:
        eta = length(timedelta(seconds=shadow.eta_seconds))
        told.append(f"about {eta} to go at this rate")
    return told


def kept(shadow: ShadowDocument) -> list[str]:
    """Return how many copies there are, of which share of the requests, and what they lack."""
    share = shadow.copied_percent
    of = "" if share is None else f", {share:g} % of what clients sent"
    told = [f"{shadow.copied:,} copies{of}"]
    if shadow.replaced is not None:
        told.append(f"{shadow.replaced:,} personal values replaced")
    return told


def same(shadow: ShadowDocument) -> list[str]:
    """Return how many texts are the same; nothing when that is not known."""
    if shadow.exact_percent is None:
        return []
    noise = shadow.noise_exact_percent
    against = "" if noise is None else f" (baseline against itself: {noise} %)"
    return [f"{shadow.exact_percent} % of the texts the same{against}"]


def losses(shadow: ShadowDocument) -> str:
    """Return why copies were not compared, in a line; empty when none was lost."""
    if not shadow.dropped:
        return ""
    return "not compared: " + ", ".join(f"{tame(d.reason)} {d.count:,}" for d in shadow.dropped)


def gaps(shadow: ShadowDocument) -> str:
    """Return which lengths of request were not evaluated, in a line; empty when all were."""
    if not shadow.not_evaluated:
        return ""
    missing = [one for one in shadow.buckets if not one.covered]
    told = [
        f"{tame(one.bucket)} ({one.pairs:,} pairs"
        + (")" if one.live is None else f", {one.live:,} requests)")
        for one in missing
    ]
    return "not evaluated for want of pairs: " + ", ".join(told)


def _misses(shadow: ShadowDocument, paint: Paint, width: int) -> list[str]:
    lines = [paint(line, "dim") for line in textwrap.wrap(losses(shadow), width)]
    return lines + [paint(line, "warn") for line in textwrap.wrap(gaps(shadow), width)]


def outcome(signal: SignalDocument, shadow: ShadowDocument) -> str:
    """Return what a signal says in a word or two; what too few pairs have does not block."""
    if signal.verdict is Verdict.FAIL and (signal.lower or "").startswith("-"):
        # Over all requests it is within bounds: one length of them is what failed.
        return "Fail in one length"
    if signal.verdict is not Verdict.INCONCLUSIVE:
        return signal.verdict.value
    few = signal.effect is None or (signal.requests or 0) < FEWEST
    return TOO_FEW if few or shadow.verdict is Verdict.PASS else "Waiting"


def table(shadow: ShadowDocument, paint: Paint, width: int) -> list[str]:
    """Return every signal as a line of a table, with a heading.

    Args:
        shadow: The look.
        paint: What the stream can show.
        width: Columns that there are.
    """
    heads = ["answers", "pairs", "noise", "differs", "allowed", "lower", "upper", ""]
    rows = [heads]
    for signal in shadow.signals:
        values = (signal.baseline, signal.canary, signal.tolerance, signal.lower, signal.upper)
        glyph, style = STYLES[signal.verdict]
        told = outcome(signal, shadow)
        glyph, style = ("·", "dim") if told == TOO_FEW else (glyph, style)
        word = paint(f"{glyph} {told}", style)
        count = "-" if signal.requests is None else f"{signal.requests:,}"
        rows.append([title(signal.name), count, *(_brief(text) for text in values), word])
    lines = _aligned(rows, paint)
    for name in YIELDING:
        if max(map(visible, lines)) > width:
            gone = rows[0].index(name)
            rows = [[*row[:gone], *row[gone + 1 :]] for row in rows]
            lines = _aligned(rows, paint)
    return lines


def _brief(text: str | None) -> str:
    return "-" if text is None else _PER_100.sub("/100", tame(text))


def _aligned(rows: Sequence[Sequence[str]], paint: Paint) -> list[str]:
    widths = [max(visible(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1

    def cell(text: str, index: int) -> str:
        space = " " * (widths[index] - visible(text))
        return text + space if index in (0, last) else space + text

    lines = ["  ".join(cell(t, i) for i, t in enumerate(row)).rstrip() for row in rows]
    return [paint(lines[0], "bold"), *lines[1:]]


def _labelled(parts: Sequence[str], paint: Paint, width: int) -> list[str]:
    first, *others = [line for part in parts for line in textwrap.wrap(part, width - LABEL)]
    head = f"{'copies':<{LABEL - 2}}"
    return [f"  {paint(head, 'bold')}{first}", *(f"{' ' * LABEL}{line}" for line in others)]
