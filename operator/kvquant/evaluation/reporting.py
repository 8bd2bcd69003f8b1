"""From an evaluation that has been run to the report for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from kvquant import __version__
from kvquant.core.evaluation_summary import Outcome
from kvquant.evaluation.arms import Arm
from kvquant.evaluation.cells import ALL, Cell, Margins
from kvquant.evaluation.document import (
    ArmDocument,
    CellDocument,
    EvaluationDocument,
    ExampleDocument,
    ExampleMeasureDocument,
    FailureDocument,
    MeasureDocument,
    SettingsDocument,
    WorstDocument,
)
from kvquant.evaluation.judging import Judged, worse, worst_examples
from kvquant.evaluation.plan import Run
from kvquant.evaluation.results import AGAIN, BASELINE, CANARY, Result, Said

WORST = 20
"""Examples that are shown with their texts."""
DIGITS = 6


def document(run: Run) -> EvaluationDocument:
    """Return the report for programs."""
    plan, judged = run.plan, run.judged
    results = sorted(run.results, key=lambda result: result.id)
    return EvaluationDocument(
        generated_at=run.now,
        version=__version__,
        rollout=plan.rollout,
        dataset=plan.dataset.name,
        dataset_digest=plan.dataset.digest,
        outcome=Outcome(judged.verdict.value),
        message=judged.message,
        examples=judged.examples,
        answered=judged.answered,
        looks=judged.looks,
        seconds=round(run.seconds, 1),
        baseline=_arm(plan.baseline, results, BASELINE),
        canary=_arm(plan.canary, results, CANARY),
        settings=SettingsDocument(
            margin_percent=round(100 * plan.margins.answers, DIGITS),
            drift_percent=round(100 * plan.margins.drift, DIGITS),
            noise_percent=plan.pace.noise_percent,
            concurrency=plan.pace.concurrency,
            answer_tokens=plan.pace.answer_tokens,
            seed=plan.pace.seed,
        ),
        failures=_counted(
            (arm, said.failure) for one in results for arm, said in one.said.items() if said.failure
        ),
        unscored=_counted((CANARY, one.unscored) for one in results if one.unscored),
        measures=tuple(_measures(judged)),
        worst=tuple(
            _worst(one, plan.margins) for one in worst_examples(results, plan.margins, WORST)
        ),
        results=tuple(_example(one) for one in results),
    )


def _arm(arm: Arm, results: Sequence[Result], name: str) -> ArmDocument:
    names = (name, AGAIN) if name == BASELINE else (name,)
    seen = {one.said[n].fingerprint for one in results for n in names if n in one.said}
    return ArmDocument(place=arm.place, model=arm.model, fingerprints=tuple(sorted(seen - {""})))


def _counted(reasons: Iterator[tuple[str, str]]) -> tuple[FailureDocument, ...]:
    counts: dict[tuple[str, str], int] = {}
    for key in reasons:
        counts[key] = counts.get(key, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        FailureDocument(arm=arm, reason=reason, count=count) for (arm, reason), count in ranked
    )


def _measures(judged: Judged) -> Iterator[MeasureDocument]:
    noise = {cell.measure.name: cell for cell in judged.noise}
    for whole in (cell for cell in judged.cells if cell.by == ALL):
        measure = whole.measure
        alone = noise.get(measure.name)
        yield MeasureDocument(
            name=measure.name,
            title=measure.title,
            scale=measure.scale.value,
            judged=measure.judged,
            margin=_rounded(whole.margin),
            noise=None if alone is None else _rounded(alone.interval.mean),
            noise_pairs=0 if alone is None else alone.pairs,
            cells=tuple(_cell(cell) for cell in judged.cells if cell.measure is measure),
        )


def _cell(cell: Cell) -> CellDocument:
    by: Literal["all", "length", "kind"] = (
        "all" if cell.by == "all" else "length" if cell.by == "length" else "kind"
    )
    return CellDocument(
        by=by,
        name=cell.name,
        pairs=cell.pairs,
        baseline=_rounded(cell.baseline),
        canary=_rounded(cell.canary),
        difference=_rounded(cell.interval.mean),
        lower=_rounded(cell.interval.lower),
        upper=_rounded(cell.interval.upper),
        sure=None if cell.interval.lower <= cell.margin else _rounded(cell.sure),
        suspect=cell.is_suspect,
        flips_p=None if cell.chance is None else _rounded(cell.chance),
        outcome=Outcome(cell.verdict.value),
    )


def _example(one: Result) -> ExampleDocument:
    baseline, canary = one.said.get(BASELINE, Said()), one.said.get(CANARY, Said())
    return ExampleDocument(
        id=one.id,
        endpoint=one.endpoint,
        bucket=one.bucket,
        kind=one.kind.value,
        baseline_failure=baseline.failure or None,
        canary_failure=canary.failure or None,
        baseline_seconds=round(baseline.seconds, 3),
        canary_seconds=round(canary.seconds, 3),
        first_token=one.first_token,
        first_character=one.first_character,
        length_ratio=None if one.length_ratio is None else _rounded(one.length_ratio),
        harms=tuple(
            ExampleMeasureDocument(
                name=name, baseline=_rounded(harm.first), canary=_rounded(harm.second)
            )
            for name, harm in one.harms.items()
        ),
    )


def _worst(one: Result, margins: Margins) -> WorstDocument:
    def text(arm: str) -> str:
        said = one.said.get(arm, Said())
        return f"(no answer: {said.failure})" if said.failure else said.text

    return WorstDocument(
        id=one.id,
        bucket=one.bucket,
        kind=one.kind.value,
        worse=tuple(measure.name for measure, _, _ in worse(one, margins)),
        prompt=one.prompt,
        baseline=text(BASELINE),
        canary=text(CANARY),
    )


def _rounded(value: float) -> float:
    return round(value, DIGITS) + 0.0  # no negative zero
