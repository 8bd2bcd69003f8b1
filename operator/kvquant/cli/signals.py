"""Signals in few columns: what each is called, what of it fits, and which of them to show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from kvquant.api.v1alpha1 import Verdict
from kvquant.cli.looks import AnalysisDocument, SignalDocument
from kvquant.cli.paint import Paint, tame, visible
from kvquant.cli.times import length

STYLES = {
    Verdict.PASS: ("✓", "good"),
    Verdict.FAIL: ("✗", "bad"),
    Verdict.ERROR: ("✗", "warn"),
    Verdict.INCONCLUSIVE: ("…", "warn"),
}
"""Glyph and style of each verdict."""

NAMES = {
    "latencyP50": "beyond p50",
    "latencyP90": "beyond p90",
    "latencyP99": "beyond p99",
    "firstTokenP90": "TTFT p90",
    "firstTokenP99": "TTFT p99",
    "tokenTime": "token time",
    "delivered": "delivered",
    "failures": "failures",
    "deaths": "deaths",
    "pageFaults": "page faults",
    # Of the answers to copied requests.
    "drift": "drift",
    "answered": "unanswered",
    "json": "broken JSON",
    "toolCalls": "tool calls",
    "citations": "citations",
    "refusals": "refusals",
    "endings": "cut off",
    "saturated": "full: wrong",
    "saturatedAnswered": "full: lost",
    # As an older operator names them.
    "oomRetries": "OOM retries",
    "p99": "beyond p99",
}

_SAMPLE = re.compile(r" of [\d,]+ requests$")
_MORE = re.compile(r"^([\d.]+ %) (?:slower|more)$")
_LESS = re.compile(r"^([\d.]+ %) less$")
_PER_100 = re.compile(r"^\+?([\d.]+) per 100 requests")
_PER_100_SHORT = re.compile(r" per 100( requests)?")
_PER_HOUR = re.compile(r"^([\d.]+) per pod and hour$")


def title(name: str) -> str:
    """Return a signal's name for people."""
    return NAMES.get(name, tame(name))


def allowed(tolerance: str | None) -> str:
    """Return what is tolerated, in eight columns if it is one of ours."""
    text = tame(tolerance or "").replace(" points", " pt")
    for pattern, short in (
        (_MORE, r"+\1"),
        (_LESS, r"-\1"),
        (_PER_100, r"+\1/100"),
        (_PER_HOUR, r"\1/h"),
    ):
        if pattern.search(text):
            return pattern.sub(short, text).removesuffix(" beyond twice the baseline's")
    return text


def measured(signal: SignalDocument, text: str | None, *, roomy: bool) -> str:
    """Return an arm's value; what is missing is never told as zero."""
    if text is None:
        return "no data" if signal.verdict is Verdict.ERROR else "-"
    short = _SAMPLE.sub("", tame(text)).replace(" engine deaths", "")
    return short if roomy else _PER_100_SHORT.sub("/100", short)


def judged(signal: SignalDocument, paint: Paint) -> str:
    """Return the verdict with its glyph."""
    glyph, style = STYLES[signal.verdict]
    waits = signal.verdict is Verdict.INCONCLUSIVE
    return paint(f"{glyph} {'Waiting' if waits else signal.verdict.value}", style)


def foremost(signals: Sequence[SignalDocument], room: int) -> tuple[list[SignalDocument], int]:
    """Return the signals to show, in their order, and how many are left out.

    What failed comes before what is in doubt, and that before what passed or was not measured.

    Args:
        signals: All of them.
        room: Rows that there are, at least.
    """

    def rank(signal: SignalDocument) -> tuple[int, int, int]:
        order = (Verdict.FAIL, Verdict.ERROR, Verdict.PASS, Verdict.INCONCLUSIVE)
        known = signal.baseline is not None or signal.canary is not None
        spent = signal.budget_spent_percent or 0
        return order.index(signal.verdict) // 2, 0 if known else 1, -spent

    if len(signals) <= room:
        return [*signals], 0
    first = sorted(signals, key=rank)[: room - 1]
    kept = [signal for signal in signals if signal in first]
    return kept, len(signals) - len(kept)


def standing(analysis: AnalysisDocument) -> list[str]:
    """Return how far a look at the evidence is: time to go, budget spent, load per pod."""
    told = []
    if analysis.eta_seconds is not None:
        told.append(f"about {length(timedelta(seconds=analysis.eta_seconds))} to go at this rate")
    elif analysis.verdict is Verdict.INCONCLUSIVE:
        told.append("time to go not known")
    if analysis.budget_spent_percent is not None:
        told.append(f"{analysis.budget_spent_percent} % of the error budget spent")
    if analysis.load_ratio is not None:
        doubt = " (a pass is provisional)" if analysis.provisional else ""
        told.append(f"load per pod x{analysis.load_ratio}{doubt}")
    if analysis.replicas_needed is not None:
        told.append(f"the next step needs {analysis.replicas_needed} canary pods")
    return told


def table(analysis: AnalysisDocument, paint: Paint) -> list[str]:
    """Return every signal as a line of a table, with a heading."""
    heads = ("signal", "baseline", "canary", "allowed", "effect", "lower", "upper", "spent", "")
    rows = [
        (
            title(signal.name),
            measured(signal, signal.baseline, roomy=False),
            measured(signal, signal.canary, roomy=False),
            allowed(signal.tolerance),
            *(tame(text or "-") for text in (signal.effect, signal.lower, signal.upper)),
            "-" if signal.budget_spent_percent is None else f"{signal.budget_spent_percent} %",
            judged(signal, paint),
        )
        for signal in analysis.signals
    ]
    widths = [max(visible(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            f"{cell:<{width}}" if i in (0, len(row) - 1) else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [paint(line(heads), "bold"), *(line(row) for row in rows)]
