"""The report in the few words that an operator reads: `EvaluationSummary`, at most 4096 bytes."""

from __future__ import annotations

from kvquant.core.evaluation_summary import (
    MOST_BYTES,
    EvaluationSummary,
    MeasureSummary,
    Outcome,
)
from kvquant.evaluation.cells import KIND, Cell
from kvquant.evaluation.judging import Judged, decisive
from kvquant.evaluation.statistics import Verdict

LONGEST_MESSAGE = 600
_RANK = {Verdict.FAIL: 0, Verdict.INCONCLUSIVE: 1, Verdict.PASS: 2}


def summarize(judged: Judged) -> EvaluationSummary:
    """Return the verdict with each measure over all examples, or where it is worst."""
    told = sorted(decisive(judged.cells), key=_order)
    return EvaluationSummary(
        outcome=Outcome(judged.verdict.value),
        examples=judged.examples,
        answered=judged.answered,
        message=_cut(judged.message, LONGEST_MESSAGE),
        measures=tuple(_measure(cell) for cell in told),
    )


def text(summary: EvaluationSummary) -> str:
    """Return it as JSON with as many measures as fit where a container's last words are kept."""
    while True:
        told = summary.model_dump_json()
        if len(told.encode()) <= MOST_BYTES:
            return told
        if summary.measures:
            summary = summary.model_copy(update={"measures": summary.measures[:-1]})
        else:
            shorter = _cut(summary.message, len(summary.message) // 2)
            summary = summary.model_copy(update={"message": shorter})


def _order(cell: Cell) -> tuple[int, bool, float]:
    return _RANK[cell.verdict], not cell.is_suspect, cell.margin - cell.interval.upper


def _measure(cell: Cell) -> MeasureSummary:
    return MeasureSummary(
        name=cell.measure.name,
        bucket=f"kind:{cell.name}" if cell.by == KIND else cell.name,
        pairs=cell.pairs,
        difference=round(cell.interval.mean, 4) + 0.0,
        lower=round(cell.interval.lower, 4) + 0.0,
        upper=round(cell.interval.upper, 4) + 0.0,
        margin=round(cell.margin, 4),
        outcome=Outcome(cell.verdict.value),
    )


def _cut(message: str, most: int) -> str:
    return message if len(message) <= most else message[: most - 1].rstrip() + "…"
